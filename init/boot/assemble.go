package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/slots"
	"sealroot/state"
	"sealroot/state/binds"
	"sealroot/state/layout"
	"sealroot/state/seed"
)

// alwaysBound are the directories that every volume has: without them nothing
// could be written on an immutable root.
var alwaysBound = [...]string{"home", "var"}

// writable puts the writable parts over the root.
func (b *boot) writable(ctx context.Context) error {
	volume, err := openDir(encryptedDir)
	if err != nil {
		return stateError(slots.StateDamaged, "cannot open the encrypted volume: %w", err)
	}
	defer volume.Close()
	if err := b.etc(ctx, volume); err != nil {
		return err // without the owner's /etc its data must not be had either
	}
	if err := b.seedAll(volume); err != nil {
		return err
	}
	extra := b.seedExtra(volume)
	waiting := b.overlays(volume)
	if err := b.bindAll(volume, encryptedDir, nil, waiting); err != nil {
		return err
	}
	if len(b.cfg.Binds.Unencrypted) > 0 && b.volume.outer != nil {
		if err := b.bindAll(b.volume.outer, stateDir, b.cfg.Binds.Unencrypted, nil); err != nil {
			return err
		}
	}
	b.bindExtra(extra)
	b.inMemory()
	if err := b.bindID(volume); err != nil {
		b.warn("the machine-id may be another one at each boot: %v", err)
	}
	return nil
}

// seedAll makes the directories that are always bound, with the image's content.
func (b *boot) seedAll(volume *os.File) error {
	if b.volume.readOnly() {
		return nil
	}
	for _, name := range alwaysBound {
		src, err := b.openImage(name)
		if err != nil {
			return imageError(slots.Mount, "cannot open /%s of the image: %w", name, err)
		}
		made, stats, err := seed.Into(volume, name, src)
		if src != nil {
			src.Close()
		}
		if err != nil {
			return stateError(slots.StateDamaged, "cannot fill /%s: %w", name, err)
		}
		if made && src != nil {
			b.sys.Log.Info("state: /%s filled from the image, %d entries, %d MiB", name, stats.Entries, stats.Bytes>>20)
		}
	}
	return nil
}

// etcLayers is the overlay of /etc over that of the image. Its upper layer is code for root, so it lies
// on the encrypted volume or in memory, never beside it. With a volume that is
// read-only the owner's changes stay in force, as a lower layer: without them the
// image's passwords and services would stand before the owner's data, and whoever
// fills the state partition could bring that about.
func etcLayers(image mount.Place, mode config.EtcMode, readOnly bool) mount.Overlay {
	w := writable{
		image:  image,
		upper:  mount.Place{Root: encryptedDir, Path: "etc"},
		work:   mount.Place{Root: encryptedDir, Path: layout.EtcWork},
		memory: runDir + "/etc", attr: mount.NoSUID | mount.NoDev,
	}
	return w.overlay(mode == config.EtcVolatile, readOnly)
}

// etc mounts /etc as the configuration says.
func (b *boot) etc(ctx context.Context, volume *os.File) error {
	image, err := b.etcPlace()
	if err != nil {
		return imageError(slots.Mount, "cannot open /etc of the image: %w", err)
	}
	if b.cfg.Etc == config.EtcReadOnly {
		if !b.cfg.Root.Usr() {
			return nil
		}
		if err := b.bind(image, "/etc", mount.ReadOnly|mount.NoSUID|mount.NoDev); err != nil {
			return imageError(slots.Mount, "%w", err)
		}
		return nil
	}
	readOnly := b.volume.readOnly()
	o := etcLayers(image, b.cfg.Etc, readOnly)
	if o.Upper.Root == encryptedDir {
		if _, _, err := seed.Into(volume, "etc", nil); err != nil {
			return stateError(slots.StateDamaged, "cannot make the upper layer of /etc: %w", err)
		}
		if err := mkdirIn(o.Work.Root, o.Work.Path, 0o700); err != nil {
			return stateError(slots.StateDamaged, "cannot make %s on the encrypted volume: %w", o.Work.Path, err)
		}
		if readOnly = b.mergeEtc(ctx, volume, image); readOnly {
			b.warn("/etc is not this image's: changes to it in this boot are in memory")
			o = etcLayers(image, b.cfg.Etc, readOnly)
		}
	}
	if o.Upper.Root != encryptedDir {
		if err := mkdirs(o.Upper.Root+"/upper", o.Upper.Root+"/work"); err != nil {
			return stateError(slots.StateDamaged, "cannot make a volatile /etc: %w", err)
		}
	}
	b.report.EtcInMemory = readOnly && b.cfg.Etc != config.EtcVolatile
	where := mount.Place{Root: newRoot, Path: "etc"}
	if err := b.sys.Mounter.Overlay(o, where); err != nil {
		return stateError(slots.StateDamaged, "cannot mount /etc: %w", err)
	}
	b.noteMount(report.Mount{What: "overlay", Where: "/etc", Type: "overlay", Options: o.Attr.Names()})
	return nil
}

