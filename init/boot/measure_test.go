package boot

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"sealroot/init/config"
	"sealroot/slots"
	"sealroot/state/tpm"
	"sealroot/state/tpm/tpmtest"
)

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
		Trust: config.Trust{RollbackFloor: true},
	}.WithDefaults()
	sys := &System{
		Log: NewLog(io.Discard), Now: time.Now,
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
	if err := b.makeFloor(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.raiseFloor(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	b = fresh()
	if err := b.floorLost(); err != nil || b.rollback.floor != 3 {
		t.Errorf("floor %d, %v, want 3", b.rollback.floor, err)
	}
	if err := b.makeFloor(t.Context()); err != nil || fresh().rollback.floor != 3 {
		t.Errorf("a new volume made the floor %d, %v, want 3 as before", fresh().rollback.floor, err)
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
		b.cfg.SecurityVersion, b.fw.Stub = version, true
		err := b.kernelAboveFloor("a")
		class, reason := classOf(err)
		if (err == nil) != ok || err != nil && (class != slots.EnvironmentFailure || reason != slots.WrongKernel) {
			t.Errorf("kernel image of security version %d: %v (%s, %s), want ok %v", version, err, class, reason, ok)
		}
		b.fw.Stub = false // nobody vouches for the initramfs: it may say what it likes
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
