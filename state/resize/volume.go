package resize

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"sealroot/state"
	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/btrfs"
	"sealroot/state/luks2"
)

// keepOutside stays free in the outer file system, in bytes: it needs some blocks for
// what it keeps of the file.
const keepOutside = 16 << 20

// blockGroup is the largest one of data that btrfs makes; of a small file system a tenth.
const blockGroup = 1 << 30

// Volume is the encrypted volume of the running machine, for who resizes it.
type Volume struct {
	dir   *os.File // root of the state partition
	image *os.File // encrypted.img
	unit  int64    // in which the outer file system takes back: state.Unit
	root  *os.File // root directory of the inner file system
	in    inner
	uuid  string // of the LUKS2 header
	begin int64  // where the inner file system begins in the image
	lock  string

	classic bool // its devices end where the inner file system ends
	key     Key
	devices devices

	undisturbed func() (restore func()) // Places.Undisturbed
}

// Close closes the files; the volume stays as it is.
func (v *Volume) Close() error {
	return errors.Join(v.root.Close(), v.image.Close(), v.dir.Close())
}

// Measure tells the sizes. It changes nothing. Over-committed it says only while nobody
// resizes: what a resize gave back between one look and the other would look like that.
// Errors: ErrBusy, then only; with it come the sizes as they looked.
func (v *Volume) Measure() (Sizes, error) {
	m, err := v.measure(false)
	if err != nil || m.OverCommitted == 0 {
		return m.Sizes, err
	}
	release, err := lock(v.lock, unix.LOCK_SH)
	if err != nil {
		return m.Sizes, fmt.Errorf("cannot measure the volume: %w", err)
	}
	defer release()
	m, err = v.measure(false)
	return m.Sizes, err
}

// measured are the sizes with the ranges of the image behind them.
type measured struct {
	Sizes
	holes    []balloon.Range // not reserved, before the end of the inner file system
	balloons []balloon.Range
	copied   []balloon.Range
}

func (v *Volume) measure(durable bool) (m measured, err error) {
	info, err := v.image.Stat()
	if err != nil {
		return m, fmt.Errorf("cannot inspect %s: %w", state.ImageName, err)
	}
	var outer, in unix.Statfs_t
	if err := errors.Join(unix.Fstatfs(int(v.dir.Fd()), &outer), unix.Fstatfs(int(v.root.Fd()), &in)); err != nil {
		return m, fmt.Errorf("cannot measure the state: %w", err)
	}
	s := Sizes{
		Apparent: info.Size(), DataOffset: v.begin, Filesystem: v.in.name(), Classic: v.classic, Unit: v.unit,
		ReadOnly:  in.Flags&unix.ST_RDONLY != 0,
		OuterFree: int64(outer.Bavail) * outer.Bsize, OuterTotal: int64(outer.Blocks) * outer.Bsize,
		OuterInodes: int64(outer.Files), OuterInodesFree: int64(outer.Ffree),
	}
	device, err := v.devices.size()
	if err != nil {
		return m, err
	}
	s.Device = v.begin + device
	if s.Spanned, err = v.in.spanned(durable); err != nil {
		return m, err
	}
	if s.InnerFree, s.InnerUsed, err = v.in.usage(); err != nil {
		return m, err
	}
	if s.Inodes, err = v.in.inodes(); err != nil {
		return m, err
	}
	given, err := v.in.givenBack()
	if err != nil {
		return m, err
	}
	end := v.begin + s.Spanned
	if m.holes, err = v.holes(0, end); err != nil {
		return m, err
	}
	m.balloons = balloon.Shift(given, v.begin)
	if m.copied, err = state.CopiedOnWrite(v.image, end); err != nil {
		return m, err
	}
	s.Copied = balloon.Total(m.copied)
	if state.OuterFilesystem(v.dir) == state.Btrfs {
		moves, err := btrfs.Moves(int(v.dir.Fd()))
		if err != nil {
			return m, err
		}
		if moves {
			s.Moving = v.keepOutside(s.OuterTotal)
		}
	}
	s.InBalloons = balloon.Total(m.balloons)
	s.InnerUsed -= s.InBalloons
	m.Sizes = s.with(balloon.Total(balloon.Both(m.holes, m.balloons)), balloon.Total(m.holes), v.in.slack(s.InnerUsed), v.keepOutside(s.OuterTotal))
	least, err := v.in.least()
	if err == nil && least > 0 {
		m.MinReserved = min(m.Reserved, max(m.MinReserved, v.begin+least))
	}
	return m, err
}

