package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"sealroot/state/layout"
	"sealroot/state/luks2"
)

// A factory reset destroys what opens the volume, then takes the file away.
//
// Crash points:
//
//  1. the first sector of encrypted.img becomes the mark "reset begun", sync
//  2. the beginning of the second header copy, wherever it may lie, sync. From
//     here on no header is left, and the mark counts; before, the volume opens as
//     ever, by its second copy.
//  3. random bytes over all in front of the data: headers and keyslots, sync
//  4. the mark "provisioned" away, sync; the escrow away; then the file, sync
//
// From 2 on every cut leaves the mark, and whoever finds it goes on from 2. Behind
// 4 there is nothing, as before a first boot. The mark alone, in front of a header
// that can be read, starts nothing: what it says is then not true yet, or somebody
// else wrote it. Without a header there is nothing to lose, whoever wrote it.

// ResetBy says who had the right to reset.
type ResetBy byte

const (
	ResetBySystem   ResetBy = 1 + iota // root on the running system
	ResetByKey                         // a person at the console with a key of the volume
	ResetByPresence                    // a person at the console, state.reset: physical-presence
)

// String is for the report.
func (by ResetBy) String() string {
	switch by {
	case ResetBySystem:
		return "running-system"
	case ResetByKey:
		return "key"
	case ResetByPresence:
		return "physical-presence"
	}
	return "unknown"
}

const (
	resetMagic = "sealroot-reset\x00\x01"
	// sector is what a disk writes as a whole.
	sector = 512
	// At least so much in front of the data is destroyed, and no more than
	// maxDestroyed: the bounds of what a header may claim, in bytes.
	minDestroyed = 16 << 20
	maxDestroyed = 256 << 20
)

// resetMark is the sector: magic (16 bytes), who (1), zero (7), how many bytes are
// destroyed (u64, big endian), SHA-256 of that, zero.
func resetMark(by ResetBy, n int64) []byte {
	b := make([]byte, sector)
	copy(b, resetMagic)
	b[16] = byte(by)
	binary.BigEndian.PutUint64(b[24:], uint64(n))
	sum := sha256.Sum256(b[:32])
	copy(b[32:], sum[:])
	return b
}

func parseResetMark(b []byte) (by ResetBy, n int64, ok bool) {
	if len(b) != sector || string(b[:len(resetMagic)]) != resetMagic {
		return 0, 0, false
	}
	by, n = ResetBy(b[16]), int64(binary.BigEndian.Uint64(b[24:]))
	if !bytes.Equal(b, resetMark(by, n)) || n < 0 || n > maxDestroyed {
		return 0, 0, false
	}
	return by, n, true
}

// ResetBegun tells whether encrypted.img in dir is what a reset has left that was
// begun, and who began it. A file that is not there, or not ours, is none.
func ResetBegun(dir *os.File) (by ResetBy, begun bool, err error) {
	f, err := openImage(dir, unix.O_RDONLY)
	if errors.Is(err, ErrNoImage) || errors.Is(err, ErrNotImage) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, false, err
	}
	by, _, begun, err = resetBegun(f, info.Size())
	return by, begun, err
}

func resetBegun(r io.ReaderAt, size int64) (by ResetBy, n int64, begun bool, err error) {
	mark := make([]byte, sector)
	if _, err := r.ReadAt(mark, 0); err != nil && !errors.Is(err, io.EOF) {
		return 0, 0, false, fmt.Errorf("cannot read %s: %w", ImageName, err)
	}
	by, n, ok := parseResetMark(mark)
	if !ok {
		return 0, 0, false, nil
	}
	_, err = luks2.Read(r, size)
	if errors.Is(err, luks2.ErrNotLUKS2) {
		return by, n, true, nil
	}
	if err != nil && !errors.Is(err, luks2.ErrHeader) && !errors.Is(err, luks2.ErrUnsupported) {
		return 0, 0, false, fmt.Errorf("cannot read %s: %w", ImageName, err)
	}
	return 0, 0, false, nil
}

// RoomAfterReset tells whether a new volume, with a file system f inside, has room once
// encrypted.img in dir is gone. Errors: ErrNoRoom, ErrNotImage.
func RoomAfterReset(dir *os.File, f Filesystem) error {
	free, err := freeIn(dir)
	if err != nil {
		return err
	}
	image, err := openImage(dir, unix.O_RDONLY)
	if err == nil {
		defer image.Close()
		var held int64
		held, err = allocated(image)
		free += held
	}
	if err == nil || errors.Is(err, ErrNoImage) {
		_, err = SizesFor(f, free, 0)
	}
	return err
}

// BeginReset destroys headers and keyslots of encrypted.img in dir, which must not
// be open. It does so again for a file of which that was begun. When it has failed,
// ResetBegun says what is left. Errors: ErrNoImage, ErrNotImage, ErrInUse.
func BeginReset(dir *os.File, by ResetBy, random io.Reader) error {
	f, err := OpenImage(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("cannot inspect %s: %w", ImageName, err)
	}
	if err := destroy(f, info.Size(), by, random); err != nil {
		return fmt.Errorf("cannot destroy the keyslots in %s: %w", ImageName, err)
	}
	return nil
}

// resetFile is a file that is destroyed.
type resetFile interface {
	io.ReaderAt
	luks2.Writer
}

func destroy(f resetFile, size int64, by ResetBy, random io.Reader) error {
	before, n, begun, err := resetBegun(f, size)
	if err != nil {
		return err
	}
	if begun {
		by = before
	} else if h, err := luks2.Read(f, size); err == nil {
		n = int64(h.DataOffset())
	}
	n = min(max(n, minDestroyed), maxDestroyed, size)
	noise := make([]byte, BlockSize)
	write := func(b []byte, at int64) error {
		_, err := io.ReadFull(random, b)
		if err == nil {
			_, err = f.WriteAt(b, at)
		}
		return err
	}
	_, err = f.WriteAt(resetMark(by, n), 0)
	// crash point: the mark, and the volume opens by its second header copy. That goes
	// in this order: what lies in front of the copy belongs to the first one.
	for at := int64(luks2.MinHeader); at <= luks2.MaxHeader && at+sector <= size && err == nil; at *= 2 {
		if err = f.Sync(); err == nil {
			err = write(noise[:sector], at)
		}
	}
	if err == nil {
		err = f.Sync()
	}
	// crash point: the mark, and no header; keyslots are left
	for at := int64(sector); at < n && err == nil; {
		b := noise[:min(BlockSize-at%BlockSize, n-at)]
		// No room is for a hole alone, and a hole holds no keyslot.
		if err = write(b, at); errors.Is(err, unix.ENOSPC) {
			err = nil
		}
		at += int64(len(b))
	}
	if err == nil {
		err = f.Sync()
	}
	return err
}

// FinishReset takes away what a reset leaves: the mark "provisioned", the escrow of
// the old recovery key and encrypted.img itself. What else lies in dir stays.
func FinishReset(dir *os.File) error {
	// The file last: until it is gone it says that a reset was begun.
	for _, name := range [...]string{layout.Provisioned, EscrowName, Placed(dir, ImageName)} {
		if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("cannot remove %s: %w", name, err)
		}
		if err := unix.Syncfs(int(dir.Fd())); err != nil {
			return fmt.Errorf("cannot sync the state partition: %w", err)
		}
	}
	return nil
}
