package boot

import (
	"bytes"
	"crypto/rand"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/state"
	"sealroot/state/luks2"
	"sealroot/state/tpm"
	"sealroot/state/tpm/tpmtest"
)

// pinned is a machine with a volume that its first boot has pinned.
type pinned struct {
	t     *testing.T
	m     *tpmtest.Machine
	h     *luks2.Header
	id    []byte
	other []byte // identity of another volume
	fw    firmware
	pcrs  []int // state.tpm2.pcrs; nil: the default
}

func newPinned(t *testing.T) *pinned {
	t.Helper()
	m := tpmtest.Start(t)
	if err := tpm.New(m).Extend(t.Context(), 7, []byte("firmware")); err != nil {
		t.Fatal(err)
	}
	p := &pinned{t: t, m: m, other: bytes.Repeat([]byte{5}, 32), fw: firmware{EFI: true, Stub: true, SecureBoot: true}}
	h, key, _ := volume(t)
	p.id = luks2.VolumeKeyID(key, state.DeviceName, h.UUID())
	h, err := h.RemoveKeyslot(tpmKeyslot)
	if err != nil {
		t.Fatal(err)
	}
	b := p.boot()
	b.sys.Rand = rand.Reader
	if p.h, err = b.enrollTPM(t.Context(), h, key); err != nil {
		t.Fatal(err)
	}
	if err := b.makePin(t.Context(), p.id); err != nil {
		t.Fatal(err)
	}
	return p
}

// boot is one boot of the machine, up to its state.
func (p *pinned) boot() *boot {
	p.t.Helper()
	b := measuring(p.t, p.m, config.UnlockTPM2)
	b.fw = p.fw
	b.cfg.Trust.RollbackFloor = false
	if p.pcrs != nil {
		b.cfg.State.TPM2.PCRs = p.pcrs
	}
	if err := b.openTPM(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	return b
}

func (p *pinned) pin(id []byte) {
	p.t.Helper()
	if err := p.boot().makePin(p.t.Context(), id); err != nil {
		p.t.Fatal(err)
	}
}

// The TPM opens the volume that it has pinned, and no other. One that a person opens
// is pinned where none is.
func TestPin(t *testing.T) {
	undefine := func(p *pinned) { p.m.MustRun("", "tpm2_nvundefine", "0x1c05ea3", "-C", "o") }
	for _, tt := range []struct {
		name   string
		attack func(p *pinned)
		opens  bool
		why    string
		// After a person has opened the volume:
		pinned string
		loud   bool // another volume than the one that is pinned
		next   bool // the next boot unlocks by itself
	}{
		{"untouched", func(*pinned) {}, true, "", report.PinnedYes, false, true},
		// What D can make without any secret: a blob that our TPM unseals.
		{"another_volume_is_pinned", func(p *pinned) { p.pin(p.other) }, false, errOtherVolume.Error(), report.PinnedNo, true, false},
		{"undefined", undefine, false, tpm.ErrUnpinned.Error(), report.PinnedAnew, false, true},
		{"defined_by_the_owner", func(p *pinned) {
			undefine(p)
			p.m.MustRun("", "tpm2_nvdefine", "0x1c05ea3", "-C", "o", "-s", "36", "-g", "sha256", "-a", "ownerwrite|authwrite|authread|no_da")
		}, false, tpm.ErrUnpinned.Error(), report.PinnedAnew, false, true},
		// The TPM refuses by itself: a pin of here and now is of no use, and the old
		// one is good again once the firmware is as it was.
		{"PCR_changed", func(p *pinned) {
			if err := tpm.New(p.m).Extend(p.t.Context(), pcrVolume, []byte("x")); err != nil {
				p.t.Fatal(err)
			}
		}, false, "changed", report.PinnedYes, false, false},
		{"PCR_changed_and_another_volume", func(p *pinned) {
			p.pin(p.other)
			if err := tpm.New(p.m).Extend(p.t.Context(), pcrVolume, []byte("x")); err != nil {
				p.t.Fatal(err)
			}
		}, false, "changed", report.PinnedNo, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPinned(t)
			tt.attack(p)
			b := p.boot()
			key := b.unlockByTPM(t.Context(), p.h)
			reasons := strings.Join(b.report.State.Attempts, "\n")
			if (key != nil) != tt.opens || !strings.Contains(reasons, tt.why) || len(b.report.State.Attempts) > 1 {
				t.Fatalf("the TPM opens the volume: %v, want %v, attempts %q, want %q", key != nil, tt.opens, b.report.State.Attempts, tt.why)
			}
			b.keepPin(t.Context(), p.id)
			if b.report.State.Pinned != tt.pinned {
				t.Errorf("pinned: %q, want %q, warnings %q", b.report.State.Pinned, tt.pinned, b.report.Warnings)
			}
			if loud := strings.Contains(strings.Join(b.report.Warnings, "\n"), "ANOTHER VOLUME"); loud != tt.loud {
				t.Errorf("warnings %q, want one of another volume: %v", b.report.Warnings, tt.loud)
			}
			if next := p.boot().unlockByTPM(t.Context(), p.h) != nil; next != tt.next {
				t.Errorf("the next boot unlocks by itself: %v, want %v", next, tt.next)
			}
		})
	}
}

