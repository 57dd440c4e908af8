package boot

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/mount/child"
	"sealroot/mount/mounttest"
	"sealroot/slots"
	"sealroot/state"
	"sealroot/state/luks2"
)

func TestFsckStatus(t *testing.T) {
	for status, want := range map[int]error{
		0: nil, 1: nil, 2: errRestart, 3: errRestart, 4: errNotRepaired, 5: errNotRepaired, 6: errNotRepaired, 7: errNotRepaired,
		8: errNotRepaired, 16: errNotRepaired, 32: errNotRepaired, 128: errNotRepaired, 137: errNotRepaired, -1: errNotRepaired,
	} {
		if got := fsckStatus("e2fsck", status); !errors.Is(got, want) || want == nil && got != nil {
			t.Errorf("status %d: %v, want %v", status, got, want)
		}
	}
	for status, want := range map[int]error{0: nil, 1: errNotRepaired, 2: errNotRepaired, -1: errNotRepaired} {
		if got := fsckStatus("btrfs", status); !errors.Is(got, want) || want == nil && got != nil {
			t.Errorf("btrfs: status %d: %v, want %v", status, got, want)
		}
	}
}

func TestNeedsCheck(t *testing.T) {
	for _, tt := range []struct {
		sb   state.Superblock
		want bool
	}{
		{state.Superblock{Clean: true}, false},
		{state.Superblock{Clean: true, NeedsRecovery: true}, false}, // a power cut: the journal makes it good
		{state.Superblock{NeedsRecovery: true}, false},
		{state.Superblock{}, true},
		{state.Superblock{Clean: true, Errors: true}, true},
		{state.Superblock{Clean: true, Errors: true, NeedsRecovery: true}, true},
	} {
		if got := tt.sb.NeedsCheck(); got != tt.want {
			t.Errorf("%+v: %v, want %v", tt.sb, got, tt.want)
		}
	}
}

// checking is a boot in which the root's e2fsck is this machine's.
func checking(t *testing.T, fsck string) (*boot, *mounttest.Recorder) {
	t.Helper()
	b, _ := testBoot(&person{lines: []string{"open sesame"}}, config.State{
		Unlock: []string{config.UnlockPassphrase}, OnFailure: []string{config.FailureDegraded}, Fsck: fsck,
	})
	recorder := &mounttest.Recorder{}
	b.sys.Mounter = recorder
	b.sys.RunProgram = func(ctx context.Context, root string, argv ...string) (child.Result, error) {
		if root != newRoot {
			t.Errorf("%q runs in %s", argv, root)
		}
		return child.Run(ctx, "/", argv...)
	}
	return b, recorder
}

// filesystem makes an ext4 that has errors; badly: more than e2fsck -p repairs.
func filesystem(t *testing.T, path string, badly bool) {
	t.Helper()
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	run("mkfs.ext4", "-q", "-F", path, "64M")
	if badly {
		run("debugfs", "-w", "-R", "clri <2>", path)
	} else {
		run("debugfs", "-w", "-R", "clri <11>", path)
	}
	run("debugfs", "-w", "-R", "set_super_value state 3", path)
}

func superblock(t *testing.T, path string) state.Superblock {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sb, err := state.ReadSuperblock(f)
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

// What e2fsck repairs is mounted as ever, what it does not repair is not, and
// without fsck: auto nothing runs.
func TestCheckFilesystem(t *testing.T) {
	missing := func(context.Context, string, ...string) (child.Result, error) { return child.Result{}, fs.ErrNotExist }
	stopped := func(context.Context, string, ...string) (child.Result, error) {
		return child.Result{Output: []byte("Pass 1")}, child.ErrTime
	}
	for _, tt := range []struct {
		name, fsck string
		badly      bool
		program    RunProgram
		want       error
		runs, left bool // e2fsck runs; errors are left
	}{
		{"repaired", config.FsckAuto, false, nil, nil, true, false},
		{"not_repaired", config.FsckAuto, true, nil, errNotRepaired, true, true},
		{"no_e2fsck_in_the_root", config.FsckAuto, false, missing, fs.ErrNotExist, true, true},
		{"takes_too_long", config.FsckAuto, false, stopped, child.ErrTime, true, true},
		{"not_asked_for", config.FsckNo, false, nil, nil, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ext4")
			filesystem(t, path, tt.badly)
			b, recorder := checking(t, tt.fsck)
			if tt.program != nil {
				b.sys.RunProgram = tt.program
			}
			err := b.checkFilesystem(t.Context(), "the state partition", path, superblock(t, path))
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) || err != nil && !errors.Is(err, errNotRepaired) {
				t.Errorf("checkFilesystem: %v, want %v", err, tt.want)
			}
			if left := superblock(t, path).Errors; left != tt.left {
				t.Errorf("errors are left: %v, want %v", left, tt.left)
			}
			steps := recorder.Steps()
			if mounted := slices.ContainsFunc(steps, func(s string) bool { return strings.Contains(s, "devtmpfs") }); mounted != tt.runs {
				t.Errorf("steps %q, want e2fsck to run: %v", steps, tt.runs)
			}
			if tt.runs && !strings.Contains(steps[len(steps)-1], "umount "+newRoot+"/dev") {
				t.Errorf("steps %q leave /dev mounted", steps)
			}
		})
	}
}

// errorDevices hold a volume whose file system has errors.
type errorDevices struct {
	fakeDevices
	badly bool
}

func (e *errorDevices) Crypt(name string, target luks2.CryptTarget, on state.Device, key []byte) (state.Device, error) {
	d, err := e.fakeDevices.Crypt(name, target, on, key)
	if err == nil {
		filesystem(e.t, d.Path(), e.badly)
	}
	return d, err
}

// A volume whose file system cannot be repaired is mounted read-only, with the
// owner's /etc, and nothing is committed on it.
func TestVolumeWithErrors(t *testing.T) {
	for _, badly := range []bool{false, true} {
		b, recorder := checking(t, config.FsckAuto)
		b.sys.Devices = &errorDevices{fakeDevices{t: t}, badly}
		b.volume.outer = outerWithVolume(t)
		// Nothing is really mounted, so it ends where the mounted root is opened.
		if err := b.openVolume(t.Context()); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		steps := strings.Join(recorder.Steps(), "\n")
		warnings := strings.Join(b.report.Warnings, "\n")
		readOnly := strings.Contains(steps, "ext4") && strings.Contains(steps, "ro,")
		if readOnly != badly || b.report.Degraded != badly || strings.Contains(warnings, errNotRepaired.Error()) != badly {
			t.Errorf("badly %v: degraded %v, warnings %q, steps\n%s", badly, b.report.Degraded, warnings, steps)
		}
	}
}

// When e2fsck wants a restart there is one, with a pause, whatever on_failure says.
func TestFsckRestart(t *testing.T) {
	b, _ := checking(t, config.FsckAuto)
	b.sys.RunProgram = func(context.Context, string, ...string) (child.Result, error) { return child.Result{Status: 3}, nil }
	b.sys.Devices = &errorDevices{fakeDevices{t: t}, false}
	b.volume.outer = outerWithVolume(t)
	err := b.openVolume(t.Context())
	if !errors.Is(err, errRestart) {
		t.Fatal(err)
	}
	if class, _ := classOf(b.stateFailed(err)); class != slots.EnvironmentFailure || b.report.Degraded {
		t.Errorf("%v has class %s, degraded %v", err, class, b.report.Degraded)
	}
}
