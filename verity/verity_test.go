package verity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// memory is a hash device that grows; the workers write disjoint parts of it.
type memory []byte

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	return copy(m[off:], p), nil
}

func testData(size int) []byte {
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(data)
	return data
}

func testParams(algorithm Algorithm, dataBlock, hashBlock int, blocks uint64, salt []byte) Params {
	return Params{
		Algorithm: algorithm, DataBlockSize: dataBlock, HashBlockSize: hashBlock, DataBlocks: blocks,
		HashStart: 1, Salt: salt, UUID: [16]byte{0x6b, 15: 1},
	}
}

func shape(p Params) string {
	return fmt.Sprintf("%s_data_%d_hash_%d_blocks_%d_salt_%d",
		p.Algorithm, p.DataBlockSize, p.HashBlockSize, p.DataBlocks, len(p.Salt))
}

func uuidText(u [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

func format(t testing.TB, data []byte, p Params) (tree, rootHash []byte) {
	t.Helper()
	m := make(memory, p.HashSize())
	rootHash, err := Format(bytes.NewReader(data), p, m)
	if err != nil {
		t.Fatalf("Format = %v; want no error", err)
	}
	return m, rootHash
}

// veritysetup runs the tool that is the judge here and returns what it printed.
func veritysetup(args ...string) (string, error) {
	out, err := exec.Command("/usr/sbin/veritysetup", args...).CombinedOutput()
	return string(out), err
}

func files(t *testing.T, data, tree []byte) (dataFile, hashFile string) {
	t.Helper()
	dir := t.TempDir()
	dataFile, hashFile = filepath.Join(dir, "data"), filepath.Join(dir, "hash")
	if err := errors.Join(os.WriteFile(dataFile, data, 0o600), os.WriteFile(hashFile, tree, 0o600)); err != nil {
		t.Fatal(err)
	}
	return dataFile, hashFile
}

func judgeTable() []Params {
	salt := bytes.Repeat([]byte{0xa5}, 32)
	return []Params{
		testParams(SHA256, 4096, 4096, 1, salt),
		testParams(SHA256, 4096, 4096, 2, salt),
		testParams(SHA256, 4096, 4096, 128, salt),
		testParams(SHA256, 4096, 4096, 129, salt),
		testParams(SHA256, 4096, 4096, 128*3+1, nil),
		testParams(SHA512, 4096, 4096, 700, bytes.Repeat([]byte{7}, MaxSalt)),
		testParams(SHA512, 512, 512, 1000, salt),
		testParams(SHA256, 512, 1024, 4097, salt),
		testParams(SHA256, 1024, 512, 300, salt),
	}
}

func TestFormatEqualsVeritysetup(t *testing.T) {
	for _, p := range judgeTable() {
		t.Run(shape(p), func(t *testing.T) {
			data := testData(int(p.DataSize()))
			tree, rootHash := format(t, data, p)
			dataFile, hashFile := files(t, data, nil)
			salt := "-"
			if len(p.Salt) > 0 {
				salt = hex.EncodeToString(p.Salt)
			}
			out, err := veritysetup("format", "--hash", string(p.Algorithm), "--salt", salt, "--uuid", uuidText(p.UUID),
				"--data-block-size", fmt.Sprint(p.DataBlockSize), "--hash-block-size", fmt.Sprint(p.HashBlockSize), dataFile, hashFile)
			if err != nil {
				t.Fatalf("veritysetup format: %v\n%s", err, out)
			}
			if want := hex.EncodeToString(rootHash); !strings.Contains(out, want) {
				t.Errorf("root hash = %s; veritysetup printed\n%s", want, out)
			}
			want, err := os.ReadFile(hashFile)
			if err != nil {
				t.Fatal(err)
			}
			// With one block there is no tree, and veritysetup writes no padding.
			want = append(want, make([]byte, max(0, len(tree)-len(want)))...)
			if !bytes.Equal(tree, want) {
				t.Errorf("hash device differs from veritysetup's (%d and %d bytes)", len(tree), len(want))
			}
			got, err := ReadSuperblock(bytes.NewReader(want))
			if err != nil || fmt.Sprint(got) != fmt.Sprint(p) {
				t.Errorf("ReadSuperblock of veritysetup's device = %+v, %v; want %+v", got, err, p)
			}
		})
	}
}

func TestVeritysetupAcceptsOurs(t *testing.T) {
	for _, p := range judgeTable() {
		t.Run(shape(p), func(t *testing.T) {
			data := testData(int(p.DataSize()))
			tree, rootHash := format(t, data, p)
			dataFile, hashFile := files(t, data, tree)
			if out, err := veritysetup("verify", dataFile, hashFile, hex.EncodeToString(rootHash)); err != nil {
				t.Errorf("veritysetup verify: %v\n%s", err, out)
			}
			data[len(data)/2] ^= 1
			dataFile, hashFile = files(t, data, tree)
			if out, err := veritysetup("verify", dataFile, hashFile, hex.EncodeToString(rootHash)); err == nil {
				t.Errorf("red control: veritysetup accepted a flipped bit\n%s", out)
			}
		})
	}
}

func TestVerify(t *testing.T) {
	// Three levels: 20 blocks of digests, 2 above them, 1 on top.
	p := testParams(SHA256, 512, 512, 320, []byte("salt"))
	data := testData(int(p.DataSize()))
	tree, rootHash := format(t, data, p)
	block := func(b uint64) int { return int(b) * 512 }
	for _, test := range []struct {
		name   string
		change func(data, tree, rootHash []byte)
		want   *BlockError
	}{
		{"untouched", func(_, _, _ []byte) {}, nil},
		{"superblock_is_not_covered", func(_, tree, _ []byte) { tree[0] ^= 1 }, nil},
		{"first_data_block", func(d, _, _ []byte) { d[0] ^= 1 }, &BlockError{0, 0}},
		{"last_data_byte", func(d, _, _ []byte) { d[len(d)-1] ^= 0x80 }, &BlockError{0, 319}},
		{"first_of_two", func(d, _, _ []byte) { d[block(300)] ^= 1; d[block(17)] ^= 1 }, &BlockError{0, 17}},
		{"top", func(_, tree, _ []byte) { tree[block(1)] ^= 1 }, &BlockError{3, 1}},
		{"middle", func(_, tree, _ []byte) { tree[block(3)] ^= 1 }, &BlockError{2, 3}},
		{"lowest", func(_, tree, _ []byte) { tree[block(4)+5] ^= 1 }, &BlockError{1, 4}},
		{"padding_of_a_hash_block", func(_, tree, _ []byte) { tree[block(4)-1] ^= 1 }, &BlockError{2, 3}},
		{"root_hash", func(_, _, r []byte) { r[31] ^= 1 }, &BlockError{3, 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			data, tree, rootHash := bytes.Clone(data), bytes.Clone(tree), bytes.Clone(rootHash)
			test.change(data, tree, rootHash)
			err := Verify(bytes.NewReader(data), bytes.NewReader(tree), p, rootHash)
			if test.want == nil {
				if err != nil {
					t.Fatalf("Verify = %v; want no error", err)
				}
				return
			}
			var got *BlockError
			if !errors.As(err, &got) || *got != *test.want || !errors.Is(err, ErrCorrupt) {
				t.Errorf("Verify = %v; want %v", err, test.want)
			}
		})
	}
}

func TestVerifyOneBlock(t *testing.T) {
	p := testParams(SHA256, 4096, 4096, 1, nil)
	data := testData(4096)
	tree, rootHash := format(t, data, p)
	if err := Verify(bytes.NewReader(data), bytes.NewReader(tree), p, rootHash); err != nil {
		t.Errorf("Verify = %v; want no error", err)
	}
	data[4095] ^= 1
	if err := Verify(bytes.NewReader(data), bytes.NewReader(tree), p, rootHash); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Verify of a changed block = %v; want %v", err, ErrCorrupt)
	}
}

func TestShortDevices(t *testing.T) {
	p := testParams(SHA256, 4096, 4096, 300, nil)
	data := testData(int(p.DataSize()))
	tree, rootHash := format(t, data, p)
	if _, err := Build(bytes.NewReader(data[:len(data)-1]), p, make(memory, p.HashSize())); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Build of short data = %v; want %v", err, io.ErrUnexpectedEOF)
	}
	if err := Verify(bytes.NewReader(data[:4096]), bytes.NewReader(tree), p, rootHash); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Verify of short data = %v; want %v", err, io.ErrUnexpectedEOF)
	}
	if err := Verify(bytes.NewReader(data), bytes.NewReader(tree[:len(tree)-1]), p, rootHash); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Verify with a short tree = %v; want %v", err, io.ErrUnexpectedEOF)
	}
	full := failingWriter{errors.New("device is full")}
	if _, err := Build(bytes.NewReader(data), p, full); !errors.Is(err, full.err) {
		t.Errorf("Build on a full device = %v; want %v", err, full.err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) WriteAt([]byte, int64) (int, error) { return 0, w.err }

func BenchmarkBuild(b *testing.B) {
	p := testParams(SHA256, 4096, 4096, 64<<20/4096, bytes.Repeat([]byte{1}, 32))
	data := testData(int(p.DataSize()))
	tree := make(memory, p.HashSize())
	b.SetBytes(p.DataSize())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Build(bytes.NewReader(data), p, tree); err != nil {
			b.Fatal(err)
		}
	}
}
