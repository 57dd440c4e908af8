package qemutests

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"sealroot/init/report"
	"sealroot/qemu-tests/writes"
	"sealroot/slots/grubenv"
)

// recorded has the machine record what it writes to its disk from now on.
func (m *Machine) recorded() *Machine {
	m.t.Helper()
	m.Config.WriteLog = filepath.Join(m.t.TempDir(), "writes.log")
	writeFile(m.t, m.Config.WriteLog, nil, 0o600)
	return m
}

// readRecord reads what a machine wrote; the machine must be off.
func readRecord(t *testing.T, path string) *writes.Record {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	record, err := writes.Read(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// A committed trial stays, and the boot of a committed slot writes nothing before
// hand-over but to the state partition. The boot of the trial before it, which has
// to, shows that the record tells.
func TestCommittedBootWritesNothing(t *testing.T) {
	t.Parallel()
	for _, tc := range loaders {
		if tc.firmware != BIOS && !soaking() {
			continue // after the loader all is the same
		}
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.image.B = &SlotB{}
			disk := tc.image.Build(t)
			m := NewMachine(t, tc.firmware, disk).WithTPM()
			trial, _ := m.writesUntilUp("b", "sealroot commit")
			t.Logf("a trial's boot writes %v before hand-over", trial)
			if trial[tablePlace] == 0 {
				t.Errorf("a trial's boot writes %v before hand-over, want the partition table", trial)
			}
			got, r := m.writesUntilUp("b")
			if r.Slot.Reason != "committed" || r.Slot.Loaded != "b" {
				t.Errorf("slot %+v, want b committed, by its own kernel", r.Slot)
			}
			if a, b := disk.Slot(t, "a"), disk.Slot(t, "b"); b.Successful != 1 || b.Priority <= a.Priority {
				t.Errorf("slot b is %+v, a is %+v, want b successful and first", b, a)
			}
			t.Logf("a committed slot's boot writes %v before hand-over", got)
			delete(got, "state") // mounting it, and the volume in it
			// GRUB itself clears its one-shot variable, set or not: two sectors.
			// PID 1 would write them once more, and the boot log.
			if tc.firmware == BIOS && got[grubenvPlace] <= 2 {
				delete(got, grubenvPlace)
			}
			if len(got) > 0 {
				t.Errorf("a committed slot's boot writes %v before hand-over, want nothing", got)
			}
		})
	}
}

// Places of writes, beside the names of the partitions.
const (
	tablePlace   = "partition table"
	grubenvPlace = "GRUB's environment block"
)

// writesUntilUp boots into a slot, runs commands and switches the machine off.
// It counts, by partition, the writes and discards before hand-over.
func (m *Machine) writesUntilUp(slot string, commands ...string) (map[string]int, report.Report) {
	m.t.Helper()
	disk := &Disk{Path: m.Config.Disk}
	m.recorded()
	vm := m.Boot()
	r := vm.UpIn(slot)
	// An entry is in the file at once, the number of entries after a flush only.
	// The probe does not write by itself.
	info, err := os.Stat(m.Config.WriteLog)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, command := range commands {
		vm.Run(command)
	}
	vm.PowerOff()
	record := readRecord(m.t, m.Config.WriteLog)
	return writesByPlace(m.t, disk, record.Entries[:record.Before(info.Size())]), r
}

func writesByPlace(t *testing.T, disk *Disk, entries []writes.Entry) map[string]int {
	t.Helper()
	parts := disk.Partitions(t)
	environment, found := disk.grubenvOffset(t)
	places := map[string]int{}
	for _, e := range entries {
		if e.Length == 0 {
			continue
		}
		place := tablePlace
		for _, p := range parts {
			if e.Overlaps(p.Offset, p.Bytes) {
				place = p.Name
			}
		}
		if found && e.Offset >= environment && e.Offset+e.Length <= environment+grubenv.Size {
			place = grubenvPlace
		}
		places[place]++
	}
	return places
}

// grubenvOffset is where on the disk GRUB's environment block is: it is written
// in place always.
func (d *Disk) grubenvOffset(t *testing.T) (offset int64, found bool) {
	t.Helper()
	esp := d.Part(t, "esp")
	content := d.Read(t, "esp", 0, esp.Bytes)
	// GRUB's own program on the ESP holds the first line too.
	for at := 0; at+grubenv.Size <= len(content); at += sectorSize {
		block := content[at : at+grubenv.Size]
		if !bytes.HasPrefix(block, []byte("# GRUB Environment Block\n")) {
			continue
		}
		if _, err := grubenv.Parse(block); err == nil {
			return esp.Offset + int64(at), true
		}
	}
	return 0, false
}