// A pin that the TPM could not read stays, whatever a person has opened meanwhile.
func TestPinThatCouldNotBeRead(t *testing.T) {
	p := newPinned(t)
	b := p.boot()
	b.tpm.dev = tpm.New(failing{Machine: p.m, code: tpm2.TPMCCNVRead})
	if b.unlockByTPM(t.Context(), p.h) != nil {
		t.Fatal("unlocked, and the pin was not read")
	}
	b.tpm.dev = tpm.New(p.m) // it is well again
	if b.keepPin(t.Context(), p.other); b.report.State.Pinned != report.PinnedNo {
		t.Errorf("pinned: %q, want %q", b.report.State.Pinned, report.PinnedNo)
	}
	if p.boot().unlockByTPM(t.Context(), p.h) == nil {
		t.Error("the volume is not the pinned one any more")
	}
}

// A floor that is lost keeps the TPM from being asked at all. Whoever opens the
// volume then need not come a second time for the pin.
func TestPinAndFloorLost(t *testing.T) {
	p := newPinned(t)
	p.m.MustRun("", "tpm2_nvundefine", "0x1c05ea3", "-C", "o")
	boot := func() *boot {
		b := p.boot()
		b.cfg.Trust.RollbackFloor, b.cfg.SecurityVersion = true, 3
		b.readFloor(t.Context())
		return b
	}
	b := boot()
	if b.unlockByTPM(t.Context(), p.h) != nil {
		t.Fatal("unlocked without floor and pin")
	}
	b.keepPin(t.Context(), p.id)
	if err := b.settleFloor(t.Context(), 3, p.id); err != nil {
		t.Fatal(err)
	}
	if b = boot(); b.unlockByTPM(t.Context(), p.h) == nil {
		t.Errorf("the next boot does not unlock by itself: %q", b.report.State.Attempts)
	}
}

// Where the TPM cannot keep the pin there is no volume: a later boot could not tell
// it from an attacker's.
func TestNoVolumeWithoutPin(t *testing.T) {
	p := newPinned(t)
	b := p.boot()
	b.tpm.dev = tpm.New(failing{Machine: p.m, code: tpm2.TPMCCNVWrite})
	if err := b.makePin(t.Context(), p.other); err == nil {
		t.Error("makePin succeeds on a TPM that does not write")
	}
	b.tpm.broken = errors.New("cannot measure")
	if err := b.makePin(t.Context(), p.other); !errors.Is(err, b.tpm.broken) {
		t.Errorf("makePin after a failed measurement: %v", err)
	}
	b = p.boot()
	b.cfg.State.Unlock = []string{config.UnlockPassphrase}
	b.tpm.dev = nil
	if err := b.makePin(t.Context(), p.other); err != nil {
		t.Errorf("a state that is not sealed to the TPM: %v", err)
	}
	if b.keepPin(t.Context(), p.other); b.report.State.Pinned != "" {
		t.Errorf("pinned: %q, want nothing said", b.report.State.Pinned)
	}
	if key := p.boot().unlockByTPM(t.Context(), p.h); key == nil {
		t.Error("the first volume is not the pinned one any more")
	}
}

