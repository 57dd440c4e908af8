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

// The judge of the flags' names is the kernel, which prints them in mountinfo.
func TestPointFlagsAreTheKernels(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		for _, n := range flagNames {
			where := filepath.Join(dir, n.name)
			if err := (Kernel{}).Mount(Point{What: "tmpfs", Where: where, Type: "tmpfs", Flags: n.flag}); err != nil {
				t.Fatal(err)
			}
			line := mountLine(t, where)
			shown := append(strings.Split(line[5], ","), strings.Split(line[len(line)-1], ",")...)
			// strictatime is the one that shows by its absence.
			if n.name == "strictatime" {
				if slices.Contains(shown, "relatime") {
					t.Errorf("strictatime: got %q", shown)
				}
				continue
			}
			if !slices.Contains(shown, n.name) {
				t.Errorf("%s: got %q", n.name, shown)
			}
		}
	})
}

func TestAttributesAreTheKernels(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
		mustMkdir(t, src, dst)
		for _, n := range attrNames {
			if err := bindAt(mustOpen(t, src), mustOpen(t, dst), n.attr); err != nil {
				t.Fatalf("%s: %v", n.name, err)
			}
			if got := strings.Split(mountLine(t, dst)[5], ","); !slices.Contains(got, n.name) {
				t.Errorf("%s: got %q", n.name, got)
			}
			if err := (Kernel{}).Unmount(dst); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestBindHasAttributesOfItsOwn(t *testing.T) {
	tests := []struct {
		name   string
		source Attr
		bind   Attr
		want   string
	}{
		{"more", NoSUID | NoDev, NoSUID | NoDev | NoExec, "rw,nosuid,nodev,noexec"},
		{"fewer", NoSUID | NoDev | NoExec | NoSymfollow, NoSUID | NoDev, "rw,nosuid,nodev"},
		{"none", NoSUID | NoDev | NoExec, 0, "rw"},
		{"read_only", 0, ReadOnly, "ro"},
		{"read_only_stays", ReadOnly, NoDev, "ro,nodev"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t, func(t *testing.T, dir string) {
				state, root := filepath.Join(dir, "state"), filepath.Join(dir, "root")
				mustMkdir(t, state, filepath.Join(root, "home"))
				mustMkdir(t, filepath.Join(dir, "from/home/user"))
				mustWrite(t, filepath.Join(dir, "from/home/user/file"), "mine")
				if err := bindAt(mustOpen(t, filepath.Join(dir, "from")), mustOpen(t, state), tt.source); err != nil {
					t.Fatal(err)
				}
				before := mountLine(t, state)[5]
				b := Bind{From: Place{state, "home"}, To: Place{root, "/home"}, Attr: tt.bind}
				if err := (Kernel{}).Bind(b); err != nil {
					t.Fatal(err)
				}
				if got := mustRead(t, filepath.Join(root, "home/user/file")); got != "mine" {
					t.Errorf("got %q through the bind, want mine", got)
				}
				if got := strings.TrimSuffix(mountLine(t, filepath.Join(root, "home"))[5], ",relatime"); got != tt.want {
					t.Errorf("bind: got %s, want %s", got, tt.want)
				}
				if got := mountLine(t, state)[5]; got != before {
					t.Errorf("source: got %s, want %s as before", got, before)
				}
			})
		})
	}
}

func TestBindLeavesMountsBelow(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		sub := filepath.Join(dir, "src/sub")
		if err := (Kernel{}).Mount(Point{What: "tmpfs", Where: sub, Type: "tmpfs"}); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, filepath.Join(sub, "file"), "below")
		mustMkdir(t, filepath.Join(dir, "dst"))
		if err := (Kernel{}).Bind(Bind{From: Place{dir, "src"}, To: Place{dir, "dst"}}); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "dst/sub/file")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the mount below came along: %v", err)
		}
	})
}

