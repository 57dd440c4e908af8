package boot

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/mount/kmod"
	"sealroot/slots"
	"sealroot/state"
	"sealroot/state/layout"
	"sealroot/state/tpm"
)

// openedState is the state partition as this boot has it.
type openedState struct {
	outer  *os.File // root of the state partition's file system
	volume *state.Volume
}

// readOnly tells whether nothing may be written to the volume.
func (o openedState) readOnly() bool { return o.volume != nil && o.volume.ReadOnly != nil }

// markName is the mark "provisioned" on the state partition. With the TPM's
// mark it keeps a lost encrypted.img from being taken for a first boot.
const markName = layout.Provisioned

// openState finds the state partition and opens or creates the encrypted
// volume on it. What cannot be opened goes down the configured ladder and never
// touches a committed slot.
func (b *boot) openState(ctx context.Context) error {
	if err := b.sameDisk(); err != nil {
		return err
	}
	if b.cfg.State.Create == config.CreateNone {
		b.report.State.Unlocked = report.UnlockedNone
		return b.volatileState(config.CreateNone)
	}
	if err := b.loader.LoadGroup(ctx, kmod.GroupState); err != nil {
		b.warn("%v", err)
	}
	err := b.mountOuter(ctx)
	if err == nil {
		err = b.openVolume(ctx)
	}
	if err == nil {
		return nil
	}
	if err = b.stateFailed(err); err == nil {
		b.makeVoucher(ctx)
	}
	return err
}

// stateFailed decides what follows a state that did not open.
func (b *boot) stateFailed(err error) error {
	if errors.Is(err, errReboot) {
		return err
	}
	if errors.Is(err, errRestart) {
		return environmentError(slots.IOError, "%w", err)
	}
	if class, reason := classOf(err); class == slots.ImageFailure || reason == slots.WrongKernel {
		return err // the volume is open, and what runs must not have it
	}
	b.failed("state", "", err)
	return b.withoutState(err)
}

// mountOuter mounts the state partition. Its file system is anybody's, so
// nothing on it can run, be a device, or lead elsewhere.
func (b *boot) mountOuter(ctx context.Context) error {
	part, unfinished, err := b.statePartition(ctx)
	if err != nil {
		return stateError(slots.StateDamaged, "%w", err)
	}
	kind, mended := b.mendOuter(part.Node)
	fs := mount.Filesystem{
		Type: string(kind), Source: part.Node, Options: kind.MountOptions(),
		Attr: mount.NoSUID | mount.NoDev | mount.NoExec | mount.NoSymfollow,
	}
	if err := b.checkOuter(ctx, part.Node, mended); errors.Is(err, errRestart) {
		return err
	} else if err != nil {
		return b.showDamaged(fs, err)
	}
	if err := b.mountIn(fs, mount.Place{Root: newRoot, Path: "state"}); err != nil {
		return stateError(slots.StateDamaged, "cannot mount the state partition: %w", err)
	}
	dir, err := openDir(stateDir)
	if err != nil {
		return stateError(slots.StateDamaged, "cannot open the state partition: %w", err)
	}
	if unfinished {
		if err := b.finishOuter(dir, part); err != nil {
			dir.Close()
			return stateError(slots.StateDamaged, "%w", err)
		}
	}
	if err := unix.Mkdirat(int(dir.Fd()), state.MountDir, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		dir.Close()
		return stateError(slots.StateDamaged, "cannot make the mount point of the volume: %w", err)
	}
	b.volume.outer, b.outerFS = dir, fs
	return nil
}

// openVolume opens encrypted.img, or makes it when nothing was ever there.
func (b *boot) openVolume(ctx context.Context) error {
	if b.cfg.State.Plain() {
		return b.openPlain(ctx)
	}
	if done, err := b.resetFirst(ctx); done || err != nil {
		return err
	}
	var prebuilt *state.Prebuilt
	v, err := state.Open(b.volume.outer, b.sys.Devices, state.DeviceSize(b.cfg.State.Device), func(l *state.LockedVolume) ([]byte, error) {
		if prebuilt = state.PrebuiltOf(l.Header); prebuilt != nil {
			return nil, b.leavePrebuilt(ctx, l.Header)
		}
		b.binding.volume = l
		return b.unlockOrReset(ctx, l.Header)
	})
	if errors.Is(err, errReset) {
		return b.beginReset(ctx, state.ResetByKey)
	}
	if errors.Is(err, state.ErrNoImage) || errors.Is(err, state.ErrPrebuilt) {
		return b.firstBoot(ctx, prebuilt)
	}
	if err != nil {
		return stateError(unlockReason(err), "%w", err)
	}
	if v.Mended {
		b.warn("the encrypted volume: %s", mendedText)
	}
	b.keepPin(ctx, v.KeyID)
	if !b.floorAfterMount() {
		b.identify(ctx, v) // what the kernel does with the volume's file system cannot undo it
	}
	if v.ReadOnly == nil { // e2fsck would write where nothing is reserved
		err = b.checkFilesystem(ctx, "the encrypted volume", v.Device(), v.Superblock)
	}
	switch {
	case errors.Is(err, errRestart):
		return errors.Join(err, v.Close())
	case err != nil:
		v.ReadOnly = err
		b.setDegraded(err)
	}
	err = v.Mount(b.volume.outer, b.mounting())
	if v.ReadOnly != nil {
		b.report.State.ReadOnly = v.ReadOnly.Error()
		b.warn("the encrypted volume is read-only: %v", v.ReadOnly)
	}
	if v.Unreplayed != nil {
		b.warn("the encrypted volume: cannot replay its journal, which may hold the latest changes: %v", v.Unreplayed)
	}
	if err != nil {
		return stateError(slots.StateDamaged, "%w", errors.Join(err, v.Close()))
	}
	b.volume.volume = v
	if err := b.keepFloor(ctx, v); err != nil {
		return errors.Join(err, b.closeVolume())
	}
	if err := b.obeyRequest(ctx, v); err != nil {
		return err
	}
	if b.floorAfterMount() {
		b.identify(ctx, v)
	}
	b.describe(v)
	b.setMarks(ctx, v)
	return nil
}

