package etc

import (
	"os"

	"sealroot/state/layout"
)

// putBack gives an image the layer back that it had before another one was on trial: by
// one exchange of two directories, for the trial may have left no room. The layer keeps
// its owner and the merge that it came from, so that all is as if there had been no
// trial; of the trial's layer from is the image, "" when there was nothing to put back.
// On trial itself an image gets a copy (sides), so that this can fail too.
//
// Crash points: behind the exchange the failed layer lies where the other one lay, by
// the wrong name, until the next merge gives it its own (tidy).
func (m *merger) putBack() (from string, err error) {
	if !m.lastTrial || m.Trial {
		return "", nil
	}
	aside, err := m.aside(m.Image)
	if err != nil || aside+1 != m.last.TrialBegan {
		return "", err
	}
	at, name := m.Image, upperDir
	if aside == 0 { // there was no merge before the trial
		at, name = ".", beforeDir
	}
	dir, err := m.dir(m.kept, at)
	if err != nil || dir == nil {
		return "", err
	}
	if old, err := m.dir(dir, name); err != nil || old == nil {
		return "", err
	}
	if err := m.step("put back", func() error { return m.exchange(dir, name) }); err != nil {
		return "", err
	}
	from = m.live.image
	upper, err := m.dir(m.volume, layout.Etc)
	if err != nil {
		return from, err
	}
	if m.live, err = readOwner(upper); err != nil {
		return from, err
	}
	if err := m.tidy(m.live); err != nil {
		return from, err
	}
	return from, m.readLast()
}

// tidyFailed names the layer of a trial that a put-back left as the upper of the image
// that it gave the layer back to.
func (m *merger) tidyFailed(image string, dir *os.File) error {
	upper, err := m.dir(dir, upperDir)
	if err != nil || upper == nil {
		return err
	}
	o, err := readOwner(upper)
	if err != nil || o.image == "" || o.image == image {
		return err
	}
	return m.putAside(dir, upperDir, o)
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
