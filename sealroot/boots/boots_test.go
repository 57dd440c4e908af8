package boots

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func id(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012x", n) }

func boot(n int) []byte { return fmt.Appendf(nil, `{"schema": 1, "boot_id": %q, "n": %d}`, id(n), n) }

func record(t *testing.T, state string, n ...int) {
	t.Helper()
	var all [][]byte
	for _, n := range n {
		all = append(all, boot(n))
	}
	if err := Record(state, all...); err != nil {
		t.Fatal(err)
	}
}

// kept lists the numbers and the boots that are kept.
func kept(t *testing.T, state string) string {
	t.Helper()
	all, err := List(state)
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, r := range all {
		var n int
		if _, err := fmt.Sscanf(r.BootID, "00000000-0000-4000-8000-%x", &n); err != nil {
			t.Fatal(err)
		}
		words = append(words, fmt.Sprintf("%d:%d", r.Number, n))
	}
	return strings.Join(words, " ")
}

func TestRecord(t *testing.T) {
	state := t.TempDir()
	if got := kept(t, state); got != "" {
		t.Errorf("a new partition: got %q", got)
	}
	record(t, state, 1)
	record(t, state, 2, 3, 2)
	record(t, state, 3)
	if got, want := kept(t, state), "1:1 2:2 3:3"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for n := 4; n <= 13; n++ {
		record(t, state, n)
	}
	if got, want := kept(t, state), "4:4 5:5 6:6 7:7 8:8 9:9 10:10 11:11 12:12 13:13"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	all, err := List(state)
	if err != nil || string(all[9].Text) != string(boot(13)) || all[9].Recorded.IsZero() {
		t.Errorf("the last report: got %s, %v, %v", all[9].Text, all[9].Recorded, err)
	}
	files, err := os.ReadDir(filepath.Join(state, folder))
	if err != nil || len(files) != Keep {
		t.Errorf("%d files are left, %v; want %d", len(files), err, Keep)
	}
}

func TestRecordRefuses(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"no_json", "{"},
		{"no_id", "{}"},
		{"id_that_is_a_path", `{"boot_id": "../../x"}`},
		{"id_of_another_kind", `{"boot_id": 7}`},
		{"too_large", `{"boot_id": "` + id(1) + `", "x": "` + strings.Repeat("x", maxReport) + `"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			state := t.TempDir()
			if err := Record(state, []byte(c.text), boot(2)); !errors.Is(err, ErrReport) {
				t.Errorf("got error %v, want %v", err, ErrReport)
			}
			if got, want := kept(t, state), "1:2"; got != want {
				t.Errorf("got %q, want %q: one bad report keeps the others from being kept", got, want)
			}
		})
	}
}

// TestPowerCut: what a cut leaves at any of the crash points is completed or
// cleaned up by the next boot.
func TestPowerCut(t *testing.T) {
	for _, c := range []struct {
		name string
		left map[string]string
		want string
	}{
		{"part_of_a_report", map[string]string{temporary: "{\"boot"}, "1:1 2:2"},
		{"whole_report_not_renamed", map[string]string{temporary: string(boot(2))}, "1:1 2:2"},
		{"renamed", map[string]string{"2-" + id(2) + ".json": string(boot(2))}, "1:1 2:2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			state := t.TempDir()
			record(t, state, 1)
			for name, text := range c.left {
				if err := os.WriteFile(filepath.Join(state, folder, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			record(t, state, 2)
			if got := kept(t, state); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			files, err := filepath.Glob(filepath.Join(state, folder, ".*"))
			if err != nil || len(files) != 0 && c.name != "renamed" {
				t.Errorf("left over: %v, %v", files, err)
			}
		})
	}
}

// TestHostileFolder: the partition is anybody's.
func TestHostileFolder(t *testing.T) {
	state, outside := t.TempDir(), t.TempDir()
	record(t, state, 1)
	dir := filepath.Join(state, folder)
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, []byte("unharmed"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Symlink(victim, filepath.Join(dir, temporary)),
		os.Symlink(victim, filepath.Join(dir, "2-"+id(2)+".json")),
		unix.Mkfifo(filepath.Join(dir, "3-"+id(3)+".json"), 0o600),
		os.WriteFile(filepath.Join(dir, "4-"+id(4)+".json"), boot(9), 0o600),
		os.WriteFile(filepath.Join(dir, "999999999-"+id(5)+".json"), boot(5), 0o600),
		os.WriteFile(filepath.Join(dir, "99999999999999999999-"+id(6)+".json"), boot(6), 0o600),
		os.WriteFile(filepath.Join(dir, "+7-"+id(7)+".json"), boot(7), 0o600),
		os.Mkdir(filepath.Join(dir, "8-x.json"), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	all, err := List(state)
	if len(all) != 1 || all[0].Number != 1 || !errors.Is(err, ErrReport) {
		t.Errorf("List() = %v, %v; want the one good report and %v", all, err, ErrReport)
	}
	if err := Record(state, boot(10)); err != nil {
		t.Errorf("Record() = %v", err)
	}
	all, _ = List(state)
	if i := slices.IndexFunc(all, func(r Report) bool { return r.BootID == id(10) }); i < 0 || all[i].Number != 5 {
		t.Errorf("List() = %v, want boot 10 with number 5", all)
	}
	if text, err := os.ReadFile(victim); err != nil || string(text) != "unharmed" {
		t.Errorf("a file outside of the partition: %q, %v", text, err)
	}
}

// A folder that leads elsewhere is refused, not followed.
func TestFolderThatIsALink(t *testing.T) {
	state, outside := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(state, ".sealroot")); err != nil {
		t.Fatal(err)
	}
	if err := Record(state, boot(1)); err == nil {
		t.Error("Record() followed a link out of the partition")
	}
	if files, err := os.ReadDir(outside); err != nil || len(files) != 0 {
		t.Errorf("outside of the partition: %v, %v", files, err)
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"1-" + id(1) + ".json", "0-a.json", "+1-a.json", "1-.json", ".new", "1-../x.json"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, ok := parse(s)
		if !ok && n != (name{}) {
			t.Errorf("parse(%q) = %v, false", s, n)
		}
		if ok && n.file() != s {
			t.Errorf("parse(%q) is written as %q", s, n.file())
		}
	})
}