func TestBindRefusesLinks(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		root, out := filepath.Join(dir, "root"), filepath.Join(dir, "out")
		mustMkdir(t, filepath.Join(root, "good"), filepath.Join(root, "target"), out)
		for link, to := range map[string]string{"absolute": out, "up": "../out", "inside": "good", "loop": "loop", "magic": "/proc/self/root"} {
			if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
				t.Fatal(err)
			}
		}
		for _, path := range []string{"absolute", "up", "inside", "loop", "magic", "../out", "good/../../out", "inside/."} {
			if err := (Kernel{}).Bind(Bind{From: Place{root, path}, To: Place{root, "target"}}); !errors.Is(err, ErrUnsafePath) {
				t.Errorf("from %s: got %v, want %v", path, err, ErrUnsafePath)
			}
			if err := (Kernel{}).Bind(Bind{From: Place{root, "good"}, To: Place{root, path}}); !errors.Is(err, ErrUnsafePath) {
				t.Errorf("to %s: got %v, want %v", path, err, ErrUnsafePath)
			}
		}
		if err := (Kernel{}).Bind(Bind{From: Place{root, "good"}, To: Place{root, "target"}}); err != nil {
			t.Errorf("a good bind: %v", err)
		}
	})
}

func TestMountInSetsOptionsAndAttributes(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		mustMkdir(t, filepath.Join(dir, "m"))
		fs := Filesystem{Type: "tmpfs", Source: "word", Options: []string{"mode=0700", "size=1m"}, Attr: ReadOnly | NoDev}
		if err := (Kernel{}).MountIn(fs, Place{dir, "m"}); err != nil {
			t.Fatal(err)
		}
		line := mountLine(t, filepath.Join(dir, "m"))
		super := line[len(line)-1]
		if got, want := line[5], "ro,nodev,relatime"; got != want {
			t.Errorf("attributes: got %s, want %s", got, want)
		}
		if !strings.HasPrefix(super, "ro,") || !strings.Contains(super, "mode=700") || !strings.Contains(super, "size=1024k") {
			t.Errorf("file system: got %s, want ro, mode=700, size=1024k", super)
		}
		if got, want := fs.String(), "mount -t tmpfs -o ro,nodev,mode=0700,size=1m word"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestMountInSaysWhatTheKernelSays(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		err := Kernel{}.MountIn(Filesystem{Type: "tmpfs", Options: []string{"size=wrong"}}, Place{dir, ""})
		if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "option size") || !strings.Contains(err.Error(), "kernel: tmpfs") {
			t.Errorf("got %v, want EINVAL with the option and the kernel's words", err)
		}
		err = Kernel{}.MountIn(Filesystem{Type: "nosuchfs"}, Place{dir, ""})
		if !errors.Is(err, unix.ENODEV) {
			t.Errorf("got %v, want ENODEV", err)
		}
	})
}

func TestOverlay(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		if err := (Kernel{}).Mount(Point{What: "tmpfs", Where: dir, Type: "tmpfs"}); err != nil {
			t.Fatal(err)
		}
		for _, d := range []string{"lower", "upper", "work", "etc"} {
			mustMkdir(t, filepath.Join(dir, d))
		}
		mustWrite(t, filepath.Join(dir, "lower/a"), "image")
		mustWrite(t, filepath.Join(dir, "lower/b"), "image")
		o := Overlay{Lower: []Place{{dir, "lower"}}, Upper: Place{dir, "upper"}, Work: Place{dir, "work"}, Attr: NoSUID | NoDev}
		if err := (Kernel{}).Overlay(o, Place{dir, "etc"}); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, filepath.Join(dir, "etc/a"), "changed")
		if got := mustRead(t, filepath.Join(dir, "upper/a")); got != "changed" {
			t.Errorf("upper: got %q, want changed", got)
		}
		if got := mustRead(t, filepath.Join(dir, "lower/a")); got != "image" {
			t.Errorf("lower: got %q, want image", got)
		}
		if got := mustRead(t, filepath.Join(dir, "etc/b")); got != "image" {
			t.Errorf("overlay: got %q, want image", got)
		}
		line := mountLine(t, filepath.Join(dir, "etc"))
		if !strings.HasPrefix(line[5], "rw,nosuid,nodev") {
			t.Errorf("attributes: got %s, want rw,nosuid,nodev", line[5])
		}
	})
}

