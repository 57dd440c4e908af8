// Package etcmerge merges /etc three ways, when an image runs that has another one
// than the image before: what only the machine changed is the machine's, what only
// the image changed is the image's, and what both changed is the machine's and a
// conflict. Account files are merged by entry (Accounts). It makes no system calls
// and reads no file: trees come in as values, a plan comes out.
package etcmerge

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"sort"
)

// Kind is what a file is.
type Kind byte

// The kinds; the zero value is a file that is not there.
const (
	Missing Kind = iota
	Dir
	Regular
	Symlink
	Other // a device, FIFO or socket
)

// Entry describes one file of a tree.
type Entry struct {
	Kind Kind
	// Sum is a digest of a regular file's content, of a link's target, of what an
	// Other is; with extended attributes, if they are to count.
	Sum [32]byte
	// Mode has the permission bits with set-user-ID, set-group-ID and sticky.
	Mode     uint32
	UID, GID uint32
	// Flags are those of chattr(1) that make a file append-only ("a"), immutable ("i") or
	// both ("ai"). They count as a change of the content: whoever sets them wants that one.
	Flags string
	// Text is the content of the files that AccountFiles names, not nil when empty;
	// nil of all others. Without it they are merged as others are.
	Text []byte
}

func (e Entry) sameContent(o Entry) bool {
	return e.Kind == o.Kind && e.Sum == o.Sum && e.Flags == o.Flags
}
func (e Entry) sameMeta(o Entry) bool {
	return e.Mode == o.Mode && e.UID == o.UID && e.GID == o.GID && e.Flags == o.Flags
}
func (e Entry) same(o Entry) bool { return e.sameContent(o) && e.sameMeta(o) }

// Tree is a /etc by names, which are clean, relative and slash-separated. The
// directories that lead to a file are in it too.
type Tree map[string]Entry

// Source says where something of a merged file comes from.
type Source byte

// The sources.
const (
	Nowhere Source = iota // the file is not there
	FromImage
	FromMachine
	FromBoth // Step.Text
)

// Step says what one name holds in the merged /etc.
type Step struct {
	Path    string
	Content Source // kind and content; Nowhere for no file
	Meta    Source // mode, owners and flags: FromImage or FromMachine
	Text    []byte // with FromBoth
}

// Plan has a step for each name of image and machine, sorted: parents come before
// what is in them.
type Plan []Step

// Conflict is something that both sides changed, or that could not be had as one
// side has it. The machine's was kept, but where What says otherwise.
type Conflict struct {
	Path string
	What string
}

// Merge3 merges the change from base to image into that from base to machine. The
// plan always holds a whole tree: what leads to a file is a directory. Nothing that
// the machine changed is lost.
func Merge3(base, image, machine Tree) (Plan, []Conflict) {
	m := merger{base: base, image: image, machine: machine, steps: map[string]*Step{}}
	for _, name := range m.names() {
		m.decide(name)
	}
	m.accounts()
	m.keepParents()
	m.dropOrphans()
	plan := make(Plan, 0, len(m.steps))
	for _, name := range m.names() {
		plan = append(plan, *m.steps[name])
	}
	sort.SliceStable(m.conflicts, func(i, j int) bool { return m.conflicts[i].Path < m.conflicts[j].Path })
	return plan, m.conflicts
}

type merger struct {
	base, image, machine Tree
	steps                map[string]*Step
	conflicts            []Conflict
}

func (m *merger) conflict(name, format string, args ...any) {
	m.conflicts = append(m.conflicts, Conflict{name, fmt.Sprintf(format, args...)})
}

// names lists all names of image and machine, sorted: a directory comes before what
// is in it.
func (m *merger) names() []string {
	var list []string
	for name := range m.image {
		list = append(list, name)
	}
	for name := range m.machine {
		if _, ok := m.image[name]; !ok {
			list = append(list, name)
		}
	}
	sort.Strings(list)
	return list
}

const bothMeta = "both changed its mode, owner or flags"

