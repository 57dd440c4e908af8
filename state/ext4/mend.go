package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Disk is what Mend changes.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Mend makes a superblock valid again that a power cut tore, and says so. A disk
// writes sectors of 512 bytes whole, and the superblock has two: of the second one the
// kernel changes hardly more than the checksum, which then is not that of the first.
// The kernel and e2fsck -p refuse such a file system, although all else in it is as
// the journal makes it.
//
// Only a file system from our template is mended, of at most size bytes, whose
// geometry and features are the template's: a superblock that is damaged otherwise
// stays as it is, for e2fsck. The error is the disk's.
func Mend(d Disk, size int64) (mended bool, err error) {
	sb := make([]byte, superblockBytes)
	if n, err := d.ReadAt(sb, superblockOffset); n < len(sb) {
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		return false, fmt.Errorf("cannot read ext4 superblock: %w", err)
	}
	if _, err := parseSuperblock(sb); !errors.Is(err, ErrSuperblock) {
		return false, nil // fine, or not ours at all
	}
	ours, err := templateHead(superblockOffset + superblockBytes)
	if err != nil {
		return false, err
	}
	if !sameMake(sb, ours[superblockOffset:]) {
		return false, nil
	}
	binary.LittleEndian.PutUint32(sb[sbChecksum:], superblockSum(sb))
	s, err := parseSuperblock(sb)
	if err != nil || s.Bytes() > uint64(max(size, 0)) || s.Bytes() < TemplateBytes {
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

// made are the fields that neither a mount nor growing changes, first byte and
// length (fs/ext4/ext4.h).
var made = [...][2]int{
	{0x14, 0x18}, // first data block, block and cluster size, blocks, clusters and inodes for each group
	{0x38, 2},    // magic
	{0x4c, 0x10}, // revision, reserved owners, first inode, inode size
	{0xe0, 4},    // inode of the journal
	{0xfc, 4},    // hash version, backup of the journal's inode, descriptor size
	{0x174, 2},   // groups for each flex group, checksum type
	{0x270, 4},   // checksum seed
}

// Features that the kernel sets or takes away by itself.
const (
	compatResizeInode   = 0x10
	incompatMetaGroups  = 0x10
	roCompatLargeFile   = 0x2
	roCompatOrphanFiles = 0x10000
)

// sameMake tells whether a superblock is of a file system as the template has it.
func sameMake(sb, ours []byte) bool {
	for _, f := range made {
		if !bytes.Equal(sb[f[0]:][:f[1]], ours[f[0]:][:f[1]]) {
			return false
		}
	}
	differ := func(at int, but uint32) bool {
		return (binary.LittleEndian.Uint32(sb[at:])^binary.LittleEndian.Uint32(ours[at:]))&^but != 0
	}
	return !differ(sbCompat, compatResizeInode) &&
		!differ(sbIncompat, incompatRecover|incompatMetaGroups) &&
		!differ(sbROCompat, roCompatLargeFile|roCompatOrphanFiles)
}
