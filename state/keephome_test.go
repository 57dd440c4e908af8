package state

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state/layout"
)

// usedVolume is a volume's root with something in it.
func usedVolume(t *testing.T) *os.File {
	t.Helper()
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	for _, path := range []string{
		"home/anna/letter", "home/anna/etc", "home-ben/letter", "var/lib/db", "etc/machine-id", "etc/deep/deeper/x", "opt/x", "a file", ".hidden", "lost+found/x",
		layout.RecoveryKey, layout.ManageKey + layout.PendingSuffix, layout.RollbackFloor, layout.ResetRequest, layout.Balloons + "/00000001", layout.EtcWork + "/work/x",
		layout.Private + "/seed-1.tmp/x", layout.Private + "/home/x", layout.Removed + "before/3",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(path), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(outside, []byte("outside"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(dir, "srv")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := os.Stat(outside); err != nil {
			t.Errorf("a link was followed: %v", err)
		}
	})
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// filesIn lists the files below a folder.
func filesIn(t *testing.T, root string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list = append(list, strings.TrimPrefix(path, root+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

func keepHomes(name string) bool { return strings.HasPrefix(name, "home") }

// keptFiles are what a reset that keeps /home leaves of usedVolume.
func keptFiles() []string {
	list := []string{
		"home/anna/letter", "home/anna/etc", "home-ben/letter", "lost+found/x",
		layout.RecoveryKey, layout.ManageKey + layout.PendingSuffix, layout.RollbackFloor, layout.ResetRequest, layout.Balloons + "/00000001",
	}
	slices.Sort(list)
	return list
}

// The power goes off in front of each name: the request stands, nothing that is kept
// is away, and the next boot comes to the same end.
func TestPowerCutInResetThatKeepsHome(t *testing.T) {
	cuts, left := 0, 0
	for cut := 1; ; cut++ {
		root := usedVolume(t)
		done := func() (done bool) {
			n := 0
			defer func() { done = recover() == nil }()
			err := SetAside(root, func(name string) bool {
				if n++; n == cut {
					panic("power cut")
				}
				return keepHomes(name)
			}, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			return true
		}()
		files := filesIn(t, root.Name())
		for _, name := range keptFiles() {
			if !slices.Contains(files, name) {
				t.Fatalf("cut %d: %s is away", cut, name)
			}
		}
		if !done {
			cuts++
			if slices.ContainsFunc(files, func(name string) bool { return strings.HasPrefix(name, "var/") || strings.HasPrefix(name, "etc/") }) {
				left++
			}
			// The next boot: with the request there, all of it once more.
			if err := SetAside(root, keepHomes, rand.Reader); err != nil {
				t.Fatalf("cut %d: the next boot: %v", cut, err)
			}
		}
		for _, name := range filesIn(t, root.Name()) {
			if !slices.Contains(keptFiles(), name) && !strings.HasPrefix(name, layout.Removed) {
				t.Errorf("cut %d: %s is still in its place", cut, name)
			}
		}
		if err := RemoveAside(root); err != nil {
			t.Fatal(err)
		}
		if got := filesIn(t, root.Name()); !slices.Equal(got, keptFiles()) {
			t.Errorf("cut %d: left are %q, want %q", cut, got, keptFiles())
		}
		if done {
			break
		}
	}
	if cuts < 5 || left == 0 {
		t.Errorf("%d cuts, %d of them with something in its place; want some", cuts, left)
	}
}

// Without a reset nothing is removed, whatever a volume looks like.
func TestRemoveAsideAlone(t *testing.T) {
	root := usedVolume(t)
	before := filesIn(t, root.Name())
	if err := RemoveAside(root); err != nil {
		t.Fatal(err)
	}
	if got := filesIn(t, root.Name()); len(got) != len(before)-1 || slices.Contains(got, layout.Removed+"before/3") {
		t.Errorf("left are %q of %q", got, before)
	}
	empty, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	if err := RemoveAside(empty); err != nil {
		t.Errorf("a volume without a private folder: %v", err)
	}
}

// A name that cannot be moved (its directory is immutable, say) leaves all as it was; but
// for what a boot before has moved, which nobody knows the place of.
func TestSetAsideThatFails(t *testing.T) {
	for _, tt := range []struct {
		name    string
		before  bool // a folder of a boot before this one
		private bool
		want    bool // ErrNotSetAside
	}{
		{"alone", false, true, true},
		{"folder_of_before", true, true, false},
		{"no_folder_can_be_made", false, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := usedVolume(t)
			if !tt.before {
				if err := os.RemoveAll(filepath.Join(root.Name(), layout.Removed+"before")); err != nil {
					t.Fatal(err)
				}
			}
			if !tt.private {
				if err := os.RemoveAll(filepath.Join(root.Name(), layout.Private)); err != nil {
					t.Fatal(err)
				}
			}
			before, n := filesIn(t, root.Name()), 0
			err := SetAside(root, func(name string) bool {
				// Of the names the fourth is none any more when it is moved.
				if n++; n == 4 {
					to := filepath.Join(t.TempDir(), "away")
					t.Cleanup(func() { _ = os.Rename(to, filepath.Join(root.Name(), name)) })
					if err := os.Rename(filepath.Join(root.Name(), name), to); err != nil {
						t.Fatal(err)
					}
				}
				return false
			}, rand.Reader)
			if err == nil || errors.Is(err, ErrNotSetAside) != tt.want {
				t.Fatalf("SetAside() = %v, want ErrNotSetAside: %v", err, tt.want)
			}
			after := filesIn(t, root.Name())
			lost := slices.DeleteFunc(before, func(name string) bool { return slices.Contains(after, name) })
			// All of what is missing is below the one name.
			first := ""
			for _, name := range lost {
				top, _, _ := strings.Cut(name, "/")
				if first == "" {
					first = top
				}
				if tt.want && top != first {
					t.Errorf("%s and %s are away", first, name)
				}
			}
			if !tt.want && len(lost) == 0 {
				t.Error("nothing was moved")
			}
			if folders, _ := asideFolders(root); tt.want && len(folders) > 0 {
				t.Errorf("%v is left", folders)
			}
		})
	}
}

// Any user makes directories deeper than this process may have files open.
func TestRemoveAsideIsNotStoppedByDepth(t *testing.T) {
	root := usedVolume(t)
	aside := filepath.Join(root.Name(), layout.Removed+"deep")
	if err := os.MkdirAll(filepath.Join(aside, "1/d/1/x"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := unix.Open(filepath.Join(aside, "1"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for range 5000 {
		if err == nil {
			err = unix.Mkdirat(dir, "deep", 0o755)
		}
		if err == nil {
			err = unix.Symlinkat("/", dir, "link")
		}
		if err != nil {
			t.Fatal(err)
		}
		var next int
		next, err = unix.Openat(dir, "deep", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(dir)
		dir = next
	}
	unix.Close(dir)
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	few := unix.Rlimit{Cur: 200, Max: before.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	if err := os.RemoveAll(filepath.Join(aside, "1/deep")); !errors.Is(err, unix.EMFILE) {
		t.Errorf("control: os.RemoveAll ends with %v, want no more files", err)
	}
	if err := RemoveAside(root); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(aside); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}
