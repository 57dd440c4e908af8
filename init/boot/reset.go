package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/slots"
	"sealroot/slots/efi"
	"sealroot/state"
	"sealroot/state/binds"
	"sealroot/state/luks2"
	"sealroot/state/reset"
)

// A factory reset is asked for, never a consequence: by root on the running system,
// in a file of the volume that only that system can write; or from outside, by the
// command line or an EFI variable, which are anybody's, so that a person at the
// console has to agree.
//
// Crash points: the TPM's mark "provisioned" is taken away, then the volume is
// destroyed (state.BeginReset), then the machine restarts, so that the new volume
// is sealed to PCRs that hold neither the old one's identity nor a word typed at
// the boot loader. That boot finds what the reset has left and finishes it, as it
// would after a cut: pins, mark "provisioned", file; and then it is a first boot.
//   - a cut in front of the destruction leaves the volume, and the request in it; one
//     from outside is forgotten. The TPM's mark is set again when the volume opens.
//   - a cut behind it leaves a file that says so, see state.BeginReset
//   - a cut behind the file's end leaves a machine that never had a volume
//
// The rollback floor stays: the first boot takes its height over (makeFloor).

// errReset: a person with a key of the volume wants it destroyed.
var errReset = errors.New("factory reset")

// errResetNever: the configuration has no reset.
var errResetNever = errors.New("state.reset is never")

// Limits of the questions: a boot that nobody attends goes on soon.
const (
	resetIdle  = time.Minute
	resetTries = 3
)

// resetFirst does what comes before the volume is opened: it finishes a reset that
// was begun, or asks the person at the console about one that is asked for from
// outside. done: there is a new volume.
func (b *boot) resetFirst(ctx context.Context) (done bool, err error) {
	by, begun, err := state.ResetBegun(b.volume.outer)
	if err != nil {
		return false, stateError(slots.StateDamaged, "%w", err)
	}
	if begun {
		if err = b.finishReset(ctx, by); err == nil {
			err = b.firstBoot(ctx, nil)
		}
		return true, err
	}
	from := b.resetAskedBy()
	if from == "" {
		return false, nil
	}
	err = b.mayReset(ctx)
	if b.trialWithStandIn() {
		err = errors.New("this slot is on trial")
	}
	if err != nil {
		b.warn("a factory reset that %s asks for is refused: %v", from, err)
		return false, nil
	}
	if !b.agreed(ctx, from) {
		b.warn("a factory reset that %s asks for was not agreed to at the console; nothing was changed", from)
		return false, nil
	}
	if b.cfg.State.Reset == config.ResetPresence {
		return true, b.beginReset(ctx, state.ResetByPresence)
	}
	b.resetAgreed = true
	return false, nil
}

// resetAskedBy says who asks for a reset from outside; "" when nobody does. The
// variable is gone afterwards, so that it asks once.
func (b *boot) resetAskedBy() string {
	if vars := b.efiVars(); vars != nil {
		asked, err := efi.TakeFactoryReset(vars)
		if err != nil {
			b.warn("%v", err)
		}
		if asked {
			return "the EFI variable FactoryReset"
		}
	}
	if b.cmd.Reset {
		return "the kernel command line"
	}
	return ""
}

// mayReset refuses a reset behind which there would be no new volume.
func (b *boot) mayReset(ctx context.Context) error {
	switch s := b.cfg.State; {
	case s.Reset == config.ResetNever:
		return errResetNever
	case s.Create != config.CreateFirstBoot:
		return errors.New("no new volume would be made: state.create is " + s.Create)
	}
	if b.sealsState() {
		if b.tpm.broken != nil {
			return b.tpm.broken
		}
		ctx, cancel := context.WithTimeout(ctx, tpmTime)
		defer cancel()
		if _, err := b.provisionPolicy(ctx); err != nil {
			return err
		}
	}
	return state.RoomAfterReset(b.volume.outer, state.Filesystem(b.cfg.State.Filesystem))
}

// agreed asks for the word yes.
func (b *boot) agreed(ctx context.Context, from string) bool {
	c, err := b.openConsole()
	if err != nil {
		return false
	}
	defer c.Close()
	defer b.watchDrivers(ctx)()
	c.Flush()
	c.Print("\n\nsealroot: FACTORY RESET: " + from + " asks for it.\n" +
		"All that this machine keeps in its encrypted state is lost for good: settings, accounts, home directories.\n" +
		"Without an answer nothing is changed and the boot goes on in a minute.\n" +
		"sealroot: destroy it? Type yes and press Enter (it is not shown): ")
	yes := saysYes(ctx, c)
	c.Print("\n")
	return yes
}

