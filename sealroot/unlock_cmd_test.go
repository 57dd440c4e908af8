package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/mount"
	"sealroot/mount/mounttest"
	"sealroot/sealroot/volume"
	"sealroot/state"
	"sealroot/state/enrol"
	"sealroot/state/ext4"
	"sealroot/state/layout"
	"sealroot/state/luks2"
	"sealroot/state/tpm"
	"sealroot/state/voucher"
)

// filesDevices are block devices in files, with an empty file system in the clear.
type filesDevices struct {
	t   *testing.T
	key []byte // the volume key that was given
}

type fileDevice struct{ *os.File }

func (d fileDevice) Path() string   { return d.Name() }
func (d fileDevice) Number() string { return "7:0" }
func (d fileDevice) Size() int64    { return 1 << 30 }
func (d fileDevice) Remove() error  { return d.Close() }

func (f *filesDevices) file() (fileDevice, error) {
	file, err := os.CreateTemp(f.t.TempDir(), "device")
	return fileDevice{file}, err
}

func (f *filesDevices) Loop(*os.File) (state.Device, error) { return f.file() }

func (f *filesDevices) Crypt(_ string, _ luks2.CryptTarget, _ state.Device, key []byte) (state.Device, error) {
	f.key = bytes.Clone(key)
	d, err := f.file()
	return d, errors.Join(err, ext4.WriteTemplate(d, [16]byte{1}, [16]byte{2}))
}

// degraded is a running machine whose TPM refused because PCR 7 changed.
func degraded(t *testing.T) (*sealed, *filesDevices, *mounttest.Recorder) {
	t.Helper()
	s := newSealed(t)
	if err := os.Truncate(s.image(), 256<<20); err != nil { // room for the file system
		t.Fatal(err)
	}
	s.boot("B", false)
	s.report.Degraded, s.report.State.UUID, s.report.State.Unlocked = true, "", "degraded"
	devices, recorder := &filesDevices{t: t}, &mounttest.Recorder{}
	s.env.Devices, s.env.Mounter = devices, recorder
	return s, devices, recorder
}

