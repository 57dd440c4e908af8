package mount

import (
	"errors"
	"fmt"
	"os"
	"strings"
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

// maxLower is far above what is sensible and low enough that the option of all
// lower directories stays below the 256 bytes that one fsconfig(2) string may
// have ("/proc/self/fd/12:" for each).
const maxLower = 14

// Validate checks the description without looking at any file.
func (o Overlay) Validate() error {
	switch {
	case len(o.Lower) == 0:
		return fmt.Errorf("%w: no lower directory", ErrOverlay)
	case len(o.Lower) > maxLower:
		return fmt.Errorf("%w: %d lower directories, at most %d", ErrOverlay, len(o.Lower), maxLower)
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

// OverlayAt mounts an overlay on dst. The kernel wants paths, so it gets those
// of our file descriptors below /proc, which lead to the same directories
// whatever happens to their names; /proc must be mounted.
func OverlayAt(o OverlayDirs, dst *os.File) error {
	if len(o.Lower) == 0 || len(o.Lower) > maxLower || (o.Upper == nil) != (o.Work == nil) {
		return fmt.Errorf("cannot mount an overlay at %s: %w", dst.Name(), ErrOverlay)
	}
	lower := make([]string, len(o.Lower))
	for i, f := range o.Lower {
		lower[i] = fdPath(f)
	}
	options := []string{"lowerdir=" + strings.Join(lower, ":")}
	if o.Upper != nil {
		options = append(options, "upperdir="+fdPath(o.Upper), "workdir="+fdPath(o.Work))
	}
	fs := Filesystem{Type: "overlay", Source: "overlay", Options: append(options, overlayOff[:]...), Attr: o.Attr}
	return MountAt(fs, dst)
}

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
