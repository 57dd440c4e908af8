package resize

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"sealroot/state"
	"sealroot/state/balloon"
)

// Repair reserves what the inner file system spans and nobody has reserved: after
// a stray resize2fs, or where the file was copied sparse. When the outer file system
// has no room for that, what is free of it is held by balloons, for nobody to write
// to. Where even that is not enough, or it is read-only, nothing is reserved; the inner one
// becomes read-only, if the kernel lets it, and the error is ErrOverCommitted. What btrfs outside would write elsewhere
// is written anew, while the volume is read-only. Errors besides: ErrBusy, ErrCopied,
// ErrNoRoom.
func (v *Volume) Repair(ctx context.Context) (Sizes, error) {
	return v.locked(func() error {
		m, err := v.measure(false)
		if err != nil {
			return err
		}
		if m.ReadOnly {
			return v.repairReadOnly(ctx, m)
		}
		// Before anything is synced: what is dirty would be written to what nobody has reserved.
		if m, err = v.repair(ctx, m); err != nil {
			return err
		}
		var copied error
		if m.Copied > 0 {
			copied = v.writeAnew(ctx, m) // says what to do: it is writable
		}
		return errors.Join(copied, v.reclaimEnd(m))
	})
}

// repairReadOnly is Repair where nothing is dirty, unless only this mount is read-only: then
// somebody may write by another one.
func (v *Volume) repairReadOnly(ctx context.Context, m measured) error {
	if v.provedReadOnly() != nil {
		if after, err := v.repair(ctx, m); err != nil || after.OverCommitted > 0 {
			return err
		}
	}
	last, err := v.measure(true)
	if err != nil {
		// A volume without its reservation may not be possible to sync for just that.
		if m.OverCommitted == 0 {
			return err
		}
		_, err = v.repair(ctx, m)
		return err
	}
	var copied error
	if last.Copied > 0 {
		if copied = v.writeAnew(ctx, last); copied == nil {
			last, copied = v.measure(true)
		}
	}
	_, err = v.repair(ctx, last)
	return errors.Join(copied, err)
}

// repair returns the sizes after it.
func (v *Volume) repair(ctx context.Context, m measured) (measured, error) {
	var err error
	if m.OverCommitted > max(0, m.OuterFree-keepOutside) && !m.ReadOnly {
		// The rest, what is used and where the file system has its own tables, has to be
		// reserved in any case.
		err = v.in.hold(ctx, balloon.Shift(m.holes, -v.begin))
		had := v.begin + m.Spanned
		var merr error
		if m, merr = v.measure(false); merr != nil {
			return m, errors.Join(err, merr)
		}
		if v.begin+m.Spanned < had { // what is reserved beyond the new end makes room
			err = errors.Join(err, v.trim(m.Spanned, had))
		}
	}
	loose := balloon.Without(m.holes, m.balloons)
	if lacks := balloon.Total(loose) - m.OuterFree; lacks > -leastBalloon && len(loose) > 0 && !m.ReadOnly && !v.in.shrinks() {
		// What is free and reserved makes room for it.
		gerr := v.smaller(ctx, max(lacks, 0)+leastBalloon)
		var merr error
		if m, merr = v.measure(false); merr != nil {
			return m, errors.Join(err, gerr, merr)
		}
		loose = balloon.Without(m.holes, m.balloons)
	}
	if cerr := v.coverAll(loose, m); cerr != nil {
		return m, errors.Join(cerr, err)
	}
	// What holes are left in balloons the next boot has to know.
	given, rest := balloon.Largest(balloon.Both(m.holes, m.balloons), balloon.MaxRanges)
	if err := v.cover(rest); err != nil {
		return m, fmt.Errorf("cannot record %d MiB that are given back: %w: %w", balloon.Total(rest)>>20, ErrFragmented, err)
	}
	if recorded := v.recorded(); !slices.Equal(given, recorded) {
		if len(balloon.Without(given, recorded)) > 0 {
			// The balloon that holds it may be in memory only.
			if _, err := v.in.spanned(true); err != nil {
				return m, err
			}
		}
		if err := v.record(given); err != nil {
			return m, err
		}
	}
	if len(loose)+len(rest) > 0 {
		if m, err = v.measure(false); err != nil {
			return m, err
		}
	}
	changed, err := v.tidy(m)
	if err != nil || !changed {
		return m, err
	}
	return v.measure(false)
}

