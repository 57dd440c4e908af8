package disk

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"sealroot/mkinitramfs/rootcheck"
	"sealroot/mkinitramfs/tools"
)

// The programs get descriptors: no path is read as options.
const itself = "/proc/self/fd/3"

// indexes are the indexes of modules, as unsquashfs matches names.
var indexes = [...]string{"usr/lib/modules/*/modules.dep", "lib/modules/*/modules.dep"}

// readSquashfs lists the squashfs that begins at a byte of the runner's file, and takes a
// folder and the indexes of modules out, into tree, which it makes.
func readSquashfs(ctx context.Context, run tools.Runner, offset int64, folder, tree string) (map[string]rootcheck.File, error) {
	at := []string{"-quiet", "-no-progress", "-no-xattrs", "-offset", strconv.FormatInt(offset, 10)}
	list, err := run.Output(ctx, nil, "unsquashfs", append(at, "-dest", "", "-lln", itself)...)
	if err != nil {
		return nil, err
	}
	return listedBySquashfs(list), run.Run(ctx, nil, "unsquashfs", append(append(at, "-dest", tree, itself, folder), indexes[:]...)...)
}

// listedBySquashfs reads a list of unsquashfs -lln. Of a name with a newline it has the
// first part.
func listedBySquashfs(list string) map[string]rootcheck.File {
	files := map[string]rootcheck.File{}
	for line := range strings.Lines(list) {
		// drwxr-xr-x 0/0                42 2026-11-29 23:22 /usr
		// crw-r--r-- 0/0             1,  3 2026-11-29 23:22 /dev/null
		rest := strings.TrimSuffix(line, "\n")
		var word [5]string // mode, owner, size, date, time
		for i := range word {
			word[i], rest, _ = strings.Cut(rest, " ")
			if i == 1 || i == 2 && strings.HasSuffix(word[i], ",") {
				rest = strings.TrimLeft(rest, " ")
			}
			if i == 2 && strings.HasSuffix(word[i], ",") {
				_, rest, _ = strings.Cut(rest, " ")
			}
		}
		uid, gid, _ := strings.Cut(word[1], "/")
		f, ok := listed(word[0][:min(1, len(word[0]))], word[0], uid, gid)
		if !ok || rest != "" && rest[0] != '/' {
			continue
		}
		if f.Mode.Type() == fs.ModeSymlink {
			rest, f.Link, _ = strings.Cut(rest, " -> ")
		}
		files[filepath.Join(".", rest)] = f
	}
	return files
}

// erofsListScript takes an image out into $1, which it makes, and lists it on descriptor 4.
// fakeroot remembers owners and devices that an ordinary user cannot make.
const erofsListScript = `set -eu
fsck.erofs --extract="$1" ` + itself + ` >&2
cd -- "$1"
find . -printf '%y %m %U %G %P\0%l\0' >&4`

// readErofs lists the erofs in data, and takes it out, into tree, which it makes; work is
// for other files. fsck.erofs of Debian 12 takes out a whole image, of a file that begins
// with it.
func readErofs(ctx context.Context, run tools.Runner, data io.Reader, work, tree string) (map[string]rootcheck.File, error) {
	var f [2]*os.File
	for i, name := range []string{"data", "list"} {
		var err error
		if f[i], err = os.Create(filepath.Join(work, name)); err != nil {
			return nil, err
		}
		defer f[i].Close()
	}
	if _, err := io.Copy(f[0], data); err != nil {
		return nil, err
	}
	if _, err := run.Find("fsck.erofs"); err != nil {
		return nil, err
	}
	run.Files = f[:]
	if err := run.Run(ctx, nil, "fakeroot", "--", "sh", "-c", erofsListScript, "sh", tree); err != nil {
		return nil, err
	}
	list, err := os.ReadFile(f[1].Name())
	if err != nil {
		return nil, err
	}
	return listedByFind(string(list))
}

// listedByFind reads the list of the script.
func listedByFind(list string) (map[string]rootcheck.File, error) {
	files := map[string]rootcheck.File{}
	for list != "" {
		var entry, link string
		entry, list, _ = strings.Cut(list, "\x00")
		link, list, _ = strings.Cut(list, "\x00")
		word := strings.SplitN(entry, " ", 5) // kind, mode, owner, group, name
		if len(word) < 5 {
			return nil, fmt.Errorf("cannot read the list of a layer: %q", entry)
		}
		f, ok := listed(word[0], word[1], word[2], word[3])
		if !ok {
			return nil, fmt.Errorf("cannot read the list of a layer: %q", entry)
		}
		f.Link = link
		files[filepath.Join(".", word[4])] = f
	}
	return files, nil
}

// kinds of files as ls and find name them.
var kinds = map[string]fs.FileMode{
	"d": fs.ModeDir, "l": fs.ModeSymlink, "-": 0, "f": 0, "p": fs.ModeNamedPipe, "s": fs.ModeSocket,
	"c": fs.ModeDevice | fs.ModeCharDevice, "b": fs.ModeDevice,
}

// listed makes a file of the words of a list: its kind as ls and find say it, its mode as
// one of them has that, its owners in numbers.
func listed(kind, mode, uid, gid string) (f rootcheck.File, ok bool) {
	bits, err := strconv.ParseUint(mode, 8, 12)
	if len(mode) == 10 { // rwxr-xr-x, with s, S, t or T
		bits, err = 0, nil
		for i, c := range mode[1:] {
			if strings.ContainsRune("rwxst", c) {
				bits |= 0o400 >> i
			}
			if strings.ContainsRune("sStT", c) {
				bits |= 0o4000 >> (i / 3)
			}
		}
	}
	f.Mode, ok = kinds[kind]
	f.Mode |= fs.FileMode(bits & 0o777)
	for i, special := range []fs.FileMode{fs.ModeSticky, fs.ModeSetgid, fs.ModeSetuid} {
		if bits>>(9+i)&1 != 0 {
			f.Mode |= special
		}
	}
	var errs [2]error
	f.UID, errs[0] = strconv.Atoi(uid)
	f.GID, errs[1] = strconv.Atoi(gid)
	return f, ok && err == nil && errs == [2]error{}
}
