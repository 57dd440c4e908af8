package disk

import (
	"archive/tar"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sealroot/mkinitramfs/layer/over"
)

// insideFakeroot marks the run of this test's own program.
const insideFakeroot = "SEALROOT_TEST_INSIDE_FAKEROOT"

// An ordinary user whose package build runs in fakeroot makes images there, and has them
// looked into, with the owners that they are to have: fakeroot does not run within another.
func TestInsideFakeroot(t *testing.T) {
	if os.Getenv(insideFakeroot) != "" {
		layersInsideFakeroot(t)
		return
	}
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o777), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "test") // where go test has it only its user may look
	if err := os.WriteFile(program, fileBytes(t, os.Args[0]), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("fakeroot", "--", program, "-test.run=^TestInsideFakeroot$", "-test.v")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), insideFakeroot+"=1", "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestInsideFakeroot") {
		t.Errorf("%v\n%s", err, out)
	}
}

func layersInsideFakeroot(t *testing.T) {
	if os.Geteuid() == 0 || os.Getenv("FAKEROOTKEY") == "" {
		t.Fatal("control: no ordinary user in fakeroot")
	}
	b, _ := builder(t)
	packed := filepath.Join(t.TempDir(), "tree.tar")
	in := tarOf(t, []entry{{name: "usr/", kind: tar.TypeDir}, {name: "usr/tool", content: "x"}})
	if err := os.WriteFile(packed, in, 0o644); err != nil {
		t.Fatal(err)
	}
	// erofs twice: what the outer fakeroot would remember of the first shows in the second
	for _, filesystem := range []string{erofs, erofs, squashfs} {
		out := filepath.Join(t.TempDir(), "tools.raw")
		if _, err := b.Layer(t.Context(), LayerInput{Name: "tools", Tree: packed, Filesystem: filesystem, For: fitting(), Output: out}); err != nil {
			t.Errorf("%s: %v", filesystem, err)
			continue
		}
		files := readBack(t, b, out)
		for name, want := range map[string]over.Entry{
			".": {Mode: fs.ModeDir | 0o755}, "usr": {Mode: fs.ModeDir | 0o750, UID: 7, GID: 8}, "usr/tool": {Mode: 0o750, UID: 7, GID: 8},
		} {
			if is, err := files.Entry(name); err != nil || is != want {
				t.Errorf("%s: %s is %+v, %v, want %+v", filesystem, name, is, err, want)
			}
		}
	}
}
