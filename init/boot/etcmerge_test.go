package boot

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/mount/child"
	"sealroot/mount/mounttest"
	"sealroot/state"
	"sealroot/state/layout"
)

// The root's command runs when the upper layer of /etc is not the running image's, and
// whatever comes of it the boot goes on.
func TestMergeEtc(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	for _, tt := range []struct {
		name     string
		owner    string // of the layer before
		tried    bool   // that is a trial's
		trial    bool
		last     bool   // the slot is the last resort, and nobody has committed it
		leftOut  string // of a layer
		absent   bool   // by design
		pending  bool   // directories for /var
		degraded bool
		create   string
		result   child.Result
		err      error
		takes    bool // the program makes the layer the image's
		runs     bool
		warns    string
	}{
		{name: "new", result: child.Result{Output: []byte("merged\n")}, takes: true, runs: true},
		{name: "another_image", owner: strings.Repeat("cd", 32) + " 3", takes: true, runs: true},
		{name: "on_trial", trial: true, takes: true, runs: true},
		{name: "last_resort", last: true, takes: true, runs: true},
		{name: "this_image", owner: hash + " 3"},
		{name: "directories_are_missing", owner: hash + " 3", pending: true, runs: true},
		{name: "directories_of_another", owner: strings.Repeat("cd", 32) + " 3", pending: true, takes: true, runs: true},
		{name: "directories_take_too_long", owner: hash + " 3", pending: true, err: child.ErrTime, runs: true, warns: "new directories for /var: " + child.ErrTime.Error()},
		{name: "takes_too_long_behind_the_merge", err: child.ErrTime, takes: true, runs: true, warns: "new directories for /var: " + child.ErrTime.Error()},
		{name: "name_begins_alike", owner: hash + "ab 3", takes: true, runs: true},
		{name: "degraded", degraded: true},
		{name: "layer_left_out", leftOut: "damaged", warns: errWaits.Error()},
		{name: "layer_left_out_after_a_trial", owner: strings.Repeat("cd", 32) + " 3", tried: true, leftOut: "damaged", takes: true, runs: true},
		{name: "layer_left_out_and_another's_is_put_back", owner: strings.Repeat("cd", 32) + " 3", tried: true, leftOut: "damaged", runs: true, warns: errWaits.Error()},
		{name: "layer_left_out_and_no_put_back", owner: strings.Repeat("cd", 32) + " 3", tried: true, leftOut: "damaged", err: child.ErrTime, runs: true, warns: child.ErrTime.Error()},
		{name: "after_a_trial", owner: strings.Repeat("cd", 32) + " 3", tried: true, takes: true, runs: true},
		{name: "layer_left_out_by_design", leftOut: "not there", absent: true, takes: true, runs: true},
		{name: "no_state", create: config.CreateNone},
		{name: "conflicts", result: child.Result{Output: []byte(strings.Repeat("conflict: c: both\n", 30) + "merged\nwarning: both changed c\n")}, takes: true, runs: true, warns: "both changed c"},
		{name: "no_command", err: fs.ErrNotExist, runs: true, warns: errNoMerge.Error()},
		{name: "takes_too_long", err: child.ErrTime, runs: true, warns: child.ErrTime.Error()},
		{name: "fails", result: child.Result{Status: 2, Output: []byte("sealroot: wrong usage\n")}, runs: true, warns: "status 2: sealroot: wrong usage"},
		{name: "crashes", result: child.Result{Status: 139}, runs: true, warns: "status 139"},
		{name: "does_nothing", runs: true, warns: errUnmerged.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := testBoot(&person{}, config.State{Create: tt.create})
			recorder := &mounttest.Recorder{}
			b.sys.Mounter = recorder
			b.report.Layers = []report.Layer{{Name: "whole"}, {Name: "other", LeftOut: tt.leftOut, Absent: tt.absent}}
			b.report.Slot = report.Slot{Name: "a", Trial: tt.trial, Successful: !tt.trial && !tt.last}
			b.report.Root.RootHash, b.report.Degraded = hash, tt.degraded
			hash := b.etcIdentity()
			upper := filepath.Join(t.TempDir(), layout.Etc)
			own := func(owner string) {
				if err := unix.Setxattr(upper, layout.EtcOwner, []byte(owner), 0); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Mkdir(upper, 0o755); err != nil {
				t.Fatal(err)
			}
			if tt.owner != "" {
				own(tt.owner)
			}
			if tt.tried {
				name := filepath.Join(filepath.Dir(upper), layout.EtcTrial(tt.owner[:64], "3"))
				if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, nil, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			if tt.pending {
				name := filepath.Join(filepath.Dir(upper), layout.EtcPending(hash))
				if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, nil, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			var ran []string
			b.sys.RunProgram = func(ctx context.Context, root string, argv ...string) (child.Result, error) {
				if _, limited := ctx.Deadline(); root != newRoot || !limited {
					t.Errorf("%q runs in %s, with a time limit: %v", argv, root, limited)
				}
				ran = argv
				if tt.takes {
					own(hash + " 4")
				}
				return tt.result, tt.err
			}
			volume, err := openDir(filepath.Dir(upper))
			if err != nil {
				t.Fatal(err)
			}
			defer volume.Close()
			b.mergeEtc(t.Context(), volume, mount.Place{Root: newRoot + "/usr", Path: "share/factory/etc"})
			var want, steps []string
			if tt.runs {
				want = []string{mergeProgram, "etc-merge", "--image", hash, "--from", "/usr/share/factory/etc", "--volume", "/state/encrypted"}
				if tt.trial || tt.last {
					want = append(want, "--trial")
				}
				if tt.leftOut != "" && !tt.absent {
					want = append(want, "--put-back")
				}
				steps = []string{"mount -t proc -o nosuid,nodev,noexec proc /sysroot//proc", "umount /sysroot/proc"}
			}
			if !slices.Equal(ran, want) {
				t.Errorf("ran %q, want %q", ran, want)
			}
			if got := recorder.Steps(); !slices.Equal(got, steps) {
				t.Errorf("mounted %q, want %q", got, steps)
			}
			if n := len(b.report.EtcConflicts); n > 0 && (n != report.MaxEtcConflicts || b.report.EtcConflicts[0] != "c: both") || (n > 0) != (tt.name == "conflicts") {
				t.Errorf("conflicts %q", b.report.EtcConflicts)
			}
			if own := tt.takes || tt.owner == hash+" 3"; (b.report.EtcImage == hash) != own || b.report.EtcImage != "" && !own {
				t.Errorf("the layer is that of %q in the report, want it to be this image's: %v", b.report.EtcImage, own)
			}
			if got := strings.Join(b.report.Warnings, "\n"); !strings.Contains(got, tt.warns) || (got == "") != (tt.warns == "") {
				t.Errorf("warns %q, want %q", got, tt.warns)
			}
		})
	}
}

// Without /proc in the new root nothing runs.
func TestMergeEtcWithoutProc(t *testing.T) {
	b, _ := testBoot(&person{}, config.State{})
	b.sys.Mounter = &mounttest.Recorder{FailAt: 1, FailWith: errors.New("no such directory")}
	volume, err := openDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer volume.Close()
	b.mergeEtc(t.Context(), volume, mount.Place{Root: newRoot, Path: "etc"})
	if len(b.report.Warnings) != 1 {
		t.Errorf("warns %q", b.report.Warnings)
	}
}

// A trial whose /etc could not be merged has that of the image before below its own
// changes, which are in memory: when it fails, nothing of them is left. Of a layer that is
// nobody's nothing can be spoiled, and an image that is not on trial writes to it as ever,
// but for one of a trial that failed, which is there until a merge puts back what was before.
func TestUnmergedTrialChangesNothing(t *testing.T) {
	for _, tt := range []struct {
		name                    string
		slot, layers            bool // on trial
		lastResort              bool // the slot, and nobody has committed it
		leftOut                 bool // a layer is damaged
		tried                   bool // the layer is a trial's
		merges, empty, nobodys  bool
		noVolume, readOnly, mem bool
	}{
		{name: "on_trial", slot: true, mem: true},
		{name: "layers_on_trial", layers: true, mem: true},
		{name: "last_resort", lastResort: true, mem: true},
		{name: "layer_left_out", slot: true, leftOut: true, merges: true, mem: true},
		{name: "layer_of_before", slot: true, nobodys: true, mem: true},
		{name: "nothing_changed_before", slot: true, empty: true, mem: true},
		{name: "new_volume", slot: true, nobodys: true, empty: true},
		{name: "merged", slot: true, merges: true},
		{name: "committed"},
		{name: "after_a_trial", tried: true, mem: true},
		{name: "after_a_trial_layer_left_out", tried: true, leftOut: true, mem: true},
		{name: "after_a_trial_put_back", tried: true, leftOut: true, merges: true},
		{name: "after_a_trial_merged", tried: true, merges: true},
		{name: "no_state", slot: true, noVolume: true},
		{name: "read_only", readOnly: true, mem: true},
	} {
		inOwnRoot(t, func(t *testing.T) {
			m := aMachine{t: t}
			m.image("1", map[string]string{"etc/own": "image\n"})
			for _, dir := range []string{newRoot, "/volume/etc"} {
				m.step(os.MkdirAll(dir, 0o755))
			}
			if !tt.empty {
				m.step(os.WriteFile("/volume/etc/kept", []byte("committed\n"), 0o644))
			}
			own := func(id string) { m.step(unix.Setxattr("/volume/etc", layout.EtcOwner, []byte(id+" 1"), 0)) }
			if !tt.nobodys {
				own(strings.Repeat("cd", 32))
			}
			if tt.tried {
				mark := "/volume/" + layout.EtcTrial(strings.Repeat("cd", 32), "1")
				m.step(os.MkdirAll(filepath.Dir(mark), 0o755))
				m.step(os.WriteFile(mark, nil, 0o600))
			}
			m.step(unix.Mount("/images/1", newRoot, "", unix.MS_BIND, ""))
			m.step(unix.Mount("outer", stateDir, "tmpfs", 0, "mode=0755"))
			m.step(os.Mkdir(encryptedDir, 0o755))
			m.step(unix.Mount("/volume", encryptedDir, "", unix.MS_BIND, ""))
			b, _ := testBoot(&person{}, config.State{Create: config.CreateFirstBoot})
			b.sys.Mounter, b.cfg.Etc = mount.Kernel{}, config.EtcOverlay
			b.report.Slot = report.Slot{Name: "a", Successful: !tt.slot && !tt.lastResort}
			b.report.Slot.Trial, b.layersTried, b.report.Root.RootHash = tt.slot, tt.layers, strings.Repeat("ab", 32)
			if tt.leftOut {
				b.report.Layers = []report.Layer{{Name: "x", LeftOut: "damaged"}}
			}
			if tt.noVolume {
				b.cfg.State.Create = config.CreateNone
			}
			if tt.readOnly {
				b.volume.volume = &state.Volume{ReadOnly: errors.New("for this test")}
			}
			b.sys.RunProgram = func(context.Context, string, ...string) (child.Result, error) {
				if tt.merges {
					own(b.etcIdentity())
					return child.Result{}, nil
				}
				return child.Result{}, fs.ErrNotExist
			}
			volume, err := openDir(encryptedDir)
			m.step(err)
			m.step(b.etc(t.Context(), volume))
			volume.Close()
			if !tt.empty {
				m.has(map[string]string{"etc/kept": "committed\n"})
			}
			m.has(map[string]string{"etc/own": "image\n"})
			m.write(map[string]string{"etc/new": "trial\n", "etc/own": "trial\n"})
			_, err = os.Stat("/volume/etc/new")
			if tt.mem != errors.Is(err, fs.ErrNotExist) || b.report.EtcInMemory != tt.mem {
				t.Errorf("%s: in the volume: %v; reported as in memory: %v, want %v", tt.name, err, b.report.EtcInMemory, tt.mem)
			}
			warned := strings.Contains(strings.Join(b.report.Warnings, "\n"), "in memory")
			if warned != (tt.mem && !tt.readOnly) {
				t.Errorf("%s: warns %q", tt.name, b.report.Warnings)
			}
			m.off()
		})
	}
}
