package live

import (
	"bytes"
	"errors"
	"testing"

	"sealroot/mount/blockdev"
	"sealroot/slots"
	"sealroot/slots/fixed"
	"sealroot/slots/gpt"
	"sealroot/slots/guid"
)

// repartDisk is a disk with a root, its hash tree and two signature partitions, of
// which the second names the root hash that belongs to them.
func repartDisk(t *testing.T) (d *Disk, hash []byte) {
	t.Helper()
	d = newDisk(t)
	hash = append(bytes.Repeat([]byte{0xa1}, 16), bytes.Repeat([]byte{0xa2}, 16)...)
	const unit = 64 << 10
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
		d.Block.Partitions = append(d.Block.Partitions, blockdev.Partition{Number: n, Node: p.Name, Start: int64(n) * unit, Size: unit})
	}
	return d, hash
}

func TestDiscoveredDisk(t *testing.T) {
	d, hash := repartDisk(t)
	bad := errors.New("no signature")
	skipped, err := d.Discover("1", func(part blockdev.Partition) ([]byte, error) {
		if part.Node == "new" {
			return hash, nil
		}
		return nil, bad
	})
	if err != nil || len(skipped) != 1 || !errors.Is(skipped[0], bad) {
		t.Fatalf("got %v, %v, want one signature left out", skipped, err)
	}
	// newDisk has partitions labelled root-a and root-b: labels count no more.
	for label, number := range map[string]int{
		gpt.RootLabel("a"): 6, gpt.VerityLabel("a"): 7, gpt.SigLabel("a"): 5, gpt.LabelESP: 1,
	} {
		if p, err := d.Partition(label); err != nil || p.Number != number {
			t.Errorf("%s: got partition %d, %v, want %d", label, p.Number, err, number)
		}
	}
	k, err := d.Open(Choice{Store: StoreFixed, Loader: LoaderUKI, UEFI: true, Direct: true}, ESP{}, nil)
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
	if _, err := d.Discover("1", func(blockdev.Partition) ([]byte, error) { return hash[:31], nil }); !errors.Is(err, slots.ErrNoSlot) {
		t.Errorf("got %v, want %v", err, slots.ErrNoSlot)
	}
	// A partition that the kernel shows elsewhere is not read.
	d.Block.Partitions[4].Start += 512
	skipped, err := d.Discover("1", func(part blockdev.Partition) ([]byte, error) {
		if part.Node == "new" {
			t.Error("it was read")
		}
		return nil, nil
	})
	if len(skipped) != 1 || !errors.Is(skipped[0], ErrNoDisk) || !errors.Is(err, slots.ErrNoSlot) {
		t.Errorf("got %v, %v, want %v", skipped, err, ErrNoDisk)
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
