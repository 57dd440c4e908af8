// Gentemplate makes the btrfs template that package btrfs embeds: it runs mkfs.btrfs
// (btrfs-progs 6.2, Debian 12) and packs the tree blocks that are in use, each once
// however many copies it has, and the superblocks. What mkfs takes from chance and
// from the clock is made the same each time, so the same mkfs gives the same bytes.
package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"sealroot/state/btrfs"
)

const (
	superAt   = 64 << 10
	mirrorAt  = 64 << 20
	superSize = 4096
	nodeSize  = 16384
	// epoch is the time that all inodes and roots get.
	epoch = 1700000000
)

// Types of keys (include/uapi/linux/btrfs_tree.h).
const (
	inodeItem = 1
	rootItem  = 132
	chunkItem = 228
	uuidItem  = 251
)

func main() {
	out := flag.String("o", "template.bin", "file to write")
	flag.Parse()
	packed, err := makeTemplate()
	if err == nil {
		err = os.WriteFile(*out, packed, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gentemplate:", err)
		os.Exit(1)
	}
}

func makeTemplate() ([]byte, error) {
	dir, err := os.MkdirTemp("", "gentemplate")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(image, btrfs.TemplateBytes); err != nil {
		return nil, err
	}
	cmd := exec.Command("mkfs.btrfs", "-q", "-f", "-K", "--csum", "crc32c", "-n", "16384", "-s", "4096",
		"-m", "DUP", "-d", "single", "-O", "extref,skinny-metadata,no-holes", "-R", "free-space-tree", image)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mkfs.btrfs (package btrfs-progs): %w: %s", err, out)
	}
	b, err := os.ReadFile(image)
	if err != nil {
		return nil, err
	}
	return (&filesystem{b: b}).pack()
}

// filesystem is the image that mkfs made.
type filesystem struct {
	b      []byte
	chunks []chunk
	nodes  []node
	subvol []byte // UUID of the first subvolume
}

type chunk struct {
	logical, length uint64
	stripes         []uint64
}

// node is a tree block and the places of its copies.
type node struct {
	data   []byte
	places []uint64
}

var le = binary.LittleEndian

type item struct {
	kind byte
	key  uint64 // the offset of the key
	data []byte
}

func (n node) items() []item {
	var list []item
	for i := range int(le.Uint32(n.data[96:])) {
		h := n.data[101+25*i:]
		at, size := 101+le.Uint32(h[17:]), le.Uint32(h[21:])
		list = append(list, item{h[8], le.Uint64(h[9:]), n.data[at : at+size]})
	}
	return list
}

// addChunk takes a struct btrfs_chunk and returns its length.
func (f *filesystem) addChunk(logical uint64, b []byte) int {
	c := chunk{logical: logical, length: le.Uint64(b)}
	for i := range int(le.Uint16(b[44:])) {
		c.stripes = append(c.stripes, le.Uint64(b[48+32*i+8:]))
	}
	f.chunks = append(f.chunks, c)
	return 48 + 32*len(c.stripes)
}

func (f *filesystem) add(logical uint64) (node, error) {
	for _, c := range f.chunks {
		if logical < c.logical || logical >= c.logical+c.length {
			continue
		}
		var n node
		for _, s := range c.stripes {
			n.places = append(n.places, s+logical-c.logical)
		}
		n.data = bytes.Clone(f.b[n.places[0]:][:nodeSize])
		for _, p := range n.places {
			if !bytes.Equal(f.b[p:][:nodeSize], n.data) {
				return node{}, fmt.Errorf("the copies of block %d differ", logical)
			}
		}
		if n.data[100] != 0 {
			return node{}, fmt.Errorf("block %d is not a leaf", logical)
		}
		f.nodes = append(f.nodes, n)
		return n, nil
	}
	return node{}, fmt.Errorf("no chunk has block %d", logical)
}

func (f *filesystem) pack() ([]byte, error) {
	super := bytes.Clone(f.b[superAt:][:superSize])
	array := super[811:][:le.Uint32(super[160:])]
	for len(array) > 17 {
		n := f.addChunk(le.Uint64(array[9:]), array[17:])
		array = array[17+n:]
	}
	chunkRoot, err := f.add(le.Uint64(super[88:]))
	if err != nil {
		return nil, err
	}
	f.chunks = nil
	for _, i := range chunkRoot.items() {
		if i.kind == chunkItem {
			f.addChunk(i.key, i.data)
		}
	}
	root, err := f.add(le.Uint64(super[80:]))
	if err != nil {
		return nil, err
	}
	for _, i := range root.items() {
		if i.kind != rootItem {
			continue
		}
		if _, err := f.add(le.Uint64(i.data[176:])); err != nil {
			return nil, err
		}
		if id := i.data[247:263]; len(bytes.Trim(id, "\x00")) != 0 {
			if f.subvol != nil {
				return nil, errors.New("more than one subvolume")
			}
			f.subvol = bytes.Clone(id)
		}
	}
	clear(super[2859:3531]) // roots of earlier transactions, of which nothing is kept
	for _, n := range f.nodes {
		fixTimes(n)
	}
	return f.encode(super, chunkRoot)
}

