package verity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// withFEC is the hash device of p with parity behind the tree, in a file.
func withFEC(t testing.TB, data []byte, p Params) (device, rootHash []byte) {
	t.Helper()
	device = make([]byte, p.AreaSize())
	rootHash, err := Format(bytes.NewReader(data), p, memory(device))
	if err == nil {
		err = BuildFEC(bytes.NewReader(data), bytes.NewReader(device), p, memory(device))
	}
	if err != nil {
		t.Fatal(err)
	}
	return device, rootHash
}

func fecJudged(t testing.TB) []Params {
	t.Helper()
	var all []Params
	for _, c := range []struct {
		algorithm Algorithm
		block     int
		blocks    uint64
		roots     int
	}{
		{SHA256, 4096, 1000, 2}, {SHA256, 4096, 253 * 4, 2}, {SHA256, 4096, 300, 24}, {SHA512, 4096, 2100, 3}, {SHA256, 1024, 5000, 5}, {SHA256, 4096, 2, 2},
	} {
		p := testParams(c.algorithm, c.block, c.block, c.blocks, []byte("salt"))
		p.FECRoots = c.roots
		all = append(all, p)
	}
	return all
}

// The parity is what veritysetup makes, and it repairs by it.
func TestFECEqualsVeritysetup(t *testing.T) {
	for _, p := range fecJudged(t) {
		t.Run(fmt.Sprintf("%s_roots_%d", shape(p), p.FECRoots), func(t *testing.T) {
			data := testData(int(p.DataSize()))
			device, rootHash := withFEC(t, data, p)
			dataFile, hashFile := files(t, data, nil)
			fecFile := filepath.Join(t.TempDir(), "fec")
			if err := os.WriteFile(fecFile, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			size := fmt.Sprint(p.DataBlockSize)
			out, err := veritysetup("format", "--hash", string(p.Algorithm), "--salt", hex.EncodeToString(p.Salt), "--uuid", uuidText(p.UUID),
				"--data-block-size", size, "--hash-block-size", size, "--fec-device", fecFile, "--fec-roots", fmt.Sprint(p.FECRoots), dataFile, hashFile)
			if err != nil {
				t.Fatalf("veritysetup format: %v\n%s", err, out)
			}
			want, err := os.ReadFile(fecFile)
			if err != nil {
				t.Fatal(err)
			}
			if got := device[p.HashSize():]; !bytes.Equal(got, want) {
				t.Errorf("parity of %d bytes differs from veritysetup's of %d", len(got), len(want))
			}
			judge := func(what string, data, parity []byte) error {
				t.Helper()
				dataFile, hashFile := files(t, data, device[:p.HashSize()])
				fecFile := filepath.Join(filepath.Dir(dataFile), "fec")
				if err := os.WriteFile(fecFile, parity, 0o600); err != nil {
					t.Fatal(err)
				}
				out, err := veritysetup("verify", "--fec-device", fecFile, "--fec-roots", fmt.Sprint(p.FECRoots), dataFile, hashFile, hex.EncodeToString(rootHash))
				t.Logf("%s: %s", what, out)
				return err
			}
			broken := bytes.Clone(data)
			broken[len(broken)/3] ^= 0x40
			if err := judge("one byte", broken, device[p.HashSize():]); err != nil {
				t.Errorf("veritysetup does not repair a flipped byte by our parity: %v", err)
			}
			lost := bytes.Clone(data)
			clear(lost[len(lost)-p.DataBlockSize:])
			if err := judge("one block", lost, device[p.HashSize():]); err != nil {
				t.Errorf("veritysetup does not repair a lost block by our parity: %v", err)
			}
			if err := judge("red control", broken, make([]byte, p.FECSize())); err == nil {
				t.Error("red control: veritysetup repairs without parity")
			}
		})
	}
}

func TestFECParams(t *testing.T) {
	p := testParams(SHA256, 4096, 4096, 1000, nil)
	p.FECRoots = 2
	// 1000 data blocks, 8+1 of the tree, the superblock in front: 1009 in 4 rounds of 253
	if f := p.FEC(); f != (FEC{Roots: 2, Blocks: 1009, Start: 10}) || p.FECSize() != 4*2*4096 || p.AreaSize() != 18*4096 {
		t.Errorf("FEC = %+v of %d bytes, area %d", f, p.FECSize(), p.AreaSize())
	}
	if target, err := p.Table("8:1", "8:2", bytes.Repeat([]byte{0x11}, 32)); err != nil || target.FEC != p.FEC() {
		t.Errorf("Table = %+v, %v; want its parity", target, err)
	}
	if err := p.Fits(1000*4096, 18*4096-1); !errors.Is(err, ErrParams) {
		t.Errorf("Fits on a device without room for the parity = %v; want %v", err, ErrParams)
	}
	for _, bad := range []func(*Params){
		func(p *Params) { p.FECRoots = 1 }, func(p *Params) { p.FECRoots = 25 }, func(p *Params) { p.FECRoots = -1 },
		func(p *Params) { p.HashBlockSize = 1024 },
	} {
		q := p
		bad(&q)
		if err := q.Validate(); !errors.Is(err, ErrParams) {
			t.Errorf("Validate of %d roots, blocks %d and %d = %v; want %v", q.FECRoots, q.DataBlockSize, q.HashBlockSize, err, ErrParams)
		}
	}
	for _, roots := range []int{0, 2, 7} {
		q := p
		q.FECRoots = roots
		if got, err := p.OfArea(q.AreaSize()); err != nil || got.FECRoots != roots {
			t.Errorf("OfArea = %d roots, %v; want %d", got.FECRoots, err, roots)
		}
		if got, err := p.OfArea(q.AreaSize() + 1); !errors.Is(err, ErrParams) {
			t.Errorf("OfArea of one byte more = %+v, %v; want %v", got, err, ErrParams)
		}
	}
	p.FECRoots = 0
	if err := BuildFEC(bytes.NewReader(nil), bytes.NewReader(nil), p, memory(nil)); !errors.Is(err, ErrParams) {
		t.Errorf("BuildFEC without roots = %v; want %v", err, ErrParams)
	}
}

func BenchmarkBuildFEC(b *testing.B) {
	p := testParams(SHA256, 4096, 4096, 64<<20/4096, nil)
	p.FECRoots = 2
	data := testData(int(p.DataSize()))
	device, _ := withFEC(b, data, p)
	b.SetBytes(p.DataSize())
	for b.Loop() {
		if err := BuildFEC(bytes.NewReader(data), bytes.NewReader(device), p, memory(device)); err != nil {
			b.Fatal(err)
		}
	}
}

// A tree behind the data, in one file.
func TestBehind(t *testing.T) {
	p := testParams(SHA256, 4096, 4096, 300, []byte("salt"))
	data := testData(int(p.DataSize()))
	tree, rootHash := format(t, data, p)
	const at = 2 << 20
	device := append(append(bytes.Clone(data), make([]byte, at-len(data))...), tree...)
	behind, err := p.Behind(at)
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(bytes.NewReader(device), bytes.NewReader(device), behind, rootHash); err != nil {
		t.Errorf("Verify = %v; want no error", err)
	}
	path := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(path, device, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := veritysetup("verify", "--hash-offset", fmt.Sprint(at), path, path, hex.EncodeToString(rootHash)); err != nil {
		t.Errorf("veritysetup verify: %v\n%s", err, out)
	}
	for _, bad := range []int64{-4096, 100, 1 << 62} {
		if q, err := p.Behind(bad); !errors.Is(err, ErrParams) {
			t.Errorf("Behind(%d) = %+v, %v; want %v", bad, q, err, ErrParams)
		}
	}
	for _, c := range []struct {
		sector, page int
		want         error
	}{{512, 4096, nil}, {4096, 65536, nil}, {8192, 65536, ErrParams}, {512, 2048, ErrParams}} {
		if err := p.Blocks(c.sector, c.page); !errors.Is(err, c.want) {
			t.Errorf("Blocks(%d, %d) = %v; want %v", c.sector, c.page, err, c.want)
		}
	}
}
