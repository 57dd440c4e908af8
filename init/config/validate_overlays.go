package config

import (
	"fmt"
	"slices"
	"strings"

	"sealroot/state/binds"
)

// overlays checks which directories of the image are made writable.
func (v *validator) overlays(c *Config) {
	var paths []string
	for i, o := range c.Overlays {
		at := fmt.Sprintf("overlays[%d]", i)
		if remedy := noOverlay(o.Path); remedy != "" {
			v.add(at+".path", remedy, "%.80q cannot be an overlay", o.Path)
		}
		if slices.ContainsFunc(paths, func(p string) bool { return overlap(p, o.Path) }) {
			v.add(at+".path", "leave one of them out", "%.80q is given twice, or lies in or over another one", o.Path)
		}
		if slices.ContainsFunc(c.Binds.Extra, func(b ExtraBind) bool { return within(o.Path, b.To) }) {
			v.add(at+".path", "leave it out here or there", "binds.extra hides %.80q", o.Path)
		}
		if within(o.Path, "/var") && slices.ContainsFunc(c.Binds.Unencrypted, func(to string) bool { return overlap(to, o.Path) }) {
			v.add(at+".path", "leave it out here or there", "binds.unencrypted has a place in or over %.80q", o.Path)
		}
		paths = append(paths, o.Path)
		v.oneOf(at+".upper", o.Upper, []string{UpperEncrypted, UpperPerSlot, UpperMemory}, nil)
		if (o.Upper == UpperEncrypted || o.Upper == UpperPerSlot) && c.State.Create == CreateNone {
			v.add(at+".upper", "use memory", "%s, but state.create is none: there is no volume", o.Upper)
		}
	}
}

// noOverlay says what to do in place of an overlay over this path; "" where there
// may be one.
func noOverlay(path string) string {
	in := func(dirs ...string) bool {
		return slices.ContainsFunc(dirs, func(dir string) bool { return within(path, dir) })
	}
	switch {
	case in("/etc"):
		return "use the key etc"
	case in("/home"), path == "/var":
		return "leave it out: it is writable, from the encrypted volume"
	case !isTarget(path):
		return "give a directory of the image such as /opt"
	case binds.OfImage(path):
		return "give /opt or /usr/local: what a signed /usr is for is that nobody changes it"
	}
	return ""
}

// overlap says that one path is the other, or in it.
func overlap(a, b string) bool { return within(a, b) || within(b, a) }

// within says that a path is a directory, or in it.
func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
