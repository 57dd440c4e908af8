package boot

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/state"
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
	inMemory    bool // by the configuration
	aside       bool // it is mounted aside first
}

// overlay decides which of them are used. With a volume that is read-only the
// owner's changes stay in force, as a lower layer.
func (w *writable) overlay(inMemory, readOnly bool) mount.Overlay {
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
// cannot be made so is reported and left as the image has it. What lies below /var is
// mounted aside, and returned: there the image's content is seen only until the
// volume's is bound over it.
func (b *boot) overlays(volume *os.File) (waiting []string) {
	for _, o := range b.cfg.DirectoryOverlays() { // that over the root is there, see replaceImage
		w := overlayPlaces(o.Path)
		if o.Upper == config.UpperPerSlot {
			w.in(layout.SlotUpper(binds.Escape(o.Path), b.report.Slot.Name, b.report.Root.RootHash))
		}
		w.aside, w.inMemory = strings.HasPrefix(o.Path, "/var/"), o.Upper == config.UpperMemory
		if err := b.overlay(volume, o.Path, w); err != nil {
			b.warn("cannot make %s writable: %v", o.Path, err)
		} else if w.aside {
			waiting = append(waiting, o.Path)
		}
	}
	return waiting
}

// uncover moves overlays that were mounted aside to their places: as soon as /var is
// there, so that what is bound by name in one of them, or over it, is seen.
func (b *boot) uncover(waiting []string) {
	for _, path := range waiting {
		if err := b.moveOverlay(path, bindAttr(path)); err != nil {
			b.warn("cannot make %s writable: %v", path, err)
		}
	}
}

// overlayBind mounts aside what a bind with seed: overlay is to show. Its layers are
// where no image binds them by name: one that comes back, and knows nothing of the
// overlay, would have the changes alone in place of its own content.
func (b *boot) overlayBind(volume *os.File, e config.ExtraBind) (err error) {
	w := overlayPlaces(e.To)
	from := strings.TrimPrefix(e.From, state.MountDir+"/")
	w.in(layout.BindUpper(binds.Escape(e.To), from))
	if w.attr, err = mount.ParseAttr(e.Options); err != nil {
		return err
	}
	w.aside = true
	return b.overlay(volume, e.To, w)
}

// asideDir has, in the initramfs, the overlays that are mounted aside.
const asideDir = "/overlays"

// aside is where, in the initramfs, an overlay is mounted until its place is there.
func aside(path string) mount.Place {
	return mount.Place{Root: "/", Path: asideDir + "/" + binds.Escape(path)}
}

// moveOverlay moves an overlay that was mounted aside to its place.
func (b *boot) moveOverlay(path string, attr mount.Attr) error {
	from := aside(path)
	err := mkdirIn(newRoot, path, 0o755)
	if err == nil || errors.Is(err, unix.EROFS) {
		err = b.sys.Mounter.Move(from, mount.Place{Root: newRoot, Path: path})
	}
	if err != nil {
		return errors.Join(err, b.sys.Mounter.Unmount(from.Path))
	}
	b.noteOverlay(path, attr)
	return nil
}

func (b *boot) noteOverlay(path string, attr mount.Attr) {
	b.noteMount(report.Mount{What: "overlay", Where: path, Type: "overlay", Options: attr.Names()})
}

// overlay mounts an overlay over what the image has at path, and makes the layers that
// are missing.
func (b *boot) overlay(volume *os.File, path string, w *writable) error {
	if err := mkdirIn(newRoot, path, 0o755); err != nil && !errors.Is(err, unix.EROFS) {
		return err
	}
	image, dir, err := b.content(path)
	if err != nil {
		return err
	}
	dir.Close()
	w.image = image
	readOnly := b.volume.readOnly()
	if readOnly && !isDirIn(w.upper) {
		w.inMemory = true // nothing was ever changed
	}
	o := w.overlay(w.inMemory, readOnly)
	if o.Upper.Root == w.memory {
		err = mkdirs(w.memory)
	} else if err = unix.Mkdirat(int(volume.Fd()), layout.Private, 0o700); errors.Is(err, unix.EEXIST) {
		err = nil
	}
	var lost error
	if err == nil {
		lost, err = makeMostOfUpper(o)
	}
	if lost != nil {
		b.warn("%s is not in all as the image has it: %v", path, lost)
	}
	if err != nil {
		return err
	}
	at := mount.Place{Root: newRoot, Path: path}
	if w.aside {
		at = aside(path)
		err = mkdirs(at.Path)
	}
	if err == nil {
		err = b.sys.Mounter.Overlay(o, at)
	}
	if err == nil && !w.aside {
		b.noteOverlay(path, w.attr)
	}
	return err
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

// makeMostOfUpper does without extended attributes that cannot be copied, and tells of
// them: memory holds no user attributes before Linux 6.6.
func makeMostOfUpper(o mount.Overlay) (lost, err error) {
	if err = makeUpper(o); errors.Is(err, unix.ENOTSUP) {
		return err, makeWork(o)
	}
	return nil, err
}

func makeWork(o mount.Overlay) error { return mkdirIn(o.Work.Root, o.Work.Path, 0o700) }

// overlayPlaces are those for a directory of the root, without the image's.
func overlayPlaces(path string) *writable {
	name := binds.Escape(path)
	w := &writable{memory: runDir + "/overlays/" + name, attr: bindAttr(path)}
	w.in(layout.Overlays + "/" + name)
	return w
}

// in has upper and work directory in a directory of the volume.
func (w *writable) in(dir string) {
	w.upper = mount.Place{Root: encryptedDir, Path: dir + "/upper"}
	w.work = mount.Place{Root: encryptedDir, Path: dir + "/work"}
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
