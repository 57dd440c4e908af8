package verity

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"testing"
)

func TestParamsFailClosed(t *testing.T) {
	good := testParams(SHA256, 4096, 4096, 129, []byte("salt"))
	for _, test := range []struct {
		name   string
		change func(*Params)
		want   error
	}{
		{"good", func(*Params) {}, nil},
		{"sha1", func(p *Params) { p.Algorithm = "sha1" }, ErrAlgorithm},
		{"no_algorithm", func(p *Params) { p.Algorithm = "" }, ErrAlgorithm},
		{"upper_case", func(p *Params) { p.Algorithm = "SHA256" }, ErrAlgorithm},
		{"data_block_0", func(p *Params) { p.DataBlockSize = 0 }, ErrParams},
		{"data_block_negative", func(p *Params) { p.DataBlockSize = math.MinInt }, ErrParams},
		{"data_block_256", func(p *Params) { p.DataBlockSize = 256 }, ErrParams},
		{"data_block_513", func(p *Params) { p.DataBlockSize = 513 }, ErrParams},
		{"hash_block_128k", func(p *Params) { p.HashBlockSize = 128 << 10 }, ErrParams},
		{"no_data_blocks", func(p *Params) { p.DataBlocks = 0 }, ErrParams},
		{"data_blocks_2_63", func(p *Params) { p.DataBlocks = 1 << 63 }, ErrParams},
		{"hash_start_huge", func(p *Params) { p.HashStart = math.MaxUint64 }, ErrParams},
		{"salt_257", func(p *Params) { p.Salt = make([]byte, 257) }, ErrParams},
		{"one_block_more_than_the_device", func(p *Params) { p.DataBlocks++ }, ErrParams},
		{"tree_one_block_further", func(p *Params) { p.HashStart++ }, ErrParams},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := good
			test.change(&p)
			// 129 blocks need a tree of 2+1 blocks behind the superblock's.
			if err := p.Fits(129*4096, 4*4096); !errors.Is(err, test.want) {
				t.Errorf("Fits = %v; want %v", err, test.want)
			}
		})
	}
}

func TestNewParams(t *testing.T) {
	p, err := NewParams(8<<20, []byte("salt"), [16]byte{1})
	if err != nil || p.DataBlocks != 2048 || p.HashSize() != (1+17)*4096 || p.TreeSize() != 17*4096 {
		t.Errorf("NewParams = %+v, %v; want 2048 blocks and a tree of 17", p, err)
	}
	for _, size := range []int64{0, -4096, 4097} {
		if p, err := NewParams(size, nil, [16]byte{}); !errors.Is(err, ErrParams) {
			t.Errorf("NewParams(%d) = %+v, %v; want %v", size, p, err, ErrParams)
		}
	}
}