// holes are the blocks of the image from start to before end that are not reserved, or
// not all of them: those of the outer file system may be smaller.
func (v *Volume) holes(start, end int64) ([]balloon.Range, error) {
	there, err := files.Reserved(v.image, start, end)
	if err != nil {
		return nil, err
	}
	holes := balloon.Without([]balloon.Range{{Start: start, End: end}}, there)
	for i, h := range holes {
		holes[i] = balloon.Range{Start: h.Start / balloon.BlockSize * balloon.BlockSize, End: (h.End + balloon.BlockSize - 1) / balloon.BlockSize * balloon.BlockSize}
	}
	return balloon.Join(holes), nil
}

func (v *Volume) keepOutside(total int64) int64 { return KeepOutside(v.unit, total) }

// KeepOutside is what a resize leaves free of an outer file system of total bytes, which
// takes back in such units (state.Unit). btrfs needs places for metadata: each write to what
// was only reserved changes some. And scrub and balance make one block group at a time
// read-only: what is written to it in that time goes elsewhere.
func KeepOutside(unit, total int64) int64 {
	if unit > balloon.BlockSize {
		return max(4*keepOutside, total/64, min(blockGroup, total/10))
	}
	return keepOutside
}

// with adds what follows from the bytes in balloons that are not reserved, all that are
// not, the slack, and what is kept free outside.
func (s Sizes) with(given, holes, slack, keep int64) Sizes {
	s.GivenBack, s.OverCommitted, s.KeptOutside = given, holes-given, keep
	s.Reserved = s.DataOffset + s.Spanned - holes
	least := max(s.DataOffset, s.Reserved-max(0, s.InnerFree-s.OverCommitted-slack))
	s.MinReserved = min(s.Reserved, balloon.Up(least, balloon.BlockSize))
	s.MaxReserved = max(s.Reserved, min(s.Reserved+s.OuterFree-keep, s.end()))
	return s
}

// end is the byte of the image that no resize gets beyond: classic devices are made larger.
func (s Sizes) end() int64 {
	if s.Classic {
		return math.MaxInt64
	}
	return min(s.Apparent, s.Device)
}

// Resize brings what is reserved for the volume to reserved bytes, in either
// direction, as near as the file systems allow, and returns the sizes after it:
// Smallest and Largest are as far as they allow in this moment. Each step is safe
// against a power cut, and stays when a later one fails. Errors: ErrNoRoom,
// ErrTooSmall, ErrTooLarge, ErrBusy, ErrReadOnly, ErrOverCommitted, ErrCopied,
// ErrFragmented, that of ctx. What it has grown by a power cut may undo until Sync.
func (v *Volume) Resize(ctx context.Context, reserved int64) (Sizes, error) {
	return v.ResizeTo(ctx, func(Sizes) int64 { return reserved })
}

// ResizeTo is Resize to what want makes of the sizes at a moment from which on nobody else
// resizes.
func (v *Volume) ResizeTo(ctx context.Context, want func(Sizes) int64) (Sizes, error) {
	return v.locked(func() error { return v.resize(ctx, want) })
}

// Sync has on stable storage what the volume has grown by, and all that is written to it:
// that may take long, and no resize needs it.
func (v *Volume) Sync() error {
	if err := unix.Syncfs(int(v.root.Fd())); err != nil {
		return fmt.Errorf("cannot sync the volume: %w", err)
	}
	return nil
}

// locked runs what changes something, alone, and measures after it.
func (v *Volume) locked(change func() error) (Sizes, error) {
	release, err := lock(v.lock, unix.LOCK_EX)
	if err != nil {
		return Sizes{}, err
	}
	defer release()
	err = change()
	m, merr := v.measure(false)
	return m.Sizes, errors.Join(err, merr)
}

// tidy brings what the inner file system holds and need not into use again. What has
// holes and is not held has to be reserved before.
func (v *Volume) tidy(m measured) (bool, error) {
	if m.ReadOnly || m.OverCommitted > 0 {
		return false, nil
	}
	return v.in.tidy(balloon.Shift(m.holes, -v.begin))
}

func (v *Volume) resize(ctx context.Context, to func(Sizes) int64) (err error) {
	// Not the durable size: to sync first takes long just when a writer needs more room.
	m, err := v.measure(false)
	if err != nil {
		return err
	}
	if m.ReadOnly {
		return fmt.Errorf("cannot resize the volume: %w", ErrReadOnly)
	}
	if m, err = v.repair(ctx, m); err != nil {
		return err
	}
	reserved := to(m.Sizes)
	want, err := m.bounded(reserved)
	if err == nil && m.NeedsKey(want) { // before anything is changed
		end := v.begin + m.Spanned + want - m.Reserved
		err = v.withKey(end, func(luks2.CryptTarget, []byte) error { return nil })
	}
	if err != nil {
		return err
	}
	first := m.Reserved
	defer func() {
		err = v.tidied(err)
		// What a step that failed after the file system was smaller has left; what grows uses it.
		if err == nil && want <= first {
			if now, merr := v.measure(false); merr == nil {
				_ = v.reclaimEnd(now) // or the next one does
			}
		}
	}()
	// More than once only where less was given back than was held for it.
	for range 4 {
		before := m.Reserved
		switch {
		case want > before:
			err = v.larger(ctx, m, want-before)
		case want < before:
			err = v.smaller(ctx, before-want)
			if errors.Is(err, ErrTooSmall) && (reserved == Smallest || before < first && before-want < v.unit) {
				return nil // as small as it gets: somebody has written meanwhile, or what is left is no unit
			}
		}
		if err != nil || want == before {
			return err
		}
		if m, err = v.measure(false); err != nil || m.Reserved == before {
			return err
		}
	}
	return nil
}

