package boot

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/slots"
)

// A slot of root.source usr-verity holds /usr alone. The root around it is made in
// memory at each boot, as systemd.volatile=yes has it; what /etc, /home and /var
// have at first is in the image's factory (file-hierarchy(7)).
const factory = "share/factory"

// image is where the slot's image is mounted, as the running system sees it.
func (b *boot) image() string {
	if b.cfg.Root.Usr() {
		return "/usr"
	}
	return "/"
}

// imageDir is that place now.
func (b *boot) imageDir() string { return path.Join(newRoot, b.image()) }

// dmName is the device-mapper name of the image.
func (b *boot) dmName() string { return "sealroot-" + string(b.cfg.Root.ImageRole()) }

// errWholeRoot: with its links of a merged /usr a root would pass for a /usr. The
// signature covers bytes, so where one key signs for both roles nothing else tells.
var errWholeRoot = errors.New("it holds a whole root, and root.source is usr-verity")

// mountImage mounts the verified image of a slot, and the root in memory below it
// where it is none itself.
func (b *boot) mountImage(slot string, fs mount.Filesystem) error {
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return environmentError(slots.IOError, "cannot make %s: %w", newRoot, err)
	}
	b.report.Mounts = nil
	if b.cfg.Root.Usr() {
		if err := b.mountMemory(); err != nil {
			return environmentError(slots.IOError, "cannot make a root in memory: %w", err)
		}
	}
	if err := b.sys.Mounter.MountIn(fs, mount.Place{Root: "/", Path: b.imageDir()}); err != nil {
		return imageError(slots.Mount, "cannot mount slot %s: %w", slot, err)
	}
	b.noteMount(report.Mount{What: fs.Source, Where: b.image(), Type: fs.Type, Options: fs.Attr.Names()})
	if !b.cfg.Root.Usr() {
		return nil
	}
	names, err := listDir(b.imageDir())
	if err != nil {
		return imageError(slots.Mount, "cannot list /usr of slot %s: %w", slot, err)
	}
	if err := makeAround(newRoot, names); errors.Is(err, errWholeRoot) {
		return imageError(slots.WrongImage, "cannot use slot %s: %w", slot, err)
	} else if err != nil {
		return environmentError(slots.IOError, "cannot make a root in memory: %w", err)
	}
	return nil
}

// memoryLimits are systemd's for a root in memory (TMPFS_LIMITS_ROOTFS).
var memoryLimits = [...]string{"mode=0755", "size=25%", "nr_inodes=1m"}

// mountMemory mounts the root in memory, with nothing but the place of /usr.
func (b *boot) mountMemory() error {
	fs := mount.Filesystem{Type: "tmpfs", Source: "rootfs", Options: memoryLimits[:], Attr: mount.NoSUID | mount.NoDev}
	if err := b.sys.Mounter.MountIn(fs, mount.Place{Root: "/", Path: newRoot}); err != nil {
		return err
	}
	b.noteMount(report.Mount{What: fs.Source, Where: "/", Type: fs.Type, Options: append(fs.Attr.Names(), fs.Options...)})
	return unix.Mkdir(b.imageDir(), 0o755)
}

func listDir(dir string) ([]string, error) {
	d, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

func modeOf(dir string) uint32 {
	switch dir {
	case "root":
		return 0o700
	case "proc", "sys":
		return 0o555
	case "tmp":
		return 0o1777
	}
	return 0o755
}

// makeAround makes what a root has beside /usr, which holds these names, in a directory
// that is ours alone: the directories that systemd makes in one that lacks them
// (base-filesystem.c) or that others mount on, and the links of the merged /usr.
// errWholeRoot when the names are not those of a /usr.
func makeAround(root string, names []string) error {
	if slices.Contains(names, "usr") {
		return errWholeRoot
	}
	for _, name := range strings.Fields("boot dev efi etc home media mnt opt proc root run srv state sys tmp var") {
		at := path.Join(root, name)
		if err := unix.Mkdir(at, 0); err != nil {
			return &os.PathError{Op: "mkdir", Path: at, Err: err}
		}
		if err := unix.Chmod(at, modeOf(name)); err != nil { // whatever the umask is
			return &os.PathError{Op: "chmod", Path: at, Err: err}
		}
	}
	return makeLinks(root, names)
}

// makeLinks makes those links of the merged /usr that are missing.
func makeLinks(root string, names []string) error {
	for _, name := range strings.Fields("bin lib lib32 lib64 libx32 sbin") {
		if !slices.Contains(names, name) {
			continue
		}
		if err := os.Symlink("usr/"+name, path.Join(root, name)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// imagePlace is where the image has the first content of a directory of the root.
func (b *boot) imagePlace(name string) mount.Place {
	if b.cfg.Root.Usr() {
		name = path.Join(factory, name)
	}
	return mount.Place{Root: b.imageDir(), Path: name}
}

// openImage opens the first content of a directory of the root; nil where the
// factory of a /usr has none.
func (b *boot) openImage(name string) (*os.File, error) {
	place := b.imagePlace(name)
	image, err := mount.OpenRoot(place.Root)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	dir, err := mount.OpenBeneath(image, place.Path, unix.O_RDONLY|unix.O_DIRECTORY, mount.Strict)
	if b.cfg.Root.Usr() && errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	return dir, err
}

// errNoEtc: a read-only /etc is nothing but the image's.
var errNoEtc = errors.New("etc: read-only needs /usr/" + factory + "/etc")

// readDirs reads the directories of the image that are needed later.
func (b *boot) readDirs() error {
	for _, name := range [...]string{"etc", "home", "state", "var"} {
		d, err := b.openImage(name)
		if err == nil && d != nil {
			_, err = d.Readdirnames(-1)
			d.Close()
		} else if err == nil && name == "etc" && b.cfg.Etc == config.EtcReadOnly {
			err = errNoEtc
		}
		if err != nil {
			return fmt.Errorf("/%s: %w", name, err)
		}
	}
	return nil
}

// etcPlace is the image's /etc: without one in the factory that of the root, which
// is empty.
func (b *boot) etcPlace() (mount.Place, error) {
	d, err := b.openImage("etc")
	if err != nil {
		return mount.Place{}, err
	}
	if d == nil {
		return mount.Place{Root: newRoot, Path: "etc"}, nil
	}
	return b.imagePlace("etc"), d.Close()
}
