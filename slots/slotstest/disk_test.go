package slotstest

import (
	"bytes"
	"errors"
	"testing"
)

func TestUnsyncedWritesMayBeLost(t *testing.T) {
	d := NewDisk(make([]byte, 4*Sector))
	if _, err := d.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	d.CutAfter(1)
	if _, err := d.WriteAt(bytes.Repeat([]byte{2}, 2*Sector), Sector); err != nil {
		t.Fatal(err)
	}
	if err := d.Sync(); !errors.Is(err, ErrPowerCut) {
		t.Fatalf("sync: got %v, want ErrPowerCut", err)
	}
	if _, err := d.WriteAt([]byte{3}, 0); !errors.Is(err, ErrPowerCut) {
		t.Fatalf("write after the cut: got %v, want ErrPowerCut", err)
	}
	seen := map[[2]byte]bool{}
	for _, b := range d.Outcomes(0, 0) {
		if b[0] != 1 {
			t.Error("a synced write was lost")
		}
		seen[[2]byte{b[Sector], b[2*Sector]}] = true
	}
	if len(seen) != 4 {
		t.Errorf("got %d outcomes of two torn sectors, want 4: %v", len(seen), seen)
	}
}

func TestTheCutWriteMayHaveHappened(t *testing.T) {
	d := NewDisk(make([]byte, Sector))
	d.CutAfter(0)
	if _, err := d.WriteAt([]byte{1}, 0); !errors.Is(err, ErrPowerCut) {
		t.Fatalf("got %v, want ErrPowerCut", err)
	}
	if _, err := d.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrPowerCut) {
		t.Fatalf("read: got %v, want ErrPowerCut", err)
	}
	if got := len(d.Outcomes(0, 0)); got != 2 {
		t.Errorf("got %d outcomes, want 2", got)
	}
}
