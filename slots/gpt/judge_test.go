package gpt

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/slots"
)

// run runs one of the judges: tools of other people that read our table.
func run(t *testing.T, ok bool, name string, args ...string) string {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := exec.Command(name, args...).CombinedOutput()
	if (err == nil) != ok {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// sgdiskClean reads the text of sgdisk -v, whose exit status is always 0.
func sgdiskClean(t *testing.T, path string) bool {
	t.Helper()
	out := run(t, true, "sgdisk", "-v", path)
	return strings.Contains(out, "No problems found") && !strings.Contains(out, "Problem:")
}

func image(t *testing.T, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSlotsJudges(t *testing.T) {
	path := image(t, newDisk(t, 512))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := Store{Dev: f, Size: diskSize, SectorSize: 512}
	if err := s.Save([]slots.Slot{{Name: "a", Priority: 4, Successful: true}, {Name: "b", Priority: 9, Tries: 7}}); err != nil {
		t.Fatal(err)
	}
	if !sgdiskClean(t, path) {
		t.Error("sgdisk -v finds a problem")
	}
	if out := run(t, true, "sfdisk", "-V", path); !strings.Contains(out, "No errors detected") {
		t.Errorf("sfdisk -V: %s", out)
	}
	for _, tt := range []struct{ number, option, want string }{
		{"2", "-P", "4"}, {"2", "-T", "0"}, {"2", "-S", "1"}, {"2", "-l", "root-a"},
		{"5", "-P", "9"}, {"5", "-T", "7"}, {"5", "-S", "0"}, {"5", "-u", strings.ToUpper(testGUID(14).String())},
	} {
		if got := strings.TrimSpace(run(t, true, "cgpt", "show", "-i", tt.number, tt.option, path)); got != tt.want {
			t.Errorf("cgpt show -i %s %s: got %q, want %q", tt.number, tt.option, got, tt.want)
		}
	}
	// and the reverse: what cgpt writes, we read
	run(t, true, "cgpt", "add", "-i", "5", "-P", "3", "-T", "1", "-S", "1", path)
	got, err := s.Load()
	if want := (slots.Slot{Name: "b", Priority: 3, Tries: 1, Successful: true}); err != nil || got[1] != want {
		t.Errorf("after cgpt add: got %v, %v, want %v", got, err, want)
	}
}

// The judges have to refuse a damaged table, or their approval says nothing.
func TestSlotsJudgesRefuseDamage(t *testing.T) {
	b := newDisk(t, 512)
	b[1024+128+56] ^= 0xff // a name in the primary entries
	path := image(t, b)
	if sgdiskClean(t, path) {
		t.Error("sgdisk -v accepts damaged entries")
	}
	if out := run(t, true, "sgdisk", "-v", image(t, newDisk(t, 512))); !strings.Contains(out, "No problems found") {
		t.Errorf("control: %s", out)
	}
}

func TestSlotsJudgeSgdisk(t *testing.T) {
	path := image(t, make([]byte, 16<<20))
	run(t, true, "sgdisk", "-n", "3:2048:+1M", "-t", "3:8304", "-c", "3:root-a", "-A", "3:set:48", "-A", "3:set:56", path)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := Read(f, 16<<20, 512)
	if err != nil {
		t.Fatal(err)
	}
	p, err := table.ByName("root-a")
	if err != nil || p.Number != 3 || p.Type.String() != TypeRoot || p.First != 2048 || p.Attributes != 1<<56|1<<48 {
		t.Errorf("got %+v, %v", p, err)
	}
}
