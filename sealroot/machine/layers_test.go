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
	"sealroot/slots/manifest"
	"sealroot/state/layout"
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