func mkdirs(paths ...string) error {
	for _, p := range paths {
		if err := os.MkdirAll(p, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// maxUnencrypted is how many entries of the unencrypted side are looked at.
// Anybody may have made more of them than memory holds.
const maxUnencrypted = 500

// bindAll binds the directories of one side by their names. allow nil means the
// encrypted side, where every name counts; else only the targets listed, and none that
// would hide what is mounted by then. waiting are overlays that are mounted aside, for
// places in /var.
func (b *boot) bindAll(side *os.File, sideRoot string, allow, waiting []string) error {
	limit := -1
	if allow != nil {
		limit = maxUnencrypted
	}
	names, more, err := directories(side, limit)
	if err != nil {
		return stateError(slots.StateDamaged, "cannot list %s: %w", sideRoot, err)
	}
	if more {
		b.warn("state: %s has more than %d entries: not all of them were looked at", sideRoot[len(newRoot):], limit)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return b.hasPlace(sideRoot, name) })
	list, problems := binds.Names(names)
	if allow != nil {
		var mounts []binds.Bind
		for _, m := range b.report.Mounts {
			mounts = append(mounts, binds.Bind{Name: m.What, To: m.Where})
		}
		kept, hiding := binds.Allowed(list, allow, mounts)
		list, problems = kept, append(problems, hiding...)
	}
	for _, p := range problems {
		b.warn("state: directory %q is not bound: %s", p.Name, p.Reason)
	}
	for _, d := range list {
		if d.Upper {
			continue
		}
		if strings.HasPrefix(d.To, "/var/") {
			b.uncover(waiting)
			waiting = nil
		}
		attr := bindAttr(d.To)
		if allow != nil {
			attr = unencryptedAttr(d.To)
		}
		if err := b.bind(mount.Place{Root: sideRoot, Path: d.Name}, d.To, attr); err != nil {
			// One directory more or less must not cost the boot; the two that
			// every system needs must be there.
			if allow == nil && slices.Contains(alwaysBound[:], d.Name) {
				return stateError(slots.StateDamaged, "%w", err)
			}
			b.warn("%v", err)
		}
	}
	b.uncover(waiting)
	return nil
}

// hasPlace says that binds.extra gives a directory another place than its name does.
func (b *boot) hasPlace(sideRoot, name string) bool {
	if slices.Contains(alwaysBound[:], name) {
		return false
	}
	if sideRoot == encryptedDir {
		name = state.MountDir + "/" + name
	}
	return slices.ContainsFunc(b.cfg.Binds.Extra, func(e config.ExtraBind) bool { return e.From == name })
}

// bindAttr gives each place flags of its own, although the volume is mounted
// noexec: people run programs from /home, nobody needs set-uid files or devices
// there. Programs live in /opt, /usr/local and /var.
func bindAttr(to string) mount.Attr {
	switch to {
	case "/opt", "/usr/local", "/var":
		return mount.NoDev
	}
	return mount.NoSUID | mount.NoDev
}

// unencryptedAttr is for what anybody may have written: nothing there leads
// elsewhere, and nothing but what people keep in /home can be run.
func unencryptedAttr(to string) mount.Attr {
	attr := mount.NoSUID | mount.NoDev | mount.NoSymfollow
	if to != "/home" {
		attr |= mount.NoExec
	}
	return attr
}

func (b *boot) bind(from mount.Place, to string, attr mount.Attr) error {
	if err := b.sys.Mounter.Bind(mount.Bind{From: from, To: mount.Place{Root: newRoot, Path: to}, Attr: attr}); err != nil {
		return fmt.Errorf("cannot bind %s: %w", to, err)
	}
	b.noteMount(report.Mount{What: strings.TrimPrefix(from.Root, newRoot) + "/" + from.Path, Where: to, Type: "bind", Options: attr.Names()})
	return nil
}

// seedExtra fills those sources of explicit binds that the configuration wants
// filled, and mounts the overlays among them aside, before anything hides what the
// image has. It returns the binds that can be made: one without its content would hide
// the image's.
func (b *boot) seedExtra(volume *os.File) (list []config.ExtraBind) {
	for _, e := range b.cfg.Binds.Extra {
		var err error
		switch {
		case e.Seed == config.SeedOverlay:
			err = b.overlayBind(volume, e)
		case e.Seed != "" && e.Seed != config.SeedNone && !b.volume.readOnly():
			err = b.seedFrom(volume, e)
		}
		if err != nil {
			b.warn("%s is not bound: cannot fill %s: %v", e.To, e.From, err)
			continue
		}
		list = append(list, e)
	}
	return list
}

func (b *boot) seedFrom(volume *os.File, e config.ExtraBind) error {
	_, src, err := b.content(e.To)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err == nil { // else src is nil: the image has nothing there
		defer src.Close()
	}
	name := strings.TrimPrefix(e.From, state.MountDir+"/")
	if e.Seed == config.SeedTmpfiles {
		return seed.Empty(volume, name, src)
	}
	_, _, err = seed.Into(volume, name, src)
	return err
}

// bindExtra makes the explicit binds of the configuration. Both ends are made
// where they are missing, for nobody could do that before the first boot. One
// that cannot be made is reported and left out: it must not cost the boot.
func (b *boot) bindExtra(list []config.ExtraBind) {
	for _, e := range list {
		if err := b.bindOne(e); err != nil {
			b.warn("%v", err)
		}
	}
}

func (b *boot) bindOne(e config.ExtraBind) error {
	attr, err := mount.ParseAttr(e.Options)
	if err != nil {
		return err
	}
	if e.Seed == config.SeedOverlay {
		return b.moveOverlay(e.To, attr)
	}
	root, from := stateDir, e.From
	if inside, ok := strings.CutPrefix(e.From, state.MountDir+"/"); ok {
		root, from = encryptedDir, inside
	} else {
		attr |= unencryptedAttr(e.To)
	}
	if err := mkdirIn(root, from, 0o755); err != nil {
		return fmt.Errorf("cannot make %s for %s: %w", e.From, e.To, err)
	}
	if err := mkdirIn(newRoot, e.To, 0o755); err != nil && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("cannot make %s: %w", e.To, err)
	}
	return b.bind(mount.Place{Root: root, Path: from}, e.To, attr)
}

// mkdirIn makes the missing directories of a path inside a root, following no
// link.
func mkdirIn(root, path string, mode uint32) error {
	dir, err := openDir(root)
	if err != nil {
		return err
	}
	defer func() { dir.Close() }()
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		next, err := mount.OpenBeneath(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, mount.Beneath)
		if errors.Is(err, unix.ENOENT) {
			if err := unix.Mkdirat(int(dir.Fd()), name, mode); err != nil {
				return &os.PathError{Op: "mkdir", Path: path, Err: err}
			}
			next, err = mount.OpenBeneath(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, mount.Beneath)
		}
		if err != nil {
			return err
		}
		dir.Close()
		dir = next
	}
	return nil
}

