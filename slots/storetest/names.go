package storetest

import (
	"io/fs"
	"maps"
	"slices"
	"strings"

	"sealroot/slots"
	"sealroot/slots/bls"
	"sealroot/slots/esp"
	"sealroot/slots/slotstest"
)

// names are file names and a state file in memory. Of a rename FAT keeps the old
// name, the new one, or both.
type names struct {
	files map[string]string // name to content
	state []byte
	ops   int
	limit int
	cut   []*names // what the power cut may have left
}

var _ bls.Dir = (*names)(nil)

func (m *names) Open() slots.Store { return bls.Store{Dir: m, Slots: []string{"a", "b"}} }
func (m *names) Writes() int       { return m.ops }
func (m *names) CutAfter(n int)    { m.limit = m.ops + n }

func (m *names) Outcomes() []Medium {
	left := m.cut
	if left == nil {
		left = []*names{m.clone()}
	}
	var out []Medium
	for _, n := range left {
		out = append(out, n)
	}
	return out
}

func (m *names) clone() *names {
	return &names{files: maps.Clone(m.files), state: slices.Clone(m.state), limit: -1}
}

// change makes a change, or meets the power cut: then outcomes are what it leaves.
func (m *names) change(outcomes ...func(*names)) error {
	if m.cut != nil {
		return slotstest.ErrPowerCut
	}
	if m.limit >= 0 && m.ops >= m.limit {
		m.cut = []*names{m.clone()}
		for _, do := range outcomes {
			n := m.clone()
			do(n)
			m.cut = append(m.cut, n)
		}
		return slotstest.ErrPowerCut
	}
	m.ops++
	outcomes[0](m)
	return nil
}

func (m *names) Names() ([]string, error) { return slices.Sorted(maps.Keys(m.files)), nil }

func (m *names) Rename(from, to string) error {
	if _, ok := m.files[to]; ok {
		return fs.ErrExist
	}
	content := m.files[from]
	return m.change(
		func(n *names) { delete(n.files, from); n.files[to] = content },
		func(n *names) { n.files[to] = content })
}

func (m *names) ReadState() ([]byte, error) {
	if m.state == nil {
		return nil, fs.ErrNotExist
	}
	return slices.Clone(m.state), nil
}

func (m *names) WriteState(b []byte) error {
	return m.change(func(n *names) { n.state = slices.Clone(b) })
}

// Foreign leaves out what a cut may leave twice: an image under two names.
func (m *names) Foreign() string {
	var lines []string
	for name, content := range m.files {
		if strings.HasPrefix(content, "slot ") {
			name = "" // renamed, or put aside
		} else if _, _, ok := esp.ParseUKIName(name); ok {
			name = "taken for a slot: " + name
		}
		lines = append(lines, name+" "+content)
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "\n")
}

// Names is the store in file names, in memory.
func Names() Subject {
	return Subject{Slots: []string{"a", "b"}, New: func() Medium {
		return &names{limit: -1, files: map[string]string{
			"sealroot-a.efi": "slot a", "sealroot-b+0-0.efi": "slot b", "debian-6.1+3.efi": "debian", "Memtest.EFI": "memtest",
		}}
	}}
}