// closeVolume takes the opened volume away again: what goes on without it must
// not have it. Errors: state.ErrMapped.
func (b *boot) closeVolume() error {
	v := b.volume.volume
	b.volume.volume = nil
	return errors.Join(b.unmountVolume(), v.Close())
}

// unmountVolume takes the mount at /state/encrypted out of the report, too.
func (b *boot) unmountVolume() error {
	list := b.report.Mounts
	for i := range list {
		if list[i].Where == encryptedDir[len(newRoot):] {
			b.report.Mounts = append(list[:i], list[i+1:]...)
			break
		}
	}
	return b.sys.Mounter.Unmount(encryptedDir)
}

func unlockReason(err error) slots.Reason {
	if errors.Is(err, errLocked) {
		return slots.UnlockRefused
	}
	return slots.StateDamaged
}

// volumeAttr are the attributes at /state/encrypted; each bind has its own.
const volumeAttr = mount.NoSUID | mount.NoDev | mount.NoExec

// mounting is how the volume is mounted at /state/encrypted.
func (b *boot) mounting() state.Mounting {
	return state.Mounting{Mount: b.mountVolume, Unmount: b.unmountVolume}
}

func (b *boot) mountVolume(device string, kind state.Filesystem, options []string) (*os.File, error) {
	fs := mount.Filesystem{Type: string(kind), Source: device, Options: options, Attr: volumeAttr}
	if err := b.mountIn(fs, mount.Place{Root: stateDir, Path: state.MountDir}); err != nil {
		return nil, err
	}
	b.volumeFS = fs
	root, err := openDir(encryptedDir)
	if err != nil {
		return nil, errors.Join(err, b.unmountVolume())
	}
	return root, nil
}

// openDir opens the root directory of a file system that was mounted just now,
// for reading and for ioctls.
func openDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// identify measures which volume was opened, whatever its token said.
func (b *boot) identify(ctx context.Context, v *state.Volume) {
	if !capsPCRs {
		return // this closes PCR 15 too
	}
	b.measure(ctx, tpm.Event{PCR: pcrVolume, Data: v.KeyID, Text: "cryptsetup:" + state.DeviceName + ":" + v.Header.UUID()})
}

// floorAfterMount: a floor that the volume asks for may be written once it is
// mounted, and the policy for that wants PCR 15 at zero.
func (b *boot) floorAfterMount() bool {
	return b.cfg.Trust.RollbackFloor && b.cfg.State.TPM2.Policy == config.PolicyPCRs
}

// describe puts the mounted volume into the report.
func (b *boot) describe(v *state.Volume) {
	b.report.State.UUID = v.Header.UUID()
	b.report.State.ReservedBytes = v.Reserved
	b.recordKeys()
	b.report.State.Recovery = recoveryState(v.Header, encryptedDir)
	b.escrowState()
}

// setMarks sets the marks "provisioned" where they are missing: after creation,
// and after a power cut between creation and here. The TPM's follows the pin.
func (b *boot) setMarks(ctx context.Context, v *state.Volume) {
	f, err := unix.Openat(int(b.volume.outer.Fd()), markName, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err == nil {
		err = errors.Join(unix.Fsync(f), unix.Close(f), b.volume.outer.Sync())
	}
	if err != nil && !errors.Is(err, unix.EEXIST) && v.ReadOnly == nil {
		b.warn("cannot mark the state partition as provisioned: %v", err)
	}
	if b.tpm.dev == nil || !b.sealsState() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tpmTime)
	defer cancel()
	_, set, err := b.tpm.dev.ReadMark(ctx)
	if anew := b.report.State.Unlocked == report.UnlockedCreated || b.report.State.Pinned == report.PinnedAnew; err == nil && set && !anew {
		return
	}
	var mark tpm.Mark
	if mark.Volume, err = uuidBytes(v.Header.UUID()); err == nil {
		err = b.tpm.dev.WriteMark(ctx, mark)
	}
	if err != nil {
		b.warn("cannot set the TPM's mark \"provisioned\": %v", err)
	}
}

// provisioned tells whether a volume was ever made here.
func (b *boot) provisioned(ctx context.Context) (string, error) {
	marked, err := state.Exists(b.volume.outer, markName)
	if err != nil {
		return "", fmt.Errorf("cannot look for %s: %w", markName, err)
	}
	if marked {
		return "the state partition is marked as provisioned", nil
	}
	return b.tpmRemembers(ctx)
}

// tpmRemembers is the part of provisioned that the TPM knows.
func (b *boot) tpmRemembers(ctx context.Context) (string, error) {
	if !b.sealsState() {
		return "", nil
	}
	if b.tpm.dev == nil {
		return "", fmt.Errorf("cannot ask the TPM whether a volume was made: %w", b.tpm.broken)
	}
	ctx, cancel := context.WithTimeout(ctx, tpmTime)
	defer cancel()
	mark, set, err := b.tpm.dev.ReadMark(ctx)
	if err != nil {
		return "", fmt.Errorf("cannot ask the TPM whether a volume was made: %w", err)
	}
	if set {
		return fmt.Sprintf("the TPM remembers that volume %x was made on this machine", mark.Volume), nil
	}
	return "", nil
}

func uuidBytes(text string) (id [16]byte, err error) {
	b, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(b) != 16 {
		return id, fmt.Errorf("cannot read UUID %q", text)
	}
	return [16]byte(b), nil
}
