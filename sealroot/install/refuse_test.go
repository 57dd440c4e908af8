package install

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/sealroot/bootset"
	"sealroot/slots"
	"sealroot/slots/manifest"
	"sealroot/verity/signature"
	"sealroot/verity/signature/sign"
	"sealroot/verity/signature/signaturetest"
)

// layout changes what a set says of its disk.
func layout(change func(*manifest.Layout)) func(*testSet) {
	return func(s *testSet) {
		l := *s.manifest.Layout
		change(&l)
		s.manifest.Layout = &l
	}
}

// What is wrong with a set, or would be wrong on this machine, is found before
// anything changes.
func TestInstallRefuses(t *testing.T) {
	f := newFixture(t)
	stranger := signaturetest.New(t)
	resealed := func(change func(*testSet)) func(testing.TB) Source {
		s := f.new.clone()
		change(&s)
		s.seal(t, f.keys)
		return s.source
	}
	raw := func(b []byte) func(testing.TB) Source {
		return func(testing.TB) Source { return newTarSource(io.NopCloser(bytes.NewReader(b))) }
	}
	order := f.new.order()
	whole := f.new.tar(t, order...)
	for _, c := range []struct {
		name   string
		source func(testing.TB) Source
		world  func(*world)
		run    func(*Running)
		opts   Options
		want   error
		text   string
	}{
		{name: "signed_by_a_stranger", source: func(t testing.TB) Source {
			s := f.new.clone()
			s.seal(t, stranger)
			return s.source(t)
		}, want: ErrSet, text: "does not match"},
		{name: "manifest_changed", source: func(t testing.TB) Source {
			s := f.new.clone()
			s.files[manifest.File] = bytes.Replace(s.files[manifest.File], []byte(`"version": "2"`), []byte(`"version": "3"`), 1)
			return s.source(t)
		}, want: signature.ErrBadSignature},
		{name: "for_another_loader", source: resealed(layout(func(l *manifest.Layout) { l.Loader = "systemd-boot" })), want: ErrSet, text: "boot.loader systemd-boot, this disk has grub"},
		{name: "for_another_store", source: resealed(layout(func(l *manifest.Layout) { l.Store = "grubenv-rauc" })), want: ErrSet, text: "boot.store grubenv-rauc, this disk has gpt"},
		{name: "for_other_partitions", source: resealed(layout(func(l *manifest.Layout) { l.Partitions = "discoverable" })), want: ErrSet, text: "root.partitions"},
		{name: "tree_elsewhere", source: resealed(layout(func(l *manifest.Layout) { l.TreeAtMiB = 512 })), want: ErrSet, text: "root.verity.tree_at_mib 512, this disk has 0"},
		{name: "signature_of_another_image", source: resealed(func(s *testSet) { s.files["verity-sig"] = f.other.files["verity-sig"] }), want: ErrSet, text: "the manifest says"},
		{name: "signature_by_a_stranger", source: resealed(func(s *testSet) {
			sig, err := sign.RootHash(s.manifest.RootHash, stranger.Cert, stranger.Key)
			if err != nil {
				t.Fatal(err)
			}
			s.files["verity-sig"] = sig
		}), want: ErrSet},
		{name: "signature_changed_on_the_way", source: func(t testing.TB) Source {
			s := f.new.clone()
			s.files["verity-sig"][30] ^= 1
			return s.source(t)
		}, want: ErrSet, text: "was changed"},
		{name: "no_superblock", source: resealed(func(s *testSet) { s.files["verity"] = make([]byte, 8192) }), want: ErrSet},
		{name: "tree_of_another_size", source: resealed(func(s *testSet) { s.files["root"] = s.files["root"][:rootSize-4096] }), want: ErrSet, text: "covers"},
		{name: "another_product", source: resealed(func(s *testSet) { s.manifest.Name = "router" }), want: ErrSet, text: `"router"`},
		{name: "another_architecture", source: resealed(func(s *testSet) { s.manifest.Architecture = "arm64" }), want: ErrSet, text: "arm64"},
		{name: "nothing_for_this_loader", source: resealed(func(s *testSet) { delete(s.files, "kernel"); delete(s.files, "initrd") }), want: ErrSet, text: "no kernel"},
		{name: "tar_ends_early", source: raw(whole[:2000]), want: ErrSet, text: "ends before"},
		{name: "no_tar", source: raw(bytes.Repeat([]byte("zstd"), 1000)), want: ErrSet, text: "compressed"},
		{name: "empty", source: raw(nil), want: ErrSet, text: "ends before manifest.json"},
		{name: "signature_missing", source: raw(f.new.tar(t, append([]string{order[0]}, order[2:]...)...)), want: ErrSet, text: "manifest.sig should be"},
		{name: "state_partition_that_it_does_not_mount", source: f.new.source, world: func(w *world) { w.state = "btrfs" }, want: ErrSet, text: "state.partition_filesystem"},
		{name: "root_too_big", source: f.new.source, world: func(w *world) { w.parts["b/root"] = w.parts["b/root"][:rootSize-1] }, want: ErrRoom},
		{name: "tree_too_big", source: f.new.source, world: func(w *world) { w.parts["b/verity"] = w.parts["b/verity"][:8192] }, want: ErrRoom},
		{name: "no_room_for_the_kernel", source: f.new.source, world: func(w *world) { w.room = 100 << 10 }, want: ErrRoom},
		{name: "no_partition", source: f.new.source, world: func(w *world) { delete(w.parts, "b/verity") }, want: os.ErrNotExist},
		{name: "below_the_rollback_floor", source: f.new.source, run: func(r *Running) { r.Floor = 3 }, want: bootset.ErrRefused, text: "rollback floor"},
		{name: "running_slot", source: f.new.source, opts: Options{Slot: "a"}, want: bootset.ErrRefused, text: "runs now"},
		{name: "unknown_slot", source: f.new.source, opts: Options{Slot: "c"}, want: bootset.ErrUsage},
		{name: "too_many_tries", source: f.new.source, opts: Options{Tries: 16}, want: bootset.ErrUsage},
		{name: "the_only_committed_slot", source: f.new.source, world: func(w *world) {
			w.slots = []slots.Slot{{Name: "a", Priority: 2, Tries: 1}, {Name: "b", Priority: 1, Successful: true}}
		}, want: bootset.ErrRefused, text: "sealroot commit"},
		{name: "another_image_of_this_version", source: f.new.source, run: func(r *Running) { r.Version = "2" }, want: bootset.ErrRefused, text: "--force"},
		{name: "the_running_kernel_is_the_only_proved_one", source: f.new.source, run: func(r *Running) { r.Loaded, r.WasCommitted = "b", false }, want: bootset.ErrRefused, text: "restart"},
		{name: "default_is_the_target_and_the_kernel_nobodys", source: f.new.source, world: func(w *world) { w.first = "b" }, run: func(r *Running) { r.Loaded = "?" }, want: bootset.ErrRefused, text: "restart"},
		{name: "default_is_the_target_and_its_kernel_runs", source: f.new.source, world: func(w *world) { w.first = "b" }, run: func(r *Running) { r.Loaded = "b" }, want: bootset.ErrRefused, text: "restart"},
		{name: "default_cannot_be_read_and_the_kernel_is_nobodys", source: f.new.source, world: func(w *world) { w.firstErr = errCut }, run: func(r *Running) { r.Loaded = "?" }, want: errCut, text: "restart"},
		{name: "no_room_for_the_copy_at_commit", source: f.new.source, world: func(w *world) {
			w.fallback, w.room, w.old = true, bootSlack+22000, 3000 // enough for the new files, not for 9000 more
		}, want: ErrRoom},
		{name: "own_kernel_is_dead", source: f.new.source, run: func(r *Running) { r.Loaded, r.KernelDead = "b", true }, want: bootset.ErrRefused, text: "does not start"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := f.world(starts()[2])
			if c.world != nil {
				c.world(w)
			}
			r := f.running()
			if c.run != nil {
				c.run(&r)
			}
			if c.opts.Tries == 0 {
				c.opts.Tries = 3
			}
			_, err := w.machine(f.keys).Install(context.Background(), c.source(t), r, c.opts)
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got error %v, want %v with %q", err, c.want, c.text)
			}
			if w.writes > 0 {
				t.Errorf("it wrote %v", w.trace)
			}
		})
	}
}