// decide makes the step of one name, whatever is around it.
func (m *merger) decide(name string) {
	base, image, machine := m.base[name], m.image[name], m.machine[name]
	step := &Step{Path: name}
	m.steps[name] = step
	step.Content = pick(base.sameContent(machine), base.sameContent(image), image.sameContent(machine))
	if step.Content == FromBoth {
		step.Content = FromMachine
		m.conflict(name, "%s", whatBoth(base, image, machine))
	}
	switch {
	case step.Content == FromImage && machine.Kind == image.Kind || step.Content == FromMachine && image.Kind == machine.Kind:
		step.Meta = pick(base.sameMeta(machine), base.sameMeta(image), image.sameMeta(machine))
		if step.Meta == FromBoth {
			step.Meta = FromMachine
			m.conflict(name, "%s", bothMeta)
		}
	default: // nothing of the other side fits
		step.Meta = step.Content
	}
	if m.result(name).Kind == Missing {
		step.Content, step.Meta = Nowhere, Nowhere
		if machine.Kind == base.Kind && machine.Kind != Missing && !machine.sameMeta(base) {
			m.conflict(name, "the image removed it, and it is gone; the machine had changed its mode or owner only")
		}
	}
}

// pick is the rule; FromBoth means that both sides changed it, differently.
func pick(machineKept, imageKept, equal bool) Source {
	switch {
	case machineKept, equal:
		return FromImage
	case imageKept:
		return FromMachine
	}
	return FromBoth
}

func whatBoth(base, image, machine Entry) string {
	switch {
	case machine.Kind == Missing:
		return "the machine removed what the image changed"
	case image.Kind == Missing:
		return "the image removed what the machine changed"
	case base.Kind == Missing:
		return "both added it"
	}
	return "both changed it"
}

// result is what a name holds as things stand; its Meta may be the other side's.
func (m *merger) result(name string) Entry {
	step := m.steps[name]
	switch {
	case step == nil:
		return Entry{}
	case step.Content == FromImage:
		return m.image[name]
	case step.Content == FromMachine || step.Content == FromBoth:
		return m.machine[name]
	}
	return Entry{}
}

// keepParents makes directories of what leads to a file that the machine changed.
func (m *merger) keepParents() {
	for _, name := range m.names() {
		if m.result(name).Kind == Missing || m.steps[name].Content == FromImage {
			continue
		}
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if m.result(dir).Kind == Dir {
				continue
			}
			m.steps[dir] = &Step{Path: dir, Content: FromMachine, Meta: FromMachine}
			m.conflict(dir, "the image has no such directory any more; it stays for %s, which the machine changed", name)
		}
	}
}

// dropOrphans sees to it that files of the image's have their directories, where
// the machine has not put something else there.
func (m *merger) dropOrphans() {
	for _, name := range m.names() {
		if m.result(name).Kind == Missing {
			continue
		}
		if taken := m.takenAbove(name); taken != "" {
			*m.steps[name] = Step{Path: name}
			m.conflict(name, "left out: the machine has made %s something else than a directory", taken)
			continue
		}
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if m.result(dir).Kind == Missing {
				m.steps[dir] = &Step{Path: dir, Content: FromImage, Meta: FromImage}
				m.conflict(dir, "the machine removed it; it is there again for %s, which is new in the image", name)
			}
		}
	}
}

// takenAbove is the highest directory of a name that is something else now.
func (m *merger) takenAbove(name string) string {
	taken := ""
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if k := m.result(dir).Kind; k != Missing && k != Dir {
			taken = dir
		}
	}
	return taken
}

// accounts merges account files by entry, where image and machine have them.
func (m *merger) accounts() {
	if !slices.ContainsFunc(AccountFiles(), m.both) {
		return
	}
	merged, conflicts := Accounts(m.base.Accounts(), m.image.Accounts(), m.machine.Accounts())
	said := map[string]bool{}
	for _, name := range AccountFiles() {
		if !m.both(name) {
			continue
		}
		said[name] = true
		step := m.steps[name]
		switch text := merged.get(name); {
		case bytes.Equal(text, m.image[name].Text):
			step.Content = FromImage
		case bytes.Equal(text, m.machine[name].Text):
			step.Content = FromMachine
		default:
			step.Content, step.Text = FromBoth, text
		}
	}
	// What was said of the whole file is not true of a merged one.
	kept := m.conflicts[:0]
	for _, c := range m.conflicts {
		if !said[c.Path] || c.What == bothMeta {
			kept = append(kept, c)
		}
	}
	m.conflicts = append(kept, conflicts...)
}

func (m *merger) both(name string) bool {
	i, k := m.image[name], m.machine[name]
	return i.Kind == Regular && k.Kind == Regular && i.Text != nil && k.Text != nil
}
