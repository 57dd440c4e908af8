package btrfs

import (
	"encoding/binary"
	"slices"
	"testing"
)

// The constants by which an unused template is known are the template's.
func TestUnusedIsOfTheTemplate(t *testing.T) {
	found := 0
	for rest := unpack(template); len(rest) > 0; {
		var b block
		if b, _, rest = nextBlock(rest, make([]byte, 16*UUIDs)); len(b) != superblockBytes {
			continue
		}
		found++
		if b.u64(sbGeneration) != templateGeneration || b.u64(sbBytesUsed) != templateUsed || b.u64(sbTotalBytes) != TemplateBytes {
			t.Errorf("the template has generation %d, %d bytes used", b.u64(sbGeneration), b.u64(sbBytesUsed))
		}
	}
	if found != 1 {
		t.Errorf("%d superblocks in the template", found)
	}
}

// found are search results with these items, of which n are said to be there.
func found(n uint32, items ...[]byte) []byte {
	b := make([]byte, searchItems, searchBytes)
	binary.LittleEndian.PutUint32(b[searchFound:], n)
	for i, item := range items {
		h := make([]byte, headerBytes)
		binary.LittleEndian.PutUint64(h[headerOffset:], uint64(10*(i+1)))
		binary.LittleEndian.PutUint32(h[24:], fileExtent)
		binary.LittleEndian.PutUint32(h[headerLength:], uint32(len(item)))
		b = append(append(b, h...), item...)
	}
	return b[:searchBytes]
}

func TestResults(t *testing.T) {
	lying := found(9, []byte("a"), []byte("bc"))
	binary.LittleEndian.PutUint32(lying[searchItems+headerLength:], 1<<31)
	for name, tt := range map[string]struct {
		args []byte
		want []string
		last uint64
		any  bool
	}{
		"none":            {found(0), nil, 0, false},
		"two":             {found(2, []byte("a"), []byte("bc")), []string{"a", "bc"}, 20, true},
		"longer_than_all": {lying, nil, 10, true},
		"as_many_as_said": {found(1, []byte("a"), []byte("bc")), []string{"a"}, 10, true},
	} {
		var got []string
		last, any := results(tt.args, func(_ uint64, item []byte) { got = append(got, string(item)) })
		if !slices.Equal(got, tt.want) || last != tt.last || any != tt.any {
			t.Errorf("%s: %q, %d, %v, want %q, %d, %v", name, got, last, any, tt.want, tt.last, tt.any)
		}
	}
	// More than there is room for ends.
	results(found(1<<32-1), func(uint64, []byte) {})
}

func TestOlderThan(t *testing.T) {
	item := func(since uint64, kind byte, disk, bytes uint64) []byte {
		b := make([]byte, extentBytes+8)
		putU64(b, since)
		b[extentKind] = kind
		putU64(b[extentDisk:], disk)
		putU64(b[extentBytes:], bytes)
		return b
	}
	for name, tt := range map[string]struct {
		item []byte
		want int64
	}{
		"older":     {item(6, 1, 4096, 100), 100},
		"as_old":    {item(7, 1, 4096, 100), 100},
		"unwritten": {item(7, 2, 4096, 100), 100},
		"newer":     {item(8, 1, 4096, 100), 0},
		"hole":      {item(6, 1, 0, 100), 0},
		"inline":    {item(6, 0, 4096, 100), 0},
		"short":     {item(6, 1, 4096, 100)[:52], 0},
		"empty":     {nil, 0},
	} {
		if got := olderThan(7, tt.item); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}
