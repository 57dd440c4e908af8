package mount

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenBeneath(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	mustMkdir(t, filepath.Join(root, "sub"))
	mustWrite(t, filepath.Join(dir, "outside"), "outside")
	mustWrite(t, filepath.Join(root, "inside"), "inside")
	for link, to := range map[string]string{"rel": "inside", "abs": "/inside", "up": "../outside", "deep": "../../../../inside", "magic": "/proc/self/root"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name string
		path string
		how  Resolve
		want string
		err  error
	}{
		{"plain", "inside", Strict, "inside", nil},
		{"leading_slashes", "//inside", Strict, "inside", nil},
		{"dot_dot_inside", "sub/../inside", Strict, "inside", nil},
		{"dot_dot_out", "../outside", Strict, "", ErrUnsafePath},
		{"link_strict", "rel", Strict, "", ErrUnsafePath},
		{"link_beneath", "rel", Beneath, "", ErrUnsafePath},
		{"link_in_root", "rel", InRoot, "inside", nil},
		{"absolute_link_in_root", "abs", InRoot, "inside", nil},
		{"climbing_link_in_root", "deep", InRoot, "inside", nil},
		{"link_out_in_root", "up", InRoot, "", unix.ENOENT},
		{"missing", "none", Strict, "", unix.ENOENT},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := OpenBeneath(mustOpen(t, root), tt.path, unix.O_RDONLY, tt.how)
			if !errors.Is(err, tt.err) {
				t.Fatalf("got error %v, want %v", err, tt.err)
			}
			if err != nil {
				if f != nil {
					t.Error("got a file with an error")
				}
				return
			}
			defer f.Close()
			b, err := io.ReadAll(f)
			if err != nil || string(b) != tt.want {
				t.Errorf("got %q, %v, want %q", b, err, tt.want)
			}
		})
	}
}

func TestStrictCrossesNoMount(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		if err := (Kernel{}).Mount(Point{What: "tmpfs", Where: filepath.Join(dir, "m"), Type: "tmpfs"}); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenBeneath(mustOpen(t, dir), "m", unix.O_PATH, Strict); !errors.Is(err, ErrUnsafePath) {
			t.Errorf("strict: got %v, want %v", err, ErrUnsafePath)
		}
		f, err := OpenBeneath(mustOpen(t, dir), "m", unix.O_PATH, Beneath)
		if err != nil {
			t.Fatalf("beneath: %v", err)
		}
		f.Close()
	})
}

func TestCheckInit(t *testing.T) {
	root := t.TempDir()
	mustMkdir(t, filepath.Join(root, "usr/sbin"), filepath.Join(root, "lib"))
	mustWrite(t, filepath.Join(root, "lib/systemd"), "x")
	mustWrite(t, filepath.Join(root, "usr/sbin/plain"), "x")
	if err := os.Chmod(filepath.Join(root, "lib/systemd"), 0o755); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"sbin": "usr/sbin", "usr/sbin/init": "/lib/systemd", "usr/sbin/gone": "/nothing"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name string
		path string
		err  error
	}{
		{"through_links", "/sbin/init", nil},
		{"not_executable", "/sbin/plain", ErrNoInit},
		{"directory", "/usr/sbin", ErrNoInit},
		{"missing", "/init", ErrNoInit},
		{"dangling_link", "/sbin/gone", ErrNoInit},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := CheckInit(mustOpen(t, root), tt.path); !errors.Is(err, tt.err) {
				t.Errorf("got %v, want %v", err, tt.err)
			}
		})
	}
}
