// Gentemplate makes the ext4 template that package ext4 embeds: it runs mke2fs
// (e2fsprogs 1.47.0, Debian 12) with everything fixed and packs the part of
// the result that is in use. The same mke2fs gives the same bytes.
package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	blockSize = 4096
	blocks    = 16384
	// minFill is the shortest run that is packed as one byte.
	minFill = 16
)

func main() {
	out := flag.String("o", "template.bin", "file to write")
	flag.Parse()
	image, err := makeImage()
	if err == nil {
		err = os.WriteFile(*out, pack(image), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gentemplate:", err)
		os.Exit(1)
	}
}

// makeImage returns the blocks in use, which lie together at the start.
func makeImage() ([]byte, error) {
	dir, err := os.MkdirTemp("", "gentemplate")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	image, conf := filepath.Join(dir, "image"), filepath.Join(dir, "mke2fs.conf")
	// The machine's own mke2fs.conf must not have a say.
	if err := os.WriteFile(conf, []byte("[defaults]\n[fs_types]\n ext4 = {\n }\n small = {\n }\n"), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(image, blocks*blockSize); err != nil {
		return nil, err
	}
	cmd := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "8192",
		"-J", "size=16", "-m", "0", "-e", "remount-ro",
		"-O", "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,"+
			"large_file,huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed",
		"-U", "11111111-2222-4333-8444-555555555555",
		"-E", "hash_seed=66666666-7777-4888-9999-aaaaaaaaaaaa,root_owner=0:0,"+
			"lazy_itable_init=0,lazy_journal_init=0,nodiscard",
		image)
	cmd.Env = append(os.Environ(), "MKE2FS_CONFIG="+conf, "E2FSPROGS_FAKE_TIME=1700000000", "SOURCE_DATE_EPOCH=1700000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mke2fs (package e2fsprogs): %w: %s", err, out)
	}
	b, err := os.ReadFile(image)
	if err != nil {
		return nil, err
	}
	used, err := usedBlocks(image)
	if err != nil {
		return nil, err
	}
	if len(bytes.Trim(b[used*blockSize:], "\x00")) != 0 {
		return nil, errors.New("data beyond the blocks in use")
	}
	return b[:used*blockSize], nil
}

// usedBlocks asks dumpe2fs for the one range of free blocks, which must reach
// to the end.
func usedBlocks(image string) (int, error) {
	out, err := exec.Command("dumpe2fs", image).Output()
	if err != nil {
		return 0, fmt.Errorf("dumpe2fs (package e2fsprogs): %w", err)
	}
	for line := range strings.Lines(string(out)) {
		var first, last int
		if n, _ := fmt.Sscanf(strings.TrimSpace(line), "Free blocks: %d-%d", &first, &last); n == 2 && last == blocks-1 {
			return first, nil
		}
	}
	return 0, errors.New("free blocks are not one range up to the end")
}

// pack writes the records that package ext4 reads.
func pack(b []byte) []byte {
	var out []byte
	record := func(kind byte, n int, data []byte) {
		out = append(out, kind)
		out = binary.LittleEndian.AppendUint32(out, uint32(n))
		out = append(out, data...)
	}
	start := 0 // of literal data
	for i := 0; i < len(b); {
		n := 1
		for i+n < len(b) && b[i+n] == b[i] {
			n++
		}
		if n >= minFill {
			if start < i {
				record(1, i-start, b[start:i])
			}
			record(0, n, b[i:i+1])
			start = i + n
		}
		i += n
	}
	if start < len(b) {
		record(1, len(b)-start, b[start:])
	}
	return out
}
