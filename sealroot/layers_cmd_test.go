package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/slots"
	"sealroot/slots/manifest"
	"sealroot/state/layout"
)

// layered is a machine whose state partition holds layers.
type layered struct {
	*fake
	held      []string
	manifests map[string]manifest.Manifest
}

func (l *layered) HeldLayers() ([]string, error) { return slices.Clone(l.held), nil }
func (l *layered) RemoveLayer(file string) error {
	l.held = slices.DeleteFunc(l.held, func(h string) bool { return h == file })
	return nil
}
func (l *layered) Manifest(slot, _ string) (manifest.Manifest, error) {
	m, ok := l.manifests[slot]
	if !ok {
		return m, errors.New("it has no signed manifest")
	}
	return m, nil
}

// After a commit the layers go that neither the running configuration nor the manifest
// of another slot names; where that of a slot that could be booted is not known, none
// does.
func TestCommitRemovesLayers(t *testing.T) {
	hash := func(c string) string { return strings.Repeat(c, 64) }
	file := func(name, c string) string { return layout.LayerImage(name, hash(c)) }
	of := func(name, c string) manifest.Manifest {
		h, err := hex.DecodeString(hash(c))
		if err != nil {
			t.Fatal(err)
		}
		return manifest.Manifest{Layers: []manifest.Layer{{Name: name, RootHash: h}}}
	}
	failed := []slots.Slot{{Name: "a"}, {Name: "b", Priority: 2, Successful: true}}
	runs, stands, old, cut := file("apps", "b"), file("apps", "a"), file("apps", "0"), file("apps", "b")+".new"
	for _, tt := range []struct {
		name  string
		world world
		a     map[string]manifest.Manifest
		left  []string
	}{
		{"two_slots", world{list: goodPair()}, map[string]manifest.Manifest{"a": of("apps", "a")}, []string{runs, stands}},
		{"a_shares_the_layer", world{list: goodPair()}, map[string]manifest.Manifest{"a": of("apps", "b")}, []string{runs}},
		{"a_is_unbootable", world{list: failed}, nil, []string{runs}},
		{"a_is_unbootable_and_whole", world{list: failed}, map[string]manifest.Manifest{"a": of("apps", "a")}, []string{runs, stands}},
		{"a_is_unknown", world{list: goodPair()}, nil, []string{runs, stands, old, cut}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := &layered{held: []string{runs, stands, old, cut}, manifests: tt.a}
			cfg, err := json.Marshal(config.Config{Layers: []config.Layer{{Name: "apps", Hash: hash("b")}, {Name: "mine", From: config.LayerFromVolume, Verity: config.LayerUnverified}}})
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(path, cfg, 0o600); err != nil {
				t.Fatal(err)
			}
			c := &command{env: Env{Config: path}, stdout: new(strings.Builder), stderr: new(strings.Builder)}
			f := &fake{list: tt.world.list}
			m.fake = f
			set, err := f.BootSet(nil)
			if err != nil {
				t.Fatal(err)
			}
			tg := target{Machine: set, machine: m, report: report.Report{Schema: 1}}
			tg.boot.Running = "b"
			c.dropLayers(tg)
			if !slices.Equal(m.held, tt.left) {
				t.Errorf("left are %q, want %q", m.held, tt.left)
			}
		})
	}
}

// A commit, and each boot's record, remove what the slot had for other images.
func TestUppersOfOtherImagesGo(t *testing.T) {
	hash, other := strings.Repeat("1", 64), strings.Repeat("2", 64)
	for _, tt := range []struct {
		name, args string
		change     func(*report.Report)
		goes       bool
	}{
		{"commit", "commit", nil, true},
		{"record", "record", nil, true},
		{"degraded", "record", func(r *report.Report) { r.Degraded = true }, false},
		{"nobody_says_which_image", "record", func(r *report.Report) { r.Root.RootHash = "" }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := world{list: pair(), report: running(func(r *report.Report) { r.Root.RootHash = hash })}
			if tt.change != nil {
				tt.change(w.report)
			}
			w.before = func(env Env) {
				for _, of := range []string{hash, other} {
					if err := os.MkdirAll(filepath.Join(env.volume(), layout.SlotUpper("opt", "b", of), "upper"), 0o755); err != nil {
						t.Fatal(err)
					}
				}
			}
			code, out, errs, o := w.outcome(t, tt.args)
			if code != 0 || strings.Contains(out, "slot b: 1 upper layer removed that no image uses now") != tt.goes {
				t.Errorf("exit status %d, %s%s", code, out, errs)
			}
			for of, want := range map[string]bool{hash: true, other: !tt.goes} {
				if _, err := os.Stat(filepath.Join(o.env.volume(), layout.SlotUpper("opt", "b", of))); (err == nil) != want {
					t.Errorf("that of image %.4s…: %v, want it there: %v", of, err, want)
				}
			}
		})
	}
}
