package config

import (
	"fmt"
	"slices"

	"sealroot/state/binds"
)

// overlays checks which directories of the image are made writable.
func (v *validator) overlays(c *Config) {
	var paths []string
	for i, o := range c.Overlays {
		at := fmt.Sprintf("overlays[%d]", i)
		if o.Path == WholeRoot {
			v.wholeRoot(at, c, i)
			continue
		}
		if remedy := noOverlay(o.Path); remedy != "" {
			v.add(at+".path", remedy, "%.80q cannot be an overlay", o.Path)
		}
		if slices.ContainsFunc(paths, func(p string) bool { return overlap(p, o.Path) }) {
			v.add(at+".path", "leave one of them out", "%.80q is given twice, or lies in or over another one", o.Path)
		}
		if slices.ContainsFunc(c.Binds.Extra, func(b ExtraBind) bool { return binds.Within(o.Path, b.To) }) {
			v.add(at+".path", "leave it out here or there", "binds.extra hides %.80q", o.Path)
		}
		if binds.Within(o.Path, "/var") && slices.ContainsFunc(c.Binds.Unencrypted, func(to string) bool { return overlap(to, o.Path) }) {
			v.add(at+".path", "leave it out here or there", "binds.unencrypted has a place in or over %.80q", o.Path)
		}
		paths = append(paths, o.Path)
		v.oneOf(at+".upper", o.Upper, []string{UpperEncrypted, UpperPerSlot, UpperMemory}, nil)
		if (o.Upper == UpperEncrypted || o.Upper == UpperPerSlot) && c.State.Create == CreateNone {
			v.add(at+".upper", "use memory", "%s, but state.create is none: there is no volume", o.Upper)
		}
	}
}

// wholeRoot checks an overlay over all of the root. What lies over single places of it,
// from the volume or in memory, stays over it.
func (v *validator) wholeRoot(at string, c *Config, i int) {
	if c.Overlays[i].Upper != UpperMemory {
		v.add(at+".upper", "use memory; or give single directories such as /opt", "what a signed root is for is that it begins each boot as it was signed")
	}
	if c.Root.Usr() {
		v.add(at+".path", "leave it out", "with root.source usr-verity the root around /usr is in memory already")
	}
	if c.Etc == EtcReadOnly {
		v.add(at+".path", "use etc: volatile", "etc is read-only, and would be writable")
	}
	if slices.ContainsFunc(c.Overlays[:i], func(o Overlay) bool { return o.Path == WholeRoot }) {
		v.add(at+".path", "leave one of them out", "%.80q is given twice", WholeRoot)
	}
}

// noOverlay says what to do in place of an overlay over this path; "" where there
// may be one.
func noOverlay(path string) string {
	switch {
	case binds.Within(path, "/etc"):
		return "use the key etc"
	case binds.Within(path, "/home"), path == "/var":
		return "leave it out: it is writable, from the encrypted volume"
	case !isTarget(path):
		return "give a directory of the image such as /opt"
	case binds.OfImage(path):
		return "give /opt or /usr/local: what a signed /usr is for is that nobody changes it"
	}
	return ""
}

// overlap says that one path is the other, or in it.
func overlap(a, b string) bool { return binds.Within(a, b) || binds.Within(b, a) }
