package binds

import (
	"fmt"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	tests := []struct {
		name     string
		entries  []string
		want     []Bind
		problems []string // names
	}{
		{"nothing", nil, nil, nil},
		{"aliases", []string{"var", "home", "etc", "usrlocal", "opt", "srv"}, []Bind{
			{"etc", "/etc", true}, {"home", "/home", false}, {"opt", "/opt", false}, {"srv", "/srv", false},
			{"usrlocal", "/usr/local", false}, {"var", "/var", false},
		}, nil},
		{"unescaped", []string{"my-fancy-dir", `fancy\x2ddir`, "data"}, []Bind{
			{"data", "/data", false}, {`fancy\x2ddir`, "/fancy-dir", false}, {"my-fancy-dir", "/my/fancy/dir", false},
		}, nil},
		{"parents_first", []string{"var-lib-db", "var", "var-lib"}, []Bind{
			{"var", "/var", false}, {"var-lib", "/var/lib", false}, {"var-lib-db", "/var/lib/db", false},
		}, nil},
		{"never_bound", []string{"lost+found", "encrypted", "encrypted.img", ".sealroot", ".", "..", ".hidden"}, nil, nil},
		{"alias_wins_over_same_target", []string{"usr-local", "usrlocal"},
			[]Bind{{"usrlocal", "/usr/local", false}}, []string{"usr-local"}},
		{"etc_under_another_name", []string{`\x65tc`}, []Bind{{`\x65tc`, "/etc", true}}, nil},
		{"same_name_twice", []string{"a", "a"}, []Bind{{"a", "/a", false}}, nil},
		{"dot_dot", []string{"a-..-etc", `\x2e\x2e`, "a-."}, nil, []string{`\x2e\x2e`, "a-.", "a-..-etc"}},
		{"empty_parts", []string{"-", "-a", "a-", "a--b", ""}, nil, []string{"", "-", "-a", "a-", "a--b"}},
		{"bad_escapes", []string{`a\`, `a\x`, `a\x2`, `a\xgg`, `a\n`}, nil, []string{`a\`, `a\n`, `a\x`, `a\x2`, `a\xgg`}},
		{"bad_bytes", []string{`a\x00b`, "a\nb", `a\x0ab`, `a\xffb`}, nil, []string{"a\nb", `a\x00b`, `a\x0ab`, `a\xffb`}},
		{"system_places", []string{"proc", "dev-shm", "run", "sys-fs", "state", "state-encrypted", "device"},
			[]Bind{{"device", "/device", false}}, []string{"dev-shm", "proc", "run", "state", "state-encrypted", "sys-fs"}},
		{"places_of_the_image", []string{"usr", "usr-bin", "usr-lib", "usr-share-x", "bin", "sbin", "lib", "lib64-x", "boot", "usr-local-x", "usr-localx", "library", "users"},
			[]Bind{{"library", "/library", false}, {"users", "/users", false}, {"usr-local-x", "/usr/local/x", false}},
			[]string{"bin", "boot", "lib", "lib64-x", "sbin", "usr", "usr-bin", "usr-lib", "usr-localx", "usr-share-x"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, problems := Names(tt.entries)
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			var names []string
			for _, p := range problems {
				names = append(names, p.Name)
				if p.Reason == "" {
					t.Errorf("problem %q without a reason", p.Name)
				}
			}
			if !slices.Equal(names, tt.problems) {
				t.Errorf("got problems %q, want %q", names, tt.problems)
			}
		})
	}
}

func TestAllowed(t *testing.T) {
	all, _ := Names([]string{"home", "etc", "var-log"})
	got, problems := Allowed(all, []string{"/home", "/etc"}, nil)
	if want := []Bind{{"home", "/home", false}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if len(problems) > 0 { // anybody may have made any number of others
		t.Errorf("got problems %v", problems)
	}
	if got, _ := Allowed(all, nil, nil); len(got) != 0 {
		t.Errorf("empty allow-list: got %v, want none", got)
	}
}

// Whoever has the disk makes directories there: none of them hides what is on the
// encrypted volume.
func TestAllowedHidesNothingEncrypted(t *testing.T) {
	for _, tt := range []struct {
		name                   string
		unencrypted, encrypted []string
		want                   []string // targets
	}{
		{"apart", []string{"srv"}, []string{"home", "var", "mnt-secret", "srvx"}, []string{"/srv"}},
		{"above", []string{"srv"}, []string{"srv-secret"}, nil},
		{"far_above", []string{"srv", "mnt"}, []string{"srv-a-b-c"}, []string{"/mnt"}},
		{"the_same", []string{"srv"}, []string{"srv"}, nil},
		{"the_same_by_another_name", []string{`\x73rv`}, []string{"srv"}, nil},
		{"below", []string{"srv-data", "var-log"}, []string{"srv", "var"}, []string{"/srv/data", "/var/log"}},
		{"below_and_above", []string{"srv-data"}, []string{"srv", "srv-data-secret"}, nil},
		{"home", []string{"home"}, []string{"home"}, []string{"/home"}},
		{"home_of_one_user", []string{"home"}, []string{"home", "home-user"}, nil},
		{"aside", []string{"srv"}, []string{".srv-secret"}, []string{"/srv"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			unencrypted, _ := Names(tt.unencrypted)
			encrypted, _ := Names(tt.encrypted)
			var allow, got []string
			for _, b := range unencrypted {
				allow = append(allow, b.To)
			}
			kept, problems := Allowed(unencrypted, allow, encrypted)
			for _, b := range kept {
				got = append(got, b.To)
			}
			if !slices.Equal(got, tt.want) || len(kept)+len(problems) != len(unencrypted) {
				t.Errorf("kept %q, problems %q, want %q", got, problems, tt.want)
			}
		})
	}
	got, problems := Allowed([]Bind{{"srv", "/srv", false}}, []string{"/srv"}, []Bind{{"/state/encrypted/srv-secret", "/srv/secret", false}})
	const want = `[{srv it would hide /srv/secret (/state/encrypted/srv-secret): put a dot before the name of the one that is not wanted}]`
	if text := fmt.Sprint(problems); len(got) > 0 || text != want {
		t.Errorf("%v, problems\n%s, want\n%s", got, text, want)
	}
}

// TestUnescapeAgreesWithSystemd lets systemd-escape judge: what we accept, it
// must accept with the same result.
func TestUnescapeAgreesWithSystemd(t *testing.T) {
	names := []string{
		"home", "my-fancy-dir", `fancy\x2ddir`, `a\x2fb`, "a.b", `a\x2eb`, "a--b", "a-", "-a", "-", "a-.", "a-..-b",
		`a\xg`, `a\`, `\x2e`, "ä-ö", `\xc3\xa4`, "x@y:z_w", `UPPER\x2D`, "a b",
	}
	accepted := 0
	for _, name := range names {
		got, err := unescape(name)
		if err != nil {
			continue
		}
		accepted++
		out, err := exec.Command("systemd-escape", "--unescape", "--path", "--", name).Output()
		if err != nil {
			t.Errorf("systemd-escape refuses %q, we make %q of it: %v", name, got, err)
			continue
		}
		if want := strings.TrimSuffix(string(out), "\n"); got != want {
			t.Errorf("%q: got %q, systemd-escape says %q", name, got, want)
		}
	}
	if accepted < 10 {
		t.Errorf("only %d names were accepted", accepted)
	}
}

// systemd-escape judges, and a name means what it was made of.
func TestEscape(t *testing.T) {
	for _, path := range []string{"/opt", "/usr/local", "/srv/my-data", "/a b", "/.hidden/.x", "/x.y:z_", `/back\slash`, "/ä"} {
		name := Escape(path)
		out, err := exec.Command("systemd-escape", "--path", "--", path).Output()
		if want := strings.TrimSuffix(string(out), "\n"); err != nil || name != want {
			t.Errorf("%q: got %q, systemd-escape says %q, %v", path, name, want, err)
		}
		if back, err := unescape(name); err != nil || back != path {
			t.Errorf("%q: back comes %q, %v", path, back, err)
		}
	}
}

func FuzzNames(f *testing.F) {
	f.Add("my-fancy-dir")
	f.Add(`a\x2e\x2e-b`)
	f.Add(`\x2f..`)
	f.Fuzz(func(t *testing.T, name string) {
		binds, problems := Names([]string{name})
		if len(binds)+len(problems) > 1 {
			t.Errorf("%q: %v and %v", name, binds, problems)
		}
		for _, b := range binds {
			if b.To == "/" || !path.IsAbs(b.To) || path.Clean(b.To) != b.To || strings.ContainsRune(b.To, 0) {
				t.Errorf("%q: bad target %q", name, b.To)
			}
		}
	})
}