// An update changes literal PCRs, and with them what the pin is written under. Under
// GRUB, where an attacker can run another system anyway, the volume that the TPM opens
// is pinned anew without a person; a pin of another volume refuses there too.
func TestPinAfterAnUpdate(t *testing.T) {
	undefine := func(p *pinned) { p.m.MustRun("", "tpm2_nvundefine", "0x1c05ea3", "-C", "o") }
	another := func(p *pinned) { p.pin(p.other) }
	secure, uki, bios := firmware{EFI: true, Stub: true, SecureBoot: true}, firmware{EFI: true, Stub: true}, firmware{}
	for _, tt := range []struct {
		name   string
		fw     firmware
		loader config.Loader
		change func(p *pinned)
		opens  bool
	}{
		{"Secure_Boot", secure, config.LoaderUKI, undefine, false},
		// The policy may be the same with Secure Boot on again.
		{"Secure_Boot_switched_off", uki, config.LoaderUKI, undefine, false},
		{"no_variable_of_the_stub", bios, config.LoaderUKI, undefine, false},
		{"GRUB", bios, config.LoaderGRUB, undefine, true},
		{"GRUB_and_another_volume", bios, config.LoaderGRUB, another, false},
		{"EFI_GRUB", firmware{EFI: true}, config.LoaderGRUB, undefine, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPinned(t)
			p.fw = tt.fw
			tt.change(p)
			boot := func() *boot {
				b := p.boot()
				b.cfg.Boot.Loader = tt.loader
				return b
			}
			b := boot()
			if opens := b.unlockByTPM(t.Context(), p.h) != nil; opens != tt.opens {
				t.Fatalf("the TPM opens the volume: %v, want %v, attempts %q", opens, tt.opens, b.report.State.Attempts)
			}
			if !tt.opens {
				return
			}
			b.keepPin(t.Context(), p.id)
			if b.report.State.Pinned != report.PinnedAnew || len(b.report.Warnings) != 1 {
				t.Errorf("pinned: %q, warnings %q, want %q and one warning", b.report.State.Pinned, b.report.Warnings, report.PinnedAnew)
			}
			// It counts from now on.
			if b := boot(); b.ours(t.Context(), p.id) != nil || b.adopts(b.ours(t.Context(), p.other)) {
				t.Error("the volume is not the pinned one, or another is taken too")
			}
		})
	}
	// Signed policies hold on rows of their own, whatever this boot says of itself.
	for _, policy := range []string{config.PolicySignedPCR11And7, config.PolicySignedPCR11And4} {
		b := newPinned(t).boot()
		b.fw, b.cfg.State.TPM2 = firmware{}, config.TPM2{Policy: policy}
		for _, b.cfg.Boot.Loader = range []config.Loader{config.LoaderUKI, config.LoaderGRUB} {
			if b.adopts(tpm.ErrUnpinned) {
				t.Errorf("%s takes a volume that is not pinned", policy)
			}
		}
	}
}

// PCRs changed, and a person has opened the volume: it is pinned for the present
// ones beside those of before, so that a token for them is all that is missing.
func TestPinForChangedPCRs(t *testing.T) {
	p := newPinned(t)
	under := func(b *boot) *boot {
		b.cfg.State.TPM2.PCRs = []int{8}
		return b
	}
	grub := func(text string) {
		if err := tpm.New(p.m).Extend(t.Context(), 8, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	grub("grub.cfg")
	if err := under(p.boot()).makePin(t.Context(), p.id); err != nil { // as if made here
		t.Fatal(err)
	}
	grub("another grub.cfg")
	b := under(p.boot())
	b.keepPin(t.Context(), p.id)
	if b.report.State.Pinned != report.PinnedAnew || strings.Contains(strings.Join(b.report.Warnings, "\n"), "by itself") {
		t.Errorf("pinned: %q, warnings %q, want anew, and no promise", b.report.State.Pinned, b.report.Warnings)
	}
	if b := under(p.boot()); b.ours(t.Context(), p.id) != nil {
		t.Error("the next boot does not know the volume")
	}
}
