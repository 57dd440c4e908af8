package disk

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sealroot/init/config"
	"sealroot/mkinitramfs/layer"
	"sealroot/slots/gpt"
	"sealroot/slots/manifest"
	"sealroot/verity"
)

// layerTree is a small tree.
func layerTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"usr/bin/tool": "#!/bin/sh\n", "etc/tool.conf": "a=b\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The judges are sfdisk, veritysetup and unsquashfs.
func TestLayer(t *testing.T) {
	b, _ := builder(t)
	b.Time = time.Unix(1700000000, 0)
	dir := t.TempDir()
	in := LayerInput{
		Name: "tools", Tree: layerTree(t), Version: "7", Filesystem: "squashfs",
		For: map[string]string{"ID": "debian", "VERSION_ID": "12"}, Output: filepath.Join(dir, "tools.raw"),
	}
	hash, err := b.Layer(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := layer.Open(in.Output); err != nil || !bytes.Equal(got, hash) {
		t.Errorf("layer.Open: %x, %v, want %x", got, err, hash)
	}
	if out, err := exec.Command("sfdisk", "--verify", in.Output).CombinedOutput(); err != nil || !strings.Contains(string(out), "No errors detected") {
		t.Errorf("sfdisk --verify: %v\n%s", err, out)
	}
	data, tree := partitionsOf(t, in.Output, dir)
	if out, err := exec.Command("veritysetup", "verify", data, tree, hex.EncodeToString(hash)).CombinedOutput(); err != nil {
		t.Errorf("veritysetup verify: %v\n%s", err, out)
	}
	out, err := exec.Command("unsquashfs", "-cat", data, "usr/lib/extension-release.d/extension-release.tools").Output()
	if want := "ID=\"debian\"\nVERSION_ID=\"12\"\nIMAGE_VERSION=\"7\"\n"; err != nil || string(out) != want {
		t.Errorf("extension-release: %q, %v, want %q", out, err, want)
	}

	again := in
	again.Output = filepath.Join(dir, "again.raw")
	if _, err := b.Layer(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(fileBytes(t, in.Output), fileBytes(t, again.Output)) {
		t.Error("equal trees give images that differ")
	}

	image := fileBytes(t, in.Output)
	image[1<<20+100] ^= 1
	if err := os.WriteFile(in.Output, image, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := layer.Open(in.Output); !errors.Is(err, verity.ErrCorrupt) {
		t.Errorf("a flipped byte: %v, want %v", err, verity.ErrCorrupt)
	}
	in.For = nil
	if _, err := b.Layer(t.Context(), in); !errors.Is(err, ErrRoot) || !strings.Contains(err.Error(), "--for") {
		t.Errorf("a layer for nothing: %v, want %v and what to do", err, ErrRoot)
	}
}

// partitionsOf copies data and hash tree out of an image.
func partitionsOf(t *testing.T, image, dir string) (data, tree string) {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	table, err := gpt.Read(f, info.Size(), 512)
	if err != nil {
		t.Fatal(err)
	}
	d, v, _, err := table.Image()
	if err != nil {
		t.Fatal(err)
	}
	paths := [2]string{filepath.Join(dir, "data"), filepath.Join(dir, "tree")}
	for i, p := range []gpt.Partition{d, v} {
		content, err := io.ReadAll(io.NewSectionReader(f, table.Offset(p), table.Size(p)))
		if err == nil {
			err = os.WriteFile(paths[i], content, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return paths[0], paths[1]
}

func fileBytes(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// withLayer gives the configuration a layer.
func withLayer(t *testing.T, b *Builder, in *SlotInput) config.Layer {
	t.Helper()
	out := filepath.Join(t.TempDir(), "tools.raw")
	_, err := b.Layer(t.Context(), LayerInput{Name: "tools", Tree: layerTree(t), Filesystem: "squashfs", For: map[string]string{"ID": "debian"}, Output: out})
	if err != nil {
		t.Fatal(err)
	}
	cfg := *in.Config
	cfg.Layers = []config.Layer{{Name: "tools", Image: out}, {Name: "mine", From: config.LayerFromVolume, Verity: config.LayerUnverified}}
	if err := layer.FillIn(&cfg, "/"); err != nil {
		t.Fatal(err)
	}
	in.Config = &cfg
	return cfg.Layers[0]
}

// A disk has the layers of its slots on the state partition, where root alone can write;
// a set has them beside its parts, and the manifest names them. The judges are debugfs
// and e2fsck.
func TestDiskAndPartsWithLayers(t *testing.T) {
	b, in := builder(t)
	l := withLayer(t, b, &in)
	o := Options{A: in, B: &in, BState: Good, Output: filepath.Join(t.TempDir(), "disk.img"), Sizes: Sizes{State: 192 * mib}}
	if err := b.Disk(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	state, _ := part(t, o.Output, gpt.LabelState)
	file := filepath.Join(t.TempDir(), "tools.raw")
	at := ".layers/tools-" + l.Hash[:16] + ".raw"
	if out, err := exec.Command("debugfs", "-R", "dump "+at+" "+file, state).CombinedOutput(); err != nil || !bytes.Equal(fileBytes(t, file), fileBytes(t, l.Image)) {
		t.Errorf("the state partition does not hold the layer: %v\n%s", err, out)
	}
	for path, want := range map[string]string{at: "Mode:  0644", ".layers": "Mode:  0755"} {
		if out, err := exec.Command("debugfs", "-R", "stat "+path, state).Output(); err != nil || !strings.Contains(string(out), want) || !strings.Contains(string(out), "User:     0   Group:     0") {
			t.Errorf("%s: %v, want %s of root\n%s", path, err, want, out)
		}
	}
	if out, err := exec.Command("e2fsck", "-fn", state).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}

	var set bytes.Buffer
	if err := b.WriteParts(t.Context(), in, "-", &set); err != nil {
		t.Fatal(err)
	}
	order, files := readTar(t, set.Bytes())
	m, err := manifest.Parse(files[manifest.File])
	if err != nil || len(m.Layers) != 1 || hex.EncodeToString(m.Layers[0].RootHash) != l.Hash || order[2] != "layer-tools.raw" || !bytes.Equal(files[order[2]], fileBytes(t, l.Image)) {
		t.Errorf("the set holds %q, layers %+v, %v", order, m.Layers, err)
	}
	dir := filepath.Join(t.TempDir(), "set")
	if err := b.WriteParts(t.Context(), in, dir, nil); err != nil || !bytes.Equal(fileBytes(t, filepath.Join(dir, "layer-tools.raw")), fileBytes(t, l.Image)) {
		t.Errorf("a folder: %v", err)
	}

	o.Sizes = Sizes{NoState: true}
	if err := b.Disk(t.Context(), o); !errors.Is(err, ErrOptions) || !strings.Contains(err.Error(), "layer tools") {
		t.Errorf("without a state partition: %v", err)
	}
	o.Sizes = Sizes{State: 32 * mib}
	if err := os.Truncate(l.Image, 100*mib); err != nil {
		t.Fatal(err)
	}
	if err := b.placeInState(t, l); !errors.Is(err, ErrSize) {
		t.Errorf("in a partition that is too small: %v, want %v", err, ErrSize)
	}
	in.Config.Layers[0].Image = ""
	if err := b.WriteParts(t.Context(), in, "-", io.Discard); !errors.Is(err, ErrOptions) || !strings.Contains(err.Error(), "image: FILE") {
		t.Errorf("a set of a layer that nobody has: %v", err)
	}
}

// placeInState puts a layer into a small partition.
func (b *Builder) placeInState(t *testing.T, l config.Layer) error {
	t.Helper()
	disk, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	// content, for a hole takes no room
	f, err := os.OpenFile(l.Image, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(bytes.Repeat([]byte("x"), 64*int(mib)), 0)
		err = errors.Join(err, f.Close(), disk.Truncate(34*mib))
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.placeState(t.Context(), disk, partition{start: mib, size: 32 * mib}, []config.Layer{l})
}
