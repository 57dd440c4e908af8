package machine

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/mkinitramfs/layer"
	"sealroot/sealroot/install"
	"sealroot/slots/manifest"
	"sealroot/state/layout"
	"sealroot/verity"
)

// A layer is there when it has the content, whatever else has its name; what cannot be
// copied leaves nothing.
func TestLayerFiles(t *testing.T) {
	d := layerFiles{t.TempDir()}
	content := bytes.Repeat([]byte("layer"), 1000)
	l := manifest.Layer{Name: "tools", RootHash: bytes.Repeat([]byte{0xab}, 32), Size: int64(len(content)), SHA256: sha256.Sum256(content)}
	path := filepath.Join(d.state, ".layers/tools-abababababababab.raw")
	if d.path(l) != path {
		t.Fatalf("path %s", d.path(l))
	}
	holds := func(want bool) {
		t.Helper()
		if got, err := d.Holds(l); got != want || err != nil {
			t.Errorf("Holds() = %v, %v; want %v", got, err, want)
		}
	}
	holds(false)
	broken := io.MultiReader(strings.NewReader("lay"), failingReader{})
	if err := d.write(l, broken); !errors.Is(err, errBroken) {
		t.Errorf("Write() = %v, want %v", err, errBroken)
	}
	if held, err := d.held(); len(held) > 0 || err != nil {
		t.Errorf("left are %q, %v", held, err)
	}
	for name, spoil := range map[string]func() error{
		"nothing": func() error { return nil },
		"other":   func() error { return os.WriteFile(path, bytes.Repeat([]byte("x"), len(content)), 0o644) },
		"link":    func() error { return os.Symlink("/dev/zero", path) },
		"fifo":    func() error { return unix.Mkfifo(path, 0o644) },
		"cut":     func() error { return os.WriteFile(path+".new", content[:10], 0o644) },
	} {
		if err := errors.Join(os.RemoveAll(path), spoil()); err != nil {
			t.Fatal(err)
		}
		holds(false)
		if err := d.write(l, bytes.NewReader(content)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		holds(true)
		if held, err := d.held(); err != nil || !slices.Equal(held, []string{layout.LayerImage("tools", strings.Repeat("ab", 32))}) {
			t.Errorf("%s: held are %q, %v", name, held, err)
		}
	}
}

// opening opens layers where no file system is mounted.
type opening struct {
	install.Layers
	d layerFiles
}

func (o opening) Open(l manifest.Layer) (install.LayerImage, error) { return o.d.open(l) }

// The image of a layer is read as a whole, whatever a boot reads of it.
func TestVerifyLayerFiles(t *testing.T) {
	const size = 64 << 12
	data := bytes.Repeat([]byte("sixteen bytes of"), size/16)
	params, err := verity.NewParams(size, nil, [16]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := os.Create(filepath.Join(t.TempDir(), "tree"))
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	hash, err := verity.Format(bytes.NewReader(data), params, tree)
	if err != nil {
		t.Fatal(err)
	}
	d, l := layerFiles{t.TempDir()}, manifest.Layer{Name: "tools", RootHash: hash}
	path := d.path(l)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	pack := func() error {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return layer.Pack(f, layer.Parts{Data: bytes.NewReader(data), DataSize: size, Tree: tree, TreeSize: params.HashSize(), RootHash: hash, Signature: []byte("{}")})
	}
	m := install.Machine{Layers: opening{d: d}, Progress: install.Quiet{}}
	for name, tt := range map[string]struct {
		spoil func() error
		want  error
	}{
		"good": {pack, nil},
		"flipped": {func() error {
			return errors.Join(pack(), flip(path, 1<<20+size/2))
		}, install.ErrBad},
		"table":   {func() error { return os.WriteFile(path, make([]byte, 4<<20), 0o644) }, install.ErrBad},
		"missing": {func() error { return nil }, install.ErrBad},
		"link":    {func() error { return os.Symlink("/dev/zero", path) }, install.ErrBad},
		"fifo":    {func() error { return unix.Mkfifo(path, 0o644) }, install.ErrBad},
	} {
		if err := errors.Join(os.RemoveAll(path), tt.spoil()); err != nil {
			t.Fatal(err)
		}
		names, err := m.VerifyLayers(t.Context(), []manifest.Layer{l})
		if !errors.Is(err, tt.want) || (err == nil) != slices.Equal(names, []string{"tools"}) {
			t.Errorf("%s: good %q, %v; want %v", name, names, err, tt.want)
		}
	}
}

// flip changes a byte of a file.
func flip(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var b [1]byte
	if _, err = f.ReadAt(b[:], at); err == nil {
		b[0] ^= 1
		_, err = f.WriteAt(b[:], at)
	}
	return errors.Join(err, f.Close())
}

// A draft has no name until it is kept, and takes the place of what is no image of the layer.
func TestLayerDraft(t *testing.T) {
	d := layerFiles{t.TempDir()}
	content := []byte("content")
	l := manifest.Layer{Name: "tools", RootHash: bytes.Repeat([]byte{0xab}, 32), Size: int64(len(content)), SHA256: sha256.Sum256(content)}
	for name, spoil := range map[string]func(path string) error{
		"nothing": func(string) error { return nil },
		"other":   func(path string) error { return os.WriteFile(path, []byte("no such"), 0o644) },
		"cut":     func(path string) error { return os.WriteFile(path+".new", content[:3], 0o644) },
	} {
		f, err := d.draft()
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.RemoveAll(d.path(l)), spoil(d.path(l))); err != nil {
			t.Fatal(err)
		}
		_, err = f.Write(content)
		before, err2 := d.Holds(l)
		other := l
		other.SHA256[0] ^= 1
		if settled, err := d.Settle(f, other); settled || err != nil {
			t.Errorf("%s: settled with another content: %v, %v", name, settled, err)
		}
		settled, err3 := d.Settle(f, l)
		if err := errors.Join(err, err2, err3, d.Keep(f, l), f.Close()); err != nil || before || !settled {
			t.Fatalf("%s: held before %v, settled %v, %v", name, before, settled, err)
		}
		if there, err := d.Holds(l); !there || err != nil {
			t.Errorf("%s: held %v, %v", name, there, err)
		}
		if held, err := d.held(); err != nil || len(held) != 1 {
			t.Errorf("%s: held are %q, %v", name, held, err)
		}
	}
}

var errBroken = errors.New("broken")

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errBroken }

// The layers that a copy of the running slot takes along.
func TestOwnLayers(t *testing.T) {
	c := config.Config{Layers: []config.Layer{
		{Name: "low", Hash: "ab"}, {Name: "mid", From: config.LayerFromPartition, Hash: "cd"}, {Name: "top", From: config.LayerFromVolume},
	}}
	if list, err := ownLayers(c); err != nil || len(list) != 1 || list[0].Name != "mid" || list[0].RootHash[0] != 0xcd {
		t.Errorf("got %+v, %v; want mid", list, err)
	}
	c.Layers[1].Hash = "x"
	if list, err := ownLayers(c); err == nil || list != nil {
		t.Errorf("no hash: %+v, %v", list, err)
	}
}
