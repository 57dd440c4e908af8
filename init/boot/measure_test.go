package boot

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"sealroot/init/config"
	"sealroot/mount/kmod"
	"sealroot/mount/uevent"
	"sealroot/slots"
	"sealroot/state"
	"sealroot/state/enrol"
	"sealroot/state/luks2"
	"sealroot/state/tpm"
	"sealroot/state/tpm/tpmtest"
)

// givenUp is a TPM whose commands the kernel gives up.
type givenUp struct{ tpm.Transport }

func (givenUp) Send(context.Context, []byte) ([]byte, error) {
	return nil, fmt.Errorf("%w: cannot read from /dev/tpmrm0: timer expired", tpm.ErrFails)
}

func (givenUp) Close() error { return nil }

// failing is a TPM that answers one command with a failure; code 0: all of them.
type failing struct {
	*tpmtest.Machine
	code tpm2.TPMCC
}

func (f failing) Send(ctx context.Context, command []byte) ([]byte, error) {
	if f.code == 0 || tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) == f.code {
		return binary.BigEndian.AppendUint32([]byte{0x80, 0x01, 0, 0, 0, 10}, uint32(tpm2.TPMRCFailure)), nil
	}
	return f.Machine.Send(ctx, command)
}

// measuring is a boot up to its state, with a TPM.
func measuring(t *testing.T, transport tpm.Transport, unlock ...string) *boot {
	t.Helper()
	c := config.Config{
		State: config.State{Unlock: unlock, TPM2: config.TPM2{Policy: config.PolicyPCRs, WithoutMeasuredBoot: config.AcceptTheft}},
		Trust: config.Trust{RollbackFloor: true}, SecurityVersion: 3,
	}.WithDefaults()
	sys := &System{
		Log: NewLog(io.Discard),
		OpenTPM: func(context.Context) (*tpm.TPM, error) {
			if transport == nil {
				return nil, tpm.ErrNoTPM
			}
			return tpm.New(transport), nil
		},
	}
	b := newBoot(sys)
	b.cfg = &c
	b.tpm.log = &tpm.Log{W: &strings.Builder{}, Now: sinceBoot}
	b.report.Root.RootHash, b.report.Root.SecurityVersion = strings.Repeat("ab", 32), 3
	return b
}

// A TPM that does not work ends the boot only where the state is sealed to it.
func TestTPMErrors(t *testing.T) {
	m := tpmtest.Start(t)
	for _, tt := range []struct {
		name      string
		transport tpm.Transport
		sealsOK   bool // the boot goes on although the state is sealed
	}{
		{"works", m, true},
		{"answers_nothing", failing{Machine: m}, false},
		{"extends_nothing", failing{Machine: m, code: tpm2.TPMCCPCRExtend}, true}, // it is closed by events
		{"lists_no_banks", failing{Machine: m, code: tpm2.TPMCCGetCapability}, true},
	} {
		for _, unlock := range []string{config.UnlockPassphrase, config.UnlockTPM2} {
			t.Run(tt.name+"_"+unlock, func(t *testing.T) {
				b := measuring(t, tt.transport, unlock)
				defer b.capAndRelease(t.Context())
				if err := errors.Join(b.openTPM(t.Context()), b.measureRoot(t.Context())); err != nil {
					t.Fatal(err)
				}
				broken := b.tpm.broken != nil
				if broken == (tt.name == "works") {
					t.Errorf("broken: %v", b.tpm.broken)
				}
				err := b.capOrStop(t.Context())
				want := unlock == config.UnlockPassphrase || tt.sealsOK
				if (err == nil) != want {
					t.Errorf("capOrStop: %v, want the boot to go on: %v", err, want)
				}
				if class, reason := classOf(err); err != nil && (class != slots.EnvironmentFailure || reason != slots.TPM) {
					t.Errorf("capOrStop: %v has class %s, reason %s", err, class, reason)
				}
				// What could not be measured gives no secret.
				if !broken || unlock != config.UnlockTPM2 {
					return
				}
				if _, err := b.enrollTPM(t.Context(), nil, nil); err == nil {
					t.Error("a secret was sealed under PCRs that say nothing")
				}
				if key := b.unlockByTPM(t.Context(), nil); key != nil || len(b.report.State.Attempts) != 1 {
					t.Errorf("attempts %q, want one that was refused", b.report.State.Attempts)
				}
			})
		}
	}
}

