package resize

import (
	"context"
	"errors"

	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
)

// Reclaim gives both sides what neither has: what balloons hold and is reserved all the
// same, after a boot without the record or a step that was cut, and what is reserved behind
// the end; and it records what balloons hold since the boot. For who starts: nobody may be
// there who resizes. A volume that needs a repair is left to that; one that is read-only
// although balloons hold all that is not reserved becomes writable: its boot had no record
// that says so, and the next one has.
func Reclaim(ctx context.Context, v Resizer) error {
	s, err := v.Measure()
	if err != nil || s.OverCommitted > 0 || s.Copied > 0 || s.ReadOnly && s.GivenBack == 0 {
		return err
	}
	if s, err = v.Repair(ctx); err == nil && s.ReadOnly {
		_, err = v.MakeWritable()
	}
	return err
}

// reclaimEnd gives back what is reserved behind the end, which a growing that was cut has
// left, or a shrinking that failed: a boot does it only after one that ended in order. While
// it is frozen, nobody makes the file system larger: whoever does that writes behind its end
// first. Where somebody writes for long in one call it stays reserved, which costs no more
// than its room.
func (v *Volume) reclaimEnd(m measured) error {
	end := balloon.Up(v.begin+m.Spanned, v.unit)
	if v.classic || m.ReadOnly || m.OverCommitted > 0 || end >= m.Apparent {
		return nil // with classic devices the file ends there
	}
	behind, err := files.Reserved(v.image, end, m.Apparent)
	if err != nil || len(behind) == 0 {
		return err
	}
	_ = v.Sync() // whileFrozen does, and then what runs is asked for long before the freeze
	if !v.in.freezes() {
		return nil
	}
	same := false
	err = v.whileFrozen(func() error {
		// What has to be on the disk to look again is there: the freeze has written it.
		now, err := v.in.spanned(false)
		if same = err == nil && now == m.Spanned; same {
			err = v.giveBack(behind...)
		}
		return err
	})
	if errors.Is(err, ErrFrozen) {
		return nil // somebody else has frozen it
	}
	if same { // what takes long comes after it: who is killed while it is frozen leaves it so
		err = errors.Join(err, v.keep())
	}
	return err
}
