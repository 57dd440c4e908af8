package install

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"sealroot/sealroot/bootset"
	"sealroot/slots"
)

func (f fixture) copy(w *world, force bool) (Copied, error) {
	return w.machine(f.keys).Copy(context.Background(), f.running(), CopyOptions{Force: force})
}

// copied says what is missing of a copy.
func (f fixture) copied(w *world) error {
	a, _ := slots.Find(w.slots, "a")
	b, _ := slots.Find(w.slots, "b")
	switch {
	case b.State() != slots.Committed || b.Priority >= a.Priority:
		return errors.New(b.String() + ", want it committed below " + a.String())
	case w.armed == "b" || w.record == "b" || w.first != "a":
		return errors.New("the loader still names slot b")
	case len(w.beside) > 0:
		return errors.New("boot files are left beside")
	}
	return w.whole("b", f.old)
}

func TestCopy(t *testing.T) {
	f := newFixture(t)
	for _, s := range starts() {
		t.Run(s.name, func(t *testing.T) {
			w := f.world(s)
			done, err := f.copy(w, true)
			if err != nil || done != (Copied{"a", "b", hexOf(f.old.manifest.RootHash), false}) {
				t.Fatalf("Copy() = %+v, %v", done, err)
			}
			if err := errors.Join(f.copied(w), w.bricked(f.old)); err != nil {
				t.Error(err)
			}
			again := w.restart()
			if done, err := f.copy(again, false); err != nil || !done.Already || again.writes > 0 {
				t.Errorf("once more: %+v, %v, it wrote %v; want nothing to do", done, err, again.trace)
			}
			again.parts["b/root"][9000] ^= 1
			if done, err := f.copy(again, false); err != nil || done.Already || f.copied(again) != nil {
				t.Errorf("a copy that went bad: %+v, %v, %v; want it repaired", done, err, f.copied(again))
			}
		})
	}
}

// A quick look reads no image as a whole, but nothing is copied without.
func TestCopyQuick(t *testing.T) {
	f := newFixture(t)
	w := f.world(starts()[2])
	quick := func() (Copied, error) {
		return w.machine(f.keys).Copy(context.Background(), f.running(), CopyOptions{Quick: true})
	}
	if done, err := quick(); err != nil || done.Already || f.copied(w) != nil {
		t.Fatalf("another image: %+v, %v, %v", done, err, f.copied(w))
	}
	w.parts["b/root"][9000] ^= 1
	if done, err := quick(); err != nil || !done.Already {
		t.Errorf("a copy: %+v, %v; want nothing to do", done, err)
	}
	w.files["b/initrd"] = []byte("another")
	if done, err := quick(); err != nil || done.Already || f.copied(w) != nil {
		t.Errorf("another initramfs: %+v, %v, %v; want it repaired", done, err, f.copied(w))
	}
	w.parts["a/root"][9000] ^= 1
	w.files["b/initrd"] = []byte("another")
	w.writes = 0
	if _, err := quick(); !errors.Is(err, ErrBad) || w.writes > 0 {
		t.Errorf("a source that went bad: got error %v, %d writes; want %v", err, w.writes, ErrBad)
	}
}

func TestCopyCutAtEveryWrite(t *testing.T) {
	f := newFixture(t)
	for _, s := range starts() {
		t.Run(s.name, func(t *testing.T) {
			cuts := cutEverywhere(t, f.world(s), true, func(w *world) error { _, err := f.copy(w, true); return err }, func(w *world, n int) {
				if err := w.bricked(f.old, f.other); err != nil {
					t.Errorf("cut before write %d (%s): %v", n, w.trace[n-1], err)
				}
				again := w.restart()
				_, err := f.copy(again, true)
				if err := errors.Join(err, f.copied(again)); err != nil {
					t.Errorf("cut before write %d (%s): the next copy: %v", n, w.trace[n-1], err)
				}
			})
			if cuts < 15 {
				t.Errorf("only %d writes were cut", cuts)
			}
		})
	}
}

func TestCopyRefuses(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct {
		name  string
		start int
		spoil func(*world, *Running)
		want  error
		text  string
	}{
		{"source_does_not_verify", 2, func(w *world, _ *Running) { w.parts["a/root"][100] ^= 1 }, ErrBad, "data block 0"},
		{"source_is_not_signed", 2, func(w *world, _ *Running) { clear(w.parts["a/verity-sig"]) }, ErrBad, "empty"},
		{"source_kernel_was_changed", 2, func(w *world, _ *Running) { w.files["a/kernel"] = []byte("another") }, ErrBad, "kernel"},
		{"source_kernel_is_missing", 2, func(w *world, _ *Running) { delete(w.files, "a/initrd") }, ErrBad, "initrd"},
		{"source_manifest_was_changed", 2, func(w *world, _ *Running) { w.files["a/manifest.json"] = []byte("{}") }, ErrBad, "manifest"},
		{"source_is_on_trial", 0, func(w *world, _ *Running) { w.slots[0] = slots.Slot{Name: "a", Priority: 2, Tries: 1} }, bootset.ErrRefused, "not committed"},
		{"trial_waits", 4, func(*world, *Running) {}, bootset.ErrRefused, "--force"},
		{"no_room", 2, func(w *world, _ *Running) { w.room = 1000 }, ErrRoom, "free"},
		{"partition_too_small", 2, func(w *world, _ *Running) { w.parts["b/root"] = make([]byte, 8192) }, ErrRoom, "root image"},
		{"own_kernel_is_dead", 2, func(_ *world, r *Running) { r.Loaded, r.KernelDead = "b", true }, bootset.ErrRefused, "does not start"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, r := f.world(starts()[c.start]), f.running()
			c.spoil(w, &r)
			_, err := w.machine(f.keys).Copy(context.Background(), r, CopyOptions{})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got error %v, want %v with %q", err, c.want, c.text)
			}
			if w.writes > 0 {
				t.Errorf("it wrote %v", w.trace)
			}
		})
	}
}

