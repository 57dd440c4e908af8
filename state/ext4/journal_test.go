package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sealroot/tooltest"
)

// withJournal is a file system as a power cut leaves it, with transactions to replay.
func withJournal(t *testing.T) *os.File {
	t.Helper()
	f := newImage(t, TemplateBytes)
	if err := WriteTemplate(f, testUUID, testSeed); err != nil {
		t.Fatal(err)
	}
	dir, umount := mounted(t, f.Name())
	var left []byte
	for n := range 5 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("file", n)), []byte("kept"), 0o644); err != nil {
			t.Fatal(err)
		}
		tooltest.Run(t, "sync", "-f", dir)
		if n == 4 {
			var err error
			if left, err = os.ReadFile(f.Name()); err != nil {
				t.Fatal(err)
			}
		}
	}
	umount()
	if _, err := f.WriteAt(left, 0); err != nil {
		t.Fatal(err)
	}
	return f
}

var commitLine = regexp.MustCompile(`Found expected sequence (\d+), type 2 \(commit block\) at block (\d+)`)

// commits are the places of the commit blocks, in bytes, as debugfs finds them.
func commits(t *testing.T, name string) (list []int64) {
	t.Helper()
	for _, m := range commitLine.FindAllStringSubmatch(tooltest.Run(t, "debugfs", "-R", "logdump", name), -1) {
		text := strings.TrimSpace(tooltest.Run(t, "debugfs", "-R", "bmap <8> "+m[2], name))
		n, err := strconv.ParseInt(text[strings.LastIndex(text, "\n")+1:], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, n*journalBlock)
	}
	if len(list) < 4 {
		t.Fatalf("the journal of %s has %d commits to replay", name, len(list))
	}
	return list
}

