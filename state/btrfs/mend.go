package btrfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

// Disk is what Mend changes. An alias: a type of its own is one more in PID 1.
type Disk = interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// firstSector is how much of a superblock a disk writes at once. It has all that the
// kernel changes in it when a file is synced, and of a whole transaction all but the
// list of system chunks and the roots of earlier ones.
const firstSector = 512

// Mend makes the primary superblock valid again that a power cut tore, and says so:
// the kernel mounts by that one alone. Its first mirror is of the same transaction or
// of the one before, all of whose blocks are there until the next one has ended.
//
// The first sector is kept where it fits to the mirror: no mirror knows the log of the
// files that were synced since. Where it does not name the mirror's file system nothing
// is mended: in another file system there may be anything in the mirror's place. size is
// that of the device; the error is the disk's.
func Mend(d Disk, size int64) (mended bool, err error) {
	primary, err := readAt(d, superblockOffset)
	var mirror block
	if err == nil {
		if primary.u32(0) == primary.sum() {
			return false, nil // whole; whether it makes sense is for others to say
		}
		mirror, err = readAt(d, mirrorOffset)
	}
	if errors.Is(err, ErrNotBtrfs) { // too small
		return false, nil
	} else if err != nil {
		return false, err
	}
	_, err = parseSuperblock(mirror, mirrorOffset)
	binary.LittleEndian.PutUint64(mirror[sbPlace:], superblockOffset)
	if err != nil || !bytes.Equal(primary[sbFsid:sbGeneration], mirror[sbFsid:sbGeneration]) {
		return false, nil
	}
	whole := joined(primary, mirror)
	if s, err := parseSuperblock(whole, superblockOffset); err != nil || s.Bytes > size {
		return false, nil
	}
	if _, err = d.WriteAt(whole, superblockOffset); err == nil {
		err = d.Sync()
	}
	return err == nil, err
}

// joined is the superblock that a torn primary one gives with a mirror, which has the
// primary one's place.
func joined(primary, mirror block) block {
	both := block(bytes.Clone(mirror))
	copy(both, primary[:firstSector])
	both.setSum()
	if _, err := parseSuperblock(both, superblockOffset); err == nil {
		switch both.u64(sbGeneration) - mirror.u64(sbGeneration) {
		case 0:
			if both.u32(0) == primary.u32(0) {
				return both // what the kernel meant to write
			}
		case 1:
			// Of the next transaction, whose other sectors are lost: they are as before,
			// unless a system chunk was moved in it.
			if both.u32(sbArraySize) == mirror.u32(sbArraySize) {
				return both
			}
		}
	}
	mirror.setSum()
	return mirror
}
