package ext4

import (
	"encoding/binary"
	"fmt"
)

// The journal's format (include/linux/jbd2.h), big endian; offsets within a block.
const (
	journalMagic = 0xc03b3998

	journalDescriptor = 1
	journalCommit     = 2
	journalSuperblock = 4 // version 2
	journalRevoke     = 5

	headerType     = 0x04
	headerSequence = 0x08
	headerBytes    = 12
	commitSum      = 0x10

	jsbBlockSize = 0x0c
	jsbBlocks    = 0x10
	jsbFirst     = 0x14
	jsbSequence  = 0x18
	jsbStart     = 0x1c
	jsbIncompat  = 0x28
	jsbUUID      = 0x30

	// What a journal of ours may have: revocations, 64 bits, checksums of version 3.
	journalKnown = 0x1 | 0x2 | journalSums
	journalSums  = 0x10

	tagBytes    = 16 // with checksums of version 3
	tagFlags    = 4
	tagSameUUID = 2
	tagLast     = 8

	// The superblock has a copy of the root of the map of the journal's blocks: a header
	// and up to four extents, or up to four blocks with more of them (struct
	// ext4_extent_header, ext4_extent, ext4_extent_idx), little endian.
	sbJournalCopied = 0xfd
	sbJournalMap    = 0x10c
	mapRootBytes    = 60
	mapEntryBytes   = 12
	extentMagic     = 0xf30a

	// Bounds: the largest journal that mke2fs makes by itself, and blocks of its map, of
	// which that needs one.
	maxJournalBlocks = 1 << 30 / journalBlock
	maxMapBlocks     = 16

	journalBlock = 4096
	sector       = 512
)

// mendJournal makes the end of a journal valid again that a power cut tore, and says so.
// The kernel writes the block with which a transaction is committed as the last of it,
// once all else of it is on the disk, and a disk sectors of 512 bytes whole: of such a
// block the first may be there, and behind it what was there before. Linux 6.1 takes the
// wrong checksum for damage, and does not mount; later ones know that there are but zeros
// behind the first 60 bytes (jbd2_commit_block_csum_verify_partial), and so does this: it
// writes them.
//
// With any other checksum it is damage, which stays for e2fsck. sb is the superblock. The
// error is the disk's.
func mendJournal(d Disk, sb []byte) (mended bool, err error) {
	j := journal{d: d}
	if !j.locate(sb) || !j.open() {
		return false, j.err
	}
	torn, found := j.tornCommit()
	if !found || j.err != nil {
		return false, j.err
	}
	at, _ := j.place(torn)
	if _, err = d.WriteAt(j.block[:], at); err == nil {
		err = d.Sync()
	}
	if err != nil {
		return false, fmt.Errorf("cannot write ext4 journal: %w", err)
	}
	return true, nil
}

// extent is a run of the journal's blocks.
type extent struct{ first, blocks, physical int64 }

// journal is one that is looked through; err is the disk's.
type journal struct {
	d          Disk
	extents    []extent
	mapBlocks  int   // that were read
	blocks     int64 // in all extents
	first, end int64 // its blocks but for the superblock
	start      int64
	sequence   uint32
	seed       uint32 // of checksums
	block      [journalBlock]byte
	err        error
}

// locate finds where the journal lies, as far as the copy in the superblock tells.
func (j *journal) locate(sb []byte) bool {
	le := binary.LittleEndian
	root := sb[sbJournalMap:][:mapRootBytes]
	blocks := int64(le.Uint32(sb[sbBlocksLow:])) | int64(le.Uint32(sb[sbBlocksHigh:]))<<32
	return le.Uint32(sb[sbLogBlockSize:]) == 2 && sb[sbJournalCopied] == 1 && j.follow(root, int(le.Uint16(root[6:])), blocks)
}

