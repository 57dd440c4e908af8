package btrfs

import (
	_ "embed"
	"encoding/binary"
	"io"
)

//go:generate go run ./gentemplate -o template.bin

// template is a file system that mkfs.btrfs made, packed by gentemplate: the tree
// blocks in use and the superblock, each once, without checksums and UUIDs.
//
//	places of its two copies u16 each, little endian, and size u8: all in units of 4096 bytes
//	bytes, but after 0 a number n: below 128 for n zeros, below Half for (n-127)*128,
//	else for half n-Half of the UUIDs
//
// All of that once more, as its length u16 and a sequence of
//
//	n u8 below 128, and n+1 bytes
//	128 + 16*n + d>>8 u8, d u8: n+3 bytes, n below 7, that came d bytes before; where n is 7
//	another u8: as many more than 10
//
// What no tree refers to is not written: on a new dm-crypt device it reads as noise,
// which nobody looks at.
//
//go:embed template.bin
var template string

// TemplateBytes is the size of the file system that WriteTemplate writes: metadata
// twice, data once, blocks of 4 KiB, nodes of 16 KiB.
const TemplateBytes = 128 << 20

// UUIDs is how many the template has: of the file system, of its chunk tree, of its
// device and of its first subvolume. Each half stands for itself: the tree of UUIDs
// has them apart.
const (
	UUIDs = 4
	Half  = 256 - 2*UUIDs
)

// WriteTemplate writes a new, empty file system of TemplateBytes to the start of w,
// about 350 KB, and does not sync. Its UUIDs come from random.
func WriteTemplate(w io.WriterAt, random io.Reader) error {
	ids := make([]byte, 16*UUIDs)
	if _, err := io.ReadFull(random, ids); err != nil {
		return err
	}
	for at := 0; at < len(ids); at += 16 {
		ids[at+6], ids[at+8] = ids[at+6]&0x0f|0x40, ids[at+8]&0x3f|0x80
	}
	// What was here before must not be found before the superblock is: it is
	// behind the first 64 KiB, which nobody else writes.
	if _, err := w.WriteAt(make([]byte, superblockOffset), 0); err != nil {
		return err
	}
	for rest := unpack(template); len(rest) > 0; {
		var b block
		var places [2]int64
		b, places, rest = nextBlock(rest, ids)
		for _, at := range places {
			if len(b) == superblockBytes {
				binary.LittleEndian.PutUint64(b[sbPlace:], uint64(at)) // of a tree block it is the logical address
			}
			b.setSum()
			if _, err := w.WriteAt(b, at); err != nil {
				return err
			}
		}
	}
	return nil
}

// What the superblock of the template has of its transactions: a test holds them.
const (
	templateGeneration = 6
	templateUsed       = 147456
)

// Unused looks for a superblock at a place of r, and tells whether it is the one that
// WriteTemplate wrote: every mount for writing ends a transaction, which has a number.
// Errors: ErrNotBtrfs, where there is none; any other is r's.
func Unused(r io.ReaderAt, at int64) (bool, error) {
	b, err := readAt(r, at)
	if err == nil && string(b[sbMagic:][:len(magic)]) != magic {
		err = ErrNotBtrfs
	}
	return err == nil && b.u64(sbGeneration) == templateGeneration && b.u64(sbTotalBytes) == TemplateBytes && b.u64(sbBytesUsed) == templateUsed, err
}

// unpack puts in what is repeated in a template.
func unpack(t string) []byte {
	b := make([]byte, int(t[0])|int(t[1])<<8)
	t = t[2:]
	for at := 0; at < len(b); {
		n := int(t[0])
		if n < 128 {
			at, t = at+copy(b[at:], t[1:n+2]), t[n+2:]
			continue
		}
		distance := n&15<<8 | int(t[1])
		n, t = n>>4&7+3, t[2:]
		if n == 10 {
			n, t = n+int(t[0]), t[1:]
		}
		for ; n > 0; n-- {
			b[at] = b[at-distance]
			at++
		}
	}
	return b
}

// nextBlock is the first block of a template that unpack gave, with these UUIDs.
func nextBlock(t, ids []byte) (b block, places [2]int64, rest []byte) {
	for i := range places {
		places[i] = int64(binary.LittleEndian.Uint16(t[2*i:])) * 4096
	}
	b = make(block, int(t[4])*4096)
	t = t[5:]
	for at := 0; at < len(b); {
		if t[0] != 0 {
			b[at] = t[0]
			at, t = at+1, t[1:]
			continue
		}
		n := int(t[1])
		switch {
		case n >= Half:
			n = copy(b[at:], ids[8*(n-Half):][:8])
		case n > 127:
			n = (n - 127) * 128
		}
		at, t = at+n, t[2:]
	}
	return b, places, t
}
