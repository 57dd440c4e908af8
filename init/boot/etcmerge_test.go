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
	"sealroot/state/layout"
)

// The root's command runs when the upper layer of /etc is not the running image's, and
// whatever comes of it the boot goes on.
func TestMergeEtc(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	for _, tt := range []struct {
		name     string
		owner    string // of the layer before
		trial    bool
		leftOut  string // of a layer
		absent   bool   // by design
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
		{name: "this_image", owner: hash + " 3"},
		{name: "name_begins_alike", owner: hash + "ab 3", takes: true, runs: true},
		{name: "degraded", degraded: true},
		{name: "layer_left_out", leftOut: "damaged", warns: "when no layer is missing or damaged"},
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
			b.report.Root.RootHash, b.report.Slot.Trial, b.report.Degraded = hash, tt.trial, tt.degraded
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
				if tt.trial {
					want = append(want, "--trial")
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
