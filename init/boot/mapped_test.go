package boot

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/mount/mounttest"
	"sealroot/state"
	"sealroot/state/ext4"
	"sealroot/state/luks2"
)

// fakeDevices are block devices in files, with an empty volume in them.
type fakeDevices struct {
	t      *testing.T
	busy   error // what taking the decrypted device away ends with
	mapped bool
}

type fakeDevice struct {
	*os.File
	remove func() error
}

func (d fakeDevice) Path() string   { return d.Name() }
func (d fakeDevice) Number() string { return "7:0" }
func (d fakeDevice) Size() int64    { return 1 << 30 }
func (d fakeDevice) Remove() error  { return errors.Join(d.Close(), d.remove()) }

func (f *fakeDevices) Loop(*os.File) (state.Device, error) {
	return fakeDevice{f.file("loop"), func() error { return nil }}, nil
}

func (f *fakeDevices) Crypt(string, luks2.CryptTarget, state.Device, []byte) (state.Device, error) {
	d := fakeDevice{f.file("crypt"), func() error {
		if f.busy == nil {
			f.mapped = false
		}
		return f.busy
	}}
	f.mapped = true
	return d, ext4.WriteTemplate(d, [16]byte{1}, [16]byte{2})
}

func (f *fakeDevices) file(name string) *os.File {
	file, err := os.Create(filepath.Join(f.t.TempDir(), name))
	if err != nil {
		f.t.Fatal(err)
	}
	return file
}

// A file system that cannot be mounted after the key was found must not stay in
// the clear beside a degraded boot.
func TestDegradedBootHasNoVolume(t *testing.T) {
	for _, tt := range []struct {
		name   string
		busy   error
		halts  bool
		mounts int // of a volatile state
	}{
		{"taken_away", nil, false, 1},
		{"cannot_be_taken_away", unix.EBUSY, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := testBoot(&person{lines: []string{"open sesame"}}, config.State{
				Unlock: []string{config.UnlockPassphrase}, OnFailure: []string{config.FailureDegraded},
			})
			devices := &fakeDevices{t: t, busy: tt.busy}
			recorder := &mounttest.Recorder{FailAt: 1, FailWith: unix.EUCLEAN}
			b.sys.Devices, b.sys.Mounter = devices, recorder
			b.volume.outer = outerWithVolume(t)
			err := b.openVolume(t.Context())
			if !errors.Is(err, unix.EUCLEAN) || b.volume.volume != nil || devices.mapped != tt.halts {
				t.Fatalf("openVolume() = %v, volume %v, mapped %v", err, b.volume.volume, devices.mapped)
			}
			err = b.withoutState(err) // the tmpfs is not real: it ends there
			volatile := 0
			for _, s := range recorder.Steps() {
				if strings.HasPrefix(s, "mount -t tmpfs") {
					volatile++
				}
			}
			if errors.Is(err, errHalt) != tt.halts || volatile != tt.mounts {
				t.Errorf("withoutState() = %v, steps %q", err, recorder.Steps())
			}
		})
	}
}

// boot.json lists what is mounted: not a volume that was closed again.
func TestReportForgetsAClosedVolume(t *testing.T) {
	other := report.Mount{What: "/dev/vda10", Where: "/state", Type: "ext4"}
	for _, tt := range []struct {
		name string
		end  func(b *boot) error // closes the volume that is mounted
	}{
		{"its_root_cannot_be_opened", func(b *boot) error { // the mount is not real
			if err := b.openVolume(t.Context()); !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("openVolume() = %w, want ENOENT", err)
			}
			return nil
		}},
		{"closed_for_a_degraded_boot", func(b *boot) error {
			b.noteMount(report.Mount{What: "/dev/dm-1", Where: "/state/encrypted", Type: "ext4"})
			b.volume.volume = &state.Volume{}
			return b.closeVolume()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := testBoot(&person{lines: []string{"open sesame"}}, config.State{
				Unlock: []string{config.UnlockPassphrase}, OnFailure: []string{config.FailureDegraded},
			})
			recorder := &mounttest.Recorder{}
			b.sys.Devices, b.sys.Mounter = &fakeDevices{t: t}, recorder
			b.volume.outer = outerWithVolume(t)
			b.noteMount(other)
			if err := tt.end(b); err != nil {
				t.Fatal(err)
			}
			if steps := strings.Join(recorder.Steps(), "\n"); !strings.Contains(steps, "umount") {
				t.Errorf("nothing was unmounted:\n%s", steps)
			}
			if len(b.report.Mounts) != 1 || b.report.Mounts[0].Where != other.Where {
				t.Errorf("mounts %+v, want that of /state alone", b.report.Mounts)
			}
		})
	}
}

