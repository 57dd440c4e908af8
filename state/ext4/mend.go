package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Disk is what Mend changes. An alias: a type of its own is one more in PID 1.
type Disk = interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Mend makes good what a power cut tore and the kernel refuses to mount, and says so: the
// superblock, or the end of the journal. size is that of the disk, in bytes. The error
// is the disk's.
func Mend(d Disk, size int64) (mended bool, err error) {
	sb := make([]byte, superblockBytes)
	if n, err := d.ReadAt(sb, superblockOffset); n < len(sb) {
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		return false, fmt.Errorf("cannot read ext4 superblock: %w", err)
	}
	s, err := parseSuperblock(sb)
	if errors.Is(err, ErrSuperblock) {
		if mended, err = mendSuperblock(d, sb, size); !mended {
			return false, err
		}
		s, err = parseSuperblock(sb)
	}
	if err != nil || !s.NeedsRecovery {
		return mended, nil // fine, or not ours at all
	}
	cut, err := mendJournal(d, sb)
	return mended || cut, err
}

// mendSuperblock makes a superblock valid again. A disk
// writes sectors of 512 bytes whole, and the superblock has two: of the second one the
// kernel changes hardly more than the checksum, which then is not that of the first.
// The kernel and e2fsck -p refuse such a file system, although all else in it is as
// the journal makes it.
//
// Only a superblock is mended whose geometry and features are those of a file system
// as we and mke2fs make it, of at most size bytes, and in which nothing contradicts
// the rest: one that is damaged otherwise stays as it is, for e2fsck.
func mendSuperblock(d Disk, sb []byte, size int64) (mended bool, err error) {
	if !plausible(sb) {
		return false, nil
	}
	binary.LittleEndian.PutUint32(sb[sbChecksum:], superblockSum(sb))
	s, err := parseSuperblock(sb)
	if err != nil || s.Bytes() > uint64(max(size, 0)) {
		return false, nil
	}
	if _, err = d.WriteAt(sb, superblockOffset); err == nil {
		err = d.Sync()
	}
	if err != nil {
		return false, fmt.Errorf("cannot write ext4 superblock: %w", err)
	}
	return true, nil
}

// MarkErrors has the superblock say that there are errors, as the kernel does when it finds
// some: until e2fsck has looked at all of the file system. The journal takes that not
// back. The error is the disk's, or one of ReadSuperblock.
func MarkErrors(d Disk) error {
	sb := make([]byte, superblockBytes)
	_, err := d.ReadAt(sb, superblockOffset)
	if err == nil {
		_, err = parseSuperblock(sb)
	}
	if err == nil {
		sb[sbState] |= stateErrors
		binary.LittleEndian.PutUint32(sb[sbChecksum:], superblockSum(sb))
		_, err = d.WriteAt(sb, superblockOffset)
	}
	if err == nil {
		err = d.Sync()
	}
	if err != nil {
		return fmt.Errorf("cannot mark ext4 as damaged: %w", err)
	}
	return nil
}

// Features that such a file system may have (fs/ext4/ext4.h).
const (
	compatKnown   = 0x4 | 0x8 | 0x10 | 0x20 | 0x1000                                                // journal, attributes, resize inode, hashed directories, orphan file
	incompatKnown = 0x2 | incompatRecover | 0x10 | incompatExtents | incompat64Bit | 0x200 | 0x2000 // types in directories, meta groups, flex groups, seed of checksums
	roCompatKnown = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | roCompatChecksum | 0x10000                      // sparse superblocks, large and huge files, many links, large inodes, orphans
)

// plausible tells whether a superblock is of a file system with blocks of 4 KiB and
// inodes of 256 bytes as mke2fs makes it, with as many inodes as its groups have.
func plausible(sb []byte) bool {
	le := binary.LittleEndian
	const blocksInGroup = 8 * 4096
	for at, want := range map[int]uint32{
		0x14: 0, sbLogBlockSize: 2, 0x1c: 2, 0x20: blocksInGroup, 0x24: blocksInGroup, // first data block, sizes and numbers of blocks and clusters
		0x4c: 1, 0x54: 11, 0x58: 256, 0xe0: 8, // revision, first inode, inode size in the primary copy, inode of the journal
	} {
		if le.Uint32(sb[at:]) != want {
			return false
		}
	}
	blocks := uint64(le.Uint32(sb[sbBlocksLow:])) | uint64(le.Uint32(sb[sbBlocksHigh:]))<<32
	groups := (blocks + blocksInGroup - 1) / blocksInGroup
	inodes, free, inGroup := le.Uint32(sb), le.Uint32(sb[0x10:]), le.Uint32(sb[0x28:])
	return uint64(inodes) == groups*uint64(inGroup) && free <= inodes && inGroup%16 == 0 && inGroup <= blocksInGroup &&
		sb[sbChecksumType] == 1 &&
		le.Uint32(sb[sbCompat:])&^compatKnown == 0 &&
		le.Uint32(sb[sbIncompat:])&^incompatKnown == 0 &&
		le.Uint32(sb[sbROCompat:])&^roCompatKnown == 0
}