func TestSuperblockMutations(t *testing.T) {
	good, err := testParams(SHA256, 4096, 4096, 1000, []byte("salt")).Superblock()
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	for _, test := range []struct {
		name   string
		change func(b []byte)
		want   error
	}{
		{"magic", func(b []byte) { b[0] = 'V' }, ErrSuperblock},
		{"magic_tail", func(b []byte) { b[7] = 1 }, ErrSuperblock},
		{"version_0", func(b []byte) { le.PutUint32(b[offVersion:], 0) }, ErrSuperblock},
		{"version_2", func(b []byte) { le.PutUint32(b[offVersion:], 2) }, ErrSuperblock},
		{"chrome_os_format", func(b []byte) { le.PutUint32(b[offFormat:], 0) }, ErrSuperblock},
		{"sha1", func(b []byte) { copy(b[offAlgorithm:], "sha1\x00\x00") }, ErrAlgorithm},
		{"empty_algorithm", func(b []byte) { clear(b[offAlgorithm:offDataBlock]) }, ErrAlgorithm},
		{"algorithm_without_nul", func(b []byte) { copy(b[offAlgorithm:], bytes.Repeat([]byte("a"), 32)) }, ErrSuperblock},
		{"algorithm_with_a_tail", func(b []byte) { b[offDataBlock-1] = 'x' }, ErrSuperblock},
		{"algorithm_with_text_for_the_table", func(b []byte) { copy(b[offAlgorithm:], "sha256 1 ignore_corruption") }, ErrAlgorithm},
		{"data_block_0", func(b []byte) { le.PutUint32(b[offDataBlock:], 0) }, ErrParams},
		{"data_block_513", func(b []byte) { le.PutUint32(b[offDataBlock:], 513) }, ErrParams},
		{"data_block_1m", func(b []byte) { le.PutUint32(b[offDataBlock:], 1<<20) }, ErrParams},
		{"data_block_2g", func(b []byte) { le.PutUint32(b[offDataBlock:], 1<<31) }, ErrParams},
		{"hash_block_0", func(b []byte) { le.PutUint32(b[offHashBlock:], 0) }, ErrParams},
		{"hash_block_1m", func(b []byte) { le.PutUint32(b[offHashBlock:], 1<<20) }, ErrParams},
		{"data_blocks_0", func(b []byte) { le.PutUint64(b[offBlocks:], 0) }, ErrParams},
		{"data_blocks_2_63", func(b []byte) { le.PutUint64(b[offBlocks:], 1<<63) }, ErrParams},
		{"data_blocks_all_ones", func(b []byte) { le.PutUint64(b[offBlocks:], math.MaxUint64) }, ErrParams},
		{"salt_257", func(b []byte) { le.PutUint16(b[offSaltSize:], 257) }, ErrSuperblock},
		{"salt_65535", func(b []byte) { le.PutUint16(b[offSaltSize:], 65535) }, ErrSuperblock},
		{"salt_shorter_than_its_bytes", func(b []byte) { le.PutUint16(b[offSaltSize:], 3) }, ErrSuperblock},
		{"padding", func(b []byte) { b[offPad] = 1 }, ErrSuperblock},
		{"tail", func(b []byte) { b[511] = 1 }, ErrSuperblock},
		{"all_zero", func(b []byte) { clear(b) }, ErrSuperblock},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := bytes.Clone(good)
			test.change(b)
			p, err := ParseSuperblock(b)
			if !errors.Is(err, test.want) || fmt.Sprint(p) != fmt.Sprint(Params{}) {
				t.Errorf("ParseSuperblock = %+v, %v; want %v", p, err, test.want)
			}
		})
	}
	if _, err := ReadSuperblock(bytes.NewReader(good[:511])); !errors.Is(err, ErrSuperblock) {
		t.Errorf("ReadSuperblock of 511 bytes = %v; want %v", err, ErrSuperblock)
	}
}

func TestTable(t *testing.T) {
	p := testParams(SHA256, 4096, 4096, 16, []byte{0xab, 0xcd})
	rootHash := bytes.Repeat([]byte{0x11}, 32)
	want := Target{DataDev: "254:1", HashDev: "254:2", DataBlockSize: 4096, HashBlockSize: 4096,
		DataBlocks: 16, HashStart: 1, Algorithm: SHA256, RootHash: rootHash, Salt: p.Salt}
	if target, err := p.Table("254:1", "254:2", rootHash); err != nil || !reflect.DeepEqual(target, want) {
		t.Errorf("Table = %+v, %v; want %+v", target, err, want)
	}
	for _, test := range []struct {
		name, data, hash string
		rootHash         []byte
	}{
		{"path", "/dev/vda1", "8:2", rootHash},
		{"text_behind_device", "8:1 1 ignore_corruption", "8:2", rootHash},
		{"leading_zero", "8:1", "08:2", rootHash},
		{"no_device", "8:1", "", rootHash},
		{"no_root_hash", "8:1", "8:2", nil},
		{"long_root_hash", "8:1", "8:2", make([]byte, 64)},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := p.Table(test.data, test.hash, test.rootHash)
			if !errors.Is(err, ErrParams) || fmt.Sprint(got) != fmt.Sprint(Target{}) {
				t.Errorf("Table = %+v, %v; want %v", got, err, ErrParams)
			}
		})
	}
}

func FuzzSuperblock(f *testing.F) {
	for _, p := range judgeTable() {
		b, err := p.Superblock()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ReadSuperblock(bytes.NewReader(b))
		if err != nil {
			if fmt.Sprint(p) != fmt.Sprint(Params{}) {
				t.Fatalf("error %v with result %+v", err, p)
			}
			return
		}
		again, err := p.Superblock()
		if err != nil || !bytes.Equal(again, b[:SuperblockSize]) {
			t.Fatalf("accepted %x; encodes as %x, %v", b, again, err)
		}
		if p.TreeSize() < 0 || p.HashSize() < 0 || p.DataSize() <= 0 {
			t.Fatalf("sizes overflow: %+v", p)
		}
		behind, err := p.Behind(1 << 60)
		if err != nil {
			return // it does not begin at a block of 64 KiB or less, or lies beyond all devices
		}
		if behind.FECRoots = 24; behind.Validate() == nil && behind.AreaSize() < behind.HashSize() {
			t.Fatalf("sizes overflow: %+v", behind)
		}
	})
}