// tidied brings into use again what steps that ended with err have taken out of it and not
// given back.
func (v *Volume) tidied(err error) error {
	m, merr := v.measure(false)
	if merr != nil {
		return err
	}
	_, terr := v.tidy(m)
	err = errors.Join(err, terr)
	// Who keeps it busy may be making the file system larger, for which the kernel has asked
	// for the end of the device already.
	if m.Classic && m.Device > v.begin+m.Spanned && !errors.Is(err, unix.EBUSY) {
		_, ferr := v.fitIfAllowed()
		err = errors.Join(err, ferr)
	}
	return err
}

// bounded is the size that is asked for, in whole blocks.
func (m measured) bounded(reserved int64) (want int64, err error) {
	end := m.end()
	want = reserved / balloon.BlockSize * balloon.BlockSize
	switch {
	case reserved == Smallest:
		return m.MinReserved, nil
	case m.Copied > 0 && want > m.Reserved: // Largest too
		return 0, fmt.Errorf("cannot grow the volume, %d MiB of it are not reserved: %w", m.Copied>>20, ErrCopied)
	case reserved == Largest:
		return m.MaxReserved / balloon.BlockSize * balloon.BlockSize, nil
	case want < m.MinReserved:
		return 0, fmt.Errorf("cannot shrink the volume to %d MiB, at least %d MiB are needed: %w", want>>20, (m.MinReserved+1<<20-1)>>20, ErrTooSmall)
	case want > end:
		return 0, fmt.Errorf("cannot grow the volume to %d MiB, its device ends at %d MiB until the next boot: %w", want>>20, end>>20, ErrTooLarge)
	case want > m.MaxReserved:
		return 0, fmt.Errorf("cannot grow the volume by %d MiB, at most by %d MiB: of %d MiB free on the state partition %d MiB stay free for its own file system: %w",
			(want-m.Reserved)>>20, (m.MaxReserved-m.Reserved)>>20, m.OuterFree>>20, m.KeptOutside>>20, ErrNoRoom)
	}
	return want, nil
}

// larger reserves n bytes and lets the inner file system use them: first those that it
// has given back, then behind its end.
func (v *Volume) larger(ctx context.Context, m measured, n int64) error {
	taken, err := v.in.take(ctx, n, func(list []balloon.Range) (int64, error) {
		holes, err := v.reserve(balloon.Shift(list, v.begin))
		if err != nil {
			return 0, errors.Join(err, v.giveBack(holes...)) // a balloon holds them still
		}
		return balloon.Total(holes), nil
	})
	if taken > 0 {
		// crash point: the record has ranges that no balloon holds; the next boot
		// finds them reserved. Or, until the volume is synced, a balloon has blocks that
		// the record has not: they are reserved, and Reclaim lets go of them
		after, merr := v.measure(false)
		if merr == nil {
			merr = v.record(balloon.Both(after.holes, after.balloons))
		}
		err = errors.Join(err, merr)
	}
	if n -= taken; err != nil || n <= 0 {
		return err
	}
	return v.behind(m, n)
}

// behind reserves n bytes behind the end of the inner file system and lets it use them.
func (v *Volume) behind(m measured, n int64) error {
	end := v.begin + m.Spanned
	if _, err := v.reserve([]balloon.Range{{Start: end, End: end + n}}); err != nil {
		return errors.Join(err, v.trim(m.Spanned, end+n))
	}
	// crash point: reserved, and of no use; the next boot after a clean one gives it back
	if v.classic {
		if err := v.lengthen(end + n); err != nil {
			return errors.Join(err, v.trim(m.Spanned, end+n))
		}
	}
	err := v.in.grow(m.Spanned + n)
	if err != nil && !errors.Is(err, unix.EBUSY) {
		return errors.Join(err, v.trim(m.Spanned, end+n))
	}
	// ext4 leaves out a last group that is too small: what is reserved for it stays until
	// the next boot. Whoever else makes the file system larger just then must not lose it.
	return err
}

