package install

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"sealroot/sealroot/bootset"
	"sealroot/slots/manifest"
)

// layeredFixture has a layer in partitions in each image, of its own content.
func layeredFixture(t *testing.T) fixture {
	t.Helper()
	f := newFixture(t)
	for i, s := range []*testSet{&f.old, &f.new, &f.other} {
		s.withSlotLayers(t, f.keys, uint64(700+10*i), "low", "top")
	}
	return f
}

// layeredMachine runs the old image.
func (f fixture) layeredMachine(w *world) Machine {
	m := w.machine(f.keys)
	for _, l := range f.old.manifest.InPartitions() {
		m.Own = append(m.Own, manifest.Layer{Name: l.Name, RootHash: l.RootHash})
	}
	return m
}

// A layer in partitions is written while its slot is unbootable, as the root is: a power
// cut at any write leaves no slot that boots with a layer of another image.
func TestInstallSlotLayers(t *testing.T) {
	f := layeredFixture(t)
	before := f.world(starts()[2])
	w := before.clone()
	if err := errors.Join(f.install(t, w), f.installed(w), w.bricked(f.old, f.new)); err != nil {
		t.Fatal(err)
	}
	first := slices.IndexFunc(w.trace, func(s string) bool { return strings.Contains(s, "layer-") })
	if first < slices.Index(w.trace, "slots") || first > slices.Index(w.trace, "write b/initrd") {
		t.Errorf("writes %q; want the layers behind the slots, and before the boot files", w.trace)
	}
	for n := 1; n <= len(w.trace); n++ {
		for _, lose := range []bool{false, true} {
			cut := before.clone()
			cut.cutAt, cut.lose = n, lose
			if err := f.install(t, cut); !errors.Is(err, errCut) {
				t.Fatalf("cut at write %d: %v", n, err)
			}
			after := cut.restart()
			if err := errors.Join(cut.bricked(f.old, f.new, f.other), f.install(t, after), f.installed(after)); err != nil {
				t.Errorf("cut at write %d: %v", n, err)
			}
		}
	}
	// the control: a slot that is not made unbootable first has such a layer
	broken := 0
	for n := 1; n <= len(w.trace); n++ {
		cut := before.clone()
		cut.cutAt, cut.lies = n, true
		if err := f.install(t, cut); errors.Is(err, errCut) && cut.bricked(f.old, f.new, f.other) != nil {
			broken++
		}
	}
	if broken == 0 {
		t.Error("no cut breaks a machine whose slot stays bootable: this test proves nothing")
	}
}

