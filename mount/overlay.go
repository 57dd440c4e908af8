package mount

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrOverlay means that an overlay's description contradicts itself.
var ErrOverlay = errors.New("bad overlay")

// Overlay describes an overlay mount. Upper and Work are given together and
// lie on one file system; without them the overlay is read-only.
type Overlay struct {
	Lower []Place // topmost first
	Upper Place
	Work  Place
	Attr  Attr
}

// MaxLower is how many directories the kernel stacks (OVL_MAX_STACK).
const MaxLower = 500

// Validate checks the description without looking at any file.
func (o Overlay) Validate() error {
	switch {
	case len(o.Lower) == 0:
		return fmt.Errorf("%w: no lower directory", ErrOverlay)
	case len(o.Lower) > MaxLower:
		return fmt.Errorf("%w: %d lower directories, at most %d", ErrOverlay, len(o.Lower), MaxLower)
	case (o.Upper == Place{}) != (o.Work == Place{}):
		return fmt.Errorf("%w: upper and work directory go together", ErrOverlay)
	case (o.Upper == Place{}) && len(o.Lower) == 1:
		return fmt.Errorf("%w: one lower directory and no upper one", ErrOverlay)
	case o.Upper != Place{} && o.Upper == o.Work:
		return fmt.Errorf("%w: upper and work directory are the same", ErrOverlay)
	}
	for _, p := range o.places() {
		if !strings.HasPrefix(p.Root, "/") {
			return fmt.Errorf("%w: root %q is not absolute", ErrOverlay, p.Root)
		}
	}
	return nil
}

func (o Overlay) places() []Place {
	p := append([]Place(nil), o.Lower...)
	if o.Upper != (Place{}) {
		p = append(p, o.Upper, o.Work)
	}
	return p
}

// String is the mount(8) command line without the place.
func (o Overlay) String() string {
	var lower []string
	for _, l := range o.Lower {
		lower = append(lower, l.String())
	}
	words := append(o.Attr.Names(), "lowerdir="+strings.Join(lower, ":"))
	if o.Upper != (Place{}) {
		words = append(words, "upperdir="+o.Upper.String(), "workdir="+o.Work.String())
	}
	return "mount -t overlay -o " + strings.Join(append(words, overlayOff[:]...), ",") + " overlay"
}

// overlayOff are the features that make the kernel follow what an upper
// directory's extended attributes say (redirects, metadata-only copies, indexes):
// all off, whatever the kernel's defaults are, so that files which another
// system wrote into the upper directory can name nothing outside of it.
// redirect_dir=off is not enough: with it, kernels built with
// OVERLAY_FS_REDIRECT_ALWAYS_FOLLOW, as most are, make no redirects but follow
// those that they find (Documentation/filesystems/overlayfs.rst).
var overlayOff = [...]string{"redirect_dir=nofollow", "metacopy=off", "index=off", "xino=off"}

// OverlayDirs is an overlay of directories that are open already. Upper and
// Work are nil together for a read-only overlay.
type OverlayDirs struct {
	Lower       []*os.File // topmost first
	Upper, Work *os.File
	Attr        Attr
}

// fewLower is how many lower directories fit into the 255 bytes that one fsconfig(2)
// string may have ("/proc/self/fd/12:" for each).
const fewLower = 14

// OverlayAt mounts an overlay on dst. The kernel wants paths, so it gets those
// of our file descriptors below /proc, which lead to the same directories
// whatever happens to their names; /proc must be mounted. More lower directories
// than one string holds are given one by one (Linux 6.8), else by mount(2).
func OverlayAt(o OverlayDirs, dst *os.File) error {
	if len(o.Lower) == 0 || len(o.Lower) > MaxLower || (o.Upper == nil) != (o.Work == nil) {
		return fmt.Errorf("cannot mount an overlay at %s: %w", dst.Name(), ErrOverlay)
	}
	if len(o.Lower) <= fewLower {
		return MountAt(o.filesystem([]string{"lowerdir=" + o.lower(fdPath)}), dst)
	}
	var each []string
	for _, f := range o.Lower {
		each = append(each, "lowerdir+="+fdPath(f))
	}
	err := MountAt(o.filesystem(each), dst)
	if errors.Is(err, unix.EINVAL) { // the kernel does not know lowerdir+
		return o.classic(dst)
	}
	return err
}

func (o OverlayDirs) lower(path func(*os.File) string) string {
	var all []string
	for _, f := range o.Lower {
		all = append(all, path(f))
	}
	return strings.Join(all, ":")
}

func (o OverlayDirs) filesystem(options []string) Filesystem {
	if o.Upper != nil {
		options = append(options, "upperdir="+fdPath(o.Upper), "workdir="+fdPath(o.Work))
	}
	return Filesystem{Type: "overlay", Source: "overlay", Options: append(options, overlayOff[:]...), Attr: o.Attr}
}

// classic mounts by mount(2), whose options have a page. The paths are short ones in
// /proc/self/fd, from a thread that has its own working directory and ends then.
func (o OverlayDirs) classic(dst *os.File) error {
	number := func(f *os.File) string { return strconv.Itoa(int(f.Fd())) }
	options := []string{"lowerdir=" + o.lower(number)}
	if o.Upper != nil {
		options = append(options, "upperdir="+number(o.Upper), "workdir="+number(o.Work))
	}
	data := strings.Join(append(options, overlayOff[:]...), ",")
	if len(data) >= os.Getpagesize() {
		return fmt.Errorf("cannot mount an overlay at %s: %w: its options have %d bytes, and this kernel takes less than %d", dst.Name(), ErrOverlay, len(data), os.Getpagesize())
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Chdir(fdDir); err != nil {
				return err
			}
			return unix.Mount("overlay", number(dst), "overlay", o.Attr.mountFlags(), data)
		}()
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("cannot mount an overlay at %s: %w", dst.Name(), err)
	}
	return nil
}

// fdDir has the open files of this thread's process as links.
const fdDir = "/proc/self/fd"

func fdPath(f *os.File) string { return fmt.Sprintf("%s/%d", fdDir, f.Fd()) }
