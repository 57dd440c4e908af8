package live

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"sealroot/mount/blockdev"
	"sealroot/slots"
	"sealroot/slots/fixed"
	"sealroot/slots/gpt"
	"sealroot/slots/guid"
	"sealroot/slots/slotstest"
)

// repartDisk is a disk with a root, its hash tree and two signature partitions, of
// which the second holds the root hash that belongs to them.
func repartDisk(t *testing.T) (d *Disk, hash []byte) {
	t.Helper()
	d = newDisk(t)
	hash = append(bytes.Repeat([]byte{0xa1}, 16), bytes.Repeat([]byte{0xa2}, 16)...)
	const unit = 64 << 10
	nodes := map[string]string{}
	for name, content := range map[string][]byte{"old": nil, "new": hash} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, append(content, make([]byte, 4096-len(content))...), 0o600); err != nil {
			t.Fatal(err)
		}
		nodes[name] = attach(t, path)
	}
	for i, p := range []gpt.Partition{
		{Type: guid.Must(gpt.TypeSig), Name: "old"},
		{Type: guid.Must(gpt.TypeSig), Name: "new"},
		{Type: guid.Must(gpt.TypeRoot), Name: "root-c", UUID: guid.FromText([16]byte(hash))},
		{Type: guid.Must(gpt.TypeVerity), Name: "tree", UUID: guid.FromText([16]byte(hash[16:]))},
	} {
		n := i + 4
		if p.UUID.IsZero() {
			p.UUID = guid.FromText([16]byte(bytes.Repeat([]byte{byte(n)}, 16)))
		}
		p.First, p.Last = uint64(n)*unit/512, uint64(n+1)*unit/512-1
		if err := d.Table.Add(p); err != nil {
			t.Fatal(err)
		}
		d.Block.Partitions = append(d.Block.Partitions, blockdev.Partition{Number: n, Node: nodes[p.Name], Start: int64(n) * unit, Size: unit})
	}
	return d, hash
}

var errNoHash = errors.New("no root hash")

// head reads what repartDisk has in a signature partition.
func head(r io.ReaderAt) ([]byte, error) {
	hash := make([]byte, 32)
	if _, err := r.ReadAt(hash, 0); err != nil {
		return nil, err
	}
	if hash[0] == 0 {
		return nil, errNoHash
	}
	return hash, nil
}

func TestDiscoveredDisk(t *testing.T) {
	d, _ := repartDisk(t)
	skipped, err := d.Discover(gpt.Wanted{Version: "1"}, head)
	if err != nil || len(skipped) != 1 || !errors.Is(skipped[0], errNoHash) {
		t.Fatalf("got %v, %v, want one signature left out", skipped, err)
	}
	// newDisk has partitions labelled root-a and root-b: labels count no more.
	for part, number := range map[gpt.Part]int{gpt.Data: 6, gpt.Tree: 7, gpt.Sig: 5} {
		if p, err := d.InSlot("a", part); err != nil || p.Number != number {
			t.Errorf("part %d: got partition %d, %v, want %d", part, p.Number, err, number)
		}
	}
	if p, err := d.InSlot("b", gpt.Data); !errors.Is(err, gpt.ErrNotFound) {
		t.Errorf("slot b: got partition %d, %v, want %v", p.Number, err, gpt.ErrNotFound)
	}
	k, err := d.Open(Choice{Store: StoreFixed, Loader: LoaderUKI, UEFI: true, Discoverable: true}, ESP{}, slotstest.NewVars())
	if err != nil || k.Loader != nil {
		t.Fatalf("got %+v, %v", k, err)
	}
	list, err := k.Store.Load()
	if want := (slots.Slot{Name: "a", Priority: 1, Successful: true}); err != nil || len(list) != 1 || list[0] != want {
		t.Errorf("slots %v, %v, want %v", list, err, want)
	}
}

func TestDiscoverWithoutASlot(t *testing.T) {
	d, hash := repartDisk(t)
	if _, err := d.Discover(gpt.Wanted{Version: "1"}, func(io.ReaderAt) ([]byte, error) { return hash[:31], nil }); !errors.Is(err, slots.ErrNoSlot) {
		t.Errorf("got %v, want %v", err, slots.ErrNoSlot)
	}
	// A partition that the kernel shows elsewhere is not read.
	d.Block.Partitions[4].Start += 512
	skipped, err := d.Discover(gpt.Wanted{Version: "1"}, func(r io.ReaderAt) ([]byte, error) {
		if _, err := head(r); err == nil {
			t.Error("it was read")
		}
		return nil, nil
	})
	if len(skipped) != 1 || !errors.Is(skipped[0], ErrNoDisk) || !errors.Is(err, slots.ErrNoSlot) {
		t.Errorf("got %v, %v, want %v", skipped, err, ErrNoDisk)
	}
}

// A node that is gone is left out, as a signature that cannot be read.
func TestDiscoverWithoutANode(t *testing.T) {
	d, _ := repartDisk(t)
	d.Block.Partitions[3].Node = "/nonexistent"
	skipped, err := d.Discover(gpt.Wanted{Version: "1"}, head)
	if err != nil || len(skipped) != 1 || !errors.Is(skipped[0], fs.ErrNotExist) {
		t.Errorf("got %v, %v, want one partition left out", skipped, err)
	}
}

// The boot log of a disk that others made is absent; on our own it is missing.
func TestAbsentBootLog(t *testing.T) {
	own := BootLog{Disk: newDisk(t)}
	if _, err := own.Load(); own.Absent() || !errors.Is(err, gpt.ErrNotFound) {
		t.Errorf("our own disk: absent %t, %v, want %v", own.Absent(), err, gpt.ErrNotFound)
	}
	d, _ := repartDisk(t)
	if _, err := d.Discover(gpt.Wanted{Version: "1"}, head); err != nil {
		t.Fatal(err)
	}
	l := BootLog{Disk: d}
	r, err := l.Load()
	if !l.Absent() || err != nil || len(r.Failures)+len(r.Reports) > 0 {
		t.Errorf("a discovered disk: absent %t, %+v, %v, want an empty record", l.Absent(), r, err)
	}
	// A log that is there but cannot be used is no absent one.
	const unit = 64 << 10
	if err := d.Table.Add(gpt.Partition{
		Type: guid.Must(gpt.TypeLog), Name: gpt.LabelLog, UUID: guid.Must("0d5e6c1f-7d5e-4b8e-9d2c-0f0b6a1d2c3e"), First: 8 * unit / 512, Last: 9*unit/512 - 1,
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Load(); l.Absent() || !errors.Is(err, ErrNoDisk) {
		t.Errorf("with a log: absent %t, %v, want %v", l.Absent(), err, ErrNoDisk)
	}
}

// Of several slots the first is booted, and the others are there to stand in.
func TestFixedSlots(t *testing.T) {
	list, err := fixed.Store{Names: []string{"a", "b"}}.Load()
	if err != nil {
		t.Fatal(err)
	}
	d, err := slots.Decide(slots.Observed{Slots: list, LogReadable: true})
	if err != nil || d.Slot != "a" || d.Reboot {
		t.Errorf("got %+v, %v, want a", d, err)
	}
	d, err = slots.Decide(slots.Observed{Slots: list, LogReadable: true, Tried: []string{"a"}})
	if err != nil || d.Slot != "b" || d.Reboot {
		t.Errorf("after a failed: got %+v, %v, want b", d, err)
	}
}
