package boot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount/dm"
	"sealroot/mount/mounttest"
	"sealroot/slots"
	"sealroot/state"
	"sealroot/state/layerlist"
	"sealroot/state/layout"
	"sealroot/verity/osrelease"
	"sealroot/verity/signature"
)

// added is a boot with the layers of layeredBoot, and one that root has added.
type added struct {
	*boot
	trace *mounttest.Recorder
	// list is that of the machine, with the layer extra.
	list layerlist.List
}

// addedAt is where the layer is mounted, behind those of the configuration.
const addedAt = 4

const thisImage = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

func addedBoot(t *testing.T) *added {
	t.Helper()
	b, m, _ := layeredBoot(t)
	key := newSigner(t, 1)
	putCertificate(t, config.CertificatesDir, config.RoleLayer, key)
	l := layerImageBy(t, "extra", bytes.Repeat([]byte("extra"), 8192)[:8192], func(hash []byte) []byte { return signed(t, key, hash) })
	put(t, filepath.Join(layerDir(addedAt), osrelease.ExtensionPath("extra")), []byte("ID=debian\nIMAGE_VERSION=1\n"))
	b.cfg.Trust.Layer = []string{"1.crt"}
	b.cfg.LayersAllowed, b.cfg.Root.Filesystem = []string{"ext*"}, "squashfs"
	b.cfg.Layers[3].OnFailure = config.LayerSkip
	b.volume.volume, b.report.Root.RootHash = &state.Volume{}, thisImage
	a := &added{boot: b, trace: m, list: layerlist.List{{Name: "extra", Hash: l.Hash}}}
	a.want(t, a.list)
	return a
}

func (a *added) keep(t *testing.T, file string, text []byte) {
	t.Helper()
	put(t, filepath.Join(encryptedDir, file), text)
}

// want is what a command does that changes the list.
func (a *added) want(t *testing.T, l layerlist.List) {
	t.Helper()
	a.keep(t, layerlist.File, l.Format())
	a.proved(t, l, layerlist.New)
}

// proved puts how far a list is with this image, alone.
func (a *added) proved(t *testing.T, l layerlist.List, state string) {
	t.Helper()
	a.keep(t, layerlist.ProofsFile, []byte(layerlist.Proofs("").With(thisImage, layerlist.ID(l.Format()), state)))
}

// good makes a list the one that this image came up with.
func (a *added) good(t *testing.T, l layerlist.List) {
	t.Helper()
	a.keep(t, layerlist.GoodFile(thisImage), l.Format())
}

