package etc

import (
	"maps"
	"os"
	"slices"

	"sealroot/state/etcmerge"
)

// sides are the trees of a merge; own is the image's /etc without any change.
type sides struct {
	base, image, machine, own tree
	putBack                   bool // image is the result, and the last one was on trial
}

// plan reads the trees and decides what the new layer holds.
func (m *merger) plan(upper *os.File) ([]change, Result, error) {
	s, err := m.sides(upper)
	if err != nil {
		return nil, Result{}, err
	}
	result := Result{From: m.live.image, PutBack: s.putBack}
	var plan etcmerge.Plan
	if s.putBack {
		// Merged with itself it is what it was.
		plan, _ = etcmerge.Merge3(s.image.entries, s.image.entries, s.image.entries)
	} else {
		plan, result.Conflicts = etcmerge.Merge3(s.base.entries, s.image.entries, s.machine.entries)
	}
	// Copies that passwd(1) and its like make of the files before a change.
	copies := []string{"passwd-", "shadow-", "group-", "gshadow-", "subuid-", "subgid-"}
	result.Conflicts = slices.DeleteFunc(result.Conflicts, func(c etcmerge.Conflict) bool { return slices.Contains(copies, c.Path) })
	result.Conflicts = result.Conflicts[:min(len(result.Conflicts), maxConflicts)]
	list := changes(s.own.entries, plan, s.image, s.machine)
	result.Files = len(list)
	return list, result, nil
}

// sides reads the trees. The base of an image that is new is the last one's /etc; of
// one that ran before it is the last one's as that took over, so that what was changed
// since is changed in the /etc that this image had. With another list of layers the last
// one took over when its image did: what was changed since goes along (m.start).
func (m *merger) sides(upper *os.File) (s sides, err error) {
	if s.own, err = m.layer(tree{}, m.lower); err != nil {
		return s, err
	}
	s.image = s.own
	last, err := m.stored(tree{}, m.live.image, imageDir)
	if err != nil {
		return s, err
	}
	if last == nil { // a volume of before: nobody knows what was changed
		s.base = unknown(s.own)
		s.machine, err = m.layer(s.own, upper)
		return s, err
	}
	s.base = *last
	if s.machine, err = m.layer(*last, upper); err != nil {
		return s, err
	}
	start, err := m.stored(*last, m.lastMerge(), startDir)
	if err != nil {
		return s, err
	}
	if start != nil && sameImage(m.Image, m.live.image) {
		plan, _ := etcmerge.Merge3(last.entries, s.own.entries, start.entries)
		m.start = append([]change{}, changes(s.own.entries, plan, s.own, *start)...)
	}
	own, err := m.stored(s.own, m.Image, upperDir)
	if err != nil {
		return s, err
	}
	aside, err := m.aside(m.Image)
	if err != nil {
		return s, err
	}
	if own == nil {
		return s, nil
	}
	switch {
	case m.lastTrial && aside+1 == m.last.TrialBegan: // and on trial: else there was no merge
		s.image, s.putBack = *own, true
	case start != nil && aside+1 == m.last.Began:
		s.image, s.base = *own, *start
	} // else start is not of the time when own was put aside
	return s, nil
}

// unknown is the base of machines of which nothing is known: whatever differs from
// the image is the machine's, but an account that only the image has is new.
func unknown(image tree) tree {
	base := tree{entries: maps.Clone(image.entries)}
	for _, name := range etcmerge.AccountFiles() {
		if e, ok := base.entries[name]; ok && e.Text != nil {
			e.Sum, e.Text = [32]byte{}, []byte{}
			base.entries[name] = e
		}
	}
	return base
}

// layer puts the layer that a directory holds over a tree.
func (m *merger) layer(lower tree, dir *os.File) (tree, error) {
	nodes, err := m.reader.read(dir)
	if err != nil {
		return tree{}, err
	}
	return stack(lower, dir, nodes), nil
}

// stored is layer for what is kept of an image; nil when there is none.
func (m *merger) stored(lower tree, at, name string) (*tree, error) {
	if at == "" {
		return nil, nil
	}
	dir, err := m.dir(m.kept, at+"/"+name)
	if err != nil || dir == nil {
		return nil, err
	}
	t, err := m.layer(lower, dir)
	return &t, err
}

// onTrial tells whether the last image was on trial, and never committed.
func (m *merger) onTrial(merge string) (bool, error) {
	dir, err := m.dir(m.kept, merge)
	if err != nil || dir == nil {
		return false, err
	}
	list, err := names(dir)
	return slices.Contains(list, trialFile), err
}