// coverAll reserves loose ranges that the file system may write to at any moment, or has it
// read-only: then nothing is reserved, for somebody needs that room to make more.
func (v *Volume) coverAll(loose []balloon.Range, m measured) error {
	err := ErrOverCommitted
	if missing := balloon.Total(loose); missing == 0 || missing <= m.OuterFree {
		err = v.cover(loose)
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("cannot reserve what the volume spans, %d MiB are missing, %d MiB are free on the state partition: %w",
		balloon.Total(loose)>>20, m.OuterFree>>20, err)
	if m.ReadOnly {
		return err
	}
	if rerr := v.remount(unix.MS_RDONLY); rerr != nil {
		// Who has a file open writes on. Nothing is free where nothing is reserved, and the
		// kernel writes no inodes there that nobody uses; as much as there is room for is reserved.
		return errors.Join(err, rerr, v.in.calm(), v.cover(loose))
	}
	return err
}

// cover reserves ranges that the file system may write to at any moment: what was
// reserved stays so, whatever comes of the rest.
func (v *Volume) cover(list []balloon.Range) error {
	if len(list) == 0 {
		return nil
	}
	for _, r := range list {
		if err := state.Reserve(v.image, r.Start, r.Bytes()); errors.Is(err, ErrNoRoom) {
			return errors.Join(err, ErrOverCommitted)
		} else if err != nil {
			return err
		}
	}
	return v.keep()
}

// MakeWritable makes a volume writable again that is read-only because it was
// over-committed: after Repair, also where that had no room. Errors: ErrBusy, ErrOverCommitted,
// ErrCopied, ErrFrozen, ErrReadOnly where its journal was not replayed, or has made it larger
// than its devices; any other where the file system is damaged.
func (v *Volume) MakeWritable() (Sizes, error) {
	return v.locked(func() error {
		m, err := v.measure(v.provedReadOnly() == nil) // else something may be dirty
		switch {
		case err != nil || !m.ReadOnly:
			return err
		case m.OverCommitted > 0 && m.OuterFree < state.HoldRoom(m.OverCommitted):
			return fmt.Errorf("cannot make the volume writable, %d MiB are missing, %d MiB are free on the state partition: %w", m.OverCommitted>>20, m.OuterFree>>20, ErrOverCommitted)
		}
		if m.Copied > 0 {
			return fmt.Errorf("cannot make the volume writable: %w", ErrCopied)
		}
		if m.Device < m.DataOffset+m.Spanned {
			return fmt.Errorf("cannot make the volume writable, its devices end before it; restart, the next boot makes them longer: %w", ErrReadOnly)
		}
		if err := errors.Join(v.in.sound(), v.replayed()); err != nil {
			return fmt.Errorf("cannot make the volume writable: %w", err)
		}
		if err := v.remount(0); errors.Is(err, unix.EBUSY) { // all that the kernel says it for
			return fmt.Errorf("%w: %w", err, ErrFrozen)
		} else if err != nil {
			return err
		}
		m.ReadOnly = false
		if m.OverCommitted == 0 {
			_, err = v.tidy(m)
			return err
		}
		return v.holdWritable(m)
	})
}

// holdWritable does without what is not reserved in a volume that was made writable just
// now, for nothing less lets it hold that; else it is read-only again. Who writes
// meanwhile writes to what the state partition still has room for: the boot
// (state.Volume.Settle) does the same while there is nobody.
func (v *Volume) holdWritable(m measured) error {
	_, err := v.repair(context.Background(), m)
	if err == nil {
		return nil
	}
	if now, merr := v.measure(false); merr == nil && (now.ReadOnly || now.OverCommitted == 0) {
		return err
	}
	return errors.Join(err, v.remount(unix.MS_RDONLY))
}

// mountAttr are the attributes of the volume's own mount, as at the boot.
const mountAttr = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// remount makes the inner file system read-only or writable, everywhere it is mounted:
// PID 1 mounts none of it read-only by itself. The kernel refuses read-only while
// somebody has a file open for writing.
func (v *Volume) remount(readOnly uintptr) error {
	if err := unix.Mount("", v.root.Name(), "", unix.MS_REMOUNT|mountAttr|readOnly, ""); err != nil {
		if readOnly != 0 {
			return fmt.Errorf("cannot make the volume read-only: %w", err)
		}
		return fmt.Errorf("cannot make the volume writable: %w", err)
	}
	return nil
}
