package install

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"sealroot/sealroot/bootset"
	"sealroot/slots/manifest"
)

// The layers of a set are there before its slot changes, those that were there are not
// written again, and a power cut at any write leaves a machine that boots.
func TestInstallLayers(t *testing.T) {
	f := newFixture(t)
	f.new.withLayers(t, f.keys, "low", "top")
	before := f.world(starts()[2])
	before.layers[layerKey(f.new.manifest.Layers[0])] = f.new.files["layer-low"]
	w := before.clone()
	if err := errors.Join(f.install(t, w), f.installed(w)); err != nil {
		t.Fatal(err)
	}
	if at := slices.Index(w.trace, "layer top"); at < 0 || slices.Contains(w.trace, "layer low") || slices.Index(w.trace, "slots") < at {
		t.Errorf("writes %q; want layer top alone, before the slots", w.trace)
	}
	for n := 1; n <= len(w.trace); n++ {
		cut := before.clone()
		cut.cutAt = n
		if err := f.install(t, cut); !errors.Is(err, errCut) {
			t.Fatalf("cut at write %d: %v", n, err)
		}
		after := cut.restart()
		for _, s := range after.slots {
			if s.Name == "b" && s.Bootable() && after.whole("b", f.new) == nil && len(after.layers) != 2 {
				t.Errorf("cut at write %d: slot b is bootable with layers %d of 2", n, len(after.layers))
			}
		}
		if err := errors.Join(cut.bricked(f.old, f.new, f.other), f.install(t, after), f.installed(after)); err != nil {
			t.Errorf("cut at write %d: %v", n, err)
		}
	}
}

func TestInstallLayersRefused(t *testing.T) {
	f := newFixture(t)
	f.new.withLayers(t, f.keys, "low")
	for _, tt := range []struct {
		name  string
		spoil func(s *testSet, m *Machine)
		want  error
	}{
		{"changed", func(s *testSet, _ *Machine) { s.files["layer-low"][7] ^= 1 }, ErrSet},
		{"short", func(s *testSet, _ *Machine) { s.files["layer-low"] = s.files["layer-low"][:100] }, ErrSet},
		{"missing", func(s *testSet, _ *Machine) { s.manifest.Layers = nil }, ErrSet},
		{"no_state", func(_ *testSet, m *Machine) { m.Layers = nil }, bootset.ErrRefused},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, s := f.world(starts()[2]), f.new.clone()
			m := w.machine(f.keys)
			tt.spoil(&s, &m)
			_, err := m.Install(t.Context(), s.source(t), f.running(), Options{Tries: 3})
			if !errors.Is(err, tt.want) || len(w.layers) > 0 || strings.Contains(strings.Join(w.trace, " "), "slots") {
				t.Errorf("%v, writes %q; want %v and nothing written", err, w.trace, tt.want)
			}
		})
	}
}

// The layers on the state partition are read as a whole: all that the signed manifest
// names, by the root hash that it names, and each that is wrong is told of. The slot itself
// is good without them.
func TestVerifyLayers(t *testing.T) {
	f := newFixture(t)
	f.old.withLayers(t, f.keys, "low", "mid", "top")
	for _, tt := range []struct {
		name  string
		spoil func(w *world, m *Machine, of func(name string) string)
		good  []string
		want  error
		text  string
	}{
		{"good", func(*world, *Machine, func(string) string) {}, []string{"low", "mid", "top"}, nil, ""},
		{"one_block", func(w *world, _ *Machine, of func(string) string) { w.layers[of("mid")][stateLayerSize/2] ^= 1 }, []string{"low", "top"}, ErrBad, "layer mid: "},
		{"tree", func(w *world, _ *Machine, of func(string) string) { w.layers[of("low")][stateLayerSize+4096+5] ^= 1 }, []string{"mid", "top"}, ErrBad, "layer low: "},
		{"superblock", func(w *world, _ *Machine, of func(string) string) { w.layers[of("low")][stateLayerSize] ^= 1 }, []string{"mid", "top"}, ErrBad, "layer low: "},
		{"short", func(w *world, _ *Machine, of func(string) string) {
			w.layers[of("top")] = w.layers[of("top")][:stateLayerSize+4096]
		}, []string{"low", "mid"}, ErrBad, "layer top: "},
		{"missing", func(w *world, _ *Machine, of func(string) string) { delete(w.layers, of("top")) }, []string{"low", "mid"}, ErrBad, "layer top: "},
		{"another", func(w *world, _ *Machine, of func(string) string) { w.layers[of("top")] = w.layers[of("low")] }, []string{"low", "mid"}, ErrBad, "layer top: "},
		{"two", func(w *world, _ *Machine, of func(string) string) {
			w.layers[of("low")][9000] ^= 1
			delete(w.layers, of("top"))
		}, []string{"mid"}, ErrBad, "\nlayer top: "},
		{"no_state", func(_ *world, m *Machine, _ func(string) string) { m.Layers = nil }, nil, bootset.ErrRefused, "layer low was not read: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := f.world(starts()[2])
			s := f.old.clone()
			s.manifest.Layers = slices.Clone(s.manifest.Layers)
			s.withTrees(t, f.keys, w)
			for _, name := range []string{manifest.File, manifest.SignatureFile} {
				w.files["a/"+name] = s.files[name]
			}
			m := w.machine(f.keys)
			tt.spoil(w, &m, func(name string) string {
				i := slices.IndexFunc(s.manifest.Layers, func(l manifest.Layer) bool { return l.Name == name })
				return layerKey(s.manifest.Layers[i])
			})
			held, err := m.Verify(t.Context(), "a")
			if err != nil || !held.BootFiles || len(held.Layers) > 0 || len(held.OnState) != 3 {
				t.Errorf("the slot itself: %+v, %v; want it good, and the layers left to VerifyLayers", held, err)
			}
			good, err := m.VerifyLayers(t.Context(), held.OnState)
			if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.text) || !slices.Equal(good, tt.good) {
				t.Errorf("good %q, %v; want %q, %v with %q", good, err, tt.good, tt.want, tt.text)
			}
		})
	}
}
