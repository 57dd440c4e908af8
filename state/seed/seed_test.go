package seed

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/state/layout"
)

// must is for steps that only prepare a test.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// makeSource makes a directory like an image's /var, with one of everything.
// It needs root, as does everything in this package.
func makeSource(t *testing.T) string {
	t.Helper()
	src := filepath.Join(t.TempDir(), "var")
	at := func(name string) string { return filepath.Join(src, name) }
	must(t, os.MkdirAll(at("lib/deep/er"), 0o755))
	must(t, os.WriteFile(at("lib/file"), []byte(strings.Repeat("content\n", 20000)), 0o640))
	must(t, os.WriteFile(at("empty"), nil, 0o644))
	must(t, os.Link(at("lib/file"), at("lib/deep/hard")))
	must(t, os.Link(at("lib/file"), at("a-hard")))
	must(t, os.WriteFile(at("setuid"), []byte("#!"), 0o755))
	must(t, os.Chown(at("setuid"), 12, 34))
	must(t, os.Chmod(at("setuid"), 0o755|os.ModeSetuid|os.ModeSetgid))
	must(t, os.Symlink("/etc/shadow", at("absolute")))
	must(t, os.Symlink("../../nowhere", at("lib/dangling")))
	must(t, os.Lchown(at("absolute"), 5, 6))
	must(t, os.Mkdir(at("tmp"), 0o777))
	must(t, os.Chmod(at("tmp"), 0o777|os.ModeSticky))
	must(t, unix.Mknod(at("null"), unix.S_IFCHR|0o620, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(at("fifo"), unix.S_IFIFO|0o600, 0))
	must(t, unix.Mknod(at("socket"), unix.S_IFSOCK|0o666, 0))
	must(t, os.Chmod(at("null"), 0o620))
	must(t, unix.Setxattr(at("lib/file"), "user.note", []byte("hello\x00there"), 0))
	must(t, unix.Setxattr(at("lib"), "trusted.note", []byte("on a directory"), 0))
	must(t, unix.Setxattr(at("lib/file"), "trusted.overlay.opaque", []byte("y"), 0))
	must(t, unix.Lsetxattr(at("absolute"), "trusted.note", []byte("on a symlink"), 0))
	must(t, unix.Lsetxattr(at("null"), "trusted.note", []byte("on a node"), 0))
	// CAP_NET_RAW as setcap writes it (vfs_cap_data revision 2).
	must(t, unix.Setxattr(at("setuid"), "security.capability",
		[]byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0))
	must(t, os.Chown(src, 0, 8))
	must(t, os.Chmod(src, 0o775))
	old := unix.Timespec{Sec: 1500000000, Nsec: 123456789}
	must(t, filepath.WalkDir(src, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{old, old}, unix.AT_SYMLINK_NOFOLLOW)
	}))
	return src
}

// describe lists a tree with everything that a copy has to keep.
func describe(t *testing.T, root string) []string {
	t.Helper()
	var lines []string
	firstName := map[uint64]string{}
	must(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		line := fmt.Sprintf("%s %o %d:%d rdev=%d mtime=%d.%d", name, st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q links=%d", b, st.Nlink)
			if first, ok := firstName[st.Ino]; ok {
				line += " = " + first
			}
			firstName[st.Ino] = name
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		list := make([]byte, 4096)
		n, err := unix.Llistxattr(path, list)
		if err != nil {
			return err
		}
		keys := strings.FieldsFunc(string(list[:n]), func(r rune) bool { return r == 0 })
		slices.Sort(keys)
		for _, key := range keys {
			if strings.HasPrefix(key, "trusted.overlay.") {
				continue
			}
			value := make([]byte, 4096)
			n, err := unix.Lgetxattr(path, key, value)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %s=%q", key, value[:n])
		}
		lines = append(lines, line)
		return nil
	}))
	return lines
}

// checkSame compares two trees line by line.
func checkSame(t *testing.T, got, want string) {
	t.Helper()
	g, w := describe(t, got), describe(t, want)
	if slices.Equal(g, w) {
		return
	}
	for _, line := range w {
		if !slices.Contains(g, line) {
			t.Errorf("missing in the copy: %.200s", line)
		}
	}
	for _, line := range g {
		if !slices.Contains(w, line) {
			t.Errorf("only in the copy: %.200s", line)
		}
	}
}

