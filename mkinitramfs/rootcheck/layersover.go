package rootcheck

import (
	"io/fs"
	"strings"

	"sealroot/mkinitramfs/layer/over"
)

// over: a layer that hides a directory of the root, or the link to it, or gives it to a
// user, does so in every boot, whatever its on_failure.
func (v *verdict) over(l Layer) {
	root, top := over.Tree(v.t), "."
	if v.w.Config.Root.Usr() {
		root, top = withFactory{v.t}, "usr"
	}
	clashes, err := over.Compare(root, l.Files, top)
	if err != nil {
		v.warn(top, "look what it has", "layer %s, %s, cannot be compared: %v", l.Name, l.Image, err)
	}
	for _, c := range clashes {
		s := Warning
		if c.Bad() {
			s = Error
		}
		v.add(s, c.Path(), c.Remedy(), "layer %s, %s, %s", l.Name, l.Image, c.What())
	}
}

// factory is where an image of /usr has the /etc, /home and /var that a tree has in their
// own places.
const factory = "usr/share/factory"

type withFactory struct{ *Tree }

func (t withFactory) Entry(name string) (over.Entry, error) {
	e, err := t.Tree.Entry(name)
	if err == nil {
		return e, nil
	}
	if name == factory {
		return over.Entry{Mode: fs.ModeDir | 0o755}, nil
	}
	if in, ok := strings.CutPrefix(name, factory+"/"); ok {
		return t.Tree.Entry(in)
	}
	return e, err
}
