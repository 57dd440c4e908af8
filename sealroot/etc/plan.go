package etc

import (
	"cmp"
	"maps"
	"os"
	"slices"

	"sealroot/state/etcmerge"
)

// sides are the trees of a merge; own is the image's /etc without any change. Files of base
// and machine have the owners of the machine, those of image and own by their own accounts.
type sides struct {
	base, image, machine, own tree
	putBack                   bool // image is the result, and the last one was on trial
	before                    earlier
}

// plan reads the trees and decides what the new layer holds.
func (m *merger) plan(upper *os.File) ([]change, Result, error) {
	s, err := m.sides(upper)
	if err != nil {
		return nil, Result{}, err
	}
	result := Result{From: m.live.image, PutBack: s.putBack}
	// Merged with itself it is what it was.
	base, machine := s.image, s.image
	if !s.putBack {
		base, machine = s.base, s.machine
	}
	image, plan, conflicts := merge3(base, s.image, machine)
	merged := func(name string) (e etcmerge.Entry, isImage bool) {
		own := s.own.entries[name]
		if at, there := slices.BinarySearchFunc(plan, name, func(s etcmerge.Step, name string) int { return cmp.Compare(s.Path, name) }); there {
			c, _ := changeOf(plan[at], image, machine)
			return c.entry, c.text == nil && same(c.entry, own)
		}
		return e, own.Kind == etcmerge.Missing
	}
	if result.Conflicts, err = m.carry(conflicts, s, merged); err != nil {
		return nil, result, err
	}
	// Copies that passwd(1) and its like make of the files before a change, and what is the
	// machine's whatever an image has there.
	quiet := []string{"passwd-", "shadow-", "group-", "gshadow-", "subuid-", "subgid-", "machine-id"}
	result.Conflicts = slices.DeleteFunc(result.Conflicts, func(c etcmerge.Conflict) bool { return slices.Contains(quiet, c.Path) })
	result.Conflicts = result.Conflicts[:min(len(result.Conflicts), maxConflicts)]
	list := changes(s.own.entries, plan, image, machine)
	result.Files = len(list)
	return list, result, nil
}

// sides reads the trees. The base of an image that is new is the last one's /etc; of
// one that ran before it is the last one's as that took over, so that what was changed
// since is changed in the /etc that this image had. With another list of layers the last
// one took over when its image did: what was changed since goes along (m.start).
func (m *merger) sides(upper *os.File) (s sides, err error) {
	if _, s.own, err = m.over(tree{}, m.lower); err != nil {
		return s, err
	}
	s.own = s.own.lowest()
	s.image, m.own = s.own, s.own
	_, last, err := m.stored(tree{}, m.live.image, imageDir)
	if err != nil {
		return s, err
	}
	from := s.own
	if last != nil {
		from = *last
	}
	if s.base, s.machine, err = m.over(from, upper); err != nil {
		return s, err
	}
	if last == nil { // a volume of before: nobody knows what was changed
		s.base = unknown(s.base)
		return s, nil
	}
	s.before = earlier{m.lastMerge(), s.machine, false}
	taken, start, err := m.stored(*last, m.lastMerge(), startDir)
	if err != nil {
		return s, err
	}
	if start != nil && sameImage(m.Image, m.live.image) {
		image, plan, _ := merge3(*taken, s.own, *start)
		m.start = append([]change{}, changes(s.own.entries, plan, image, *start)...)
	}
	_, own, err := m.stored(s.own, m.Image, upperDir)
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
	own.mixed = true
	switch {
	case m.lastTrial && aside+1 == m.last.TrialBegan: // and on trial: else there was no merge
		s.image, s.putBack = *own, true
		s.before = earlier{m.Image + "/" + mergeDir(aside), *own, false}
	case start != nil && aside+1 == m.last.Began:
		s.image, s.base = *own, *start
		s.before = earlier{m.Image + "/" + mergeDir(aside), *own, true}
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

// stored is over for what is kept of an image; nil when there is none.
func (m *merger) stored(lower tree, at, name string) (base, machine *tree, err error) {
	if at == "" {
		return nil, nil, nil
	}
	dir, err := m.dir(m.kept, at+"/"+name)
	if err != nil || dir == nil {
		return nil, nil, err
	}
	b, t, err := m.over(lower, dir)
	return &b, &t, err
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
