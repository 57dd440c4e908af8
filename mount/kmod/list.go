// Package kmod loads the kernel modules of the initramfs: the ones that every
// boot needs, the ones that a device of this machine asks for, and the ones of
// a later stage.
package kmod

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// ListPath is where the list of modules lies in the initramfs.
const ListPath = "/etc/sealroot/modules.json"

// ErrList means that the list of modules is not acceptable.
var ErrList = errors.New("bad list of modules")

// Group says when a module is loaded.
type Group string

// The groups.
const (
	GroupBase   Group = "base"   // at once
	GroupDriver Group = "driver" // when a device's modalias matches
	GroupRoot   Group = "root"   // before the root is opened
	GroupState  Group = "state"  // before the state is opened
	GroupHint   Group = "hint"   // before the ESP or EFI variables are used
)

// Module is one kernel module.
type Module struct {
	Name string `json:"name"` // with underscores, as in /proc/modules
	Path string `json:"path"` // in the initramfs, not compressed
	// Deps are the indexes, in the list, of modules that must be loaded before;
	// each is smaller than this module's own.
	Deps    []int    `json:"deps,omitempty"`
	Group   Group    `json:"group"`
	Aliases []string `json:"aliases,omitempty"` // patterns for modaliases, of group driver
}

// List is the content of ListPath.
type List struct {
	Release string   `json:"release"` // of the kernel, as uname -r prints it
	Modules []Module `json:"modules"`
}

// Limits of a list. A distribution's whole module tree is below them.
const (
	maxList    = 8 << 20
	maxModules = 8192
	maxAlias   = 512
)

// Parse reads a list and checks it: known fields only, paths inside the
// release's directory, dependencies before their dependents.
func Parse(b []byte) (List, error) {
	if len(b) > maxList {
		return List{}, fmt.Errorf("%w: %d bytes", ErrList, len(b))
	}
	var l List
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&l); err != nil {
		return List{}, fmt.Errorf("%w: %w", ErrList, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return List{}, fmt.Errorf("%w: something follows it", ErrList)
	}
	if err := l.validate(); err != nil {
		return List{}, err
	}
	return l, nil
}

func (l List) validate() error {
	if l.Release == "" || len(l.Release) > 64 || path.Base(l.Release) != l.Release || l.Release == ".." {
		return fmt.Errorf("%w: release %q", ErrList, l.Release)
	}
	if len(l.Modules) > maxModules {
		return fmt.Errorf("%w: %d modules", ErrList, len(l.Modules))
	}
	seen := make(map[string]bool, len(l.Modules))
	for i, m := range l.Modules {
		if err := m.validate(i, "/usr/lib/modules/"+l.Release+"/"); err != nil {
			return fmt.Errorf("%w: module %d (%q): %w", ErrList, i, m.Name, err)
		}
		if seen[m.Name] {
			return fmt.Errorf("%w: module %q is there twice", ErrList, m.Name)
		}
		seen[m.Name] = true
	}
	return nil
}

func (m Module) validate(index int, dir string) error {
	if m.Name == "" || len(m.Name) > 64 || strings.ContainsAny(m.Name, "-/ \x00") {
		return errors.New("bad name")
	}
	if !strings.HasPrefix(m.Path, dir) || path.Clean(m.Path) != m.Path || !strings.HasSuffix(m.Path, ".ko") {
		return fmt.Errorf("bad path %q", m.Path)
	}
	for _, d := range m.Deps {
		if d < 0 || d >= index {
			return fmt.Errorf("dependency on module %d, which does not come before it", d)
		}
	}
	switch m.Group {
	case GroupBase, GroupDriver, GroupRoot, GroupState, GroupHint:
	default:
		return fmt.Errorf("unknown group %q", m.Group)
	}
	for _, a := range m.Aliases {
		if a == "" || len(a) > maxAlias {
			return fmt.Errorf("bad alias %q", a)
		}
	}
	return nil
}
