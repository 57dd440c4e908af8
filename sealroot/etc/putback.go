package etc

import (
	"os"

	"sealroot/state/layout"
)

// putBack puts the layer back that was there before an image was on trial, by one exchange
// of two directories, for the trial may have left no room. The layer keeps its owner and
// the merge that it came from, so that all is as if there had been no trial; failed is the
// image that was on trial last, "" when there was nothing to put back. On trial itself an
// image gets a copy of what it had (sides), so that this can fail too; with another list of
// layers than it had, its layer is put back, for the next one to be merged from.
//
// Crash points: behind the exchange the failed layer lies where the other one lay, by
// the wrong name, until the next merge gives it its own (tidy).
func (m *merger) putBack() (failed string, err error) {
	if !m.lastTrial {
		return "", nil
	}
	dir, name, whose, err := m.beforeTrial()
	if err != nil || dir == nil {
		return "", err
	}
	if m.Trial && (whose == m.Image || !sameImage(whose, m.Image) || sameImage(m.live.image, m.Image)) {
		return "", nil
	}
	if err := m.step("put back", func() error { return m.exchange(dir, name) }); err != nil {
		return "", err
	}
	failed = m.live.image
	upper, err := m.dir(m.volume, layout.Etc)
	if err != nil {
		return failed, err
	}
	if m.live, err = readOwner(upper); err != nil {
		return failed, err
	}
	if err := m.tidy(m.live); err != nil {
		return failed, err
	}
	return failed, m.readLast()
}

// beforeTrial is where the layer of before the trial lies, nil when it is not kept, and
// the image that it was merged for, if any.
func (m *merger) beforeTrial() (dir *os.File, name, whose string, err error) {
	images, err := names(m.kept)
	if err != nil {
		return nil, "", "", err
	}
	for _, image := range images {
		if !isIdentity(image) {
			continue
		}
		if n, err := m.aside(image); err != nil {
			return nil, "", "", err
		} else if n > 0 && n+1 == m.last.TrialBegan {
			dir, err := m.dir(m.kept, image)
			return dir, upperDir, image, err
		}
	}
	if before, err := m.dir(m.kept, beforeDir); err != nil || before == nil || m.last.TrialBegan != 1 {
		return nil, "", "", err
	}
	return m.kept, beforeDir, "", nil
}

// tidyFailed names the layer of a trial that a put-back left as the upper of the image
// that it gave the layer back to.
func (m *merger) tidyFailed(image string) error {
	dir, err := m.dir(m.kept, image)
	if err != nil || dir == nil {
		return err
	}
	upper, err := m.dir(dir, upperDir)
	if err != nil || upper == nil {
		return err
	}
	o, err := readOwner(upper)
	if err != nil {
		return err
	}
	if failed, err := m.isFailed(image, o); err != nil || !failed {
		return err
	}
	return m.putAside(dir, upperDir, o)
}

// isFailed tells whether the upper of an image is the layer of a trial: of another image,
// or of its own second one.
func (m *merger) isFailed(image string, upper owner) (bool, error) {
	if upper.image == "" || upper.image != image {
		return upper.image != "", nil
	}
	return m.onTrial(image + "/" + mergeDir(upper.merge))
}

// tidyBefore does it for the layer of before the first merge.
func (m *merger) tidyBefore() error {
	before, err := m.dir(m.kept, beforeDir)
	if err != nil || before == nil {
		return err
	}
	o, err := readOwner(before)
	if err != nil || o.image == "" {
		return err
	}
	return m.putAside(m.kept, beforeDir, o)
}
