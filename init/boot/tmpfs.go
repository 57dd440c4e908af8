package boot

import (
	"cmp"
	"errors"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/mount"
)

// inMemory mounts the empty directories that the configuration wants in memory, over all
// else, and makes its links. One that cannot be made is reported and left out.
func (b *boot) inMemory() {
	for i := range b.cfg.Binds.Tmpfs {
		if err := b.mountTmpfs(&b.cfg.Binds.Tmpfs[i]); err != nil {
			b.warn("cannot mount a tmpfs at %s: %v", b.cfg.Binds.Tmpfs[i].To, err)
		}
	}
	for _, l := range b.cfg.Binds.Symlinks {
		if err := linkIn(newRoot, l.At, l.To); err != nil {
			b.warn("cannot make the link %s: %v", l.At, err)
		}
	}
}

func (b *boot) mountTmpfs(t *config.Tmpfs) error {
	attr, err := mount.ParseAttr(t.Options)
	if err == nil {
		err = mkdirIn(newRoot, t.To, 0o755)
	}
	if err != nil && !errors.Is(err, unix.EROFS) {
		return err
	}
	fs := mount.Filesystem{Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=" + cmp.Or(t.Mode, "0755")}, Attr: attr | mount.NoSUID | mount.NoDev}
	if t.SizeMiB > 0 {
		fs.Options = append(fs.Options, "size="+strconv.Itoa(t.SizeMiB)+"m")
	}
	return b.mountIn(fs, mount.Place{Root: newRoot, Path: strings.TrimPrefix(t.To, "/")})
}

// linkIn makes a symbolic link inside a root, in a directory that is there and writable,
// and follows none to it. One that is there already and leads there is left.
func linkIn(root, at, to string) error {
	dir, err := openIn(mount.Place{Root: root, Path: path.Dir(at)})
	if err != nil {
		return err
	}
	defer dir.Close()
	name := path.Base(at)
	err = unix.Symlinkat(to, int(dir.Fd()), name)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EROFS) {
		there := make([]byte, len(to)+1)
		if n, rerr := unix.Readlinkat(int(dir.Fd()), name, there); rerr == nil && string(there[:n]) == to {
			return nil
		}
	}
	return os.NewSyscallError("symlink", err)
}