// fixTimes sets every time in a leaf.
func fixTimes(n node) {
	for _, i := range n.items() {
		from, to := 0, 0
		switch i.kind {
		case inodeItem:
			from, to = 112, 160
		case rootItem:
			from, to = 327, 375
		}
		for at := from; at < to; at += 12 {
			if le.Uint64(i.data[at:]) != 0 {
				le.PutUint64(i.data[at:], epoch)
				le.PutUint32(i.data[at+8:], 0)
			}
		}
	}
}

// encode puts placeholders in place of the UUIDs, and writes what package btrfs reads.
func (f *filesystem) encode(super []byte, chunkRoot node) ([]byte, error) {
	blocks := append([]node{{super, []uint64{superAt, mirrorAt}}}, f.nodes...)
	for i, id := range [][]byte{super[32:48], chunkRoot.data[64:80], super[267:283], f.subvol} {
		old, place := bytes.Clone(id), placeholder(i)
		for half := 0; half < 16; half += 8 {
			n := 0
			for _, b := range blocks {
				for at := range len(b.data) - 7 {
					if bytes.Equal(b.data[at:at+8], old[half:half+8]) {
						copy(b.data[at:], place[half:half+8])
						n++
					}
				}
			}
			if n < 2 {
				return nil, fmt.Errorf("UUID %x is in %d places", old, n)
			}
		}
	}
	slices.SortFunc(blocks, func(a, b node) int { return int(int64(a.places[0]) - int64(b.places[0])) })
	var out []byte
	for _, b := range blocks {
		clear(b.data[:32]) // the checksum
		if len(b.places) != 2 || b.places[1]/4096 > math.MaxUint16 {
			return nil, fmt.Errorf("block at %d has copies at %d", b.places[0], b.places)
		}
		for _, p := range b.places {
			out = le.AppendUint16(out, uint16(p/4096))
		}
		out = append(out, byte(len(b.data)/4096))
		out = appendPacked(out, b.data)
	}
	return repeated(out), nil
}

// repeated writes what came before by its distance and length, in the fewest bytes.
func repeated(b []byte) (out []byte) {
	const farthest, longest, short = 1<<12 - 1, 10 + 255, 10
	type choice struct{ bytes, length, distance int } // distance 0: new ones
	best := make([]choice, len(b)+1)
	for at := len(b) - 1; at >= 0; at-- {
		best[at].bytes = math.MaxInt
		for n := 1; n <= min(128, len(b)-at); n++ {
			if bytes := 1 + n + best[at+n].bytes; bytes < best[at].bytes {
				best[at] = choice{bytes, n, 0}
			}
		}
		for d := 1; d <= min(at, farthest); d++ {
			for n := 1; n <= min(longest, len(b)-at) && b[at+n-1] == b[at+n-1-d]; n++ {
				bytes := 2 + best[at+n].bytes
				if n >= short {
					bytes++
				}
				if n >= 3 && bytes < best[at].bytes {
					best[at] = choice{bytes, n, d}
				}
			}
		}
	}
	out = le.AppendUint16(out, uint16(len(b)))
	for at := 0; at < len(b); at += best[at].length {
		switch c := best[at]; {
		case c.distance == 0:
			out = append(append(out, byte(c.length-1)), b[at:at+c.length]...)
		case c.length < short:
			out = append(out, byte(128+(c.length-3)<<4+c.distance>>8), byte(c.distance))
		default:
			out = append(out, byte(128+7<<4+c.distance>>8), byte(c.distance), byte(c.length-short))
		}
	}
	return out
}

// placeholder is what stands for the UUID of that number until it is packed.
func placeholder(n int) (id [16]byte) {
	copy(id[:], "UUID-#A-uuid-#a-")
	id[5], id[13] = byte('1'+n), byte('1'+n)
	return id
}

func placeholders() (all []byte) {
	for n := range btrfs.UUIDs {
		id := placeholder(n)
		all = append(all, id[:]...)
	}
	return all
}

// appendPacked writes zeros by their number, and UUIDs.
func appendPacked(out, b []byte) []byte {
	for len(b) > 0 {
		if half := bytes.Index(placeholders(), b[:min(8, len(b))]); half >= 0 && len(b) >= 8 {
			out, b = append(out, 0, byte(btrfs.Half+half/8)), b[8:]
			continue
		}
		if b[0] != 0 {
			out, b = append(out, b[0]), b[1:]
			continue
		}
		n := len(b) - len(bytes.TrimLeft(b, "\x00"))
		if n > 127 {
			n = min(n/128, btrfs.Half-1-127)
			out, b = append(out, 0, byte(n+127)), b[128*n:]
		} else {
			out, b = append(out, 0, byte(n)), b[n:]
		}
	}
	return out
}
