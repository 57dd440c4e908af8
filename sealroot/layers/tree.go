package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/mkinitramfs/layer/over"
	"sealroot/mount"
)

// tree is an over.Tree that the kernel shows.
type tree struct {
	top *os.File
	// device is the one that names have to be of; 0 for any. /etc is on another, and
	// the image's own lies below it.
	device uint64
}

func (t tree) open(name string, flags int) (*os.File, error) {
	return mount.OpenBeneath(t.top, name, flags|unix.O_NOFOLLOW, mount.Beneath)
}

func (t tree) Entry(name string) (e over.Entry, err error) {
	f, err := t.open(name, unix.O_PATH)
	if err != nil {
		return e, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return e, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return e, err
	}
	if t.device != 0 && st.Dev != t.device && info.IsDir() && name != "etc" && !strings.HasPrefix(name, "etc/") {
		return e, fmt.Errorf("what is mounted at %s: %w", name, fs.ErrNotExist)
	}
	e = over.Entry{Mode: info.Mode(), UID: int(st.Uid), GID: int(st.Gid)}
	if info.Mode().Type() == fs.ModeSymlink {
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(f.Fd()), "", target)
		if err != nil {
			return e, fmt.Errorf("cannot read the link %s: %w", name, err)
		}
		e.Link = string(target[:n])
	}
	return e, nil
}

func (t tree) Children(dir string) ([]string, error) {
	f, err := t.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// compare lists what a layer's tree does to a root that runs, or to its usr. What is mounted
// there is not the image's; /etc is, as far as nobody has changed it. machine tells whether
// /etc is mounted: the machine's own files lie above all images there.
func compare(root string, layer *os.File, usr bool) (clashes []over.Clash, machine bool, err error) {
	dir := "."
	if usr {
		dir = "usr"
	}
	top, err := mount.OpenRoot(root)
	if err != nil {
		return nil, false, err
	}
	defer top.Close()
	at, err := mount.OpenBeneath(top, dir, unix.O_PATH|unix.O_DIRECTORY, mount.Beneath)
	if err != nil {
		return nil, false, err
	}
	defer at.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(at.Fd()), &st); err != nil {
		return nil, false, fmt.Errorf("cannot look at %s: %w", at.Name(), err)
	}
	if machine, err = mountedEtc(top, st.Dev); err != nil {
		return nil, false, err
	}
	clashes, err = over.Compare(tree{top, st.Dev}, tree{layer, 0}, dir)
	return clashes, machine, err
}

// mountedEtc tells whether /etc of a root lies on another device than that.
func mountedEtc(root *os.File, device uint64) (bool, error) {
	etc, err := mount.OpenBeneath(root, "etc", unix.O_PATH|unix.O_NOFOLLOW, mount.Beneath)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer etc.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(etc.Fd()), &st); err != nil {
		return false, fmt.Errorf("cannot look at %s: %w", etc.Name(), err)
	}
	return st.Dev != device, nil
}
