package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/qr"
	"sealroot/init/report"
	"sealroot/slots"
	"sealroot/state"
	"sealroot/state/enrol"
	"sealroot/state/layout"
	"sealroot/state/luks2"
	"sealroot/state/tpm"
)

// Keyslots and tokens of a new volume; other tools find the best one first.
const (
	tpmKeyslot      = 0
	recoveryKeyslot = 1
	manageKeyslot   = 3 // 2 is left for a key file
)

// firstBoot makes the volume where none ever was, or where the one that is there
// came with the image. A missing file on a machine that had one is a message to its
// owner, never a new volume; and so is a prebuilt one.
func (b *boot) firstBoot(ctx context.Context, prebuilt *state.Prebuilt) error {
	found := state.ErrNoImage
	if prebuilt != nil {
		found = state.ErrPrebuilt
	}
	why, err := b.provisioned(ctx)
	if err != nil {
		return stateError(slots.TPM, "%w", err)
	}
	if why != "" {
		return stateError(slots.StateDamaged, "%w, but %s; nothing was changed: put the file back, or reset the state on purpose", found, why)
	}
	if b.cfg.State.Create != config.CreateFirstBoot {
		return stateError(slots.StateDamaged, "%w, and state.create is %q, so that none is made", found, b.cfg.State.Create)
	}
	if prebuilt != nil {
		b.sys.Log.Info("state: the volume that came with the image is replaced")
	}
	b.sys.Log.Info("state: first boot, creating the encrypted volume")
	var recovery, manage []byte
	defer func() { clear(recovery); clear(manage) }()
	v, err := state.Create(b.volume.outer, b.sys.Devices, state.CreateParams{
		Label:      b.cfg.Name,
		Rand:       b.randomness(ctx),
		Filesystem: state.Filesystem(b.cfg.State.Filesystem),
		Device:     state.DeviceSize(b.cfg.State.Device),
		Replaces:   prebuilt,
		Enroll: func(h *luks2.Header, key []byte) (*luks2.Header, error) {
			h, err := b.enrollTPM(ctx, h, key)
			if err != nil {
				return nil, err
			}
			id := luks2.VolumeKeyID(key, state.DeviceName, h.UUID())
			if err := errors.Join(b.makePin(ctx, id), b.makeFloor(ctx, id)); err != nil {
				return nil, err
			}
			if h, err = b.enrollKeyFile(ctx, h, key); err != nil {
				return nil, err
			}
			if h, recovery, err = b.enrollRecovery(ctx, h, key); err != nil {
				return nil, err
			}
			h, manage, err = b.enrollManage(ctx, h, key)
			return h, err
		},
		Mounting: b.mounting(),
		Fill:     func(root *os.File) error { return fillVolume(root, recovery, manage) },
	})
	if err != nil {
		return stateError(createReason(err), "cannot create the encrypted volume: %w", err)
	}
	b.volume.volume = v
	b.report.State.Unlocked = report.UnlockedCreated
	b.sys.Log.Info("state: created, %d MiB reserved", v.Reserved>>20)
	b.keepPin(ctx, v.KeyID)
	b.identify(ctx, v)
	b.describe(v)
	b.setMarks(ctx, v)
	return nil
}

func createReason(err error) slots.Reason {
	if errors.Is(err, enrol.ErrNotBacked) || errors.Is(err, tpm.ErrNoTPM) {
		return slots.TPM
	}
	return slots.StateDamaged
}

