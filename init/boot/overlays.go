package boot

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/state/binds"
	"sealroot/state/layout"
	"sealroot/state/seed"
)

// writable says where the layers of an overlay over one directory of the image lie.
type writable struct {
	image       mount.Place // its content in the image
	upper, work mount.Place // on the encrypted volume
	memory      string      // directory in memory with upper and work
	attr        mount.Attr
}

// overlay decides which of them are used. With a volume that is read-only the
// owner's changes stay in force, as a lower layer.
func (w writable) overlay(inMemory, readOnly bool) mount.Overlay {
	o := mount.Overlay{Lower: []mount.Place{w.image}, Attr: w.attr}
	if !inMemory && !readOnly {
		o.Upper, o.Work = w.upper, w.work
		return o
	}
	if !inMemory {
		o.Lower = append([]mount.Place{w.upper}, o.Lower...)
	}
	o.Upper, o.Work = mount.Place{Root: w.memory, Path: "upper"}, mount.Place{Root: w.memory, Path: "work"}
	return o
}

// overlays makes the directories writable that the configuration names. One that
// cannot be made so is reported and left as the image has it.
func (b *boot) overlays(volume *os.File) {
	for _, o := range b.cfg.Overlays {
		if err := b.overlay(volume, o); err != nil {
			b.warn("cannot make %s writable: %v", o.Path, err)
		}
	}
}

func (b *boot) overlay(volume *os.File, c config.Overlay) error {
	if err := mkdirIn(newRoot, c.Path, 0o755); err != nil && !errors.Is(err, unix.EROFS) {
		return err
	}
	w := overlayPlaces(c.Path)
	image, dir, err := b.content(c.Path)
	if err != nil {
		return err
	}
	dir.Close()
	w.image = image
	inMemory, readOnly := c.Upper == config.UpperMemory, b.volume.readOnly()
	if readOnly && !isDirIn(w.upper) {
		inMemory = true // nothing was ever changed
	}
	o := w.overlay(inMemory, readOnly)
	if o.Upper.Root == w.memory {
		err = mkdirs(w.memory)
	} else if err = unix.Mkdirat(int(volume.Fd()), layout.Private, 0o700); errors.Is(err, unix.EEXIST) {
		err = nil
	}
	if err == nil {
		err = makeUpper(o)
	}
	if errors.Is(err, unix.ENOTSUP) { // memory holds no user attributes before Linux 6.6
		b.warn("%s is not in all as the image has it: %v", c.Path, err)
		err = makeWork(o)
	}
	if err == nil {
		err = b.sys.Mounter.Overlay(o, mount.Place{Root: newRoot, Path: c.Path})
	}
	if err != nil {
		return err
	}
	b.noteMount(report.Mount{What: "overlay", Where: c.Path, Type: "overlay", Options: o.Attr.Names()})
	return nil
}

// makeUpper makes the upper layer, once: its root is what the overlay shows as the
// directory itself, so it begins as a copy of that below it, and is the owner's from
// then on. The work directory comes last, and tells that the copy was made. ENOTSUP:
// all but extended attributes was copied.
func makeUpper(o mount.Overlay) error {
	if isDirIn(o.Upper) && isDirIn(o.Work) {
		return nil
	}
	if err := mkdirIn(o.Upper.Root, o.Upper.Path, 0o700); err != nil {
		return err
	}
	from, err := openIn(o.Lower[0])
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := openIn(o.Upper)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := seed.Attributes(from, to); err != nil {
		return err
	}
	return makeWork(o)
}

func makeWork(o mount.Overlay) error { return mkdirIn(o.Work.Root, o.Work.Path, 0o700) }

// overlayPlaces are those for a directory of the root, without the image's.
func overlayPlaces(path string) writable {
	name := binds.Escape(path)
	dir := layout.Overlays + "/" + name
	return writable{
		upper:  mount.Place{Root: encryptedDir, Path: dir + "/upper"},
		work:   mount.Place{Root: encryptedDir, Path: dir + "/work"},
		memory: runDir + "/overlays/" + name,
		attr:   bindAttr(path),
	}
}

// content is where the image has a directory of the root, and opens it. Of a /usr it
// may be nowhere: then it is the empty one of the root around it.
func (b *boot) content(path string) (mount.Place, *os.File, error) {
	place := b.contentPlace(path)
	d, err := openIn(place)
	if b.cfg.Root.Usr() && errors.Is(err, unix.ENOENT) {
		place = mount.Place{Root: newRoot, Path: path}
		d, err = openIn(place)
	}
	return place, d, err
}

func (b *boot) contentPlace(path string) mount.Place {
	if inUsr, ok := strings.CutPrefix(path, "/usr/"); ok && b.cfg.Root.Usr() {
		return mount.Place{Root: b.imageDir(), Path: inUsr}
	}
	return b.imagePlace(strings.Trim(path, "/"))
}

func openIn(p mount.Place) (*os.File, error) {
	root, err := mount.OpenRoot(p.Root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return mount.OpenBeneath(root, p.Path, unix.O_RDONLY|unix.O_DIRECTORY, mount.Beneath)
}

func isDirIn(p mount.Place) bool {
	d, err := openIn(p)
	if err == nil {
		d.Close()
	}
	return err == nil
}
