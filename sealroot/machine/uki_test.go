package machine

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	slotesp "sealroot/slots/esp"
)

// folder is an ESP that is always mounted; it counts the mounts for writing.
type folder struct {
	dir    string
	writes *int
}

func newFolder(t *testing.T, files map[string][]byte) folder {
	t.Helper()
	f := folder{t.TempDir(), new(int)}
	for name, content := range files {
		path := filepath.Join(f.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (f folder) With(write bool, use func(string) error) error {
	if write {
		*f.writes++
	}
	return use(f.dir)
}

func (f folder) read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(f.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// uki is a PE program with a section .linux, made by objcopy.
func uki(t *testing.T, kernel string) []byte {
	t.Helper()
	dir := t.TempDir()
	section, out := filepath.Join(dir, "linux"), filepath.Join(dir, "out.efi")
	if err := os.WriteFile(section, []byte(kernel), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("objcopy", "--add-section", ".linux="+section, "--change-section-vma", ".linux=0x2000000", stub, out)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("objcopy: %v\n%s", err, text)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const stub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"

func TestFallbackFile(t *testing.T) {
	a, b := uki(t, "kernel a"), uki(t, "kernel b")
	loader, err := os.ReadFile(stub) // a PE program without a kernel
	if err != nil {
		t.Fatal(err)
	}
	images := func(more map[string][]byte) map[string][]byte {
		files := map[string][]byte{slotesp.UKI("a"): a, slotesp.UKI("b"): b}
		for name, content := range more {
			files[name] = content
		}
		return files
	}
	for _, c := range []struct {
		name  string
		files map[string][]byte
		right bool // already, for slot b
	}{
		{"starts_a", images(map[string][]byte{slotesp.Fallback: a}), false},
		{"starts_b", images(map[string][]byte{slotesp.Fallback: b}), true},
		{"somebody_elses_loader", images(map[string][]byte{slotesp.Fallback: loader}), true},
		{"missing", images(map[string][]byte{"EFI/BOOT/other": nil}), false},
		{"slot_without_image", map[string][]byte{slotesp.UKI("a"): a, slotesp.Fallback: a}, true},
		{"leftover_of_a_cut_copy", images(map[string][]byte{slotesp.Fallback: a, slotesp.FallbackTemp: b[:1000]}), false},
		{"leftover_of_a_cut_exchange", images(map[string][]byte{slotesp.Fallback: a, slotesp.FallbackTemp: b}), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			esp := newFolder(t, c.files)
			f := fallbackFile{esp}
			right, err := f.IsDefault("b")
			if err != nil || right != c.right {
				t.Fatalf("IsDefault(b) = %v, %v; want %v, nil", right, err, c.right)
			}
			if right {
				return
			}
			if err := f.SetDefault("b"); err != nil {
				t.Fatal(err)
			}
			if right, err := f.IsDefault("b"); !right || err != nil {
				t.Errorf("after SetDefault(b): IsDefault(b) = %v, %v; want true, nil", right, err)
			}
			if !bytes.Equal(esp.read(t, slotesp.Fallback), b) {
				t.Error("the file is not slot b's image")
			}
			if _, err := os.Lstat(filepath.Join(esp.dir, slotesp.FallbackTemp)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the temporary file: got error %v, want that it is gone", err)
			}
		})
	}
}

// A cut exchange can leave two names for the same blocks; here they are two
// names of one file.
func TestSharedBlocksAreNotFreed(t *testing.T) {
	a, b := uki(t, "kernel a"), uki(t, "kernel b")
	esp := newFolder(t, map[string][]byte{slotesp.UKI("b"): b, slotesp.Fallback: a})
	if err := os.Link(filepath.Join(esp.dir, slotesp.Fallback), filepath.Join(esp.dir, slotesp.FallbackTemp)); err != nil {
		t.Fatal(err)
	}
	if err := (fallbackFile{esp}).SetDefault("b"); !errors.Is(err, errSharedFile) {
		t.Errorf("got error %v, want %v", err, errSharedFile)
	}
	if !bytes.Equal(esp.read(t, slotesp.FallbackTemp), a) || !bytes.Equal(esp.read(t, slotesp.Fallback), a) {
		t.Error("a file was changed")
	}
}

func TestFailedCopyChangesNothing(t *testing.T) {
	a := uki(t, "kernel a")
	esp := newFolder(t, map[string][]byte{slotesp.Fallback: a})
	if err := (fallbackFile{esp}).SetDefault("b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got error %v, want that slot b has no image", err)
	}
	if !bytes.Equal(esp.read(t, slotesp.Fallback), a) {
		t.Error("the file was changed although the copy failed")
	}
}

func FuzzIsUKI(f *testing.F) {
	b, err := os.ReadFile(stub)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:4096])
	f.Add([]byte("MZ"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if isUKI(bytes.NewReader(b)) && !bytes.Contains(b, []byte(".linux")) {
			t.Error("a file without .linux is taken for a unified kernel image")
		}
	})
}
