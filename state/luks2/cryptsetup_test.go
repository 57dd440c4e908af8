package luks2

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// dumpedKey is the volume key as cryptsetup shows it to who has a passphrase.
func dumpedKey(t *testing.T, path, passphrase string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "key")
	if text, code := cryptsetup(t, passphrase, "luksDump", "-q", "--dump-volume-key", "--volume-key-file", out, "--key-file", "-", path); code != 0 {
		t.Fatalf("cryptsetup luksDump: %s", text)
	}
	return must[[]byte](t)(os.ReadFile(out))
}

// fromFile reads a header that cryptsetup wrote.
func fromFile(t *testing.T, path string, size int64) *Header {
	t.Helper()
	f := must[*os.File](t)(os.Open(path))
	defer f.Close()
	return must[*Header](t)(Read(f, size))
}

// TestCryptsetupEdits: each edit of cryptsetup's is read back, and an edit of
// ours on top of it is one for cryptsetup.
func TestCryptsetupEdits(t *testing.T) {
	cheap := []string{"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"}
	edit := func(name, stdin string, args ...string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			t.Helper()
			args := append([]string{name, "-q"}, args...)
			for i, a := range args {
				if a == "PATH" {
					args[i] = path
				}
			}
			if out, code := cryptsetup(t, stdin, args...); code != 0 {
				t.Fatalf("cryptsetup %s: %s", strings.Join(args, " "), out)
			}
		}
	}
	type opened map[string][]int // passphrase to keyslots
	tests := []struct {
		name  string
		edit  func(t *testing.T, path string)
		want  opened
		check func(t *testing.T, h *Header)
	}{
		{"add_key", edit("luksAddKey", "secret", append(cheap, "--key-slot", "9", "--key-file", "-", "PATH", writeFile(t, "fourth"))...),
			opened{"secret": {0}, "fourth": {9}, "recovery": {1}}, nil},
		{"kill_slot_of_no_token", edit("luksKillSlot", "secret", "--key-file", "-", "PATH", "2"),
			opened{"secret": {0}, "human": nil}, nil},
		{"kill_slot_of_a_token", edit("luksKillSlot", "recovery", "--key-file", "-", "PATH", "0"),
			opened{"secret": nil, "recovery": {1}}, func(t *testing.T, h *Header) {
				if got := h.Tokens(); len(got[0].Keyslots) != 0 {
					t.Errorf("token 0 names keyslots %v, want none", got[0].Keyslots)
				}
			}},
		{"change_key", edit("luksChangeKey", "human", append(cheap, "--key-file", "-", "PATH", writeFile(t, "changed"))...),
			opened{"human": nil, "changed": {2}, "secret": {0}}, nil},
		{"convert_key", edit("luksConvertKey", "human", "--key-slot", "2", "--key-file", "-", "--pbkdf", "argon2id", "--pbkdf-memory", "1024", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1", "PATH"),
			opened{"human": {2}}, func(t *testing.T, h *Header) {
				if got := h.Keyslots()[2].KDF; got != (KDF{Type: KDFArgon2id, Time: 4, MemoryKiB: 1024, CPUs: 1}) {
					t.Errorf("got %+v", got)
				}
			}},
		{"token_import", edit("token", `{"type":"some-tool","keyslots":["2"],"deep":{"a":[1,"x",null]}}`, "import", "PATH"),
			opened{"human": {2}}, func(t *testing.T, h *Header) {
				if got := h.Tokens(); len(got) != 3 || got[2].Type != "some-tool" || !slices.Equal(got[2].Keyslots, []int{2}) {
					t.Errorf("got tokens %+v", got)
				}
			}},
		{"token_remove", edit("token", "", "remove", "--token-id", "0", "PATH"),
			opened{"secret": {0}}, func(t *testing.T, h *Header) {
				if got := h.Tokens(); len(got) != 1 || got[0].ID != 1 {
					t.Errorf("got tokens %+v", got)
				}
			}},
		{"label", edit("config", "", "--label", "other", "--subsystem", "sys", "PATH"),
			opened{"secret": {0}}, func(t *testing.T, h *Header) {
				if h.Label() != "other" || h.subsystem != "sys" {
					t.Errorf("got label %q, subsystem %q", h.Label(), h.subsystem)
				}
			}},
		{"priority", edit("config", "", "--priority", "prefer", "--key-slot", "1", "PATH"),
			opened{"secret": {0}}, func(t *testing.T, h *Header) {
				if got := h.Keyslots()[1].Priority; got != 2 {
					t.Errorf("got priority %d, want 2", got)
				}
			}},
		{"uuid", edit("luksUUID", "", "--uuid", "11111111-2222-4333-8444-aaaaaaaaaaaa", "PATH"),
			opened{"secret": {0}}, func(t *testing.T, h *Header) {
				if h.UUID() != "11111111-2222-4333-8444-aaaaaaaaaaaa" {
					t.Errorf("got %s", h.UUID())
				}
			}},
		{"repair", func(t *testing.T, path string) {
			f := must[*os.File](t)(os.OpenFile(path, os.O_RDWR, 0))
			defer f.Close()
			must[int](t)(f.WriteAt(make([]byte, minHeaderBytes), 0))
			edit("repair", "", "PATH")(t, path)
		}, opened{"secret": {0}, "recovery": {1}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, before := enrolled(t)
			path := d.file(t)
			tt.edit(t, path)
			h := fromFile(t, path, smallSize)
			if h.Interrupted() || h.SequenceID() <= before.SequenceID() && tt.name != "repair" {
				t.Errorf("interrupted: %v, number %d after %d", h.Interrupted(), h.SequenceID(), before.SequenceID())
			}
			for passphrase, want := range tt.want {
				if got := openedBy(h, passphrase); !slices.Equal(got, want) {
					t.Errorf("%q opens %v, want %v", passphrase, got, want)
				}
			}
			if tt.check != nil {
				tt.check(t, h)
			}
			// Ours on top.
			f := must[*os.File](t)(os.OpenFile(path, os.O_RDWR, 0))
			defer f.Close()
			n, _, _, err := h.Enroll(enrolment("ours"))
			if err != nil {
				t.Fatal(err)
			}
			must[*Header](t)(Apply(f, smallSize, h, n, &testRand{state: 50}))
			if got := dumpedKey(t, path, "ours"); !bytes.Equal(got, testKey()) {
				t.Error("cryptsetup shows another volume key")
			}
			for passphrase, want := range tt.want {
				if got := opens(t, path, passphrase); got != (want != nil) {
					t.Errorf("cryptsetup opens with %q: %v", passphrase, got)
				}
			}
		})
	}
}
