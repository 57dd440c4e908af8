package machine

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/sealroot/bootset"
	"sealroot/sealroot/install"
	slotesp "sealroot/slots/esp"
	"sealroot/slots/live"
	"sealroot/slots/manifest"
)

// A part that is a file on the ESP is never taken for the image.
func TestOpenPartOfTheESP(t *testing.T) {
	m := &Machine{}
	if _, err := m.OpenPart("a", manifest.Kernel, true); !errors.Is(err, errNoPartition) {
		t.Errorf("OpenPart() = %v, want %v", err, errNoPartition)
	}
	if _, err := m.OpenLayer("a", "tools", manifest.UKI, true); !errors.Is(err, errNoPartition) {
		t.Errorf("OpenLayer() = %v, want %v", err, errNoPartition)
	}
}

// tree lists the files below dir with their content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, dir+"/")] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func sameTree(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	got := tree(t, dir)
	for name := range got {
		if want[name] != got[name] {
			t.Errorf("%s holds %q, want %q", name, got[name], want[name])
		}
	}
	for name := range want {
		if _, ok := got[name]; !ok {
			t.Errorf("%s is missing", name)
		}
	}
}

func (f bootFolder) put(t *testing.T, slot string, files map[install.BootFile]string) {
	t.Helper()
	var names []install.BootFile
	for _, file := range install.BootFiles() {
		content, ok := files[file]
		if !ok {
			continue
		}
		if err := f.Write(slot, file, strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		r, err := f.Written(slot, file)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != content {
			t.Errorf("Written(%s) reads %q, %v", file, got, err)
		}
		r.Close()
		names = append(names, file)
	}
	if err := f.Publish(slot, names); err != nil {
		t.Fatal(err)
	}
}

func TestBootFolder(t *testing.T) {
	f := bootFolder{dir: t.TempDir()}
	f.put(t, "a", map[install.BootFile]string{install.Kernel: "k", install.Initrd: "i", install.UKI: "u", install.Manifest: "m", install.ManifestSignature: "s"})
	f.put(t, "b", map[install.BootFile]string{install.Kernel: "old", install.Initrd: "old", install.UKI: "old", install.Manifest: "old"})
	// what a cut write left
	if err := f.Write("b", install.Kernel, strings.NewReader("left")); err != nil {
		t.Fatal(err)
	}
	f.put(t, "b", map[install.BootFile]string{install.Kernel: "new", install.Initrd: "new"})
	sameTree(t, f.dir, map[string]string{
		"sealroot/a/vmlinuz": "k", "sealroot/a/initrd": "i", "EFI/Linux/sealroot-a.efi": "u",
		"sealroot/a/manifest.json": "m", "sealroot/a/manifest.sig": "s",
		"sealroot/b/vmlinuz": "new", "sealroot/b/initrd": "new",
	})
	if _, err := f.Open("b", install.UKI); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open() of a file that was not in the set: got error %v, want %v", err, fs.ErrNotExist)
	}
	if _, err := f.name("b", "other"); err == nil {
		t.Error("an unknown file has a name")
	}
}

// With store bls the name of an image is its state: a new one must not look
// committed, and one that is there keeps its name.
func TestBootFolderCountedNames(t *testing.T) {
	f := bootFolder{dir: t.TempDir(), counted: true}
	f.put(t, "b", map[install.BootFile]string{install.UKI: "first"})
	sameTree(t, f.dir, map[string]string{"EFI/Linux/sealroot-b+0-0.efi": "first"})
	old, now := filepath.Join(f.dir, "EFI/Linux/sealroot-b+0-0.efi"), filepath.Join(f.dir, "EFI/Linux/sealroot-b+0-3.efi")
	if err := os.Rename(old, now); err != nil {
		t.Fatal(err)
	}
	f.put(t, "b", map[install.BootFile]string{install.UKI: "second"})
	sameTree(t, f.dir, map[string]string{"EFI/Linux/sealroot-b+0-3.efi": "second"})
}

