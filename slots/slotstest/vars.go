package slotstest

import (
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
)

// Vars are a firmware's variables in memory, by "name-vendor". They forget, fill
// up and lose power on request. Each write is whole or not done at all.
type Vars struct {
	values map[string][]byte
	ops    int
	limit  int // operations that still succeed; -1: no limit
	// Refuse is what every change fails with; nil lets it through.
	Refuse error
}

// NewVars returns variables without a limit.
func NewVars() *Vars { return &Vars{values: map[string][]byte{}, limit: -1} }

// CutAfter lets n more changes succeed and cuts the power then. The change that
// meets the cut may have happened, see Outcomes.
func (v *Vars) CutAfter(n int) { v.limit = v.ops + n }

// Ops is how many changes succeeded.
func (v *Vars) Ops() int { return v.ops }

// Clone returns a copy without a limit.
func (v *Vars) Clone() *Vars {
	out := NewVars()
	maps.Copy(out.values, v.values)
	return out
}

// Names returns all "name-vendor", sorted.
func (v *Vars) Names() []string { return slices.Sorted(maps.Keys(v.values)) }

// Read returns a variable, or fs.ErrNotExist.
func (v *Vars) Read(name, vendor string) ([]byte, error) {
	b, ok := v.values[name+"-"+vendor]
	if !ok {
		return nil, fmt.Errorf("cannot read %s: %w", name, fs.ErrNotExist)
	}
	return clone(b), nil
}

// Write sets a variable. Attributes are not kept.
func (v *Vars) Write(name, vendor string, _ uint32, data []byte) error {
	if err := v.change(); err != nil {
		return err
	}
	v.values[name+"-"+vendor] = clone(data)
	return nil
}

// Delete removes a variable.
func (v *Vars) Delete(name, vendor string) error {
	if _, err := v.Read(name, vendor); err != nil {
		return err
	}
	if err := v.change(); err != nil {
		return err
	}
	delete(v.values, name+"-"+vendor)
	return nil
}

// List returns the names of the vendor's variables.
func (v *Vars) List(vendor string) ([]string, error) {
	var out []string
	for _, name := range v.Names() {
		if n, ok := strings.CutSuffix(name, "-"+vendor); ok {
			out = append(out, n)
		}
	}
	return out, nil
}

func (v *Vars) change() error {
	switch {
	case v.Refuse != nil:
		return v.Refuse
	case v.limit >= 0 && v.ops >= v.limit:
		return ErrPowerCut
	}
	v.ops++
	return nil
}
