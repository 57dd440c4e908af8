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

	"sealroot/mkinitramfs/layer"
	"sealroot/slots/gpt"
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

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func fileBytes(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
