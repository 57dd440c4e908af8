package etc

import (
	"cmp"

	"sealroot/state/seed"
)

// chain tells which of the layers that were put aside a merge follows. One image has an
// identity for each list of layers in use, and goes from one to another as from
// image to image: the layer that another image had, or that was there before a trial, may
// lie some merges back. Numbers are those of merges; 0, in records of before: this one.
type chain struct {
	// Began is the first merge in a row for one image, under whatever list.
	Began uint64 `json:"began,omitempty"`
	// TrialBegan is the first one in a row on trial.
	TrialBegan uint64 `json:"trial_began,omitempty"`
}

// listDigits is how many digits at the end of an identity may name the layers in use.
const listDigits = 16

// sameImage tells whether two identities are of one image.
func sameImage(a, b string) bool {
	n := len(a) - listDigits
	return len(a) == len(b) && n > 0 && a[:n] == b[:n]
}

// chain is that of the next merge.
func (m *merger) chain(next owner) chain {
	c := chain{Began: next.merge}
	if sameImage(next.image, m.live.image) {
		c.Began = m.last.Began
	}
	if m.Trial {
		c.TrialBegan = next.merge
		if m.lastTrial {
			c.TrialBegan = m.last.TrialBegan
		}
	}
	return c
}

// lastMerge is the directory of the live layer's merge.
func (m *merger) lastMerge() string { return m.live.image + "/" + mergeDir(m.live.merge) }

// readLast reads what the live layer's merge was.
func (m *merger) readLast() error {
	m.last = chain{m.live.merge, m.live.merge}
	if m.live.image == "" {
		return nil
	}
	dir, err := m.dir(m.kept, m.lastMerge())
	if err != nil || dir == nil {
		return err
	}
	if r, err := readRecord(dir); err == nil { // else as one of before
		m.last = chain{cmp.Or(r.Began, m.live.merge), cmp.Or(r.TrialBegan, m.live.merge)}
	}
	m.lastTrial, err = m.onTrial(m.lastMerge())
	return err
}

// aside is the merge of the layer that was put aside for an image; 0 for none.
func (m *merger) aside(image string) (uint64, error) {
	dir, err := m.dir(m.kept, image+"/"+upperDir)
	if err != nil || dir == nil {
		return 0, err
	}
	o, err := readOwner(dir)
	return o.merge, err
}

// keeps tells whether something is needed behind a merge: its own, the last one's, and the
// layers that were put aside in front of its chains.
func (m *merger) keeps(next owner, name string) (bool, error) {
	switch {
	case name == next.image, name == m.live.image, m.Trial && name == beforeDir:
		return true, nil
	case !isIdentity(name):
		return false, nil
	}
	if failed, err := m.failedMerge(name); err != nil || failed > 0 && failed >= m.live.merge {
		return true, err
	}
	n, err := m.aside(name)
	c := m.chain(next)
	return n > 0 && (n+1 == c.Began || n+1 == c.TrialBegan), err
}

// collect removes what no later merge goes by.
func (m *merger) collect(next owner) error {
	list, err := names(m.kept)
	if err != nil {
		return err
	}
	for _, name := range list {
		kept, err := m.keeps(next, name)
		if err != nil {
			return err
		}
		if kept {
			if err := m.dropFailed(name); err != nil {
				return err
			}
			continue
		}
		if err := m.step("collect", func() error { return seed.Remove(m.kept, name) }); err != nil {
			return err
		}
	}
	return nil
}

// failedMerge is the merge of the layer of a trial that failed; 0 for none.
func (m *merger) failedMerge(image string) (uint64, error) {
	dir, err := m.dir(m.kept, image+"/"+failedDir)
	if err != nil || dir == nil {
		return 0, err
	}
	o, err := readOwner(dir)
	return o.merge, err
}

// dropFailed removes the layer of a trial that failed before the live one was merged.
func (m *merger) dropFailed(image string) error {
	if !isIdentity(image) {
		return nil
	}
	n, err := m.failedMerge(image)
	if err != nil || n == 0 || n >= m.live.merge {
		return err
	}
	dir, err := m.dir(m.kept, image)
	if err != nil {
		return err
	}
	return m.step("remove failed", func() error { return seed.Remove(dir, failedDir) })
}