func leftovers(t *testing.T, volume string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(volume, layout.Private, "*"))
	must(t, err)
	return found
}

func TestIntoCopiesEverything(t *testing.T) {
	src, volume := makeSource(t), t.TempDir()
	created, stats, err := Into(open(t, volume), "var", open(t, src))
	if err != nil || !created {
		t.Fatalf("Into = %v, %v, want created", created, err)
	}
	dst := filepath.Join(volume, "var")
	checkSame(t, dst, src)
	if want := (Stats{Entries: len(describe(t, src)), Bytes: 160002}); stats != want {
		t.Errorf("got %+v, want %+v", stats, want)
	}
	list := make([]byte, 4096)
	n, err := unix.Llistxattr(filepath.Join(dst, "lib/file"), list)
	if err != nil || strings.Contains(string(list[:n]), "trusted.overlay.") {
		t.Errorf("attribute of an overlay was copied: %q, %v", list[:n], err)
	}
	st, err := os.Stat(filepath.Join(volume, layout.Private))
	if err != nil || st.Mode() != fs.ModeDir|0o700 {
		t.Errorf("%s: %v, %v, want drwx------", layout.Private, st, err)
	}
	if l := leftovers(t, volume); len(l) != 0 {
		t.Errorf("left behind: %v", l)
	}
}

func TestIntoLeavesWhatIsThere(t *testing.T) {
	src, volume := makeSource(t), t.TempDir()
	must(t, os.Mkdir(filepath.Join(volume, "var"), 0o700))
	created, stats, err := Into(open(t, volume), "var", open(t, src))
	if err != nil || created || stats != (Stats{}) {
		t.Errorf("Into = %v, %v, %v, want nothing done", created, stats, err)
	}
	if entries, _ := os.ReadDir(filepath.Join(volume, "var")); len(entries) != 0 {
		t.Errorf("directory was filled: %v", entries)
	}
}

func TestIntoWithoutSource(t *testing.T) {
	volume := t.TempDir()
	created, _, err := Into(open(t, volume), "my-fancy-dir", nil)
	if err != nil || !created {
		t.Fatalf("Into = %v, %v, want created", created, err)
	}
	st, err := os.Stat(filepath.Join(volume, "my-fancy-dir"))
	if err != nil || st.Mode() != fs.ModeDir|0o755 {
		t.Errorf("got %v, %v, want drwxr-xr-x", st, err)
	}
}

func TestIntoRefuses(t *testing.T) {
	volume := t.TempDir()
	must(t, os.Symlink("/etc", filepath.Join(volume, "link")))
	must(t, os.WriteFile(filepath.Join(volume, "file"), nil, 0o600))
	tests := []struct {
		name string
		want error
	}{
		{"", ErrName}, {".", ErrName}, {"..", ErrName}, {"a/b", ErrName}, {"/etc", ErrName}, {"a\x00", ErrName},
		{".sealroot", ErrName}, {"link", ErrNotDirectory}, {"file", ErrNotDirectory},
	}
	for _, tt := range tests {
		if created, _, err := Into(open(t, volume), tt.name, nil); !errors.Is(err, tt.want) || created {
			t.Errorf("Into %q = %v, %v, want %v", tt.name, created, err, tt.want)
		}
	}
}

