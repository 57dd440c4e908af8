package gpt

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sealroot/slots/guid"
	"sealroot/slots/slotstest"
)

// freshDisk is newDisk with a boot log that says that nothing booted from it yet.
func freshDisk(t testing.TB, sectorSize int) []byte {
	t.Helper()
	d := slotstest.NewDisk(newDisk(t, sectorSize))
	table, err := Read(d, d.Size(), sectorSize)
	if err != nil {
		t.Fatal(err)
	}
	last := table.Partitions[len(table.Partitions)-1]
	n := last.Last - last.First + 1
	if err := table.Add(Partition{
		Type: guid.Must(TypeLog), Name: LabelLog, UUID: testGUID(40), Attributes: Fresh | ReadOnly,
		First: last.Last + 1, Last: last.Last + n,
	}); err != nil {
		t.Fatal(err)
	}
	if err := table.Write(d); err != nil {
		t.Fatal(err)
	}
	return d.Bytes()
}

// uuids are the GUIDs of the disk and of its partitions.
func (t *Table) uuids() []guid.GUID {
	all := []guid.GUID{t.Disk}
	for _, p := range t.Partitions {
		all = append(all, p.UUID)
	}
	return all
}

func random(seed uint64) *rand.ChaCha8 { return rand.NewChaCha8([32]byte{byte(seed)}) }

// Nothing but the GUIDs and the mark changes, and other people's tools agree.
func TestRenewJudges(t *testing.T) {
	for _, sectorSize := range []int{512, 4096} {
		before := freshDisk(t, sectorSize)
		path := image(t, before)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		table, err := Read(f, diskSize, sectorSize)
		if err != nil || !table.Fresh() {
			t.Fatalf("%v, %v, want a disk that nothing booted from", table, err)
		}
		old := table.uuids()
		if err := table.Renew(f, random(1)); err != nil {
			t.Fatal(err)
		}
		again, err := Read(f, diskSize, sectorSize)
		if err != nil || again.Fresh() || !again.healthy() || !slices.Equal(again.uuids(), table.uuids()) {
			t.Fatalf("after it: %+v, %v", again, err)
		}
		for i, id := range again.uuids() {
			if slices.Contains(old, id) || slices.Contains(again.uuids()[:i], id) {
				t.Errorf("GUID %d is %s, want a new one", i, id)
			}
		}
		if sectorSize != 512 {
			continue // the judges take a file for a disk of 512-byte sectors
		}
		if !sgdiskClean(t, path) {
			t.Error("sgdisk -v finds a problem")
		}
		if out := run(t, true, "sfdisk", "-V", path); !strings.Contains(out, "No errors detected") {
			t.Errorf("sfdisk -V: %s", out)
		}
		if got := strings.TrimSpace(run(t, true, "cgpt", "show", "-i", "2", "-P", path)); got != "1" {
			t.Errorf("cgpt: priority of slot a is %s, want 1 as before", got)
		}
		hide := regexp.MustCompile(`(label-id: |uuid=)[0-9A-F-]{36}`)
		dump := func(path string) []string {
			out := run(t, true, "sfdisk", "--dump", path)
			return strings.Split(strings.ReplaceAll(hide.ReplaceAllString(out, "$1"), path, "disk"), "\n")
		}
		was, is := dump(image(t, before)), dump(path)
		for i := range was {
			// sfdisk writes the bits 48 to 63 as GUID:n
			if want := strings.ReplaceAll(was[i], "GUID:48,60", "GUID:60"); !strings.Contains(was[i], LabelLog) && was[i] != is[i] || want != is[i] {
				t.Errorf("sfdisk: line %q became %q", was[i], is[i])
			}
		}
	}
}

// A power cut leaves the disk fresh, or with its new GUIDs; GRUB's own
// reading, which minds no checksum, always names a partition that is found; and
// the next boot ends what this one began.
func TestRenewPowerCutAtEveryWrite(t *testing.T) {
	clean := freshDisk(t, 512)
	built, err := Read(bytes.NewReader(clean), diskSize, 512)
	if err != nil {
		t.Fatal(err)
	}
	for _, damage := range []int{-1, 512 + 60, len(clean) - 512 + 60} {
		for cut := range 8 {
			b := bytes.Clone(clean)
			if damage >= 0 {
				b[damage] ^= 0xff
			}
			d := slotstest.NewDisk(b)
			table, err := Read(d, diskSize, 512)
			if err != nil {
				t.Fatal(err)
			}
			d.CutAfter(cut)
			err = table.Renew(d, random(2))
			if (err == nil) != (cut >= 6) {
				t.Fatalf("cut after %d: got %v", cut, err)
			}
			for _, out := range d.Outcomes(16, uint64(cut)) {
				after := slotstest.NewDisk(out)
				got, readErr := Read(after, diskSize, 512)
				if readErr != nil {
					t.Fatalf("damage at %d, cut after %d: %v", damage, cut, readErr)
				}
				want := table.uuids()
				if got.Fresh() {
					want = built.uuids()
				}
				if !slices.Equal(got.uuids(), want) || err == nil && got.Fresh() {
					t.Fatalf("damage at %d, cut after %d: GUIDs %v, still fresh: %t", damage, cut, got.uuids(), got.Fresh())
				}
				asGRUB := guid.GUID(out[2*512+16:]) // the first entry: the ESP
				if p, err := got.ByLoader(asGRUB); err != nil || p.Number != 1 {
					t.Fatalf("damage at %d, cut after %d: partition %s of GRUB is %d, %v", damage, cut, asGRUB, p.Number, err)
				}
				if !got.Fresh() {
					continue
				}
				if err := got.Renew(after, random(3)); err != nil {
					t.Fatal(err)
				}
				if got, err := Read(after, diskSize, 512); err != nil || got.Fresh() || !got.healthy() {
					t.Fatalf("the next boot leaves %+v, %v", got, err)
				}
			}
		}
	}
}

// What a damaged copy holds counts only where the good one has no answer.
func TestByLoader(t *testing.T) {
	b := newDisk(t, 512)
	copy(b[1024+16:], b[1024+128+16:1024+128+32]) // the ESP's entry gets the UUID of root-a
	table, err := Read(bytes.NewReader(b), diskSize, 512)
	if err != nil || table.PrimaryBad == nil {
		t.Fatalf("%v, %v", table, err)
	}
	if p, err := table.ByLoader(testGUID(11)); err != nil || p.Name != RootLabel("a") {
		t.Errorf("got %q, %v, want what the good copy says", p.Name, err)
	}
	for _, id := range []guid.GUID{testGUID(77), {}} {
		if p, err := table.ByLoader(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: got %v, %v, want ErrNotFound", id, p, err)
		}
	}
}

func TestRenewWithoutRandomness(t *testing.T) {
	d := slotstest.NewDisk(freshDisk(t, 512))
	table, err := Read(d, diskSize, 512)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Renew(d, bytes.NewReader(make([]byte, 40))); err == nil || d.Ops() > 0 {
		t.Errorf("got %v after %d writes, want an error before the first", err, d.Ops())
	}
}
