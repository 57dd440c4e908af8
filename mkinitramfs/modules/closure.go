package modules

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"sealroot/mount/kmod"
)

// List is the modules of an initramfs in load order, and where they are.
type List struct {
	kmod.List
	Files []string // in the tree, one for each module
}

// Encode returns the list as JSON with a final newline, in the form that PID 1
// accepts.
func (l List) Encode() ([]byte, error) {
	b, err := json.MarshalIndent(l.List, "", " ")
	if err != nil {
		return nil, fmt.Errorf("cannot encode module list: %w", err)
	}
	if _, err := kmod.Parse(b); err != nil {
		return nil, fmt.Errorf("cannot use module list: %w", err)
	}
	return append(b, '\n'), nil
}

// closure is a list that is being made.
type closure struct {
	tree  *Tree
	list  List
	index map[string]int // module name → index; -1 while it is being visited
}

// Closure returns the wanted modules and all that they need. A wanted module
// that is built into the kernel is left out; one that does not exist is
// ErrNoModule unless it is optional.
func (t *Tree) Closure(wants []Want) (List, error) {
	c := &closure{tree: t, list: List{List: kmod.List{Release: t.Release, Modules: []kmod.Module{}}}, index: map[string]int{}}
	for _, w := range wants {
		name := normalize(w.Name)
		if t.files[name] == "" {
			if t.builtin[name] || w.Optional {
				continue
			}
			return List{}, fmt.Errorf("cannot find module %s of kernel %s: %w", name, t.Release, ErrNoModule)
		}
		i, err := c.visit(name, w.Group)
		if err != nil {
			return List{}, err
		}
		c.promote(i, w.Group)
	}
	return c.list, nil
}

// promote makes a module that came in as somebody's dependency, or by
// modalias, one that is loaded with the group that asks for it by name.
func (c *closure) promote(i int, g kmod.Group) {
	m := &c.list.Modules[i]
	if m.Group == kmod.GroupDriver && g != kmod.GroupDriver {
		m.Group, m.Aliases = g, nil
	}
	// Without an alias no device would ever ask for it.
	if g == kmod.GroupDriver && m.Group == kmod.GroupDriver && len(m.Aliases) == 0 {
		m.Group = kmod.GroupBase
	}
}

// visit appends a module after all that it needs and returns its index.
func (c *closure) visit(name string, g kmod.Group) (int, error) {
	if i, ok := c.index[name]; ok {
		if i < 0 {
			return 0, fmt.Errorf("cannot order module %s: it needs itself: %w", name, ErrFormat)
		}
		return i, nil
	}
	c.index[name] = -1
	if err := c.visitSoft(name, g); err != nil {
		return 0, err
	}
	file := c.tree.files[name]
	deps := []int{}
	for _, d := range c.tree.deps[file] {
		dep := Name(d)
		if c.tree.files[dep] == "" {
			return 0, fmt.Errorf("cannot find module %s, which %s needs: %w", dep, name, ErrNoModule)
		}
		i, err := c.visit(dep, g)
		if err != nil {
			return 0, err
		}
		deps = append(deps, i)
	}
	slices.Sort(deps)
	m := kmod.Module{
		Name: name, Path: path.Join("/usr/lib/modules", c.tree.Release, plain(file)),
		Deps: slices.Compact(deps), Group: g,
	}
	if g == kmod.GroupDriver {
		m.Aliases = slices.Compact(slices.Sorted(slices.Values(c.tree.aliases[name])))
	}
	c.list.Modules = append(c.list.Modules, m)
	c.list.Files = append(c.list.Files, file)
	c.index[name] = len(c.list.Modules) - 1
	return c.index[name], nil
}

// visitSoft appends what should be loaded before the module if it can be. It
// is not a dependency: an accelerator belongs to CPUs that have the instructions.
func (c *closure) visitSoft(name string, g kmod.Group) error {
	for _, want := range c.tree.soft[name] {
		names := []string{want}
		if c.tree.files[want] == "" {
			names = c.tree.byAlias[want]
		}
		for _, n := range names {
			// A circle of soft dependencies is cut, as modprobe does.
			if i, seen := c.index[n]; c.tree.files[n] == "" || seen && i < 0 {
				continue
			}
			group := g
			if forCPU(c.tree.aliases[n]) {
				group = kmod.GroupDriver
			}
			i, err := c.visit(n, group)
			if err != nil {
				return err
			}
			c.promote(i, group)
		}
	}
	return nil
}

// forCPU says whether a module asks for CPU features: other CPUs refuse it.
func forCPU(aliases []string) bool {
	return slices.ContainsFunc(aliases, func(a string) bool { return strings.HasPrefix(a, "cpu:") })
}

// plain is the name of a module file once it is decompressed.
func plain(file string) string {
	base, _, _ := strings.Cut(file, ".ko")
	return base + ".ko"
}
