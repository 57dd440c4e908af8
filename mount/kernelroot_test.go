package mount

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// newRoot mounts a tmpfs that looks like an image's root, with a mark in it.
func newRoot(t *testing.T, where string) {
	t.Helper()
	if err := (Kernel{}).Mount(Point{What: "newroot", Where: where, Type: "tmpfs"}); err != nil {
		t.Fatal(err)
	}
	for _, c := range Carried() {
		mustMkdir(t, where+c)
	}
	mustWrite(t, filepath.Join(where, "mark"), "new root")
}

// checkRoot looks at the root after the switch.
func checkRoot(t *testing.T) {
	t.Helper()
	if got := mustRead(t, "/mark"); got != "new root" {
		t.Errorf("mark: got %q, want new root", got)
	}
	if wd, err := os.Getwd(); err != nil || wd != "/" {
		t.Errorf("working directory: got %q, %v, want /", wd, err)
	}
	line := mountLine(t, "/")
	if got := line[len(line)-2]; got != "newroot" {
		t.Errorf("root is %q, want newroot", got)
	}
	if !strings.HasPrefix(line[6], "shared:") {
		t.Errorf("root is not shared: %q", line)
	}
}

func TestSwitchRootByPivot(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		where := filepath.Join(dir, "new")
		newRoot(t, where)
		warning, err := SwitchRoot(where, &KernelRoot{})
		if warning != nil || err != nil {
			t.Fatalf("got %v, %v, want no error", warning, err)
		}
		checkRoot(t)
		for line := range strings.Lines(mustRead(t, "/proc/thread-self/mountinfo")) {
			if strings.Contains(line, dir) {
				t.Errorf("a mount of the old root is left: %s", line)
			}
		}
	})
}

// oldKernel answers pivot_root(2) as a kernel before 7.0 does in an initramfs.
type oldKernel struct{ *KernelRoot }

func (oldKernel) Pivot(string) error { return unix.EINVAL }

func TestSwitchRootByMoveFreesTheInitramfs(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		initramfs := filepath.Join(dir, "initramfs")
		newRoot(t, initramfs)
		mustMkdir(t, filepath.Join(initramfs, "usr/lib/modules"))
		mustWrite(t, filepath.Join(initramfs, "usr/lib/modules/a.ko"), "module")
		mustWrite(t, filepath.Join(initramfs, "init"), "program")
		if err := os.Symlink("/mark", filepath.Join(initramfs, "link")); err != nil {
			t.Fatal(err)
		}
		// First into the initramfs itself, so that what is freed is the root.
		if _, err := SwitchRoot(initramfs, &KernelRoot{}); err != nil {
			t.Fatal(err)
		}
		if err := (&KernelRoot{}).SetPropagation(unix.MS_PRIVATE); err != nil {
			t.Fatal(err)
		}
		newRoot(t, "/sysroot")
		if err := (Kernel{}).Mount(Point{What: "other", Where: "/other/mounted", Type: "tmpfs"}); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, "/other/mounted/file", "kept")
		other, old := mustOpen(t, "/other/mounted"), mustOpen(t, "/")

		warning, err := SwitchRoot("/sysroot", oldKernel{&KernelRoot{}})
		if warning != nil || err != nil {
			t.Fatalf("got %v, %v, want no error", warning, err)
		}
		checkRoot(t)
		if got := list(t, old); !slices.Equal(got, []string{"other"}) {
			t.Errorf("the initramfs still has %q, want only the other mount's directory", got)
		}
		if got := list(t, other); !slices.Equal(got, []string{"file"}) {
			t.Errorf("the other file system has %q, want its file", got)
		}
	})
}

// list lists a directory that is open by O_PATH only.
func list(t *testing.T, dir *os.File) []string {
	t.Helper()
	f, err := OpenBeneath(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, Strict)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestSwitchRootWithoutAPlaceForProc(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		where := filepath.Join(dir, "new")
		newRoot(t, where)
		if err := os.Remove(where + "/proc"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/tmp", where+"/proc"); err != nil {
			t.Fatal(err)
		}
		if _, err := SwitchRoot(where, &KernelRoot{}); !errors.Is(err, ErrUnsafePath) {
			t.Errorf("got %v, want %v", err, ErrUnsafePath)
		}
	})
}

func TestFreeInitramfsRefuses(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		mustWrite(t, filepath.Join(dir, "file"), "kept")
		onDisk, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer onDisk.Close()
		if err := FreeInitramfs(onDisk); !errors.Is(err, ErrNotInitramfs) {
			t.Errorf("disk: got %v, want %v", err, ErrNotInitramfs)
		}
		mustRead(t, filepath.Join(dir, "file"))

		newRoot(t, filepath.Join(dir, "new"))
		if _, err := SwitchRoot(filepath.Join(dir, "new"), &KernelRoot{}); err != nil {
			t.Fatal(err)
		}
		root, err := os.Open("/")
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		if err := FreeInitramfs(root); !errors.Is(err, ErrNotInitramfs) {
			t.Errorf("present root: got %v, want %v", err, ErrNotInitramfs)
		}
		if got := mustRead(t, "/mark"); got != "new root" {
			t.Errorf("got %q, want new root", got)
		}
	})
}