// randomness mixes the kernel's pool with the TPM's generator: at a machine's
// very first boot either alone may be weak.
func (b *boot) randomness(ctx context.Context) io.Reader {
	if b.tpm.dev == nil {
		return b.sys.Rand
	}
	return state.MixRandom(b.sys.Rand, readerFunc(func(p []byte) (int, error) {
		ctx, cancel := context.WithTimeout(ctx, tpmTime)
		defer cancel()
		r, err := b.tpm.dev.GetRandom(ctx, len(p))
		defer clear(r)
		return copy(p, r), err
	}))
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// enrollTPM seals a new random secret under the configured policy and adds the
// keyslot and token for it.
func (b *boot) enrollTPM(ctx context.Context, h *luks2.Header, key []byte) (*luks2.Header, error) {
	if !b.sealsState() {
		return h, nil
	}
	policy, err := b.sealablePolicy(ctx)
	if err != nil {
		return nil, err
	}
	pin, err := b.firstPIN(ctx)
	if err != nil {
		return nil, err
	}
	defer clear(pin)
	token, pass, err := b.sealNew(ctx, policy, pin)
	if err != nil {
		return nil, err
	}
	defer clear(pass)
	token.Keyslots = []int{tpmKeyslot}
	text, err := token.Encode()
	if err != nil {
		return nil, err
	}
	b.report.State.Token, b.report.State.Keyslot = tpmKeyslot, tpmKeyslot
	b.report.TPM.Policy, b.report.TPM.PCRs, b.report.TPM.PIN = b.cfg.State.TPM2.Policy, token.AllPCRs(), token.PIN
	return enrol.Add(h, tpmKeyslot, key, pass, text, b.sys.Rand)
}

// enrollManage adds the keyslot by which root on the running system changes
// keyslots, where the configuration wants that. The key is kept in the volume.
func (b *boot) enrollManage(ctx context.Context, h *luks2.Header, key []byte) (*luks2.Header, []byte, error) {
	if !b.cfg.State.ManageKey {
		return h, nil, nil
	}
	manage, err := enrol.NewManageKey(b.randomness(ctx))
	if err == nil {
		h, err = enrol.Add(h, manageKeyslot, key, manage, enrol.ManageToken(manageKeyslot), b.sys.Rand)
	}
	return h, manage, err
}

// sealablePolicy is the policy of a new secret, once it is known that one may be
// sealed in this boot.
func (b *boot) sealablePolicy(ctx context.Context) (tpm.Policy, error) {
	if b.tpm.dev == nil || b.tpm.broken != nil {
		return tpm.Policy{}, fmt.Errorf("cannot seal to the TPM: %w", b.tpm.broken)
	}
	if err := b.closedBefore(); err != nil {
		return tpm.Policy{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, tpmTime)
	defer cancel()
	policy, err := b.provisionPolicy(ctx)
	if err == nil {
		err = enrol.NothingAdded(ctx, b.tpm.dev, b.cfg.State.TPM2, policy)
	}
	policy.PIN = b.cfg.State.TPM2.PIN
	return policy, err
}

// sealNew is enrol.Seal within a time limit.
func (b *boot) sealNew(ctx context.Context, policy tpm.Policy, pin []byte) (tpm.Token, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, enrolTime)
	defer cancel()
	return enrol.Seal(ctx, b.tpm.dev, policy, pin, b.randomness(ctx))
}

// provisionPolicy is the configured policy after the checks that it means
// something on this machine.
func (b *boot) provisionPolicy(ctx context.Context) (tpm.Policy, error) {
	policy, err := b.statePolicy()
	if err != nil {
		return tpm.Policy{}, err
	}
	if err := enrol.Measured(ctx, b.tpm.dev, policy, false); err != nil {
		return tpm.Policy{}, err
	}
	return policy, nil
}

// enrollRecovery adds the recovery key as the configuration wants it. The key
// is returned where it is to be kept inside the volume.
func (b *boot) enrollRecovery(ctx context.Context, h *luks2.Header, key []byte) (*luks2.Header, []byte, error) {
	if b.cfg.State.Recovery == config.RecoveryNone {
		return h, nil, nil
	}
	recovery, err := luks2.GenerateRecoveryKey(b.randomness(ctx))
	if err != nil {
		return nil, nil, err
	}
	if b.cfg.State.Recovery == config.RecoveryShow {
		defer clear(recovery)
		if err := b.showRecovery(ctx, recovery); err != nil {
			if len(h.Keyslots()) == 0 {
				return nil, nil, fmt.Errorf("cannot enrol a recovery key: %w", err)
			}
			b.warn("the recovery key was not enrolled: %v", err)
			return h, nil, nil
		}
	}
	h, err = enrol.Add(h, recoveryKeyslot, key, recovery, luks2.RecoveryToken(recoveryKeyslot), b.sys.Rand)
	if err != nil {
		clear(recovery)
		return nil, nil, err
	}
	switch b.cfg.State.Recovery {
	case config.RecoveryLater:
		return h, recovery, nil
	case config.RecoveryEscrow:
		defer clear(recovery)
		if err := b.escrowKey(ctx, recovery, config.EscrowDir); err != nil {
			return nil, nil, err
		}
	}
	return h, nil, nil
}

// showRecovery shows the recovery key on the console devices only and waits for
// a key press: a key that nobody saw must not be enrolled.
func (b *boot) showRecovery(ctx context.Context, recovery []byte) error {
	c, err := b.openConsole()
	if err != nil {
		return err
	}
	defer c.Close()
	c.Clear()
	showCode(c, recovery)
	c.Print("sealroot: the recovery key of this machine's encrypted state (also as QR code):\n    ")
	c.PrintSecret(recovery)
	c.Print("\nWrite it down now: it is shown once, and opens the state when the TPM does not.\nThen press any key. Without a key press it will not be enrolled.")
	err = c.WaitKey(ctx, keyLimit)
	c.Clear()
	return err
}

// keyLines is how many lines of text showRecovery puts below the code: with it they
// fill a screen of 25. Where less is seen than was printed, it is the text that stays.
const keyLines = 4

// showCode shows the key as a QR code. Every line is a write of its own: Clear wipes
// no more than that out of the drivers.
func showCode(c Console, recovery []byte) {
	var code qr.Code
	defer code.Wipe()
	if code.Encode(recovery) != nil {
		return // too long to be one of our keys
	}
	line := make([]byte, 0, 256)
	for n := range qr.Rows {
		line = code.AppendRow(line[:0], n)
		c.PrintSecretIf(qr.Columns, qr.Rows+keyLines, line)
		clear(line)
	}
}

// fillVolume puts sealroot's private directory into a new volume, with the keys
// that are kept there.
func fillVolume(root *os.File, recovery, manage []byte) error {
	if err := unix.Mkdirat(int(root.Fd()), layout.Private, 0o700); err != nil {
		return fmt.Errorf("cannot make %s in the new volume: %w", layout.Private, err)
	}
	return errors.Join(keep(root, layout.RecoveryKey, recovery), keep(root, layout.ManageKey, manage))
}

// keep writes a key, if there is one, into a new file of the volume.
func keep(root *os.File, name string, key []byte) error {
	if key == nil {
		return nil
	}
	fd, err := unix.Openat(int(root.Fd()), name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("cannot keep %s in the volume: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if _, err := f.Write(key); err != nil {
		return fmt.Errorf("cannot keep %s in the volume: %w", name, err)
	}
	return f.Sync()
}

// recoveryState tells what status nags about.
func recoveryState(h *luks2.Header, volumeRoot string) string {
	for _, t := range h.Tokens() {
		if t.Type != luks2.RecoveryTokenType {
			continue
		}
		for _, suffix := range []string{"", layout.PendingSuffix} {
			var st unix.Stat_t
			if unix.Lstat(filepath.Join(volumeRoot, layout.RecoveryKey+suffix), &st) == nil {
				return report.RecoveryWaiting
			}
		}
		return report.RecoveryEnrolled
	}
	return report.RecoveryNone
}