// pin writes the record of whose volume this is, as PID 1 does before it closes the
// PCRs.
func (s *sealed) pin(id []byte) {
	s.t.Helper()
	policy, err := enrol.Policy(s.config.State.TPM2, nil)
	if err == nil {
		err = tpm.New(s.tpm).WriteIdentity(s.t.Context(), policy, nil, id)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// addToken puts a token into the volume's header.
func (s *sealed) addToken(text string) {
	s.t.Helper()
	im, err := volume.Open(s.t.Context(), s.env.State, true)
	if err != nil {
		s.t.Fatal(err)
	}
	defer im.Close()
	h, err := im.Header.AddToken(9, []byte(text))
	if err == nil {
		err = im.Apply(h, rand.Reader)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// voucher leaves one, as PID 1 does.
func (s *sealed) voucher() {
	s.t.Helper()
	if err := os.WriteFile(s.env.Voucher, voucher.New(bytes.Repeat([]byte("s"), 44), []byte("{}")), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// TestStateUnlock: the owner's key opens the volume of a degraded boot and binds the
// TPM; what the next boot does with it is told.
func TestStateUnlock(t *testing.T) {
	for _, tt := range []struct {
		name string
		path enrol.Path
		pin  func(s *sealed)
		conf func(c *config.Config)
		next string
		says string
	}{
		{"nobody_vouches", enrol.Unmeasured, nil, nil, nextByItself, "the next boot unlocks with the TPM"},
		{"secure_boot", enrol.UKISecureBoot, nil, nil, nextAsks, "asks for the recovery key once more"},
		{"secure_boot_and_a_voucher", enrol.UKISecureBoot, func(s *sealed) { s.voucher() }, func(c *config.Config) {
			c.State.OnFailure = []string{config.FailureDegraded}
		}, nextByItself, "records there that this volume is the machine's"},
		{"a_voucher_and_a_floor", enrol.UKISecureBoot, func(s *sealed) { s.voucher() }, func(c *config.Config) {
			c.Trust.RollbackFloor = true
		}, nextAsks, "asks for the recovery key once more"},
		{"not_a_voucher", enrol.UKISecureBoot, func(s *sealed) { os.WriteFile(s.env.Voucher, []byte("x"), 0o600) }, nil, nextAsks, "cannot tell the next boot"},
		{"secure_boot_without_a_prompt", enrol.UKISecureBoot, nil, func(c *config.Config) {
			c.State.OnFailure = []string{config.FailureDegraded}
		}, nextAsks, "or state.degraded_unlock, is needed"},
		{"secure_boot_and_pinned", enrol.UKISecureBoot, func(s *sealed) {
			s.pin(luks2.VolumeKeyID(s.key, state.DeviceName, volumeID))
		}, nil, nextByItself, "the next boot unlocks with the TPM"},
		{"another_is_pinned", enrol.Unmeasured, func(s *sealed) { s.pin(bytes.Repeat([]byte{5}, 32)) }, nil, nextAsks, "undefine what it remembers (NV indices [0x1c05ea3 0x1c05ea4], and 0x1c05ea5 where it is defined)"},
		{"without_tpm2", enrol.Unmeasured, nil, func(c *config.Config) {
			c.State.Unlock, c.State.TPM2 = []string{config.UnlockRecoveryKey}, config.TPM2{}
		}, nextAsks, "the TPM is not bound"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, devices, recorder := degraded(t)
			s.report.BootPath = string(tt.path)
			s.config.State.TPM2.WithoutMeasuredBoot = ""
			if tt.path == enrol.Unmeasured {
				s.config.State.TPM2.WithoutMeasuredBoot = config.AcceptTheft
				s.config.Boot.Loader = config.LoaderGRUB
			}
			if tt.pin != nil {
				tt.pin(s)
			}
			s.close()
			if tt.conf != nil {
				tt.conf(&s.config)
			}
			out := s.ok("state", "unlock", "--json", "--recovery-key-file", s.file(string(s.recovery)))
			var got struct {
				Messages []string
				Data     unlocked
			}
			if err := json.Unmarshal([]byte(out), &got); err != nil {
				t.Fatal(err)
			}
			if text := strings.Join(got.Messages, "\n"); got.Data.NextBoot != tt.next || !strings.Contains(text, tt.says) || strings.Contains(out, string(s.recovery)) {
				t.Errorf("next boot %q, want %q and %q in\n%s", got.Data.NextBoot, tt.next, tt.says, text)
			}
			mounts := recorder.Steps()
			if !bytes.Equal(devices.key, s.key) || len(mounts) != 1 || !strings.Contains(mounts[0], "ext4") || !strings.Contains(mounts[0], s.env.State+"//encrypted") {
				t.Errorf("the volume key is given: %v, steps %q", bytes.Equal(devices.key, s.key), mounts)
			}
			if _, err := os.Stat(s.env.Voucher); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the voucher of this boot is still there: %v", err)
			}
			s.boot("B", false)
			spent, _ := os.ReadFile(filepath.Join(s.env.State, layout.Voucher))
			secret := bytes.Repeat([]byte("s"), 44)
			if good := voucher.For(spent, secret, luks2.VolumeKeyID(s.key, state.DeviceName, volumeID)); good != (tt.name == "secure_boot_and_a_voucher") || bytes.Contains(spent, secret) {
				t.Errorf("a voucher for the volume: %v, %q", good, spent)
			}
			if opens := s.opensByTPM(); opens != (tt.name != "without_tpm2") {
				t.Errorf("the next boot's TPM opens the volume: %v", opens)
			}
		})
	}
}

// TestStateUnlockRefuses: nothing is mapped, mounted or written.
func TestStateUnlockRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(s *sealed)
		key  string // "" for the recovery key
		code int
		want string
	}{
		{"it_is_open", func(s *sealed) { s.report.Degraded, s.report.State.UUID = false, volumeID }, "", exitRefused, "has it open"},
		{"open_and_read_only", func(s *sealed) { s.report.State.UUID = volumeID }, "", exitRefused, "has it open"},
		{"no_volume_by_configuration", func(s *sealed) {
			s.config.State = config.State{Create: config.CreateNone}
		}, "", exitRefused, "no encrypted volume"},
		{"came_with_the_image", func(s *sealed) { s.addToken(`{"type":"sealroot-prebuilt","keyslots":[],"reserved":"5"}`) }, "", exitRefused, "came with the image"},
		{"another_key", func(*sealed) {}, strings.Repeat("cbdefghi-", 7) + "cbdefghi", exitRefused, "cannot authorize"},
		{"not_a_key", func(*sealed) {}, "words", exitRefused, "recovery-key-file"},
		{"no_image", func(s *sealed) { os.Remove(s.image()) }, "", exitRefused, "no encrypted.img"},
		{"link", func(s *sealed) { os.Rename(s.image(), s.image()+"x"); os.Symlink("encrypted.imgx", s.image()) }, "", exitRefused, "not a plain file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, devices, recorder := degraded(t)
			s.close()
			tt.set(s)
			key := tt.key
			if key == "" {
				key = string(s.recovery)
			}
			before, _ := os.ReadFile(s.image())
			code, out, errs := s.run("state", "unlock", "--recovery-key-file", s.file(key))
			if code != tt.code || !strings.Contains(errs, tt.want) {
				t.Errorf("exit status %d, %s%s, want %d and %q", code, out, errs, tt.code, tt.want)
			}
			if after, _ := os.ReadFile(s.image()); !bytes.Equal(after, before) || devices.key != nil || len(recorder.Steps()) > 0 {
				t.Errorf("changed: %v, mapped: %v, steps %q", !bytes.Equal(after, before), devices.key != nil, recorder.Steps())
			}
		})
	}
}

// noReplay is a kernel that has no room to replay a journal.
type noReplay struct{ *mounttest.Recorder }

func (n noReplay) MountIn(fs mount.Filesystem, where mount.Place) error {
	if err := n.Recorder.MountIn(fs, where); err != nil || slices.Contains(fs.Options, state.Ext4.NoReplay()) {
		return err
	}
	return unix.ENOSPC
}

// TestStateUnlockOnAFullPartition: a volume that PID 1 would have mounted read-only and
// without its journal is mounted so.
func TestStateUnlockOnAFullPartition(t *testing.T) {
	s, _, recorder := degraded(t)
	s.close()
	s.env.Mounter = noReplay{recorder}
	image, err := os.ReadFile(s.image())
	if err == nil {
		err = unix.Mount("tmpfs", s.env.State, "tmpfs", 0, "size=40M")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(s.env.State, unix.MNT_DETACH); err != nil { // the volume stays open
			t.Error(err)
		}
	})
	if err := errors.Join(os.WriteFile(s.image(), image[:16<<20], 0o600), os.Truncate(s.image(), 256<<20), os.Mkdir(s.env.volume(), 0o700)); err != nil {
		t.Fatal(err)
	}
	out := s.ok("state", "unlock", "--json", "--recovery-key-file", s.file(string(s.recovery)))
	var got struct {
		Messages []string
		Data     unlocked
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(got.Messages, "\n")
	if !got.Data.ReadOnly || !strings.Contains(text, state.ErrNoRoom.Error()) || !strings.Contains(text, "its journal, which may hold the latest changes, cannot be replayed") {
		t.Errorf("read-only %v:\n%s", got.Data.ReadOnly, text)
	}
	if mounts := recorder.Steps(); len(mounts) != 2 || !strings.Contains(mounts[0], "ro") || !strings.Contains(mounts[1], state.Ext4.NoReplay()) {
		t.Errorf("steps %q", mounts)
	}
}