// unlockOrReset is unlock, and errReset instead where a reset was agreed to and a
// key of the volume is given for it.
func (b *boot) unlockOrReset(ctx context.Context, h *luks2.Header) ([]byte, error) {
	if b.resetAgreed && b.resetAllowed(ctx, h) {
		return nil, errReset
	}
	return b.unlock(ctx, h)
}

// resetAllowed is allowReset for a reset that was agreed to; why not, is warned of.
func (b *boot) resetAllowed(ctx context.Context, h *luks2.Header) bool {
	err := b.allowReset(ctx, h)
	if err != nil {
		b.warn("the factory reset is refused, nothing was changed: %v", err)
	}
	return err == nil
}

// allowReset asks for a key of this machine's volume. The TPM's PIN is one, where
// the TPM opens the volume with it.
func (b *boot) allowReset(ctx context.Context, h *luks2.Header) error {
	if b.sealsState() && b.cfg.State.TPM2.PIN {
		if key := b.unlockByTPM(ctx, h); key != nil {
			clear(key)
			return nil
		}
	}
	c, err := b.openConsole()
	if err != nil {
		return err
	}
	defer c.Close()
	defer b.watchDrivers(ctx)()
	c.Print("sealroot: for the factory reset a key of the volume is needed.\n")
	key, _, err := b.typedKey(ctx, c, h, resetTries, resetIdle)
	if err != nil {
		return err
	}
	id := luks2.VolumeKeyID(key, state.DeviceName, h.UUID())
	clear(key)
	// Whoever put a volume of their own here has a key of that one only.
	if b.sealsState() && errors.Is(b.ours(ctx, id), errOtherVolume) {
		return errOtherVolume
	}
	return nil
}

// beginReset destroys the volume, which is not open, and has the machine restart.
func (b *boot) beginReset(ctx context.Context, by state.ResetBy) error {
	err := b.forgetMark(ctx)
	if err == nil {
		// crash point: the volume is whole, and the TPM does not remember it
		err = state.BeginReset(b.volume.outer, by, b.sys.Rand)
	}
	if errors.Is(err, state.ErrNoImage) {
		err = state.FinishReset(b.volume.outer)
	}
	if err != nil {
		return stateError(slots.StateDamaged, "cannot reset the state: %w", err)
	}
	b.report.State.ResetBegun = by.String()
	b.warn("FACTORY RESET (%s): the volume is destroyed; restarting to make a new one", by)
	b.giveBack()
	return fmt.Errorf("factory reset: %w", errReboot)
}

// forgetMark takes the TPM's mark "provisioned" away. While it is there, nobody
// who can write to the disk alone gets a new volume.
func (b *boot) forgetMark(ctx context.Context) error {
	if !b.sealsState() {
		return nil
	}
	if b.tpm.broken != nil {
		return b.tpm.broken
	}
	ctx, cancel := context.WithTimeout(ctx, tpmTime)
	defer cancel()
	return b.tpm.dev.RemoveMark(ctx)
}

// finishReset takes away what a reset has left; what comes is a first boot.
func (b *boot) finishReset(ctx context.Context, by state.ResetBy) error {
	why, err := b.tpmRemembers(ctx)
	if why != "" {
		err = errors.New(why + ", so that somebody else has destroyed it; nothing was changed: put the file back, or reset the state on purpose")
	}
	if err == nil {
		// What a cut may have left of it.
		err = state.BeginReset(b.volume.outer, by, b.sys.Rand)
	}
	if err == nil && b.sealsState() {
		ctx, cancel := context.WithTimeout(ctx, tpmTime)
		defer cancel()
		err = errors.Join(b.tpm.dev.RemoveIdentities(ctx), b.tpm.dev.RemoveVoucher(ctx))
	}
	if err == nil {
		err = state.FinishReset(b.volume.outer)
	}
	if err != nil {
		return stateError(slots.StateDamaged, "cannot finish a factory reset of %s: %w", state.ImageName, err)
	}
	b.report.State.Reset = by.String()
	b.warn("FACTORY RESET (%s): the encrypted state of before is destroyed; a new one is made", by)
	return nil
}