// A directory of the upper side with a redirect attribute of somebody else must
// not bring another directory of the lower side into view.
func TestOverlayFollowsNoRedirect(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		if err := (Kernel{}).Mount(Point{What: "tmpfs", Where: dir, Type: "tmpfs"}); err != nil {
			t.Fatal(err)
		}
		mustMkdir(t, filepath.Join(dir, "lower/secret"), filepath.Join(dir, "upper/bait"), filepath.Join(dir, "work"), filepath.Join(dir, "m"))
		mustWrite(t, filepath.Join(dir, "lower/secret/file"), "x")
		if err := unix.Setxattr(filepath.Join(dir, "upper/bait"), "trusted.overlay.redirect", []byte("/secret"), 0); err != nil {
			t.Fatal(err)
		}
		seen := func() bool {
			entries, err := os.ReadDir(filepath.Join(dir, "m/bait"))
			return err == nil && len(entries) > 0
		}
		// The control: with the kernel's feature on, the bait works.
		options := "redirect_dir=on,lowerdir=" + dir + "/lower,upperdir=" + dir + "/upper,workdir=" + dir + "/work"
		if err := (Kernel{}).Mount(Point{What: "overlay", Where: dir + "/m", Type: "overlay", Data: options}); err != nil {
			t.Fatal(err)
		}
		if !seen() {
			t.Fatal("the control shows no redirect: this test proves nothing")
		}
		if err := (Kernel{}).Unmount(dir + "/m"); err != nil {
			t.Fatal(err)
		}
		o := Overlay{Lower: []Place{{dir, "lower"}}, Upper: Place{dir, "upper"}, Work: Place{dir, "work"}}
		if err := (Kernel{}).Overlay(o, Place{dir, "m"}); err != nil {
			t.Fatal(err)
		}
		if seen() {
			t.Error("a redirect of the upper directory was followed")
		}
	})
}

// What was an upper directory keeps its deletions and replaced directories when
// it is a lower one later: /etc of a volume that is read-only.
func TestOverlayOverAFormerUpper(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		if err := (Kernel{}).Mount(Point{What: "tmpfs", Where: dir, Type: "tmpfs"}); err != nil {
			t.Fatal(err)
		}
		in := func(name string) string { return filepath.Join(dir, name) }
		mustMkdir(t, in("image/d"), in("owner"), in("work"), in("upper"), in("work2"), in("etc"))
		for _, f := range []string{"image/gone", "image/kept", "image/changed", "image/d/gone"} {
			mustWrite(t, in(f), "image")
		}
		o := Overlay{Lower: []Place{{dir, "image"}}, Upper: Place{dir, "owner"}, Work: Place{dir, "work"}}
		if err := (Kernel{}).Overlay(o, Place{dir, "etc"}); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{os.Remove(in("etc/gone")), os.RemoveAll(in("etc/d")), os.Mkdir(in("etc/d"), 0o755), (Kernel{}).Unmount(in("etc"))} {
			if err != nil {
				t.Fatal(err)
			}
		}
		mustWrite(t, in("owner/changed"), "owner")
		o = Overlay{Lower: []Place{{dir, "owner"}, {dir, "image"}}, Upper: Place{dir, "upper"}, Work: Place{dir, "work2"}}
		if err := (Kernel{}).Overlay(o, Place{dir, "etc"}); err != nil {
			t.Fatal(err)
		}
		for _, gone := range []string{"etc/gone", "etc/d/gone"} {
			if _, err := os.Lstat(in(gone)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is back: %v", gone, err)
			}
		}
		mustWrite(t, in("etc/kept"), mustRead(t, in("etc/kept"))+" "+mustRead(t, in("etc/changed")))
		if got := mustRead(t, in("etc/kept")); got != "image owner" || mustRead(t, in("image/kept")) != "image" {
			t.Errorf("got %q, want image owner", got)
		}
	})
}

func TestUnmountOfABusyMount(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		m := filepath.Join(dir, "m")
		if err := (Kernel{}).Mount(Point{What: "tmpfs", Where: m, Type: "tmpfs"}); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(m, "open"))
		if err != nil {
			t.Fatal(err)
		}
		if err := (Kernel{}).Unmount(m); !errors.Is(err, unix.EBUSY) {
			t.Errorf("got %v, want EBUSY", err)
		}
		f.Close()
		if err := (Kernel{}).Unmount(m); err != nil {
			t.Error(err)
		}
	})
}
