package storetest

import (
	"fmt"
	"strings"

	"sealroot/slots"
	"sealroot/slots/efi"
	"sealroot/slots/guid"
	"sealroot/slots/slotstest"
)

// testESP is the partition of the test's boot entries.
func testESP() efi.Partition {
	return efi.Partition{Number: 1, Start: 2048, Size: 4096, UUID: guid.GUID{1, 2, 3}}
}

// fakeVars is a firmware in memory.
type fakeVars struct{ vars *slotstest.Vars }

func (m fakeVars) Open() slots.Store { return efiStore(m.vars) }
func (m fakeVars) Writes() int       { return m.vars.Ops() }
func (m fakeVars) Foreign() string   { return varsOfOthers(m.vars) }
func (m fakeVars) CutAfter(n int)    { m.vars.CutAfter(n) }

// Outcomes: firmware that keeps to its specification has either value; which one
// is decided by whether the write was let through.
func (m fakeVars) Outcomes() []Medium { return []Medium{fakeVars{m.vars.Clone()}} }

func efiStore(vars efi.Vars) slots.Store {
	return efi.Store{Entries: efi.Hint{Vars: vars, ESP: testESP()}, Names: []string{"a", "b"}}
}

// varsOfOthers is what the firmware keeps beside the store's variable.
func varsOfOthers(vars efi.Vars) string {
	var s strings.Builder
	for _, vendor := range []string{efi.Global, efi.Sealroot} {
		names, err := vars.List(vendor)
		if err != nil {
			return err.Error()
		}
		for _, name := range names {
			if name == efi.StatesVariable {
				continue
			}
			b, err := vars.Read(name, vendor)
			fmt.Fprintf(&s, "%s %x %v\n", name, b, err)
		}
	}
	return s.String()
}

// EFI is the store in a variable of a firmware in memory.
func EFI() Subject {
	return Subject{Slots: []string{"a", "b"}, New: func() Medium {
		vars := slotstest.NewVars()
		for _, name := range []string{"Boot0000", "BootOrder", "Lang"} {
			if err := vars.Write(name, efi.Global, 7, []byte{0, 0}); err != nil {
				panic(err) // a map in memory
			}
		}
		return fakeVars{vars}
	}}
}

// counted counts the changes of real variables.
type counted struct {
	efi.Vars
	writes *int
}

func (c counted) Write(name, vendor string, attributes uint32, data []byte) error {
	*c.writes++
	return c.Vars.Write(name, vendor, attributes, data)
}

func (c counted) Delete(name, vendor string) error {
	*c.writes++
	return c.Vars.Delete(name, vendor)
}

type realVars struct{ counted }

func (m realVars) Open() slots.Store { return efiStore(m.counted) }
func (m realVars) Writes() int       { return *m.writes }
func (m realVars) Foreign() string   { return varsOfOthers(m.Vars) }

// RealEFI is the store in a variable of the real firmware, which is forgotten
// before each test. states bounds how often its flash is written.
func RealEFI(vars efi.Vars, states int) Subject {
	return Subject{Slots: []string{"a", "b"}, States: states, New: func() Medium {
		// the first time there is none, and an error shows at the first Save
		_ = vars.Delete(efi.StatesVariable, efi.Sealroot)
		return realVars{counted{vars, new(int)}}
	}}
}
