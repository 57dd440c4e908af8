package qemutests

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Disk is the raw image of a disk that belongs to one test. Its methods look at
// it from the host, with other people's tools, while no machine runs on it.
type Disk struct{ Path string }

// Copy returns a copy that belongs to the test.
func (d *Disk) Copy(t *testing.T) *Disk {
	t.Helper()
	c := &Disk{Path: filepath.Join(t.TempDir(), "disk.img")}
	tool(t, "cp", "--sparse=always", "--reflink=auto", d.Path, c.Path)
	return c
}

const sectorSize = 512

// Partition is one row of the partition table, as sfdisk reads it.
type Partition struct {
	Number       int
	Name         string `json:"name"`
	Type         string `json:"type"`
	UUID         string `json:"uuid"`
	Start        int64  `json:"start"` // sectors
	Size         int64  `json:"size"`  // sectors
	Offset       int64  // bytes
	Bytes        int64
	AttributeSet string `json:"attrs"`
}

// Partitions returns the partition table.
func (d *Disk) Partitions(t *testing.T) []Partition {
	t.Helper()
	var dump struct {
		PartitionTable struct {
			Partitions []struct {
				Partition
				Node string `json:"node"`
			} `json:"partitions"`
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal([]byte(tool(t, "sfdisk", "--json", d.Path)), &dump); err != nil {
		t.Fatalf("sfdisk --json: %v", err)
	}
	var all []Partition
	for _, row := range dump.PartitionTable.Partitions {
		p := row.Partition
		if _, err := fmt.Sscanf(strings.TrimPrefix(row.Node, d.Path), "%d", &p.Number); err != nil {
			t.Fatalf("sfdisk --json: node %q: %v", row.Node, err)
		}
		p.Offset, p.Bytes = p.Start*sectorSize, p.Size*sectorSize
		all = append(all, p)
	}
	return all
}

// Part returns the partition with the given name.
func (d *Disk) Part(t *testing.T, name string) Partition {
	t.Helper()
	for _, p := range d.Partitions(t) {
		if p.Name == name {
			return p
		}
	}
	t.Fatalf("%s has no partition %q", d.Path, name)
	return Partition{}
}

// image is how the labels of the slots' partitions begin.
func (d *Disk) image(t *testing.T) string {
	t.Helper()
	for _, p := range d.Partitions(t) {
		if p.Name == "usr-a" {
			return "usr-"
		}
	}
	return "root-"
}

// Extract copies a partition to a file of its own and returns its path.
func (d *Disk) Extract(t *testing.T, name string) string {
	t.Helper()
	p := d.Part(t, name)
	path := filepath.Join(t.TempDir(), name)
	writeFile(t, path, nil, 0o644)
	if err := os.Truncate(path, p.Bytes); err != nil {
		t.Fatal(err)
	}
	copyRange(t, path, 0, d.Path, p.Offset, p.Bytes)
	return path
}

// put overwrites a partition.
func (d *Disk) put(t *testing.T, name, content string) {
	t.Helper()
	p := d.Part(t, name)
	info, err := os.Stat(content)
	if err != nil || info.Size() != p.Bytes {
		t.Fatalf("%s has %d bytes (%v), partition %s has %d", content, info.Size(), err, name, p.Bytes)
	}
	copyRange(t, d.Path, p.Offset, content, 0, p.Bytes)
}

// copyRange makes a range of one file like that of another. Holes stay holes: most
// of a disk is one, and to copy a gigabyte of zeros takes seconds.
func copyRange(t *testing.T, to string, toAt int64, from string, fromAt, length int64) {
	t.Helper()
	out, err := os.OpenFile(to, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	err = unix.Fallocate(int(out.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, toAt, length)
	for at, end := fromAt, fromAt+length; at < end && err == nil; {
		var begin, hole int64
		begin, err = unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && begin >= end {
			return // a hole up to the end
		}
		if err == nil {
			hole, err = unix.Seek(int(in.Fd()), begin, unix.SEEK_HOLE)
		}
		if err == nil {
			at = min(hole, end)
			_, err = io.Copy(io.NewOffsetWriter(out, toAt+begin-fromAt), io.NewSectionReader(in, begin, at-begin))
		}
	}
	if err != nil {
		t.Fatalf("cannot copy %d bytes of %s to %s: %v", length, from, to, err)
	}
}

// Read returns bytes of a partition.
func (d *Disk) Read(t *testing.T, name string, offset, length int64) []byte {
	t.Helper()
	f, err := os.Open(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, length)
	if _, err := f.ReadAt(data, d.Part(t, name).Offset+offset); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return data
}

// Write changes bytes of a partition, as somebody with the disk in hand would.
func (d *Disk) Write(t *testing.T, name string, offset int64, data []byte) {
	t.Helper()
	d.writeAt(t, d.Part(t, name).Offset+offset, data)
}

func (d *Disk) writeAt(t *testing.T, offset int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, offset); err != nil {
		t.Fatal(err)
	}
}

// Flip inverts one byte of a partition.
func (d *Disk) Flip(t *testing.T, name string, offset int64) {
	t.Helper()
	b := d.Read(t, name, offset, 1)
	d.Write(t, name, offset, []byte{^b[0]})
}

// PutESP replaces a file of the EFI system partition.
func (d *Disk) PutESP(t *testing.T, path string, data []byte) {
	t.Helper()
	source := filepath.Join(t.TempDir(), "file")
	writeFile(t, source, data, 0o644)
	tool(t, "mcopy", "-o", "-i", d.espImage(t), source, "::"+path)
}

// GetESP returns a file of the EFI system partition.
func (d *Disk) GetESP(t *testing.T, path string) []byte {
	t.Helper()
	return []byte(tool(t, "mtype", "-i", d.espImage(t), "::"+path))
}

// espImage names the EFI system partition in mtools' way.
func (d *Disk) espImage(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("%s@@%d", d.Path, d.Part(t, "esp").Offset)
}

// Grubenv returns GRUB's environment as grub-editenv lists it.
func (d *Disk) Grubenv(t *testing.T) map[string]string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "grubenv")
	writeFile(t, path, d.GetESP(t, "/sealroot/grubenv"), 0o644)
	vars := make(map[string]string)
	for line := range strings.Lines(tool(t, "grub-editenv", path, "list")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		vars[name] = value
	}
	return vars
}

// SlotBits are a slot's attribute bits as cgpt reads them.
type SlotBits struct{ Priority, Tries, Successful int }

// Slot returns the attribute bits of a slot.
func (d *Disk) Slot(t *testing.T, slot string) SlotBits {
	t.Helper()
	number := d.Part(t, d.image(t)+slot).Number
	bit := func(flag string) (n int) {
		output := tool(t, "cgpt", "show", "-i", fmt.Sprint(number), flag, d.Path)
		if _, err := fmt.Sscan(output, &n); err != nil {
			t.Fatalf("cgpt show %s: %q: %v", flag, output, err)
		}
		return n
	}
	return SlotBits{bit("-P"), bit("-T"), bit("-S")}
}

// CheckTable has sfdisk and sgdisk judge the partition table.
func (d *Disk) CheckTable(t *testing.T) {
	t.Helper()
	if problem := tableProblem(t, d.Path); problem != "" {
		t.Errorf("the partition table: %s", problem)
	}
}

// tableProblem returns what sfdisk or sgdisk find wrong, "" for nothing.
func tableProblem(t *testing.T, path string) string {
	t.Helper()
	output, err := runTool("sfdisk", "-V", path)
	if err != nil || !strings.Contains(output, "No errors detected") {
		return "sfdisk -V: " + output
	}
	// sgdisk's exit status says nothing: it is 0 on a ruined header too.
	output, err = runTool("sgdisk", "-v", path)
	if err != nil || !strings.Contains(output, "No problems found") {
		return "sgdisk -v: " + output
	}
	return ""
}

// CheckVerity has veritysetup judge a slot's image and hash tree.
func (d *Disk) CheckVerity(t *testing.T, slot string) {
	t.Helper()
	output, err := runTool("veritysetup", "verify", d.Extract(t, d.image(t)+slot), d.Extract(t, d.image(t)+slot+"-verity"), d.rootHash(t, slot))
	if err != nil {
		t.Errorf("veritysetup verify of slot %s: %v: %s", slot, err, output)
	}
}

// rootHash returns the root hash that a slot's signature partition names.
func (d *Disk) rootHash(t *testing.T, slot string) string {
	t.Helper()
	name := d.image(t) + slot + "-verity-sig"
	var signature struct {
		RootHash string `json:"rootHash"`
	}
	sig := strings.TrimRight(string(d.Read(t, name, 0, d.Part(t, name).Bytes)), "\x00")
	if err := json.Unmarshal([]byte(sig), &signature); err != nil {
		t.Fatalf("slot %s's signature: %v", slot, err)
	}
	return signature.RootHash
}

// volumeStart is how much of encrypted.img the judges get: the header and the
// beginning of the data. The whole file has an apparent size of many gigabytes.
const volumeStart = 32 << 20

// EncryptedImage copies the beginning of encrypted.img out of the state
// partition and returns its path.
func (d *Disk) EncryptedImage(t *testing.T) string {
	t.Helper()
	state := d.Extract(t, "state")
	// The journal of a machine whose power was cut is replayed first; e2fsck's
	// status is not zero when it did.
	if output, err := runTool("e2fsck", "-p", state); err != nil {
		t.Logf("e2fsck -p: %v: %s", err, output)
	}
	return encryptedImage(t, state)
}

// encryptedImage does it for a state partition whose journal is replayed.
func encryptedImage(t *testing.T, state string) string {
	t.Helper()
	cat := exec.Command("debugfs", "-R", "cat /encrypted.img", state)
	out, err := cat.StdoutPipe()
	if err == nil {
		err = cat.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	start := make([]byte, volumeStart)
	n, err := io.ReadFull(out, start)
	cat.Process.Kill()
	cat.Wait() // killed on purpose
	if err != nil {
		t.Fatalf("encrypted.img has %d bytes (%v); the state partition holds: %s",
			n, err, tool(t, "debugfs", "-R", "ls -l /", state))
	}
	path := filepath.Join(t.TempDir(), "encrypted.img")
	writeFile(t, path, start, 0o600)
	return path
}
