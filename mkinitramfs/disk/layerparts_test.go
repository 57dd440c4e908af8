package disk

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/mkinitramfs/layer"
	"sealroot/slots/gpt"
	"sealroot/slots/guid"
	"sealroot/slots/manifest"
)

// A layer with from: partition lies in three partitions of each slot, the one that is
// empty too; a set has it as three parts behind the root. The judges are veritysetup,
// sfdisk and unsquashfs.
func TestDiskAndPartsWithLayerInPartitions(t *testing.T) {
	b, in := builder(t)
	l := withLayer(t, b, &in)
	in.Config.Layers[0].From = config.LayerFromPartition
	o := Options{A: in, Output: filepath.Join(t.TempDir(), "disk.img"), Sizes: Sizes{NoState: true, Layers: map[string]int64{"tools": 5 * mib}}}
	if err := b.Disk(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sfdisk", "--verify", o.Output).CombinedOutput(); err != nil || !strings.Contains(string(out), "No errors detected") {
		t.Errorf("sfdisk --verify: %v\n%s", err, out)
	}
	for _, slot := range []string{"a", "b"} {
		for of, size := range map[gpt.Part]int64{gpt.Data: 5 * mib, gpt.Tree: mib, gpt.Sig: mib} {
			path, p := part(t, o.Output, gpt.LayerLabel("tools", slot, of))
			if info, err := os.Stat(path); err != nil || info.Size() != size || p.Type != guid.Must(gpt.TypeLayer) || p.Attributes != gpt.ReadOnly {
				t.Errorf("%+v has %d bytes, %v; want %d, read-only, of type %s", p, info.Size(), err, size, gpt.TypeLayer)
			}
			if slot == "b" && !allZero(fileBytes(t, path)) {
				t.Errorf("%s of the empty slot is not empty", p.Name)
			}
		}
	}
	data, _ := part(t, o.Output, "layer-tools-a")
	tree, _ := part(t, o.Output, "layer-tools-a-verity")
	if out, err := exec.Command("veritysetup", "verify", data, tree, l.Hash).CombinedOutput(); err != nil {
		t.Errorf("veritysetup verify: %v\n%s", err, out)
	}
	if sig, _ := part(t, o.Output, "layer-tools-a-verity-sig"); !bytes.Contains(fileBytes(t, sig)[:1024], []byte(l.Hash)) {
		t.Error("the signature partition does not name the root hash")
	}
	if out, err := exec.Command("unsquashfs", "-cat", data, "usr/bin/tool").Output(); err != nil || len(out) == 0 {
		t.Errorf("unsquashfs: %q, %v", out, err)
	}

	var set bytes.Buffer
	if err := b.WriteParts(t.Context(), in, "-", &set); err != nil {
		t.Fatal(err)
	}
	order, files := readTar(t, set.Bytes())
	m, err := manifest.Parse(files[manifest.File])
	if err != nil || len(m.Layers) != 1 || hex.EncodeToString(m.Layers[0].RootHash) != l.Hash || !slices.Equal(order, m.Files()) {
		t.Errorf("the set holds %q, layers %+v, %v", order, m.Layers, err)
	}
	if want := "root.squashfs layer-tools.verity-sig layer-tools.verity layer-tools.squashfs "; !strings.Contains(strings.Join(order, " "), want) {
		t.Errorf("the set holds %q, want %s", order, want)
	}
	if got := files["layer-tools.squashfs"]; !bytes.Equal(got, fileBytes(t, data)[:len(got)]) {
		t.Error("the set has another image than the disk")
	}
	dir := filepath.Join(t.TempDir(), "set")
	if err := b.WriteParts(t.Context(), in, dir, nil); err != nil || !bytes.Equal(fileBytes(t, filepath.Join(dir, "layer-tools.verity")), files["layer-tools.verity"]) {
		t.Errorf("a folder: %v", err)
	}

	for _, sizes := range []map[string]int64{{"tools": 1}, {"tools": 5*mib + 1}, {"other": mib}} {
		o.Sizes.Layers = sizes
		if err := b.Disk(t.Context(), o); !errors.Is(err, ErrSize) {
			t.Errorf("sizes %v: %v, want %v", sizes, err, ErrSize)
		}
	}
	o.Sizes.Layers = nil
	// another layer has come in the place of the one that the hash is of
	if _, err := b.Layer(t.Context(), LayerInput{Name: "tools", Tree: layerTree(t), Version: "8", Filesystem: "squashfs", For: map[string]string{"ID": "debian"}, Output: l.Image}); err != nil {
		t.Fatal(err)
	}
	if err := b.Disk(t.Context(), o); !errors.Is(err, layer.ErrImage) {
		t.Errorf("another image: %v, want %v", err, layer.ErrImage)
	}
}

// Each slot has partitions for the layers of both, as large as the larger one needs.
func TestLayerNeeds(t *testing.T) {
	of := func(name string, blocks int64) partitioned {
		l := partitioned{Layer: manifest.Layer{Name: name, Parts: []manifest.Part{{Name: manifest.Root, Size: blocks * 4096}}}}
		l.params.DataBlockSize, l.params.HashBlockSize, l.params.Algorithm, l.params.HashStart = 4096, 4096, "sha256", 1
		return l
	}
	needs := layerNeeds([]set{
		{parts: parts{inPartitions: []partitioned{of("low", 1000), of("mid", 10)}}},
		{parts: parts{inPartitions: []partitioned{of("top", 10), of("low", 3000)}}},
	})
	got := ""
	for _, n := range needs {
		got += n.name + " "
	}
	sizes, err := layerSizes(nil, needs)
	if got != "low mid top " || err != nil || sizes["low"] != roundUp(3000*4096*3/2, 4*mib) || sizes["mid"] != 4*mib {
		t.Errorf("needs %s, sizes %v, %v", got, sizes, err)
	}
}