// stacked tells whether the layer is in the overlay; why is what the report says else.
func (a *added) stacked(t *testing.T) (is bool, why string) {
	t.Helper()
	if err := a.stackLayers(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, l := range a.report.Layers {
		if l.Name == "extra" {
			why = l.LeftOut
		}
	}
	return strings.Contains(a.trace.Trace(), "lowerdir=/layers/4//.:"), why + strings.Join(a.report.Warnings, "\n")
}

// What root has added comes over the layers of the image when the list is new or good, a
// certificate for layers vouches for it and the configuration allows it; whatever else it
// is, it is left out with the reason, and the boot goes on with the image's own.
func TestAddedLayers(t *testing.T) {
	other := layerlist.List{{Name: "site", Hash: strings.Repeat("0", 64)}}
	for _, tt := range []struct {
		name    string
		prepare func(t *testing.T, a *added)
		stacked bool
		trial   bool
		says    string
	}{
		{"new", func(*testing.T, *added) {}, true, true, ""},
		{"good", func(t *testing.T, a *added) { a.good(t, a.list); a.proved(t, a.list, layerlist.Good) }, true, false, ""},
		{"good_though_nothing_says_so", func(t *testing.T, a *added) { a.good(t, a.list); a.proved(t, a.list, layerlist.Tried) }, true, false, ""},
		{"good_on_the_last_try_of_a_slot", func(t *testing.T, a *added) { a.good(t, a.list); a.report.Slot = report.Slot{Trial: true} }, true, false, ""},
		{"nobody_asked_for_it", func(t *testing.T, a *added) { a.proved(t, other, layerlist.New) }, false, false, "waits"},
		{"did_not_come_up", func(t *testing.T, a *added) { a.proved(t, a.list, layerlist.Tried) }, false, false, "the boot with it did not come up"},
		{"another_image", func(t *testing.T, a *added) {
			a.proved(t, a.list, layerlist.Tried)
			a.report.Root.RootHash, a.report.Slot = strings.Repeat("f", 64), report.Slot{Trial: true, TriesAfter: 1}
		}, true, true, ""},
		{"rolled_back_to_another_image", func(t *testing.T, a *added) {
			a.good(t, a.list)
			a.report.Root.RootHash = strings.Repeat("f", 64)
		}, false, false, "waits"},
		{"rolled_back_to_this_image", func(t *testing.T, a *added) {
			a.good(t, a.list)
			a.keep(t, layerlist.File, other.Format())
			a.proved(t, a.list, layerlist.Good)
		}, true, false, "waits"},
		{"of_the_list_before", func(t *testing.T, a *added) {
			a.good(t, a.list)
			a.keep(t, layerlist.File, other.Format())
			a.proved(t, other, layerlist.Tried)
		}, true, false, "layers does not count"},
		{"not_allowed", func(t *testing.T, a *added) { a.cfg.LayersAllowed = []string{"extra-*", "ex"} }, false, true, "layers_allowed"},
		{"nothing_allowed", func(t *testing.T, a *added) { a.cfg.LayersAllowed = nil }, false, true, "layers_allowed"},
		{"name_of_the_image's_own", func(t *testing.T, a *added) {
			a.cfg.Layers = append(a.cfg.Layers, config.Layer{Name: "extra", From: config.LayerFromVolume, Verity: config.LayerUnverified, OnFailure: config.LayerSkip})
		}, false, true, "layers_allowed"},
		{"other_key", func(t *testing.T, a *added) {
			if err := os.RemoveAll(config.CertificatesDir); err != nil {
				t.Fatal(err)
			}
			putCertificate(t, config.CertificatesDir, config.RoleLayer, newSigner(t, 2))
		}, false, true, signature.ErrUnknownSigner.Error()},
		{"certificate_for_roots", func(t *testing.T, a *added) {
			if err := os.Rename(config.CertificatesDir+"/layer", config.CertificatesDir+"/root"); err != nil {
				t.Fatal(err)
			}
		}, false, true, signature.ErrCertificate.Error()},
		{"certificate_for_development", func(t *testing.T, a *added) {
			if err := os.Rename(config.CertificatesDir+"/layer", config.CertificatesDir+"/dev"); err != nil {
				t.Fatal(err)
			}
			a.cfg.Trust = config.Trust{Dev: []string{"1.crt"}}
		}, false, true, signature.ErrUnknownSigner.Error()},
		{"in_a_development_build", func(t *testing.T, a *added) {
			if err := os.Rename(config.CertificatesDir+"/layer", config.CertificatesDir+"/dev"); err != nil {
				t.Fatal(err)
			}
			a.cfg.Build, a.cfg.Trust = config.Development, config.Trust{Dev: []string{"1.crt"}}
		}, true, true, ""},
		{"unsigned", func(t *testing.T, a *added) {
			l := layerImage(t, "extra", make([]byte, 8192))
			a.want(t, layerlist.List{{Name: "extra", Hash: l.Hash}})
		}, false, true, signature.ErrFormat.Error()},
		{"signature_of_another", func(t *testing.T, a *added) {
			key := newSigner(t, 1)
			putCertificate(t, config.CertificatesDir, config.RoleLayer, key)
			l := layerImageBy(t, "extra", make([]byte, 8192), func([]byte) []byte { return signed(t, key, make([]byte, 32)) })
			a.want(t, layerlist.List{{Name: "extra", Hash: l.Hash}})
		}, false, true, errNoImage.Error()},
		{"missing", func(t *testing.T, a *added) {
			if err := os.Remove(filepath.Join(stateDir, layout.LayerImage("extra", a.list[0].Hash))); err != nil {
				t.Fatal(err)
			}
		}, false, true, "no such file"},
		{"not_for_this_kernel", func(t *testing.T, a *added) {
			put(t, filepath.Join(layerDir(addedAt), osrelease.ExtensionPath("extra")), []byte("ID=debian\nSEALROOT_KERNEL=6.1.0-9\n"))
		}, false, true, "it is for ID debian, kernel 6.1.0-9"},
		{"torn_list", func(t *testing.T, a *added) { a.keep(t, layerlist.File, a.list.Format()[:40]) }, false, false, layerlist.ErrFormat.Error()},
		{"torn_list_and_a_good_one", func(t *testing.T, a *added) {
			a.good(t, a.list)
			a.keep(t, layerlist.File, nil)
			a.proved(t, a.list, layerlist.Good)
		}, true, false, layerlist.ErrFormat.Error()},
		{"link_for_list", func(t *testing.T, a *added) {
			at := filepath.Join(encryptedDir, layerlist.File)
			if err := errors.Join(os.Remove(at), os.Symlink("/dev/zero", at), mkdirs(encryptedDir+"/dev"), unix.Mkfifo(encryptedDir+"/dev/zero", 0o600)); err != nil {
				t.Fatal(err)
			}
		}, false, false, layerlist.ErrFormat.Error()},
		{"no_list", func(t *testing.T, a *added) {
			if err := os.Remove(filepath.Join(encryptedDir, layerlist.File)); err != nil {
				t.Fatal(err)
			}
			a.good(t, a.list)
		}, false, false, ""},
		{"proofs_of_any_kind", func(t *testing.T, a *added) {
			a.keep(t, layerlist.ProofsFile, bytes.Repeat([]byte{0, '\n', 0xff}, 1<<16))
			a.report.Slot = report.Slot{Trial: true, TriesAfter: 1}
		}, true, true, ""},
		{"fifo_for_proofs", func(t *testing.T, a *added) {
			at := filepath.Join(encryptedDir, layerlist.ProofsFile)
			if err := errors.Join(os.Remove(at), unix.Mkfifo(at, 0o600)); err != nil {
				t.Fatal(err)
			}
			a.report.Slot = report.Slot{Trial: true, TriesAfter: 1}
		}, true, true, ""},
		{"trial_cannot_be_noted", func(t *testing.T, a *added) {
			a.keep(t, layerlist.ProofsFile+layout.PendingSuffix+"/file", nil)
		}, false, false, "cannot note a trial"},
		{"good_one_where_nothing_can_be_noted", func(t *testing.T, a *added) {
			a.keep(t, layerlist.ProofsFile+layout.PendingSuffix+"/file", nil)
			a.want(t, other)
			a.good(t, a.list)
		}, true, false, "cannot note a trial"},
		{"last_try_of_a_slot", func(t *testing.T, a *added) { a.report.Slot = report.Slot{Trial: true} }, false, false, "waits"},
		{"not_the_last_try", func(t *testing.T, a *added) { a.report.Slot = report.Slot{Trial: true, TriesAfter: 1} }, true, true, ""},
		{"after_a_fallback", func(t *testing.T, a *added) { a.report.FellBack = &report.Fallback{From: "b"} }, false, false, "waits"},
		{"good_after_a_fallback", func(t *testing.T, a *added) {
			a.good(t, a.list)
			a.report.FellBack = &report.Fallback{From: "b"}
		}, true, false, ""},
		{"volume_is_read_only", func(t *testing.T, a *added) { a.volume.volume.ReadOnly = unix.EIO }, false, false, "waits"},
		{"no_volume", func(t *testing.T, a *added) { a.volume.volume = nil }, false, false, ""},
		{"turned_off", func(t *testing.T, a *added) {
			l, err := a.list.Turned("extra", false)
			if err != nil {
				t.Fatal(err)
			}
			a.want(t, l)
		}, false, true, report.LayerOff},
	} {
		inRoot(t, tt.name, func(t *testing.T) {
			a := addedBoot(t)
			tt.prepare(t, a)
			is, why := a.stacked(t)
			if is != tt.stacked || a.report.LayerTrial != tt.trial || a.layersTried != tt.trial || !strings.Contains(why, tt.says) || tt.says == "" && why != "" {
				t.Errorf("stacked %v, on trial %v, %q; want %v, %v, %q", is, a.report.LayerTrial, why, tt.stacked, tt.trial, tt.says)
			}
			if !strings.Contains(a.trace.Trace(), "/.layers/mine:/layers/2//.:/layers/1//.:/layers/0//.:/sysroot//.") {
				t.Errorf("the image's own are not there:\n%s", a.trace.Trace())
			}
			if !tt.trial {
				return
			}
			// The next boot finds that this one did not come up.
			b := *a.boot
			b.layersTried = false
			b.report, b.sys.Mounter = &report.Report{Root: a.report.Root}, &mounttest.Recorder{}
			if list, err := b.machineLayers(); list != nil || err != nil {
				t.Errorf("the next boot goes by %+v, %v", list, err)
			}
		})
	}
}

// With boot.recount the trial of layers costs a committed slot no try, nor, with a list
// that is good, is one given.
func TestTriedLayersCostNoTry(t *testing.T) {
	for tries, good := range map[int]bool{1: false, 0: true} {
		inRoot(t, fmt.Sprint("good ", good), func(t *testing.T) {
			a := addedBoot(t)
			if good {
				a.good(t, a.list)
			}
			list := []slots.Slot{{Name: "a", Priority: 2, Tries: 1, Successful: true}, {Name: "b", Priority: 1, Tries: 3, Successful: true}}
			store := &fakeStore{list: list}
			a.slots.store, a.slots.log = store, store
			a.slots.observed = slots.Observed{Slots: list, LogReadable: true, Refill: 3}
			slot, _, err := a.chooseSlot(t.Context())
			if err != nil || slot != "a" {
				t.Fatalf("chooseSlot() = %q, %v", slot, err)
			}
			a.report.Slot.Name = slot
			if is, why := a.stacked(t); !is || a.layersTried == good {
				t.Fatalf("stacked %v, on trial %v: %s", is, a.layersTried, why)
			}
			if s, _ := slots.Find(store.list, "a"); s.Tries != tries || !s.Successful {
				t.Errorf("afterwards: %v, want %d tries", s, tries)
			}
		})
	}
}

// A layer of the image is turned off where the image can do without it.
func TestLayersTurnedOff(t *testing.T) {
	inRoot(t, "off", func(t *testing.T) {
		a := addedBoot(t)
		a.want(t, layerlist.List{{Name: "mine"}, {Name: "mid"}, {Name: "no-such"}})
		_, why := a.stacked(t)
		if got := a.trace.Trace(); !strings.Contains(got, "lowerdir=/layers/2//.:/layers/1//.:/layers/0//.:/sysroot//.,") || !strings.Contains(why, "layer mid is not turned off") {
			t.Errorf("warnings %q in\n%s", why, got)
		}
		if l := a.report.Layers[3]; l.LeftOut != report.LayerOff || a.report.Layers[1].LeftOut != "" {
			t.Errorf("reported %+v", a.report.Layers)
		}
	})
}

// With layers on trial no failure is the slot's: the next boot, without them, knows more.
func TestTriedLayersTakeTheBlame(t *testing.T) {
	for _, tried := range []bool{true, false} {
		b, _ := testBoot(&person{}, config.State{})
		b.layersTried = tried
		want := slots.ImageFailure
		if tried {
			want = slots.EnvironmentFailure
		}
		if class, reason := classOf(b.blame(imageError(slots.Mount, "cannot start /sbin/init"))); class != want || reason != slots.Mount {
			t.Errorf("layers on trial %v: class %s, reason %s", tried, class, reason)
		}
		if class, _ := classOf(b.blame(stateError(slots.StateDamaged, "x"))); class != slots.StateFailure {
			t.Errorf("layers on trial %v: a state failure is of class %s", tried, class)
		}
	}
}

// verityOf is what dm-verity says of each device; of others nothing.
type verityOf struct {
	busyVerity
	status map[string]string
}

func (v verityOf) Status(name string) ([]dm.Status, error) {
	text, ok := v.status[strings.TrimPrefix(name, "sealroot-")]
	if !ok {
		return nil, unix.ENXIO
	}
	return []dm.Status{{Type: "verity", Text: text}}, nil
}

// A list that the image came up with is taken from it when something cannot be read that
// is not the root's, nor a layer's of the configuration: dm-verity says nothing of one that
// the disk does not give. A list on trial is no reason to take the good one.
func TestDamagedLayersAreForgotten(t *testing.T) {
	type says = map[string]string
	eio := imageError(slots.Mount, "cannot start /sbin/init: %w", unix.EIO)
	disk := environmentError(slots.IOError, "cannot start /sbin/init: %w", unix.EIO)
	good := says{"root": "V"}
	for _, tt := range []struct {
		name    string
		says    says // dm-verity
		tried   bool
		leftOut string // the layer of that name
		err     error
		want    slots.Class
		forgets bool
	}{
		{"layer", good, false, "", eio, slots.EnvironmentFailure, true},
		{"environment", good, false, "", disk, slots.EnvironmentFailure, true},
		{"root", says{"root": "C"}, false, "", eio, slots.ImageFailure, false},
		{"root_cannot_be_asked", nil, false, "", eio, slots.ImageFailure, false},
		{"block_of_the_configuration's", says{"root": "V", "layer-mid": "C"}, false, "", eio, slots.ImageFailure, false},
		{"block_of_one_left_out", says{"root": "V", "layer-mid": "C"}, false, "mid", eio, slots.EnvironmentFailure, true},
		{"block_of_the_added", says{"root": "V", "layer-extra": "C"}, false, "", eio, slots.EnvironmentFailure, true},
		{"one_of_the_volume_has_no_device", says{"root": "V", "layer-mine": "C"}, false, "", eio, slots.EnvironmentFailure, true},
		{"left_out", good, false, "extra", eio, slots.EnvironmentFailure, false},
		{"on_trial", good, true, "", eio, slots.EnvironmentFailure, false},
		{"on_trial_and_environment", good, true, "", disk, slots.EnvironmentFailure, false},
		{"on_trial_and_a_block", says{"root": "V", "layer-mid": "C"}, true, "", eio, slots.EnvironmentFailure, false},
		{"no_disk_error", good, false, "", imageError(slots.Mount, "no /sbin/init: %w", unix.ENOENT), slots.ImageFailure, false},
	} {
		inRoot(t, tt.name, func(t *testing.T) {
			a := addedBoot(t)
			a.good(t, a.list)
			if is, why := a.stacked(t); !is || a.layersTried {
				t.Fatal(why)
			}
			a.layersTried = tt.tried
			for i := range a.report.Layers {
				if a.report.Layers[i].Name == tt.leftOut {
					a.report.Layers[i].LeftOut = "missing"
				}
			}
			a.sys.Verity = verityOf{status: tt.says}
			if class, _ := classOf(a.blame(tt.err)); class != tt.want {
				t.Errorf("class %s, want %s", class, tt.want)
			}
			b := *a.boot
			b.layersTried = false
			b.report, b.sys.Mounter = &report.Report{Root: a.report.Root}, &mounttest.Recorder{}
			a.proved(t, a.list, layerlist.Good)
			if list, err := b.machineLayers(); (list == nil) != tt.forgets || err != nil {
				t.Errorf("the next boot goes by %+v, %v", list, err)
			}
		})
	}
}

// Layers on trial have a mark of their own, and a deadline, on a slot that has none.
func TestLayersOnTrialHaveADeadline(t *testing.T) {
	for _, tt := range []struct{ slot, layers bool }{{false, false}, {false, true}, {true, false}, {true, true}} {
		inRoot(t, fmt.Sprint(tt), func(t *testing.T) {
			b, _ := testBoot(&person{}, config.State{})
			b.report.Slot, b.layersTried = report.Slot{Name: "a", Trial: tt.slot}, tt.layers
			if err := b.leaveMarks(); err != nil {
				t.Fatal(err)
			}
			there := func(path string) bool { _, err := os.Stat(path); return err == nil }
			if there(report.Trial) != tt.slot || there(report.LayersTrial) != (tt.layers && !tt.slot) || there(deadlineDropIn) != (tt.slot || tt.layers) {
				t.Errorf("%+v: slot %v, layers %v, deadline %v", tt, there(report.Trial), there(report.LayersTrial), there(deadlineDropIn))
			}
		})
	}
}

// /etc is merged for image and layers together, where those in use are not just the
// configuration's. One that is damaged comes back: it counts as there.
func TestEtcIdentity(t *testing.T) {
	identity := func(layers ...report.Layer) string {
		b, _ := testBoot(&person{}, config.State{})
		b.report.Root.RootHash, b.report.LayerList, b.report.Layers = thisImage, "8899aabbccddeeff", layers
		return b.etcIdentity()
	}
	low, high := report.Layer{Name: "low", RootHash: "01"}, report.Layer{Name: "high"}
	with := func(l report.Layer, change func(*report.Layer)) report.Layer { change(&l); return l }
	added := with(report.Layer{Name: "x", RootHash: "02"}, func(l *report.Layer) { l.Source = report.LayerAdded })
	for name, layers := range map[string][]report.Layer{
		"image's_own":          {low, high},
		"damaged":              {low, with(high, func(l *report.Layer) { l.LeftOut = "damaged" })},
		"added_but_left_out":   {low, high, with(added, func(l *report.Layer) { l.LeftOut = "not allowed" })},
		"no_layers_whatsoever": nil,
	} {
		if got := identity(layers...); got != thisImage {
			t.Errorf("%s: %s, want the image's own", name, got)
		}
	}
	seen := map[string]string{thisImage: "image's_own"}
	for name, layers := range map[string][]report.Layer{
		"added":            {low, high, added},
		"another_added":    {low, high, with(added, func(l *report.Layer) { l.RootHash = "03" })},
		"turned_off":       {low, with(high, func(l *report.Layer) { l.LeftOut = report.LayerOff })},
		"added_turned_off": {low, with(high, func(l *report.Layer) { l.LeftOut = report.LayerOff }), added},
		"absent_by_design": {with(low, func(l *report.Layer) { l.LeftOut, l.Absent = "not there", true }), high},
		"none_is_there":    {with(low, func(l *report.Layer) { l.LeftOut, l.Absent = "not there", true }), with(high, func(l *report.Layer) { l.LeftOut = report.LayerOff })},
	} {
		got := identity(layers...)
		if other := seen[got]; other != "" || len(got) != len(thisImage) || got[:48] != thisImage[:48] {
			t.Errorf("%s: %s, which is that of %q", name, got, other)
		}
		seen[got] = name
	}
	off := identity(low, with(high, func(l *report.Layer) { l.LeftOut = report.LayerOff }))
	if absent := identity(low, with(high, func(l *report.Layer) { l.LeftOut, l.Absent = "not there", true })); absent != off {
		t.Errorf("the same layers in use: %s and %s", off, absent)
	}
}