// A part that is changed is only seen when it is streamed: the slot stays
// unbootable, nothing else changes.
func TestInstallCorruptedPart(t *testing.T) {
	f := newFixture(t)
	for _, part := range []string{"verity", "root", "kernel", "initrd", "uki"} {
		for _, spoil := range []struct {
			name string
			do   func([]byte) []byte
		}{
			{"flipped", func(b []byte) []byte { b[len(b)-1] ^= 1; return b }},
			{"shorter", func(b []byte) []byte { return b[:len(b)-1] }},
			{"longer", func(b []byte) []byte { return append(b, 0) }},
		} {
			t.Run(part+"_"+spoil.name, func(t *testing.T) {
				s := f.new.clone()
				s.files[part] = spoil.do(s.files[part])
				w := f.world(starts()[2])
				_, err := w.machine(f.keys).Install(context.Background(), s.source(t), f.running(), Options{Tries: 3})
				if !errors.Is(err, ErrSet) || !errors.Is(err, ErrUnbootable) {
					t.Errorf("got error %v, want %v and %v", err, ErrSet, ErrUnbootable)
				}
				if b, _ := slots.Find(w.slots, "b"); b.State() != slots.Unbootable {
					t.Error(b)
				}
				if err := errors.Join(w.bricked(f.old), f.install(t, w.restart())); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// The same image again, an older security version, and another image of the
// running version with --force are installed; a person is told.
func TestInstallTells(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct {
		name  string
		set   testSet
		run   func(*Running)
		force bool
		text  string
	}{
		{"same_image", f.old, nil, false, "once more"},
		{"older_security_version", f.new, func(r *Running) { r.SecurityVersion = 9 }, false, "security version 2"},
		{"forced", f.new, func(r *Running) { r.Version = "2" }, true, ""},
		{"kernel_of_the_target_runs_and_ours_is_proved", f.new, func(r *Running) { r.Loaded = "b" }, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, r := f.world(starts()[2]), f.running()
			if c.run != nil {
				c.run(&r)
			}
			m := w.machine(f.keys)
			var said []string
			m.Say = func(format string, args ...any) {
				said = append(said, format, strings.TrimSpace(strings.Join(toText(args), " ")))
			}
			if _, err := m.Install(context.Background(), c.set.source(t), r, Options{Tries: 3, Force: c.force}); err != nil {
				t.Fatal(err)
			}
			if err := w.whole("b", c.set); err != nil {
				t.Error(err)
			}
			if text := strings.Join(said, "\n"); !strings.Contains(text, c.text) {
				t.Errorf("it said %q, want %q", text, c.text)
			}
		})
	}
}

func toText(args []any) []string {
	var out []string
	for _, a := range args {
		if s, ok := a.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

func TestChooseSlot(t *testing.T) {
	good := func(name string, priority int) slots.Slot {
		return slots.Slot{Name: name, Priority: priority, Successful: true}
	}
	for _, c := range []struct {
		name    string
		list    []slots.Slot
		running string
		asked   string
		want    string
		err     error
	}{
		{"the_other", []slots.Slot{good("a", 2), good("b", 1)}, "a", "", "b", nil},
		{"unbootable_first", []slots.Slot{good("a", 3), good("b", 1), {Name: "c"}}, "a", "", "c", nil},
		{"given_up_before_good", []slots.Slot{good("a", 3), good("b", 1), {Name: "c", Priority: 4}}, "a", "", "c", nil},
		{"lowest_priority", []slots.Slot{good("a", 3), good("b", 2), good("c", 1)}, "a", "", "c", nil},
		{"asked", []slots.Slot{good("a", 3), good("b", 2), good("c", 1)}, "a", "b", "b", nil},
		{"never_the_only_committed", []slots.Slot{good("a", 3), {Name: "b", Priority: 4, Tries: 1}, {Name: "c", Priority: 5, Tries: 2}}, "b", "", "c", nil},
		{"asked_for_the_only_committed", []slots.Slot{good("a", 3), {Name: "b", Priority: 4, Tries: 1}}, "b", "a", "a", bootset.ErrRefused},
		{"running_unknown", []slots.Slot{good("a", 3), good("b", 2)}, "", "", "", bootset.ErrRefused},
		{"one_slot", []slots.Slot{good("a", 3)}, "a", "", "", bootset.ErrRefused},
		{"last_resort_runs", []slots.Slot{{Name: "a", Priority: 1}, {Name: "b"}}, "a", "", "b", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := chooseSlot(c.list, c.running, c.asked)
			if got != c.want && err == nil || !errors.Is(err, c.err) {
				t.Errorf("chooseSlot() = %q, %v; want %q, %v", got, err, c.want, c.err)
			}
		})
	}
}

// TestKernelStays: before a slot is written, the loader's default is another
// slot's kernel, and it was not moved to one that nobody has seen start.
func TestKernelStays(t *testing.T) {
	good := func(name string, priority int) slots.Slot {
		return slots.Slot{Name: name, Priority: priority, Successful: true}
	}
	two := []slots.Slot{good("a", 1), good("b", 2)}
	for _, c := range []struct {
		name            string
		list            []slots.Slot
		running, loaded string
		dead            bool
		first, target   string
		want            string // the default afterwards
		err             error
	}{
		{"default_is_another", two, "b", "b", false, "b", "a", "b", nil},
		{"third_slot_beside_a_dead_kernel", append(two[:2:2], slots.Slot{Name: "c"}), "b", "a", true, "a", "c", "a", nil},
		{"third_slot_is_the_default", append(two[:2:2], good("c", 1)), "b", "a", true, "c", "c", "a", nil},
		{"running_kernel_becomes_the_default", two, "b", "b", false, "a", "a", "b", nil},
		{"kernel_of_nobody", two, "b", "?", false, "a", "a", "a", bootset.ErrRefused},
		{"kernel_of_nobody_and_another_default", two, "b", "?", false, "b", "a", "b", nil},
		{"kernel_of_the_target", two, "b", "a", false, "a", "a", "a", bootset.ErrRefused},
		{"running_slot_is_on_trial", []slots.Slot{good("a", 1), {Name: "b", Priority: 3, Tries: 1}, good("c", 2)}, "b", "b", false, "a", "a", "a", bootset.ErrRefused},
		{"last_resort", []slots.Slot{{Name: "a"}, {Name: "b"}}, "b", "b", false, "a", "a", "b", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &world{slots: c.list, first: c.first}
			m := w.machine(signaturetest.New(t))
			r := Running{Boot: bootset.Boot{Running: c.running, Loaded: c.loaded}, WasCommitted: true, KernelDead: c.dead}
			if err := m.begin(t.Context(), r, c.target); !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Errorf("got error %v, want %v", err, c.err)
			}
			if w.first != c.want || c.err != nil && w.writes > 0 {
				t.Errorf("the default is %s, want %s; writes: %v", w.first, c.want, w.trace)
			}
		})
	}
}

// What cannot be read is set anew, with the kernel that runs.
func TestDamagedDefaultIsMended(t *testing.T) {
	w := &world{slots: []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b"}}, first: "?", firstErr: errCut}
	m := w.machine(signaturetest.New(t))
	r := Running{Boot: bootset.Boot{Running: "a", Loaded: "a"}, WasCommitted: true}
	if err := m.begin(t.Context(), r, "b"); err != nil || w.first != "a" || w.firstErr != nil {
		t.Errorf("begin() = %v, the default is %s (%v)", err, w.first, w.firstErr)
	}
}

// An install of which only the arming failed has not failed: it says so.
func TestInstallUnarmed(t *testing.T) {
	f := newFixture(t)
	whole := f.world(starts()[2])
	if err := f.install(t, whole); err != nil {
		t.Fatal(err)
	}
	arm := slices.Index(whole.trace, "arm") + 1
	for at, want := range map[int]bool{arm: true, arm + 1: true, arm - 1: false} {
		w := f.world(starts()[2])
		w.failAt = at
		err := f.install(t, w)
		b, _ := slots.Find(w.slots, "b")
		if (b.State() == slots.Trial) != want || errors.Is(err, bootset.ErrUnarmed) != want || err == nil {
			t.Errorf("write %d (%s) fails: got %v, %s", at, whole.trace[at-1], err, b)
		}
		if want == strings.Contains(err.Error(), "cannot put") {
			t.Errorf("write %d (%s) fails, and it says %v", at, whole.trace[at-1], err)
		}
	}
}

func TestSources(t *testing.T) {
	f := newFixture(t)
	dir := t.TempDir()
	for name, b := range f.new.files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	archive := filepath.Join(t.TempDir(), "set.tar")
	// as `tar -C DIR -cf SET.tar .` writes the names, and padded as on a disk
	dotted := f.new.clone()
	var names []string
	for _, n := range f.new.order() {
		dotted.files["./"+n] = dotted.files[n]
		names = append(names, "./"+n)
	}
	if err := os.WriteFile(archive, append(dotted.tar(t, names...), make([]byte, 1<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, path string }{{"directory", dir}, {"file", archive}, {"stdin", "-"}} {
		t.Run(c.name, func(t *testing.T) {
			source, err := OpenSource(c.path, bytes.NewReader(f.new.tar(t, f.new.order()...)))
			if err != nil {
				t.Fatal(err)
			}
			defer source.Close()
			w := f.world(starts()[0])
			if _, err := w.machine(f.keys).Install(context.Background(), source, f.running(), Options{Tries: 3}); err != nil {
				t.Fatal(err)
			}
			if err := f.installed(w); err != nil {
				t.Error(err)
			}
		})
	}
	if _, err := OpenSource(filepath.Join(dir, "missing"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got error %v, want %v", err, os.ErrNotExist)
	}
	if err := os.Remove(filepath.Join(dir, "root")); err != nil {
		t.Fatal(err)
	}
	source, err := OpenSource(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := source.Open("root"); !errors.Is(err, ErrSet) {
		t.Errorf("a file that is missing: got error %v, want %v", err, ErrSet)
	}
}

func FuzzTar(f *testing.F) {
	fix := newFixture(f)
	f.Add(fix.new.tar(f, fix.new.order()...)[:6000])
	f.Add(fix.new.tar(f, "kernel"))
	f.Add([]byte("manifest.json"))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := fix.world(starts()[2])
		_, err := w.machine(fix.keys).Install(context.Background(), newTarSource(io.NopCloser(bytes.NewReader(b))), fix.running(), Options{Tries: 3})
		if err == nil {
			t.Fatal("a cut tar was installed")
		}
		if bad := w.bricked(fix.old, fix.other); bad != nil {
			t.Fatal(bad)
		}
		if slices.Contains(w.trace, "arm") {
			t.Fatal("a slot was put on trial")
		}
	})
}

// Only btrfs needs that the image is made for it, and one that keeps no state needs nothing.
func TestStatePartition(t *testing.T) {
	for _, c := range []struct {
		set, disk string
		refused   bool
	}{
		{"", "", false},
		{"btrfs", "", false},
		{"", "btrfs", true},
		{"btrfs", "btrfs", false},
		{"none", "btrfs", false},
	} {
		if err := checkState(c.set, c.disk); errors.Is(err, ErrSet) != c.refused || !c.refused && err != nil {
			t.Errorf("an image with %q where %q is: %v", c.set, c.disk, err)
		}
	}
}
