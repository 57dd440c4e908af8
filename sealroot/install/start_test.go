package install

import (
	"bytes"
	"errors"
	"testing"

	"sealroot/sealroot/bootset"
	"sealroot/verity/signature/signaturetest"
)

// What is returned is what was compared, byte for byte, and only what the signed manifest
// of the slot's signed image vouches for.
func TestStartFiles(t *testing.T) {
	f := newFixture(t)
	stranger := signaturetest.New(t)
	for _, tt := range []struct {
		name   string
		change func(w *world)
		want   error
	}{
		{"as_installed", func(*world) {}, nil},
		{"another_kernel", func(w *world) { w.files["a/kernel"][7] ^= 1 }, ErrBad},
		{"a_longer_initramfs", func(w *world) { w.files["a/initrd"] = append(w.files["a/initrd"], 0) }, ErrBad},
		{"no_kernel", func(w *world) { delete(w.files, "a/kernel") }, ErrBad},
		{"a_changed_manifest", func(w *world) { w.files["a/manifest.json"][20] ^= 1 }, ErrBad},
		{"no_manifest", func(w *world) { delete(w.files, "a/manifest.json") }, bootset.ErrRefused},
		{"the_manifest_of_another_image", func(w *world) {
			w.put("a", f.other)
			clear(w.parts["a/verity-sig"])
			copy(w.parts["a/verity-sig"], f.old.files["verity-sig"])
		}, bootset.ErrRefused},
		{"an_image_that_nobody_signed", func(w *world) { clear(w.parts["a/verity-sig"]) }, ErrBad},
		{"an_image_of_a_stranger", func(w *world) { w.put("a", newSet(t, stranger, 1, "1")) }, ErrBad},
		{"a_loader_that_needs_another_file", func(w *world) { w.needs = []BootFile{UKI}; delete(w.files, "a/uki") }, ErrBad},
		{"no_loader", func(w *world) { w.needs = nil }, bootset.ErrRefused},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := f.world(starts()[0])
			for name, b := range w.files {
				w.files[name] = bytes.Clone(b)
			}
			tt.change(w)
			m, files, err := w.machine(f.keys).StartFiles("a")
			if tt.want != nil {
				if !errors.Is(err, tt.want) || files != nil || m.Version != "" {
					t.Errorf("StartFiles() = %q, %d files, %v, want %v", m.Version, len(files), err, tt.want)
				}
				return
			}
			if err != nil || m.Version != f.old.manifest.Version || len(files) != len(w.needs) {
				t.Fatalf("StartFiles() = %q, %d files, %v", m.Version, len(files), err)
			}
			for name, b := range files {
				if !bytes.Equal(b, f.old.files[string(name)]) {
					t.Errorf("%s is not that of the image", name)
				}
			}
		})
	}
}
