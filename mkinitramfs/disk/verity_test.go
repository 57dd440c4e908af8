package disk

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"sealroot/init/config"
	"sealroot/slots/gpt"
	"sealroot/verity"
)

func TestLayoutWithTheTreeBehindTheImage(t *testing.T) {
	need := needs{root: 100 * mib, treeAt: 200 * mib, esp: 20 * mib, shared: 2 * mib, verity: func(root int64) int64 { return root / 100 }}
	for _, tc := range []struct {
		name string
		root int64
		want int64 // size of a root partition, 0: refused
	}{
		{"default", 0, 202 * mib}, {"room_to_spare", 300 * mib, 300 * mib}, {"no_room_for_the_tree", 201 * mib, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			parts, _, err := layout(Sizes{Root: tc.root}, need, []string{"a", "b"})
			if tc.want == 0 {
				if !errors.Is(err, ErrSize) {
					t.Errorf("layout = %v, %v; want %v", parts, err, ErrSize)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range parts {
				if p.label == gpt.VerityLabel("a") || p.label == gpt.RootLabel("b") && p.size != tc.want {
					t.Errorf("partition %s of %d bytes", p.label, p.size)
				}
			}
		})
	}
}

// veritysetup judges a tree behind the image, with SHA-512 and parity.
func TestTreeBehindTheImage(t *testing.T) {
	b, in := builder(t)
	in.Config.Root.Verity = config.Verity{Algorithm: "sha512", DataBlockSize: 1024, HashBlockSize: 1024, TreeAtMiB: 2, FECRoots: 2}
	out := filepath.Join(t.TempDir(), "disk.img")
	if err := b.Disk(t.Context(), Options{A: in, Output: out, Sizes: Sizes{State: 192 * mib}}); err != nil {
		t.Fatal(err)
	}
	path, _ := part(t, out, gpt.RootLabel("a"))
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p, err := verity.ReadSuperblock(bytes.NewReader(content[2*mib:]))
	if err == nil {
		p, err = p.Behind(2 * mib)
	}
	if err != nil || p.Algorithm != verity.SHA512 || p.DataBlockSize != 1024 {
		t.Fatalf("superblock %+v, %v", p, err)
	}
	p.FECRoots = 2
	parts, err := b.buildParts(t.Context(), in, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	judge := func() error {
		out, err := exec.Command("/usr/sbin/veritysetup", "verify", path, path, hex.EncodeToString(parts.rootHash), "--hash-offset", fmt.Sprint(2*mib),
			"--fec-device", path, "--fec-offset", fmt.Sprint(p.HashSize()), "--fec-roots", "2").CombinedOutput()
		t.Logf("%s", out)
		return err
	}
	change := func(at int64, flip byte) {
		content[at] ^= flip
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := judge(); err != nil {
		t.Errorf("veritysetup refuses the slot: %v", err)
	}
	change(3000, 1)
	if err := judge(); err != nil {
		t.Errorf("veritysetup cannot repair the slot: %v", err)
	}
	// Not zero: that is the parity of zeros, by which a codeword with one other
	// byte in it is "repaired".
	for i := range p.FECSize() {
		content[p.HashSize()+i] = byte(i*i>>3) ^ 0x5a
	}
	change(0, 1)
	if err := judge(); err == nil {
		t.Error("red control: veritysetup repairs without parity")
	}
	in.Config.Root.Verity.TreeAtMiB = 1 // the image is larger than that
	in.Rootfs = bigRoot(t)
	if p, err := b.buildParts(t.Context(), in, t.TempDir()); !errors.Is(err, ErrSize) {
		t.Errorf("a tree inside the image: %v, %v; want %v", p.rootSize, err, ErrSize)
	}
}

// bigRoot is a root whose image is larger than 1 MiB.
func bigRoot(t *testing.T) string {
	t.Helper()
	noise := make([]byte, 2*mib)
	for i, v := 0, uint32(1); i < len(noise); i++ {
		v = v*1664525 + 1013904223
		noise[i] = byte(v >> 24)
	}
	path := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(path, tarOf(t, bootable(string(noise))), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