func TestIntoDoesNotFollowPrivateSymlink(t *testing.T) {
	volume, outside := t.TempDir(), t.TempDir()
	must(t, os.Symlink(outside, filepath.Join(volume, layout.Private)))
	if created, _, err := Into(open(t, volume), "var", nil); err == nil || created {
		t.Errorf("Into = %v, %v, want an error", created, err)
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 0 {
		t.Errorf("written outside the volume: %v", entries)
	}
}

// What fails is not left half copied: for all that is known the volume is full of it.
func TestTooDeep(t *testing.T) {
	src, volume := t.TempDir(), t.TempDir()
	deep := src
	for range maxDepth + 2 {
		deep += "/d"
		must(t, os.Mkdir(deep, 0o755))
	}
	if created, _, err := Into(open(t, volume), "var", open(t, src)); !errors.Is(err, ErrTooDeep) || created {
		t.Errorf("Into = %v, %v, want ErrTooDeep", created, err)
	}
	if l := leftovers(t, volume); len(l) != 0 {
		t.Errorf("left behind: %v", l)
	}
}

// TestPowerCutAtEveryStep stops before every change of the volume and starts
// again, as the next boot does.
func TestPowerCutAtEveryStep(t *testing.T) {
	src := makeSource(t)
	errCut := errors.New("power cut")
	steps := 0
	for cut := 0; ; cut++ {
		volume := t.TempDir()
		dst := filepath.Join(volume, "var")
		n, last := 0, ""
		s := seeder{checkpoint: func(step string) error {
			if last = step; n == cut {
				return errCut
			}
			n++
			return nil
		}}
		_, err := s.into(open(t, volume), "var", open(t, src))
		if err == nil {
			steps = cut
			break
		}
		if !errors.Is(err, errCut) {
			t.Fatalf("cut before %s: %v", last, err)
		}
		if _, err := os.Lstat(dst); (err == nil) != (last == "fsync") {
			t.Errorf("cut before %s: target is there: %v", last, err == nil)
		}
		if _, _, err := Into(open(t, volume), "var", open(t, src)); err != nil {
			t.Errorf("after a cut before %s: %v", last, err)
		}
		checkSame(t, dst, src)
		if l := leftovers(t, volume); len(l) != 0 {
			t.Errorf("after a cut before %s: left behind %v", last, l)
		}
	}
	if steps < 18 {
		t.Errorf("only %d steps were interrupted", steps)
	}
}

func TestHardlinksLeaveOtherCopiesAlone(t *testing.T) {
	src, volume := makeSource(t), t.TempDir()
	if _, _, err := Into(open(t, volume), "var", open(t, src)); err != nil {
		t.Fatal(err)
	}
	dst := filepath.Join(volume, "var")
	f, err := os.OpenFile(filepath.Join(dst, "a-hard"), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString("more")
	must(t, errors.Join(err, f.Close()))
	for _, name := range []string{"lib/file", "lib/deep/hard"} {
		if b, _ := os.ReadFile(filepath.Join(dst, name)); !strings.HasSuffix(string(b), "more") {
			t.Errorf("%s is not the same file any more", name)
		}
		if b, _ := os.ReadFile(filepath.Join(src, name)); strings.HasSuffix(string(b), "more") {
			t.Errorf("the copy shares %s with its source", name)
		}
	}
	if st, _ := os.Stat(filepath.Join(src, "a-hard")); time.Since(st.ModTime()) < time.Hour {
		t.Error("the source was touched")
	}
}

// A directory that somebody else fills is like the image's, without what is in it, and is
// made once.
func TestEmpty(t *testing.T) {
	src, volume := makeSource(t), t.TempDir()
	must(t, os.Chown(src, 7, 8))
	must(t, os.Chmod(src, 0o750|os.ModeSetgid))
	must(t, unix.Setxattr(src, "trusted.note", []byte("x"), 0))
	dst := filepath.Join(volume, "spool")
	for range 2 {
		must(t, Empty(open(t, volume), "spool", open(t, src)))
		info, err := os.Stat(dst)
		must(t, err)
		st := info.Sys().(*syscall.Stat_t)
		value := make([]byte, 8)
		n, _ := unix.Getxattr(dst, "trusted.note", value)
		if info.Mode() != fs.ModeDir|fs.ModeSetgid|0o750 || st.Uid != 7 || st.Gid != 8 || string(value[:max(n, 0)]) != "x" {
			t.Errorf("%v %d:%d %q, want as its source", info.Mode(), st.Uid, st.Gid, value)
		}
	}
	entries, err := os.ReadDir(dst)
	if err != nil || len(entries) > 0 {
		t.Errorf("it holds %v, %v", entries, err)
	}
	must(t, os.WriteFile(filepath.Join(dst, "file"), nil, 0o644))
	must(t, os.Chmod(dst, 0o700))
	must(t, Empty(open(t, volume), "spool", open(t, src)))
	if info, err := os.Stat(dst); err != nil || info.Mode() != fs.ModeDir|0o700 {
		t.Errorf("what is there was changed: %v, %v", info.Mode(), err)
	}
	must(t, Empty(open(t, volume), "new", nil))
	if info, err := os.Stat(filepath.Join(volume, "new")); err != nil || info.Mode() != fs.ModeDir|0o755 {
		t.Errorf("of nothing: %v, %v", info.Mode(), err)
	}
}