// tear leaves of a block the first sector, and noise behind it.
func tear(t *testing.T, f *os.File, at int64) {
	t.Helper()
	noise := bytes.Repeat([]byte{0xa5}, journalBlock-firstSector)
	if _, err := f.WriteAt(noise, at+firstSector); err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, f *os.File) []byte {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The block is what the kernel wrote, and all that was synced is there. debugfs and e2fsck
// judge, which take it for damaged before.
func TestMendJournal(t *testing.T) {
	f := withJournal(t)
	list, whole := commits(t, f.Name()), content(t, f)
	tear(t, f, list[len(list)-1])
	before := filepath.Join(t.TempDir(), "before")
	if err := os.WriteFile(before, content(t, f), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("e2fsck", "-p", before).CombinedOutput(); err == nil {
		t.Errorf("control: e2fsck finds nothing wrong with a torn commit:\n%s", out)
	}
	if mended, err := Mend(f, TemplateBytes); !mended || err != nil {
		t.Fatalf("Mend = %v, %v", mended, err)
	}
	if got := commits(t, f.Name()); !slices.Equal(got, list) || !bytes.Equal(content(t, f), whole) {
		t.Errorf("commits at %v, before it was torn at %v", got, list)
	}
	dir, umount := mounted(t, f.Name())
	for n := range 5 {
		if text, err := os.ReadFile(filepath.Join(dir, fmt.Sprint("file", n))); err != nil || string(text) != "kept" {
			t.Errorf("file %d: %q, %v", n, text, err)
		}
	}
	umount()
	tooltest.Run(t, "e2fsck", "-fn", f.Name())
	if mended, err := Mend(f, TemplateBytes); mended || err != nil {
		t.Errorf("Mend of a clean one = %v, %v", mended, err)
	}
}

// The journal of a large file system has more extents than the superblock has room for.
func TestMendJournalOfLargeDisk(t *testing.T) {
	const size = 200 << 30
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	tooltest.Run(t, "mke2fs", "-q", "-t", "ext4", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", image, "200G")
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	tooltest.Run(t, "mount", "-o", "loop,nodiscard,noinit_itable", image, root)
	cut := filepath.Join(dir, "cut")
	for n := range 5 {
		if err := os.WriteFile(filepath.Join(root, fmt.Sprint("file", n)), []byte("kept"), 0o644); err != nil {
			t.Error(err)
		}
		tooltest.Run(t, "sync", "-f", root)
	}
	tooltest.Run(t, "cp", "--sparse=always", image, cut)
	tooltest.Run(t, "umount", root)
	f, err := os.OpenFile(cut, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sb := make([]byte, superblockBytes)
	if _, err := f.ReadAt(sb, superblockOffset); err != nil {
		t.Fatal(err)
	}
	if levels := binary.LittleEndian.Uint16(sb[sbJournalMap+6:]); levels == 0 {
		t.Fatalf("the map of the journal of %d bytes has no blocks of its own", int64(size))
	}
	list := commits(t, cut)
	last := list[len(list)-1]
	read := func() []byte {
		b := make([]byte, journalBlock)
		if _, err := f.ReadAt(b, last); err != nil {
			t.Fatal(err)
		}
		return b
	}
	whole := read()
	if mended, err := Mend(f, size); mended || err != nil {
		t.Errorf("Mend of a whole one = %v, %v", mended, err)
	}
	tear(t, f, last)
	if mended, err := Mend(f, size); !mended || err != nil || !bytes.Equal(read(), whole) {
		t.Errorf("Mend = %v, %v, and the commit is as it was: %v", mended, err, bytes.Equal(read(), whole))
	}
}

// What no power cut does stays as it is.
func TestMendJournalLeavesDamage(t *testing.T) {
	f := withJournal(t)
	list := commits(t, f.Name())
	whole := content(t, f)
	for name, change := range map[string]func(){
		"whole":   func() {},
		"flipped": func() { f.WriteAt([]byte{0xff}, list[len(list)-1]+0x30) }, // in its time
		"no_end":  func() { f.WriteAt(make([]byte, journalBlock), list[len(list)-1]) },
	} {
		change()
		damaged := content(t, f)
		if mended, err := Mend(f, TemplateBytes); mended || err != nil {
			t.Errorf("%s: Mend = %v, %v", name, mended, err)
		}
		if !bytes.Equal(content(t, f), damaged) {
			t.Errorf("%s: Mend has written", name)
		}
		if _, err := f.WriteAt(whole, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// memory is a Disk in memory that ends.
type memory []byte

func (m memory) ReadAt(p []byte, at int64) (int, error) { return bytes.NewReader(m).ReadAt(p, at) }
func (m memory) WriteAt(p []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(p)) > int64(len(m)) {
		return 0, os.ErrInvalid
	}
	return copy(m[at:], p), nil
}
func (m memory) Sync() error { return nil }

// FuzzMendJournal: a journal with anything in it ends, and no more than a block is changed.
func FuzzMendJournal(f *testing.F) {
	be := binary.BigEndian
	block := func(kind, sequence uint32, rest ...byte) []byte {
		b := make([]byte, journalBlock)
		be.PutUint32(b, journalMagic)
		be.PutUint32(b[headerType:], kind)
		be.PutUint32(b[headerSequence:], sequence)
		copy(b[headerBytes:], rest)
		return b
	}
	super := block(journalSuperblock, 0)
	for at, v := range map[int]uint32{jsbBlockSize: journalBlock, jsbBlocks: 6, jsbFirst: 1, jsbSequence: 7, jsbStart: 1, jsbIncompat: journalSums} {
		be.PutUint32(super[at:], v)
	}
	f.Add(false, slices.Concat(super, block(journalDescriptor, 7, 0, 0, 0, 1, 0, 0, 0, tagLast|tagSameUUID), make([]byte, journalBlock), block(journalCommit, 7)))
	f.Add(false, slices.Concat(super, block(journalRevoke, 7), block(journalRevoke, 7), block(journalRevoke, 7), block(journalRevoke, 7), block(journalRevoke, 7)))
	le := binary.LittleEndian
	indexed := block(0, 0)
	le.PutUint16(indexed, extentMagic)
	le.PutUint16(indexed[2:], 1)
	le.PutUint16(indexed[16:], 15)
	le.PutUint32(indexed[20:], 1)
	f.Add(true, slices.Concat(indexed, super, block(journalCommit, 7)))
	f.Fuzz(func(t *testing.T, levels bool, data []byte) {
		sb := make([]byte, superblockBytes)
		le.PutUint32(sb[sbLogBlockSize:], 2)
		le.PutUint32(sb[sbBlocksLow:], 16)
		sb[sbJournalCopied] = 1
		le.PutUint16(sb[sbJournalMap:], extentMagic)
		le.PutUint16(sb[sbJournalMap+2:], 1)
		le.PutUint16(sb[sbJournalMap+16:], 16)
		if levels { // the first block has the extents
			le.PutUint16(sb[sbJournalMap+6:], 1)
			le.PutUint16(sb[sbJournalMap+16:], 0)
		}
		disk := append(memory(nil), data...)
		disk = append(disk, make([]byte, max(0, 16*journalBlock-len(disk)))...)
		before := slices.Clone(disk)
		mended, err := mendJournal(disk, sb)
		if err != nil {
			t.Fatal(err)
		}
		changed := 0
		for at := 0; at < len(disk); at += journalBlock {
			end := min(len(disk), at+journalBlock)
			if !bytes.Equal(disk[at:end], before[at:end]) {
				changed++
			}
		}
		if changed > 1 || !mended && changed > 0 {
			t.Errorf("mended %v, %d blocks changed", mended, changed)
		}
	})
}