// follow reads what is below a node of the map, which has so many levels below it, on a
// disk of so many blocks.
func (j *journal) follow(node []byte, levels int, blocks int64) bool {
	le := binary.LittleEndian
	entries := int(le.Uint16(node[2:]))
	if le.Uint16(node) != extentMagic || int(le.Uint16(node[6:])) != levels || entries >= len(node)/mapEntryBytes {
		return false
	}
	for n := range entries {
		e := node[mapEntryBytes*(n+1):]
		if levels == 0 {
			x := extent{int64(le.Uint32(e)), int64(le.Uint16(e[4:])), int64(le.Uint16(e[6:]))<<32 | int64(le.Uint32(e[8:]))}
			if j.blocks += x.blocks; x.physical+x.blocks > blocks || j.blocks > maxJournalBlocks {
				return false
			}
			j.extents = append(j.extents, x)
			continue
		}
		at := int64(le.Uint16(e[8:]))<<32 | int64(le.Uint32(e[4:]))
		if j.mapBlocks++; at >= blocks || j.mapBlocks > maxMapBlocks {
			return false
		}
		below := make([]byte, journalBlock)
		if got, err := j.d.ReadAt(below, at*journalBlock); got < len(below) {
			j.err = fmt.Errorf("cannot read ext4 journal: %w", err)
			return false
		}
		if !j.follow(below, levels-1, blocks) {
			return false
		}
	}
	return true
}

// place is where a block lies on the disk, in bytes.
func (j *journal) place(n int64) (int64, bool) {
	for _, e := range j.extents {
		if n >= e.first && n < e.first+e.blocks {
			return (e.physical + n - e.first) * journalBlock, true
		}
	}
	return 0, false
}

// read reads a block and tells its type, 0 where it is none of the transaction sequence.
func (j *journal) read(n int64, sequence uint32) uint32 {
	at, ok := j.place(n)
	if !ok {
		return 0
	}
	if got, err := j.d.ReadAt(j.block[:], at); got < len(j.block) {
		j.err = fmt.Errorf("cannot read ext4 journal: %w", err)
		return 0
	}
	be := binary.BigEndian
	if be.Uint32(j.block[:]) != journalMagic || be.Uint32(j.block[headerSequence:]) != sequence {
		return 0
	}
	return be.Uint32(j.block[headerType:])
}

// open reads the journal's superblock, and tells whether there is something to replay.
func (j *journal) open() bool {
	if j.read(0, 0) != journalSuperblock {
		return false
	}
	be, b := binary.BigEndian, j.block[:]
	j.first, j.end, j.start = int64(be.Uint32(b[jsbFirst:])), int64(be.Uint32(b[jsbBlocks:])), int64(be.Uint32(b[jsbStart:]))
	j.sequence = be.Uint32(b[jsbSequence:])
	j.seed = kernelSum(^uint32(0), b[jsbUUID:][:16])
	incompat := be.Uint32(b[jsbIncompat:])
	return be.Uint32(b[jsbBlockSize:]) == journalBlock && incompat&^journalKnown == 0 && incompat&journalSums != 0 &&
		j.first > 0 && j.start >= j.first && j.start < j.end
}

// tornCommit goes through the transactions, as the kernel's first pass does, to a commit
// block of which no more than the first sector is right, and completes it in j.block.
func (j *journal) tornCommit() (n int64, found bool) {
	n = j.start
	sequence := j.sequence
	for seen := int64(0); seen < j.end; {
		step := int64(1)
		switch j.read(n, sequence) {
		case journalDescriptor:
			step += j.tags()
		case journalRevoke:
		case journalCommit:
			if !j.committed() {
				clear(j.block[sector:])
				return n, j.committed()
			}
			sequence++
		default:
			return 0, false
		}
		n, seen = j.after(n, step), seen+step
	}
	return 0, false
}

// after is the block that is so many behind n: the journal is a ring.
func (j *journal) after(n, step int64) int64 {
	return j.first + (n-j.first+step)%(j.end-j.first)
}

// tags is how many blocks follow the descriptor that was read.
func (j *journal) tags() (n int64) {
	for at := headerBytes; at+tagBytes <= journalBlock-4; { // its own checksum is at the end
		flags := binary.BigEndian.Uint32(j.block[at+tagFlags:])
		n, at = n+1, at+tagBytes
		if flags&tagSameUUID == 0 {
			at += 16
		}
		if flags&tagLast != 0 {
			break
		}
	}
	return n
}

// committed tells whether the checksum of the commit block that was read is right.
func (j *journal) committed() bool {
	field := j.block[commitSum:][:4]
	want := binary.BigEndian.Uint32(field)
	clear(field)
	sum := kernelSum(j.seed, j.block[:])
	binary.BigEndian.PutUint32(field, want)
	return sum == want
}