func TestBootFolderWriteFails(t *testing.T) {
	f := bootFolder{dir: t.TempDir()}
	f.put(t, "b", map[install.BootFile]string{install.Kernel: "old"})
	broken := errors.New("input/output error")
	err := f.Write("b", install.Kernel, io.MultiReader(strings.NewReader("ne"), failing{broken}))
	if !errors.Is(err, broken) {
		t.Errorf("got error %v, want %v", err, broken)
	}
	sameTree(t, f.dir, map[string]string{"sealroot/b/vmlinuz": "old"})
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// Two names for the same blocks, as a power cut in an exchange can leave them
// on FAT, are not deleted: here a hard link, where the file system tells.
func TestBootFolderSharedBlocks(t *testing.T) {
	f := bootFolder{dir: t.TempDir()}
	f.put(t, "b", map[install.BootFile]string{install.Kernel: strings.Repeat("old", 10000)})
	path := filepath.Join(f.dir, "sealroot/b/vmlinuz")
	if err := os.Link(path, path+".new"); err != nil {
		t.Fatal(err)
	}
	if err := f.Write("b", install.Kernel, strings.NewReader("new")); !errors.Is(err, errSharedFile) {
		t.Errorf("two names of the same blocks: got error %v, want %v", err, errSharedFile)
	}
	// The control: a leftover of blocks of its own, even of the same content.
	if err := os.Remove(path + ".new"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Write("b", install.Kernel, strings.NewReader("new")); err != nil {
		t.Error(err)
	}
}

func TestRoomCountsLeftovers(t *testing.T) {
	f := bootFolder{dir: t.TempDir()}
	before, err := f.Room("b")
	if err != nil {
		t.Fatal(err)
	}
	// a hole takes no room itself
	left := filepath.Join(f.dir, "sealroot/b/initrd.new")
	if err := errors.Join(os.MkdirAll(filepath.Dir(left), 0o755), os.WriteFile(left, nil, 0o600), os.Truncate(left, 1<<40)); err != nil {
		t.Fatal(err)
	}
	after, err := f.Room("b")
	if err != nil || after.Free < before.Free/2+1<<40 {
		t.Errorf("Room() = %v, %v; it was %v without a leftover of 1 TiB", after, err, before)
	}
}

// A commit copies the new image beside what firmware without entries starts.
func TestRoomForTheCopy(t *testing.T) {
	image := uki(t, "kernel")
	for _, c := range []struct {
		name  string
		files map[string][]byte
		want  install.Room // without Free
	}{
		{"image", map[string][]byte{slotesp.Fallback: image, slotesp.UKI("b"): make([]byte, 300), slotesp.Manifest("b"): make([]byte, 20), slotesp.UKI("a"): make([]byte, 7)}, install.Room{Old: 320, Fallback: true}},
		{"loader", map[string][]byte{slotesp.Fallback: []byte("GRUB")}, install.Room{}},
		{"none", map[string][]byte{slotesp.FallbackTemp: make([]byte, 9)}, install.Room{Old: 9, Fallback: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := bootFolder{dir: newFolder(t, c.files).dir}.Room("b")
			got.Free = 0
			if err != nil || got != c.want {
				t.Errorf("Room() = %+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}

func TestNeeds(t *testing.T) {
	for _, c := range []struct {
		choice live.Choice
		want   []install.BootFile
	}{
		{live.Choice{Loader: live.LoaderGRUB}, []install.BootFile{install.Kernel, install.Initrd}},
		{live.Choice{Loader: live.LoaderUKI}, []install.BootFile{install.UKI}},
		{live.Choice{Loader: live.LoaderSystemdBoot}, []install.BootFile{install.UKI}},
		{live.Choice{Loader: live.LoaderGRUB, Direct: true}, nil},
		{live.Choice{Loader: live.LoaderUKI, Discoverable: true}, nil},
	} {
		if got := (bootESP{choice: c.choice}).Needs(); !slices.Equal(got, c.want) {
			t.Errorf("%+v: Needs() = %v, want %v", c.choice, got, c.want)
		}
	}
}

func TestOpenDroppedRefusesLinks(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "x")); err != nil {
		t.Fatal(err)
	}
	if r, err := openDropped(filepath.Join(dir, "x")); err == nil {
		b, _ := io.ReadAll(r)
		t.Errorf("a link was followed: %q", bytes.TrimSpace(b[:min(len(b), 20)]))
	}
}

// A device that is in use is refused; the control is the same one when it is
// free.
func TestClaim(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 1<<20)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", image).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	node := strings.TrimSpace(string(out))
	defer func() {
		if out, err := exec.Command("losetup", "--detach", node).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	}()
	p, err := claim(node)
	if err != nil {
		t.Fatal(err)
	}
	_, writeErr := p.WriteAt(make([]byte, 4096), 0)
	if err := errors.Join(writeErr, p.Sync(), p.Forget()); err != nil {
		t.Error(err)
	}
	if _, err := claim(node); !errors.Is(err, bootset.ErrRefused) {
		t.Errorf("claimed twice: got error %v, want %v", err, bootset.ErrRefused)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p, err = claim(node)
	if err != nil {
		t.Fatalf("free again: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