// What does not fit is refused before anything is written; what is wrong with the content
// of a layer leaves the slot unbootable.
func TestInstallSlotLayersRefused(t *testing.T) {
	f := layeredFixture(t)
	for _, tt := range []struct {
		name  string
		spoil func(w *world, s *testSet, m *Machine)
		want  error
		text  string
		early bool
	}{
		{"no_partition", func(w *world, _ *testSet, _ *Machine) { delete(w.parts, "b/layer-top.verity") }, bootset.ErrRefused, "layer top, slot b", true},
		{"data_too_large", func(w *world, _ *testSet, _ *Machine) { w.parts["b/layer-low.root"] = make([]byte, 39*4096) }, ErrRoom, "image of layer low", true},
		{"tree_too_large", func(w *world, _ *testSet, _ *Machine) { w.parts["b/layer-low.verity"] = make([]byte, 4096) }, ErrRoom, "hash tree of layer low", true},
		{"signature_too_large", func(w *world, _ *testSet, _ *Machine) { w.parts["b/layer-low.verity-sig"] = make([]byte, 10) }, ErrRoom, "signature of layer low", true},
		{"changed", func(_ *world, s *testSet, _ *Machine) { s.files["layer-low.root"][7] ^= 1 }, ErrSet, "was changed", false},
		{"another_tree", func(_ *world, s *testSet, _ *Machine) {
			// signed, and not what the root hash says
			s.manifest.Layers = slices.Clone(s.manifest.Layers)
			s.manifest.Layers[0].RootHash = slices.Clone(s.manifest.Layers[1].RootHash)
			s.seal(t, f.keys)
		}, ErrReadBack, "layer low", false},
		{"medium_loses_a_byte", func(w *world, _ *testSet, m *Machine) { m.Disk = wornLayers{w} }, ErrReadBack, "layer", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, s := f.world(starts()[2]), f.new.clone()
			m := f.layeredMachine(w)
			tt.spoil(w, &s, &m)
			_, err := m.Install(t.Context(), s.source(t), f.running(), Options{Tries: 3})
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) || tt.early == errors.Is(err, ErrUnbootable) || tt.early && w.writes > 0 {
				t.Errorf("%v, writes %q; want %v with %q", err, w.trace, tt.want, tt.text)
			}
			if !tt.early {
				if err := w.bricked(f.old, f.new, f.other); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// wornLayers loses a byte of each layer.
type wornLayers struct{ *world }

func (d wornLayers) OpenLayer(slot, layer string, part manifest.Name, write bool) (Partition, error) {
	p, err := d.world.OpenLayer(slot, layer, part, write)
	return worn{p, part == manifest.Root && write}, err
}

// A copy has the layers of the running system, whatever the other slot had; a cut at any
// write leaves no slot with a mixture.
func TestCopySlotLayers(t *testing.T) {
	f := layeredFixture(t)
	run := func(w *world, o CopyOptions) (Copied, error) {
		return f.layeredMachine(w).Copy(t.Context(), f.running(), o)
	}
	before := f.world(starts()[2])
	w := before.clone()
	if _, err := run(w, CopyOptions{}); err != nil || f.copied(w) != nil {
		t.Fatalf("%v, %v", err, f.copied(w))
	}
	for n := 1; n <= len(w.trace); n++ {
		cut := before.clone()
		cut.cutAt = n
		if _, err := run(cut, CopyOptions{}); !errors.Is(err, errCut) {
			t.Fatalf("cut at write %d: %v", n, err)
		}
		after := cut.restart()
		if err := cut.bricked(f.old, f.new, f.other); err != nil {
			t.Errorf("cut at write %d: %v", n, err)
		}
		if _, err := run(after, CopyOptions{}); err != nil || f.copied(after) != nil {
			t.Errorf("after a cut at write %d: %v, %v", n, err, f.copied(after))
		}
	}
	again := w.restart()
	if done, err := run(again, CopyOptions{}); err != nil || !done.Already || again.writes > 0 {
		t.Errorf("once more: %+v, %v, it wrote %v", done, err, again.trace)
	}
	again.parts["b/layer-top.root"][9000] ^= 1
	if done, err := run(again, CopyOptions{Quick: true}); err != nil || !done.Already {
		t.Errorf("a quick look at a copy: %+v, %v", done, err)
	}
	if done, err := run(again, CopyOptions{}); err != nil || done.Already || f.copied(again) != nil {
		t.Errorf("a layer of the copy that went bad: %+v, %v, %v; want it repaired", done, err, f.copied(again))
	}
	copy(again.parts["b/layer-top.verity"], f.new.files["layer-top.verity"])
	if done, err := run(again, CopyOptions{Quick: true}); err != nil || done.Already || f.copied(again) != nil {
		t.Errorf("a quick look at a layer of another image: %+v, %v, %v; want it repaired", done, err, f.copied(again))
	}
	bad := before.clone()
	bad.parts["a/layer-low.root"][9000] ^= 1
	if _, err := run(bad, CopyOptions{}); !errors.Is(err, ErrBad) || bad.writes > 0 {
		t.Errorf("a source that went bad: %v, it wrote %v", err, bad.trace)
	}
	delete(bad.parts, "b/layer-low.root")
	if _, err := run(bad, CopyOptions{}); !errors.Is(err, bootset.ErrRefused) || bad.writes > 0 {
		t.Errorf("no partition in the other slot: %v, it wrote %v", err, bad.trace)
	}
}

// The layers of a slot are verified by its signed manifest, not by what they say.
func TestVerifySlotLayers(t *testing.T) {
	f := layeredFixture(t)
	for _, tt := range []struct {
		name  string
		spoil func(w *world)
		want  error
	}{
		{"good", func(*world) {}, nil},
		{"corrupted", func(w *world) { w.parts["b/layer-top.root"][9000] ^= 1 }, ErrBad},
		{"superblock", func(w *world) { w.parts["b/layer-top.verity"][0] ^= 1 }, ErrBad},
		{"of_another_image", func(w *world) {
			for _, part := range manifest.LayerParts() { // whole, and signed by the same key
				copy(w.parts["b/"+layerFile("top", part)], f.new.files[layerFile("top", part)])
			}
		}, ErrBad},
		{"no_partition", func(w *world) { delete(w.parts, "b/layer-low.root") }, ErrBad},
		{"both", func(w *world) {
			w.parts["b/layer-top.root"][9000] ^= 1
			w.parts["b/layer-low.root"][9000] ^= 1
		}, ErrBad},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := f.world(starts()[2])
			tt.spoil(w)
			held, err := f.layeredMachine(w).Verify(t.Context(), "b")
			if !errors.Is(err, tt.want) || (err == nil) != slices.Equal(held.Layers, []string{"low", "top"}) {
				t.Errorf("got layers %q, %v, want %v", held.Layers, err, tt.want)
			}
			for _, name := range []string{"low", "top"} { // each one is told of
				if err != nil && slices.Contains(held.Layers, name) == strings.Contains(err.Error(), "layer "+name) {
					t.Errorf("layer %s: good are %q, and %v", name, held.Layers, err)
				}
			}
		})
	}
}