// uevents is a kernel that announces a device after a while, or never.
type uevents struct{ after <-chan time.Time }

func (u uevents) Next(ctx context.Context) ([]uevent.Event, error) {
	select {
	case <-u.after:
		return nil, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// What a person is told of a TPM that is late, absent, held by someone else, or
// broken; and no boot waits for it past its deadline.
func TestWhatIsSaidOfTheTPM(t *testing.T) {
	m := tpmtest.Start(t)
	const limit = 10 * time.Second // a busy host begins within it
	for _, tt := range []struct {
		name string
		open func(ctx context.Context, late bool) (tpm.Transport, error)
		when time.Duration // of the uevent; 0: never
		want string        // of the attempt to unlock; "": a TPM that works
		also []string
	}{
		{name: "late", when: 50 * time.Millisecond, open: func(_ context.Context, late bool) (tpm.Transport, error) {
			if !late {
				return nil, fmt.Errorf("%w: not yet", tpm.ErrNoTPM)
			}
			return m, nil
		}},
		{name: "absent", want: "tpm2: no TPM", open: func(context.Context, bool) (tpm.Transport, error) {
			return nil, fmt.Errorf("%w: cannot open /dev/tpmrm0", tpm.ErrNoTPM)
		}},
		{name: "held_by_someone_else", want: "tpm2: TPM is busy", open: func(ctx context.Context, _ bool) (tpm.Transport, error) {
			<-ctx.Done()
			return nil, fmt.Errorf("%w: cannot open /dev/tpm0", tpm.ErrBusy)
		}},
		{name: "given_up", want: "TPM fails: cannot read from /dev/tpmrm0: timer expired", open: func(context.Context, bool) (tpm.Transport, error) {
			return givenUp{m}, nil
		}},
		{name: "failure_mode", want: "TPM fails: TPM_RC_FAILURE", open: func(context.Context, bool) (tpm.Transport, error) {
			return failing{Machine: m}, nil
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // all but the first wait for all of that
			b := measuring(t, m, config.UnlockTPM2)
			begin := time.Now()
			var after <-chan time.Time
			if tt.when > 0 {
				after = time.After(tt.when)
			}
			sys := t.TempDir()
			if err := os.Mkdir(filepath.Join(sys, "bus"), 0o755); err != nil {
				t.Fatal(err)
			}
			b.events, b.loader = uevents{after}, kmod.NewLoader(kmod.List{}, sys, nil)
			b.sys.OpenTPM = func(ctx context.Context) (*tpm.TPM, error) {
				if _, ok := ctx.Deadline(); !ok {
					t.Error("the TPM is opened without a deadline")
				}
				transport, err := tt.open(ctx, tt.when > 0 && time.Since(begin) >= tt.when)
				if err != nil {
					return nil, err
				}
				return tpm.New(transport), nil
			}
			ctx, cancel := context.WithCancel(t.Context()) // the boot itself has no deadline
			defer cancel()
			time.AfterFunc(limit, cancel)
			defer b.capAndRelease(ctx)
			if err := b.openTPM(ctx); err != nil {
				t.Fatal(err)
			}
			if tt.want == "" {
				if b.tpm.broken != nil || !b.report.TPM.Present {
					t.Errorf("broken: %v", b.tpm.broken)
				}
				return
			}
			if key := b.unlockByTPM(ctx, nil); key != nil || len(b.report.State.Attempts) != 1 || !strings.Contains(b.report.State.Attempts[0], tt.want) {
				t.Errorf("attempts %q, want one with %q", b.report.State.Attempts, tt.want)
			}
			if d := time.Since(begin); d > 10*limit {
				t.Errorf("it took %v with a deadline of %v", d, limit)
			}
		})
	}
}

// What somebody gave the UKI before its first boot must not become what the
// state is sealed to.
func TestNothingIsSealedToLoadOptions(t *testing.T) {
	for _, tt := range []struct {
		name, exception string
		added, ok       bool
	}{
		{"nothing_added", "", false, true},
		{"load_options", "", true, false},
		{"load_options_with_the_named_exception", config.AcceptTheft, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := tpmtest.Start(t)
			extended := []int{4}
			if tt.added {
				extended = append(extended, 12)
			}
			for _, pcr := range extended {
				if err := tpm.New(m).Extend(t.Context(), pcr, []byte("x")); err != nil {
					t.Fatal(err)
				}
			}
			b := measuring(t, m, config.UnlockTPM2)
			b.sys.Rand = rand.Reader
			b.fw = firmware{EFI: true, Stub: true}
			b.cfg.State.TPM2 = config.TPM2{Policy: config.PolicyPCRs, PCRs: []int{4, 12}, WithoutMeasuredBoot: tt.exception}
			if err := b.openTPM(t.Context()); err != nil {
				t.Fatal(err)
			}
			defer b.capAndRelease(t.Context())
			h, key, _ := volume(t)
			h, err := h.RemoveKeyslot(0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err = b.enrollTPM(t.Context(), h, key); (err == nil) != tt.ok || err != nil && !errors.Is(err, enrol.ErrNotBacked) {
				t.Errorf("enrollTPM() = %v, want ok %v", err, tt.ok)
			}
		})
	}
}

func TestMeasureRootGoesWhereTheConfigurationSays(t *testing.T) {
	for _, pcr := range []int{13, 14} {
		m := tpmtest.Start(t)
		b := measuring(t, m, config.UnlockPassphrase)
		b.cfg.Trust.MeasurePCR = pcr
		if err := errors.Join(b.openTPM(t.Context()), b.measureRoot(t.Context())); err != nil {
			t.Fatal(err)
		}
		for _, other := range []int{8, 12, 13, 14} {
			err := b.tpm.dev.Sanity(t.Context(), "", other)
			if extended := err == nil; extended != (other == pcr) {
				t.Errorf("measure_pcr %d: PCR %d: %v", pcr, other, err)
			}
		}
		b.capAndRelease(t.Context())
	}
}

// The floor decides before anything is unsealed, and a floor that is not known
// keeps the TPM from unlocking.
func TestRollbackFloor(t *testing.T) {
	m := tpmtest.Start(t)
	if err := tpm.New(m).Extend(t.Context(), 7, []byte("firmware")); err != nil {
		t.Fatal(err)
	}
	id := bytes.Repeat([]byte{5}, 32)
	fresh := func() *boot {
		b := measuring(t, m, config.UnlockTPM2)
		if err := b.openTPM(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.readFloor(t.Context())
		return b
	}
	b := fresh()
	if b.report.Floor == nil || b.report.Floor.Known || !errors.Is(b.floorLost(), tpm.ErrUnpinned) {
		t.Errorf("new TPM: floor %+v, %v, want none known", b.report.Floor, b.floorLost())
	}
	if err := b.makeFloor(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := b.raiseFloor(t.Context(), 3, id); err != nil {
		t.Fatal(err)
	}
	b = fresh()
	if err := b.floorLost(); err != nil || b.rollback.Value != 3 {
		t.Errorf("floor %d, %v, want 3", b.rollback.Value, err)
	}
	if err := b.makeFloor(t.Context(), id); err != nil || fresh().rollback.Value != 3 {
		t.Errorf("a new volume made the floor %d, %v, want 3 as before", fresh().rollback.Value, err)
	}
	for version, ok := range map[int]bool{0: false, 2: false, 3: true, 4: true} {
		err := b.aboveFloor("a", version)
		class, reason := classOf(err)
		if (err == nil) != ok || err != nil && (class != slots.ImageFailure || reason != slots.RollbackFloor) {
			t.Errorf("security version %d: %v (%s, %s), want ok %v", version, err, class, reason, ok)
		}
		b.cfg.Trust.RollbackFloor = false
		if err := b.aboveFloor("a", version); err != nil {
			t.Errorf("control, without a floor: security version %d: %v", version, err)
		}
		b.cfg.Trust.RollbackFloor = true
	}
	for version, ok := range map[int]bool{2: false, 3: true} {
		b.cfg.SecurityVersion, b.cfg.Boot.Loader = version, config.LoaderUKI // with any EFI variables
		err := b.kernelAboveFloor("a")
		class, reason := classOf(err)
		if (err == nil) != ok || err != nil && (class != slots.EnvironmentFailure || reason != slots.WrongKernel) {
			t.Errorf("kernel image of security version %d: %v (%s, %s), want ok %v", version, err, class, reason, ok)
		}
		b.cfg.Boot.Loader = config.LoaderGRUB // nobody vouches for the initramfs: it may say what it likes
		if err := b.kernelAboveFloor("a"); err != nil {
			t.Errorf("no kernel image: %v", err)
		}
	}
	m.MustRun("", "tpm2_nvundefine", "0x1c05ea2", "-C", "o")
	b = fresh()
	if err := b.aboveFloor("a", 0); err != nil {
		t.Errorf("an unknown floor refuses a slot: %v", err)
	}
	if err := b.floorLost(); !errors.Is(err, errNoFloor) {
		t.Errorf("after the index was taken away: %v, want errNoFloor", err)
	}
	if key := b.unlockByTPM(t.Context(), nil); key != nil || len(b.report.State.Attempts) != 1 || !strings.Contains(b.report.State.Attempts[0], "rollback floor") {
		t.Errorf("attempts %q, want one that tells of the floor", b.report.State.Attempts)
	}
}

// A genuine image gives a floor of zero to whoever brings it a machine without a
// volume, or a volume of their own. That floor opens no other volume.
func TestFloorOfAnotherVolume(t *testing.T) {
	const version = 3
	// An owner's volume on a machine with a floor of 3, and a second volume.
	setUp := func(t *testing.T) (fresh func() *boot, h *luks2.Header, id, other []byte, m *tpmtest.Machine) {
		m = tpmtest.Start(t)
		if err := tpm.New(m).Extend(t.Context(), 7, []byte("firmware")); err != nil {
			t.Fatal(err)
		}
		fresh = func() *boot {
			b := measuring(t, m, config.UnlockTPM2)
			if err := b.openTPM(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.readFloor(t.Context())
			return b
		}
		h, key, _ := volume(t)
		id, other = luks2.VolumeKeyID(key, state.DeviceName, h.UUID()), bytes.Repeat([]byte{5}, 32)
		h, err := h.RemoveKeyslot(0)
		if err != nil {
			t.Fatal(err)
		}
		b := fresh()
		b.sys.Rand = rand.Reader
		if h, err = b.enrollTPM(t.Context(), h, key); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(b.makePin(t.Context(), id), b.makeFloor(t.Context(), id), b.settleFloor(t.Context(), version, id)); err != nil {
			t.Fatal(err)
		}
		return fresh, h, id, other, m
	}
	undefine := func(m *tpmtest.Machine) { m.MustRun("", "tpm2_nvundefine", "0x1c05ea2", "-C", "o") }
	for _, tt := range []struct {
		name   string
		attack func(t *testing.T, fresh func() *boot, other []byte, m *tpmtest.Machine)
		floor  int  // as the TPM has it then
		opens  bool // the owner's volume
	}{
		{"control", func(*testing.T, func() *boot, []byte, *tpmtest.Machine) {}, version, true},
		{"first_boot_anew", func(t *testing.T, fresh func() *boot, other []byte, m *tpmtest.Machine) {
			undefine(m)
			if err := fresh().makeFloor(t.Context(), other); err != nil {
				t.Fatal(err)
			}
		}, 0, false},
		{"first_boot_with_the_floor_there", func(t *testing.T, fresh func() *boot, other []byte, _ *tpmtest.Machine) {
			if err := fresh().makeFloor(t.Context(), other); err != nil {
				t.Fatal(err)
			}
		}, version, false},
		{"own_volume_at_the_prompt", func(t *testing.T, fresh func() *boot, other []byte, m *tpmtest.Machine) {
			undefine(m)
			b := fresh()
			if err := b.floorFor(other); !errors.Is(err, errNoFloor) {
				t.Errorf("floorFor = %v, want errNoFloor", err)
			}
			if err := b.settleFloor(t.Context(), 0, other); err != nil {
				t.Fatal(err)
			}
		}, 0, false},
		{"own_volume_with_the_floor_there", func(t *testing.T, fresh func() *boot, other []byte, _ *tpmtest.Machine) {
			b := fresh()
			if err := b.floorFor(other); !errors.Is(err, errOtherFloor) || b.report.Floor.Known {
				t.Errorf("floorFor = %v, floor %+v, want errOtherFloor and none known", err, b.report.Floor)
			}
			if err := b.settleFloor(t.Context(), 0, other); err != nil {
				t.Fatal(err)
			}
		}, version, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fresh, h, id, other, m := setUp(t)
			tt.attack(t, fresh, other, m)
			b := fresh()
			if b.rollback.lost != nil || b.rollback.Value != tt.floor {
				t.Errorf("floor %+v, want %d", b.rollback, tt.floor)
			}
			key := b.unlockByTPM(t.Context(), h)
			if (key != nil) != tt.opens {
				t.Errorf("the TPM opens the volume: %v, want %v, attempts %q", key != nil, tt.opens, b.report.State.Attempts)
			}
			if b.report.Floor.Known != tt.opens {
				t.Errorf("report %+v", b.report.Floor)
			}
			if tt.opens {
				return
			}
			// The control: but for the floor the TPM opens it.
			b = fresh()
			b.cfg.Trust.RollbackFloor = false
			if b.unlockByTPM(t.Context(), h) == nil {
				t.Errorf("control, without a floor: attempts %q", b.report.State.Attempts)
			}
			// A person opens it, and sets the floor that it remembers.
			b = fresh()
			_ = b.floorFor(id)
			if err := b.settleFloor(t.Context(), version, id); err != nil {
				t.Fatal(err)
			}
			if b = fresh(); b.rollback.Value != version || b.unlockByTPM(t.Context(), h) == nil {
				t.Errorf("floor %+v, attempts %q, want %d and an open volume", b.rollback, b.report.State.Attempts, version)
			}
		})
	}
}

// What starts the machine next time is the same kernel image: the floor does not
// rise above it, whatever the root is.
func TestFloorStaysBelowTheKernelImage(t *testing.T) {
	id := bytes.Repeat([]byte{5}, 32)
	for _, tt := range []struct {
		name         string
		loader       config.Loader
		kernel, root int
		lost         bool // the TPM has no floor, else it is 0
		floor        int
		reason       slots.Reason // of the refusal
	}{
		{"same_version", config.LoaderUKI, 3, 3, false, 3, ""},
		{"kernel_of_the_older_slot", config.LoaderUKI, 1, 3, false, 0, ""},
		{"nobody_vouches_for_the_kernel", config.LoaderGRUB, 1, 3, false, 3, ""},
		{"older_root", config.LoaderUKI, 3, 1, false, 0, ""},
		{"lost_and_the_kernel_of_the_older_slot", config.LoaderUKI, 1, 3, true, 0, slots.WrongKernel},
		{"lost_and_older_root", config.LoaderUKI, 3, 1, true, 0, slots.RollbackFloor},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := tpmtest.Start(t)
			if err := tpm.New(m).Extend(t.Context(), 7, []byte("firmware")); err != nil {
				t.Fatal(err)
			}
			b := measuring(t, m, config.UnlockTPM2)
			if err := b.openTPM(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.readFloor(t.Context())
			if !tt.lost {
				if err := b.makeFloor(t.Context(), id); err != nil {
					t.Fatal(err)
				}
			}
			b.cfg.Boot.Loader, b.cfg.SecurityVersion, b.report.Root.SecurityVersion = tt.loader, tt.kernel, tt.root
			err := b.settleFloor(t.Context(), 3, id)
			if _, reason := classOf(err); (err != nil) != (tt.reason != "") || err != nil && reason != tt.reason {
				t.Errorf("settleFloor: %v (%s), want %q", err, reason, tt.reason)
			}
			if b.rollback.Value != tt.floor || tt.lost != (b.rollback.lost != nil) {
				t.Errorf("floor %+v, want %d", b.rollback, tt.floor)
			}
			if err := errors.Join(b.aboveFloor("b", tt.root), b.kernelAboveFloor("b")); err != nil {
				t.Errorf("the next boot: %v", err)
			}
		})
	}
}
