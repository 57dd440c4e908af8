package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"sealroot/init/config"
	"sealroot/mount"
	"sealroot/mount/blockdev"
	"sealroot/slots"
	"sealroot/slots/gpt"
	"sealroot/state"
	"sealroot/state/layout"
)

// pcrTable holds the firmware's measurement of the partition table.
const pcrTable = 5

// unfinishedDir is where an unfinished partition is mounted to look into it.
const unfinishedDir = "unfinished"

// statePartition is the state partition. A disk without one, as an image that was
// flashed to a larger medium, gets one where the configuration has the state made
// at the first boot. Unfinished: its file system was written just now, and is to
// be finished by finishOuter.
//
// Crash points: those of gpt.AddState and gpt.FinishState. In between the
// partition is marked as unfinished, and all of it is done anew.
func (b *boot) statePartition(ctx context.Context) (part blockdev.Partition, unfinished bool, err error) {
	part, err = b.disk.Partition(gpt.LabelState)
	missing := errors.Is(err, gpt.ErrNotFound)
	if b.cfg.State.Create != config.CreateFirstBoot || err != nil && !missing || err == nil && !b.disk.StateUnfinished() {
		return part, false, err
	}
	if err := b.mayAdd(ctx); err != nil {
		return part, false, err
	}
	kind := state.Filesystem(b.cfg.State.PartitionFilesystem)
	if missing {
		if err := b.disk.AddState(b.sys.Rand, kind.LeastPartition(state.Filesystem(b.cfg.State.Filesystem)), state.CheckPlace); err != nil {
			return part, false, err
		}
		if part, err = b.disk.Partition(gpt.LabelState); err != nil {
			return part, false, err
		}
		b.sys.Log.Info("state: added a partition of %d MiB behind the others", part.Size>>20)
	}
	if !missing {
		if err := b.stillEmpty(part.Node, kind); err != nil {
			return part, false, err
		}
	}
	dev, err := blockdev.Open(part.Node, true)
	if err == nil {
		err = errors.Join(state.WriteFilesystem(dev, kind, b.sys.Rand), dev.Close())
	}
	if err != nil {
		return part, false, fmt.Errorf("cannot make the file system of the state partition: %w", err)
	}
	return part, true, nil
}

// stillEmpty refuses to write over an unfinished partition that holds a state: the
// table's mark is a bit, which a tool may have set by mistake. What does not mount
// must be as it was left before anything could mount it.
func (b *boot) stillEmpty(node string, kind state.Filesystem) error {
	const place = runDir + "/" + unfinishedDir
	if err := mkdirs(place); err != nil {
		return err
	}
	if kind == state.Btrfs { // a cut may have torn it, and then neither would help
		b.mendOuter(node)
	}
	fs := foreignFilesystem(string(kind), node)
	if kind == state.Ext4 {
		fs.Options = []string{"errors=continue"} // its journal is ours, and whole only with it
	}
	if err := b.sys.Mounter.MountIn(fs, mount.Place{Root: runDir, Path: unfinishedDir}); err != nil {
		b.sys.Log.Info("state: cannot look into the unfinished partition: %v", err)
		dev, openErr := blockdev.Open(node, false)
		if openErr != nil {
			return errors.Join(openErr, os.Remove(place))
		}
		return errors.Join(neverMounted(dev, err), dev.Close(), os.Remove(place))
	}
	dir, err := openDir(place)
	if err == nil {
		err = errors.Join(holdsNoState(dir), dir.Close())
	}
	return errors.Join(err, b.sys.Mounter.Unmount(place), os.Remove(place))
}

// neverMounted refuses an unfinished partition of which it cannot be told that it
// never held anything; cause is why it does not mount now.
func neverMounted(r io.ReaderAt, cause error) error {
	if err := state.CheckUnmounted(r); err != nil {
		return fmt.Errorf("the state partition is marked as unfinished (attribute bit 48), but was mounted before, and now: %w: %w; nothing was changed", cause, err)
	}
	return nil
}

// holdsNoState returns an error where anything of a state lies in dir. None is made
// there before the partition is marked as finished.
func holdsNoState(dir *os.File) error {
	for _, name := range []string{layout.Provisioned, layout.Image, layout.ImageSubvolume, layout.Volume} {
		there, err := state.Exists(dir, name)
		if err != nil {
			return fmt.Errorf("cannot look into the unfinished state partition: %w", err)
		}
		if there {
			return fmt.Errorf("the state partition is marked as unfinished (attribute bit 48), but holds %s; nothing was changed. Clear the bit: sgdisk -A N:clear:48", name)
		}
	}
	return nil
}

// mayAdd refuses to make a state partition on a machine that had one, and where
// the next boot would have another PCR than the key of the volume is sealed to.
func (b *boot) mayAdd(ctx context.Context) error {
	why, err := b.tpmRemembers(ctx)
	switch {
	case err != nil:
		return stateError(slots.TPM, "%w", err)
	case why != "":
		return fmt.Errorf("there is no finished state partition, but %s; nothing was changed", why)
	case slices.Contains(b.cfg.State.TPM2.PCRs, pcrTable):
		return fmt.Errorf("cannot add a state partition: state.tpm2.pcrs names PCR %d, which would change with the table", pcrTable)
	}
	return nil
}

// finishOuter grows the file system of a partition that was added, and says in the
// table that it is finished.
func (b *boot) finishOuter(dir *os.File, part blockdev.Partition) error {
	if err := state.GrowOuter(dir, part.Size); err != nil {
		return err
	}
	return b.disk.FinishState()
}