// directories lists the directories directly in dir; links do not count. With a
// limit above zero it reads so many entries, and tells whether there are more.
func directories(dir *os.File, limit int) (names []string, more bool, err error) {
	d, err := openDir(dir.Name()) // a reading position of its own
	if err != nil {
		return nil, false, err
	}
	defer d.Close()
	entries, err := d.ReadDir(limit)
	if err == nil && limit > 0 {
		_, next := d.ReadDir(1)
		more = next == nil
	}
	if err != nil && !errors.Is(err, io.EOF) { // io.EOF: none, with a limit
		return nil, false, err
	}
	for _, e := range entries {
		if e.IsDir() && e.Name() != state.MountDir {
			names = append(names, e.Name())
		}
	}
	return names, more, nil
}

// mountIn mounts inside the new root and notes it for the report.
func (b *boot) mountIn(fs mount.Filesystem, where mount.Place) error {
	if err := b.sys.Mounter.MountIn(fs, where); err != nil {
		return err
	}
	b.noteMount(report.Mount{
		What: fs.Source, Where: where.Root[len(newRoot):] + "/" + where.Path, Type: fs.Type,
		Options: append(fs.Attr.Names(), fs.Options...),
	})
	return nil
}

func (b *boot) noteMount(m report.Mount) { b.report.Mounts = append(b.report.Mounts, m) }