// reserve reserves ranges of the image and makes that last; it returns what of
// them was not. Errors: ErrNoRoom; then a part may be reserved.
func (v *Volume) reserve(list []balloon.Range) (holes []balloon.Range, err error) {
	for _, r := range list {
		there, err := v.holes(r.Start, r.End)
		if err != nil {
			return nil, err
		}
		holes = append(holes, there...)
	}
	for _, r := range holes {
		if err := state.Reserve(v.image, r.Start, r.Bytes()); err != nil {
			return holes, err
		}
	}
	return holes, v.keep()
}

// trim gives back what is reserved behind the inner file system up to byte to, if that
// has the size it had: else another program has begun to make it larger.
func (v *Volume) trim(had, to int64) error {
	spanned, err := v.in.spanned(true)
	if err != nil || spanned != had {
		return err
	}
	if v.classic {
		if done, err := v.fitIfAllowed(); done || err != nil {
			return errors.Join(err, v.giveBack())
		}
	}
	// nothing beyond the end is used
	return v.giveBack(balloon.Range{Start: balloon.Up(v.begin+spanned, v.unit), End: balloon.Up(to, v.unit)})
}

// smaller gives n bytes back.
func (v *Volume) smaller(ctx context.Context, n int64) error {
	return v.in.give(ctx, n, func(list []balloon.Range) (int64, error) { return v.release(balloon.Shift(list, v.begin)) })
}

// release gives ranges of the image back that nothing in the inner file system uses, and
// tells how many bytes. Those before its end are recorded first: without that the next
// boot would reserve them, or find no room to. What the record has no place for stays
// reserved. Errors: ErrFragmented, ErrTooSmall, ErrNoRoom.
func (v *Volume) release(list []balloon.Range) (int64, error) {
	spanned, err := v.in.spanned(false)
	if err == nil {
		list, err = v.whole(list, v.begin+spanned)
	}
	if !v.in.shrinks() { // it may be made larger at any moment
		list = balloon.Within(list, 0, v.begin+spanned)
	}
	if err != nil || len(list) == 0 {
		return 0, err
	}
	if inside := balloon.Within(list, 0, v.begin+spanned); len(inside) > 0 {
		if v.in.shrinks() {
			return 0, fmt.Errorf("cannot give back what another program has made the volume larger by: %w", ErrBusy)
		}
		recorded := v.recorded()
		fit, rest := balloon.Largest(inside, max(0, balloon.MaxRanges-len(recorded)))
		if len(fit) == 0 {
			return 0, fmt.Errorf("cannot give back more, %d pieces are given back already: %w", len(recorded), ErrFragmented)
		}
		if err := v.record(append(recorded, fit...)); err != nil {
			return 0, err
		}
		list = balloon.Without(list, rest)
	}
	if v.classic && v.in.shrinks() {
		if err := v.fit(); err != nil {
			return 0, err
		}
		return balloon.Total(list), nil
	}
	// crash point: recorded, and still reserved
	for _, r := range list {
		if err := state.Release(v.image, r.Start, r.End); err != nil {
			return 0, noRoom(err)
		}
	}
	if err := v.keep(); err != nil {
		return 0, err
	}
	return balloon.Total(list), nil
}

// keep has on stable storage what of the image is reserved. btrfs has what was given back
// free for others, and in statfs(2), only once a whole transaction has ended. What others
// write there is not waited for: it is them who need the space.
func (v *Volume) keep() error {
	err := v.image.Sync()
	if err == nil && v.unit > balloon.BlockSize {
		err = btrfs.Commit(int(v.image.Fd()))
	}
	if err != nil {
		return fmt.Errorf("cannot sync %s: %w", state.ImageName, err)
	}
	return nil
}

// whole makes of ranges that nothing uses those that the outer file system takes back:
// whole units, for which it counts what balloons hold beside the ranges, and what lies
// beyond byte end. What is left over of a unit stays reserved. Errors: ErrTooSmall, where
// it is not just a rest.
func (v *Volume) whole(list []balloon.Range, end int64) ([]balloon.Range, error) {
	if v.unit <= balloon.BlockSize || len(list) == 0 {
		return list, nil
	}
	given, err := v.in.givenBack()
	if err != nil {
		return nil, err
	}
	around := balloon.Around(list, v.unit)
	last := around[len(around)-1].End
	free := balloon.Join(list, balloon.Shift(given, v.begin), []balloon.Range{{Start: end, End: max(end, last)}})
	whole := balloon.Whole(balloon.Both(free, around), v.unit)
	if len(whole) == 0 {
		if balloon.Total(list) >= 2*v.unit {
			err = fmt.Errorf("cannot give more back, what is free lies in pieces of less than %d MiB: %w", v.unit>>20, ErrTooSmall)
		}
		return nil, err
	}
	there, err := files.Reserved(v.image, whole[0].Start, whole[len(whole)-1].End)
	return balloon.Both(whole, there), err
}