// outerWithVolume is a state partition with a volume in it.
func outerWithVolume(t *testing.T) *os.File {
	t.Helper()
	return volumeIn(t, t.TempDir())
}

func volumeIn(t *testing.T, dir string) *os.File {
	t.Helper()
	image, err := os.OpenFile(filepath.Join(dir, state.ImageName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	if err := image.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	h, _, _ := volume(t)
	if _, err := luks2.WriteNew(image, h, rand.Reader); err != nil {
		t.Fatal(err)
	}
	outer, err := openDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { outer.Close() })
	return outer
}

// The owner's changes to /etc are in force whenever the owner's data is.
func TestEtcOfAReadOnlyVolume(t *testing.T) {
	owners := mount.Place{Root: encryptedDir, Path: "etc"}
	for _, tt := range []struct {
		name     string
		mode     config.EtcMode
		readOnly bool
		owners   bool // they are a layer
		upper    string
	}{
		{"writable", config.EtcOverlay, false, true, encryptedDir},
		{"read_only", config.EtcOverlay, true, true, runDir + "/etc"},
		{"volatile_by_configuration", config.EtcVolatile, true, false, runDir + "/etc"},
	} {
		o := etcLayers(mount.Place{Root: newRoot, Path: "etc"}, tt.mode, tt.readOnly)
		if err := o.Validate(); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		in := o.Upper == owners || o.Lower[0] == owners
		image := o.Lower[len(o.Lower)-1] == mount.Place{Root: newRoot, Path: "etc"}
		if in != tt.owners || !image || o.Upper.Root != tt.upper || o.Work.Root != tt.upper {
			t.Errorf("%s: %s", tt.name, o)
		}
	}
}

// A recovery key is tried on the keyslots made for one, and on no expensive one
// that somebody put before them.
func TestRecoveryKeyTriesFewKeyslots(t *testing.T) {
	h, key, recovery := volume(t)
	tried := func(h *luks2.Header) (ids []int) {
		may := h.MayHoldRecovery()
		for _, k := range h.Keyslots() {
			if may(&k) {
				ids = append(ids, k.ID)
			}
		}
		return ids
	}
	h, err := h.AddKeyslot(2, key, []byte("x"), luks2.KDF{Type: luks2.KDFArgon2id, Time: 4, MemoryKiB: 64, CPUs: 1}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if got := tried(h); !slices.Equal(got, []int{0, 1}) {
		t.Errorf("without a token: keyslots %v, want those of pbkdf2", got)
	}
	if h, err = h.AddToken(0, luks2.RecoveryToken(0)); err != nil {
		t.Fatal(err)
	}
	if got := tried(h); !slices.Equal(got, []int{0}) {
		t.Errorf("with a token: keyslots %v, want 0", got)
	}
	if newBudget().MemoryKiB == 0 {
		t.Error("this machine has no memory")
	}
	b, _ := testBoot(&person{}, config.State{Unlock: []string{config.UnlockRecoveryKey, config.UnlockPassphrase}})
	if got, method := b.tryLine(h, slices.Clone(recovery), &luks2.Budget{Work: 64 << 20}); got == nil || method != "recovery-key" {
		t.Errorf("the recovery key opens nothing: %q, attempts %q", method, b.report.State.Attempts)
	}
	for range 2 {
		if got, _ := b.tryLine(h, []byte("x"), &luks2.Budget{Work: 64 << 20}); got != nil || len(b.report.State.Attempts) != 1 {
			t.Errorf("no memory: key %v, attempts %q, want one that says so", got != nil, b.report.State.Attempts)
		}
	}
	if got, _ := b.tryLine(h, []byte("x"), newBudget()); got == nil {
		t.Error("control, with memory: the passphrase opens nothing")
	}
}
