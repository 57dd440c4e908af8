package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"sealroot/init/config"
	"sealroot/mount/blockdev"
	"sealroot/slots"
	"sealroot/slots/gpt"
	"sealroot/state"
)

// pcrTable holds the firmware's measurement of the partition table.
const pcrTable = 5

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
	if missing {
		if err := b.disk.AddState(b.sys.Rand, state.LeastPartition, state.CheckPlace); err != nil {
			return part, false, err
		}
		if part, err = b.disk.Partition(gpt.LabelState); err != nil {
			return part, false, err
		}
		b.sys.Log.Info("state: added a partition of %d MiB behind the others", part.Size>>20)
	}
	dev, err := blockdev.Open(part.Node, true)
	if err == nil {
		err = errors.Join(state.WriteFilesystem(dev, b.sys.Rand), dev.Close())
	}
	if err != nil {
		return part, false, fmt.Errorf("cannot make the file system of the state partition: %w", err)
	}
	return part, true, nil
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
