package gpt

import (
	"errors"
	"strings"
	"testing"

	"sealroot/slots/guid"
	"sealroot/slots/slotstest"
)

// stateless is newDisk without its state partition.
func stateless(t testing.TB, sectorSize int) []byte {
	t.Helper()
	d := slotstest.NewDisk(newDisk(t, sectorSize))
	whole, err := Read(d, d.Size(), sectorSize)
	if err != nil {
		t.Fatal(err)
	}
	table, err := New(whole.Disk, d.Size(), sectorSize)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range whole.Partitions {
		if p.Name != LabelState {
			if err := table.Add(p); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := table.Write(d); err != nil {
		t.Fatal(err)
	}
	return d.Bytes()
}

// grown is stateless on a disk that is larger by 2 MiB and a bit: what an image is
// that was flashed to another medium.
func grown(t testing.TB, sectorSize int) []byte {
	t.Helper()
	return append(stateless(t, sectorSize), make([]byte, 2<<20+8*4096)...)
}

const leastState = 1 << 20

// addState does what PID 1 does, as far as the table goes.
func addState(d *slotstest.Disk, sectorSize int) error {
	table, err := Read(d, d.Size(), sectorSize)
	if err != nil {
		return err
	}
	if p, err := table.ByName(LabelState); err == nil && !p.Unfinished() {
		return nil
	} else if err != nil {
		p, err := table.StatePlace(leastState)
		if err != nil {
			return err
		}
		if err := table.AddState(d, p, testGUID(50)); err != nil {
			return err
		}
	}
	return table.FinishState(d)
}

func TestAddStateJudges(t *testing.T) {
	for _, sectorSize := range []int{512, 4096} {
		d := slotstest.NewDisk(grown(t, sectorSize))
		before, err := Read(d, d.Size(), sectorSize)
		if err != nil {
			t.Fatal(err)
		}
		if err := addState(d, sectorSize); err != nil {
			t.Fatal(err)
		}
		after, err := Read(d, d.Size(), sectorSize)
		if err != nil || !after.healthy() || len(after.Partitions) != len(before.Partitions)+1 {
			t.Fatalf("after it the table is not whole, or has not one partition more: %v", err)
		}
		for i, p := range before.Partitions {
			if after.Partitions[i] != p {
				t.Errorf("partition %+v became %+v", p, after.Partitions[i])
			}
		}
		p, err := after.ByName(LabelState)
		last := before.Partitions[len(before.Partitions)-1]
		if err != nil || p.Unfinished() || p.Type.String() != TypeState || p.First <= last.Last ||
			after.Offset(p)%alignment != 0 || after.Size(p)%alignment != 0 || after.Size(p) < 1<<20 {
			t.Errorf("the state partition is %+v, %v", p, err)
		}
		if sectorSize != 512 {
			continue // the judges take a file for a disk of 512-byte sectors
		}
		path := image(t, d.Bytes())
		if !sgdiskClean(t, path) {
			t.Error("sgdisk -v finds a problem")
		}
		out := run(t, true, "sfdisk", "-V", path)
		if !strings.Contains(out, "No errors detected") || strings.Contains(out, "PMBR") || strings.Contains(out, "backup") {
			t.Errorf("sfdisk -V: %s", out)
		}
		if out := run(t, true, "sfdisk", "--dump", path); !strings.Contains(strings.ToLower(out), "type="+TypeState) || !strings.Contains(out, `name="state"`) {
			t.Errorf("sfdisk --dump: %s", out)
		}
		// Control: of the disk as it was flashed the judges have something to say.
		if out := run(t, true, "sfdisk", "-V", image(t, grown(t, 512))); strings.Contains(out, "No errors detected") && !strings.Contains(out, "PMBR") {
			t.Errorf("control: sfdisk -V: %s", out)
		}
	}
}

// After a cut at any write the table is the old one or the new one, and the next
// try ends as one without a cut.
func TestAddStatePowerCuts(t *testing.T) {
	for _, sectorSize := range []int{512, 4096} {
		content := grown(t, sectorSize)
		whole := slotstest.NewDisk(content)
		if err := addState(whole, sectorSize); err != nil {
			t.Fatal(err)
		}
		old, err := Read(slotstest.NewDisk(content), whole.Size(), sectorSize)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]int{}
		for cut := range whole.Ops() {
			d := slotstest.NewDisk(content)
			d.CutAfter(cut)
			if err := addState(d, sectorSize); !errors.Is(err, slotstest.ErrPowerCut) {
				t.Fatalf("cut %d: %v, want %v", cut, err, slotstest.ErrPowerCut)
			}
			for _, b := range d.Outcomes(4, uint64(cut)) {
				next := slotstest.NewDisk(b)
				table, err := Read(next, next.Size(), sectorSize)
				if err != nil {
					t.Fatalf("cut %d: no table: %v", cut, err)
				}
				for i, p := range old.Partitions {
					if table.Partitions[i] != p {
						t.Fatalf("cut %d: partition %+v became %+v", cut, p, table.Partitions[i])
					}
				}
				switch p, err := table.ByName(LabelState); {
				case errors.Is(err, ErrNotFound):
					seen["old"]++
				case err == nil && p.Unfinished():
					seen["unfinished"]++
				case err == nil:
					seen["finished"]++
				default:
					t.Fatalf("cut %d: %v", cut, err)
				}
				if err := addState(next, sectorSize); err != nil {
					t.Fatalf("cut %d: the next boot: %v", cut, err)
				}
				if table, err := Read(next, next.Size(), sectorSize); err != nil || len(table.Partitions) != len(old.Partitions)+1 || table.Partitions[len(old.Partitions)].Unfinished() {
					t.Fatalf("cut %d: after the next boot there is not one finished partition more: %v", cut, err)
				}
			}
		}
		if len(seen) != 3 {
			t.Errorf("outcomes %v; want the old table, the unfinished and the finished one", seen)
		}
	}
}

func TestStatePlaceRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		disk   []byte
		change func(*Table) error
		least  int64
		want   error
	}{
		{"no_room", stateless(t, 512), func(*Table) error { return nil }, 64 << 20, ErrNoRoom},
		{"less_than_wanted", grown(t, 512), func(*Table) error { return nil }, 1 << 30, ErrNoRoom},
		{"label", grown(t, 512), func(t *Table) error { return addSmall(t, TypeRoot, LabelState) }, leastState, ErrHasState},
		{"type", grown(t, 512), func(t *Table) error { return addSmall(t, TypeState, "data") }, leastState, ErrHasState},
		{"control", grown(t, 512), func(t *Table) error { return addSmall(t, TypeRoot, "data") }, leastState, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := slotstest.NewDisk(tt.disk)
			table, err := Read(d, d.Size(), 512)
			if err == nil {
				err = tt.change(table)
			}
			if err != nil {
				t.Fatal(err)
			}
			if p, err := table.StatePlace(tt.least); !errors.Is(err, tt.want) || err != nil && p != (Partition{}) {
				t.Errorf("StatePlace() = %+v, %v, want %v", p, err, tt.want)
			}
		})
	}
}

// addSmall adds a partition of one sector behind the others.
func addSmall(t *Table, kind, name string) error {
	last := t.Partitions[len(t.Partitions)-1].Last + 1
	return t.Add(Partition{Type: guid.Must(kind), Name: name, UUID: testGUID(60), First: last, Last: last})
}

// A boot sector that is not the protective one is not ours to change.
func TestHybridMBRStays(t *testing.T) {
	b := grown(t, 512)
	b[mbrTable+4] = 0x0c
	d := slotstest.NewDisk(b)
	if err := addState(d, 512); err != nil {
		t.Fatal(err)
	}
	if got := d.Bytes()[:512]; string(got) != string(b[:512]) {
		t.Error("the boot sector was changed")
	}
}
