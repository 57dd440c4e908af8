package live

import (
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/mount/blockdev"
	"sealroot/slots/gpt"
)

// loopDisk is a loop device with a table that sgdisk made for a smaller disk: one
// partition, and room behind it.
func loopDisk(t *testing.T) *Disk {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v (run as root): %v: %s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{8 << 20, 32 << 20} {
		if err := os.Truncate(file, size); err != nil {
			t.Fatal(err)
		}
		if size == 8<<20 {
			run("sgdisk", "-n", "1:2048:+2M", "-c", "1:root-a", file)
		}
	}
	node := run("losetup", "--find", "--show", "--partscan", file)
	t.Cleanup(func() { run("losetup", "--detach", node) })
	// --partscan alone does not show them in every container
	if _, err := os.Stat(node + "p1"); err != nil {
		run("partx", "--add", "--nr", "1", node)
	}
	block := blockdev.Disk{Name: filepath.Base(node), Node: node, SectorSize: 512}
	table, err := readTable(block)
	if err != nil {
		t.Fatal(err)
	}
	return &Disk{Block: block, Table: table}
}

// On a real device: the table has the partition and the kernel shows it, while
// another one of the disk is open.
func TestAddState(t *testing.T) {
	d := loopDisk(t)
	used, err := os.OpenFile(d.Block.Node+"p1", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	before := d.Table
	full := errors.New("something is there")
	if err := d.AddState(rand.Reader, 8<<20, func(io.ReaderAt, int64, int64) error { return full }); !errors.Is(err, full) {
		t.Errorf("a place that is taken: got %v, want %v", err, full)
	}
	if table, err := readTable(d.Block); err != nil || len(table.Partitions) != 1 || d.Table != before {
		t.Fatalf("a place that is taken: the table was changed (%v)", err)
	}
	var start, size int64
	err = d.AddState(rand.Reader, 8<<20, func(_ io.ReaderAt, at, n int64) error { start, size = at, n; return nil })
	if err != nil {
		t.Fatal(err)
	}
	if !d.StateUnfinished() || start != 4<<20 && start != 3<<20 || start+size > 32<<20 || size < 27<<20 {
		t.Errorf("unfinished %t, %d bytes at %d; want all of the rest", d.StateUnfinished(), size, start)
	}
	dev, err := blockdev.Open(d.Block.Node+"p2", false)
	if err != nil {
		t.Fatal(err)
	}
	if dev.Size() != size {
		t.Errorf("the kernel shows %d bytes, want %d", dev.Size(), size)
	}
	dev.Close()
	if err := d.AddState(rand.Reader, 8<<20, nil); !errors.Is(err, gpt.ErrHasState) {
		t.Errorf("a second one: got %v, want %v", err, gpt.ErrHasState)
	}
	if err := d.FinishState(); err != nil || d.StateUnfinished() {
		t.Errorf("FinishState() = %v, unfinished %t", err, d.StateUnfinished())
	}
}
