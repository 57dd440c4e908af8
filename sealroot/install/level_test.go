package install

import (
	"bytes"
	"strings"
	"testing"

	"sealroot/slots"
	"sealroot/verity/signature"
	"sealroot/verity/signature/signaturetest"
)

// What a slot's security version is, and who says so.
func TestLevel(t *testing.T) {
	f := newFixture(t)
	stranger := signaturetest.New(t)
	for _, c := range []struct {
		name    string
		change  func(w *world)
		run     func(r *Running)
		version int
		known   bool
		empty   bool
		why     string
	}{
		{"manifest", func(w *world) { w.put("b", f.new) }, nil, 2, true, false, ""},
		{"the_image_that_runs", func(w *world) {
			w.put("b", f.old)
			delete(w.files, "b/"+string(Manifest))
		}, func(r *Running) { r.SecurityVersion = 7 }, 7, true, false, ""},
		{"empty", func(w *world) {
			clear(w.parts["b/verity-sig"])
			w.slots[1] = slots.Slot{Name: "b"}
		}, nil, 0, false, true, ""},
		{"being_written", func(w *world) {
			copy(w.parts["b/verity-sig"], "x")
			w.slots[1] = slots.Slot{Name: "b"}
		}, nil, 0, false, true, ""},
		// with root.hash in its initramfs PID 1 boots these
		{"no_signature", func(w *world) { clear(w.parts["b/verity-sig"]) }, nil, 0, false, false, "not a usable signature"},
		{"damaged_signature", func(w *world) { copy(w.parts["b/verity-sig"], "x") }, nil, 0, false, false, "not a usable signature"},
		{"no_manifest", func(w *world) {
			w.put("b", f.new)
			delete(w.files, "b/"+string(Manifest))
		}, nil, 0, false, false, "no signed manifest"},
		{"manifest_of_another_image", func(w *world) {
			w.put("b", f.new)
			w.files["b/"+string(Manifest)], w.files["b/"+string(ManifestSignature)] = w.files["a/"+string(Manifest)], w.files["a/"+string(ManifestSignature)]
		}, nil, 0, false, false, "another image"},
		{"changed_manifest", func(w *world) {
			w.put("b", f.new)
			w.files["b/"+string(Manifest)] = bytes.Replace(w.files["b/"+string(Manifest)], []byte(`"security_version": 2`), []byte(`"security_version": 9`), 1)
		}, nil, 0, false, false, "does not verify"},
		{"signed_by_a_stranger", func(w *world) { w.put("b", newSet(t, stranger, 9, "3")) }, nil, 0, false, false, "certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, r := f.world(starts()[2]), f.running()
			c.change(w)
			if c.run != nil {
				c.run(&r)
			}
			l := w.machine(f.keys).Level(w.slots[1], r)
			if l.Slot != "b" || l.Version != c.version || l.Known != c.known || l.Empty != c.empty || !strings.Contains(l.Why, c.why) {
				t.Errorf("got %+v, want %+v", l, c)
			}
		})
	}
	// Whoever it is signed by: the certificates decide.
	w := f.world(starts()[2])
	w.put("b", f.new)
	m := w.machine(f.keys)
	m.Certs = []*signature.Certificate{stranger.Parsed}
	if l := m.Level(w.slots[1], f.running()); l.Known || l.Empty {
		t.Errorf("with another certificate: %+v, want unknown", l)
	}
}