// obeyRequest looks for the request in the mounted volume. With an error the volume
// is closed, and the machine restarts without it; a request that is refused is
// removed, so that it does not come true in a later boot that nobody thinks of it in.
func (b *boot) obeyRequest(ctx context.Context, v *state.Volume) error {
	if v.Unreplayed != nil { // it may have been taken back since
		b.warn("a factory reset, if one was asked for, waits until the journal of the encrypted volume is replayed")
		return nil
	}
	root, err := mount.OpenRoot(encryptedDir)
	if err != nil {
		b.warn("cannot look for a request to reset: %v", err)
		return nil
	}
	asked, keepHome, err := b.requested(ctx, root, v.Header.UUID())
	root.Close()
	if err != nil {
		b.warn("the factory reset that was asked for is refused: %v", err)
	}
	switch {
	case keepHome && v.ReadOnly != nil:
		b.warn("the factory reset that was asked for waits until the volume can be written")
		return nil
	case keepHome || !asked && v.ReadOnly == nil:
		return b.emptyVolume(asked)
	case !asked:
		return nil
	}
	if err := b.closeVolume(); err != nil {
		return err
	}
	return b.beginReset(ctx, state.ResetBySystem)
}

// emptyVolume takes away what is in the mounted volume but /home, where that is asked
// for, and in any case what a boot before this one has left of it; see state.SetAside.
func (b *boot) emptyVolume(asked bool) error {
	root, err := openDir(encryptedDir)
	if err != nil {
		b.warn("cannot look for what a reset has left: %v", err)
		return nil
	}
	defer root.Close()
	if asked {
		if err := b.setAside(root); err != nil {
			// Half of what was there must not come up.
			root.Close()
			return stateError(slots.StateDamaged, "cannot reset the state and keep /home: %w", errors.Join(err, b.closeVolume()))
		}
	}
	if err := state.RemoveAside(root); err != nil {
		b.warn("cannot remove all of what a reset takes away, the next boot tries again: %v", err)
	}
	return nil
}

// setAside obeys the request to keep /home. Where it cannot be begun it is refused as any
// other, and removed.
func (b *boot) setAside(root *os.File) error {
	err := state.SetAside(root, b.keepsHome, b.sys.Rand)
	refused := errors.Is(err, state.ErrNotSetAside)
	if err != nil && !refused {
		return err
	}
	// crash point: all is aside, or back in its place, and the request asks once more
	gone := unix.Unlinkat(int(root.Fd()), reset.File, 0)
	if gone == nil {
		gone = unix.Syncfs(int(root.Fd()))
	}
	if refused {
		b.warn("the factory reset that was asked for is refused: %v", errors.Join(err, gone))
		return nil
	}
	if gone == nil {
		b.report.State.Reset = report.ResetKeptHome
		b.warn("FACTORY RESET (%s): all in the encrypted state is removed, but /home", state.ResetBySystem)
	}
	return gone
}

// keepsHome says whether a directory in the volume is /home or bound below it, by the
// naming rule; or holds what the configuration binds there.
func (b *boot) keepsHome(name string) bool {
	list, _ := binds.Names([]string{name})
	keeps := len(list) == 1 && atHome(list[0].To)
	for _, e := range b.cfg.Binds.Extra {
		keeps = keeps || atHome(e.To) && strings.HasPrefix(e.From+"/", state.MountDir+"/"+name+"/")
	}
	return keeps
}

func atHome(to string) bool { return strings.HasPrefix(to+"/", "/home/") }

// requested reads the request in the volume of that root. err says why one is
// refused.
func (b *boot) requested(ctx context.Context, root *os.File, uuid string) (asked, keepHome bool, err error) {
	f, err := mount.OpenBeneath(root, reset.File, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, mount.Strict)
	if errors.Is(err, os.ErrNotExist) {
		return false, false, nil
	}
	if err == nil {
		keepHome, err = reset.Read(f, uuid)
		f.Close()
	}
	switch {
	case err != nil:
	case b.report.State.Pinned == report.PinnedNo:
		err = errOtherVolume
	case b.trialWithStandIn():
		b.warn("a factory reset is asked for: it waits until this slot is committed, or another one runs")
		return false, false, nil
	case keepHome && b.cfg.State.Reset == config.ResetNever:
		err = errResetNever
	case keepHome:
		return true, true, nil
	default:
		if err = b.mayReset(ctx); err == nil {
			return true, false, nil
		}
	}
	if gone := unix.Unlinkat(int(root.Fd()), reset.File, 0); gone != nil {
		err = fmt.Errorf("%w; and the request stays: %w", err, gone)
	}
	return false, false, err
}