// A slot that was made without a manifest is copied too; what is in the
// target's place for it goes away.
func TestCopyWithoutManifest(t *testing.T) {
	f := newFixture(t)
	w := f.world(starts()[2])
	delete(w.files, "a/manifest.json")
	delete(w.files, "a/manifest.sig")
	delete(w.files, "a/uki")
	if _, err := f.copy(w, false); err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{"b/manifest.json", "b/manifest.sig", "b/uki"} {
		if w.files[gone] != nil {
			t.Errorf("%s is still that of the image before", gone)
		}
	}
	if !bytes.Equal(w.files["b/kernel"], f.old.files["kernel"]) {
		t.Error("the kernel was not copied")
	}
}

func TestVerify(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct {
		name  string
		spoil func(*world)
		want  error
		files bool
	}{
		{"good", func(*world) {}, nil, true},
		{"data_changed", func(w *world) { w.parts["a/root"][rootSize-1] ^= 1 }, ErrBad, false},
		{"tree_changed", func(w *world) { w.parts["a/verity"][4096+7] ^= 1 }, ErrBad, false},
		{"superblock_changed", func(w *world) { w.parts["a/verity"][70] ^= 1 }, ErrBad, false},
		{"not_signed", func(w *world) { clear(w.parts["a/verity-sig"]) }, ErrBad, false},
		{"signed_for_another", func(w *world) { copy(w.parts["a/verity-sig"], f.other.files["verity-sig"]) }, ErrBad, false},
		{"boot_file_changed", func(w *world) { w.files["a/uki"] = []byte("another") }, ErrBad, false},
		{"no_manifest", func(w *world) { delete(w.files, "a/manifest.json") }, nil, false},
		{"manifest_of_another", func(w *world) {
			w.files["a/manifest.json"], w.files["a/manifest.sig"] = f.other.files["manifest.json"], f.other.files["manifest.sig"]
		}, nil, false},
		{"manifest_not_signed", func(w *world) { delete(w.files, "a/manifest.sig") }, ErrBad, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := f.world(starts()[2])
			c.spoil(w)
			held, err := w.machine(f.keys).Verify(context.Background(), "a")
			if !errors.Is(err, c.want) {
				t.Fatalf("got error %v, want %v", err, c.want)
			}
			if held.BootFiles != c.files || (held.Version == "1") != c.files {
				t.Errorf("got %+v", held)
			}
			if w.writes > 0 {
				t.Errorf("it wrote %v", w.trace)
			}
		})
	}
}

// A slot that a read error had lowered has its place back once it verifies; one
// that nobody commits, or that a person lowered, has not.
func TestProved(t *testing.T) {
	f := newFixture(t)
	lowered := []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Successful: true}}
	for _, c := range []struct {
		reason slots.Reason
		want   bool
	}{
		{slots.Verity, true}, {slots.Signature, true}, {"", false},
		{slots.NoCommit, false}, {slots.KernelNeverReached, false}, {slots.Manual, false}, {slots.HealthCheck, false},
	} {
		w := f.world(starts()[2])
		w.slots = slices.Clone(lowered)
		got, err := w.machine(f.keys).Proved(Held{Slot: "a"}, slots.Failure{Class: slots.ImageFailure, Reason: c.reason, Above: "b"}, 0)
		if err != nil || got != c.want {
			t.Errorf("%s: Proved() = %t, %v; want %t", c.reason, got, err, c.want)
		}
		if first := w.slots[0].Priority > w.slots[1].Priority; first != c.want {
			t.Errorf("%s: the slots are %v", c.reason, w.slots)
		}
	}
}

func TestMeter(t *testing.T) {
	now := time.Unix(0, 0)
	for _, c := range []struct {
		name  string
		lines bool
		want  string
	}{
		{"lines", true, "write root image    50 %  5.0 MB/s\nwrite root image   100 %  5.0 MB/s\n"},
		{"terminal", false, "\rwrite root image    50 %  5.0 MB/s           \rwrite root image   100 %  5.0 MB/s           \n"},
	} {
		var b bytes.Buffer
		m := &Meter{Out: &b, Lines: c.lines, Now: func() time.Time { return now }}
		m.Step("write root image", 10e6)
		for range 2 {
			now = now.Add(time.Second)
			m.Add(5e6)
		}
		m.Done()
		m.Done()
		if b.String() != c.want {
			t.Errorf("%s: got %q, want %q", c.name, b.String(), c.want)
		}
	}
}
