package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/mount"
)

// binder notes what is bound.
type binder struct {
	mount.Mounter
	to []string
}

func (b *binder) Bind(m mount.Bind) error { b.to = append(b.to, m.To.Path); return nil }

// Whoever writes the disk may have filled the unencrypted side with names: they
// never all come into memory.
func TestUnencryptedSideIsReadInPart(t *testing.T) {
	for _, tt := range []struct {
		name    string
		entries int
		more    bool
	}{{"none", 0, false}, {"few", 3, false}, {"as_many_as_are_read", maxUnencrypted, false}, {"too_many", 4 * maxUnencrypted, true}} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for i := range tt.entries {
				if err := os.Mkdir(filepath.Join(dir, fmt.Sprintf("d%d", i)), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			side, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer side.Close()
			names, more, err := directories(side, maxUnencrypted)
			if err != nil || len(names) != min(tt.entries, maxUnencrypted) || more != tt.more {
				t.Errorf("directories() = %d names, more %v, %v", len(names), more, err)
			}
			// The control: the encrypted side is the owner's, and read as a whole.
			if names, more, err := directories(side, -1); err != nil || len(names) != tt.entries || more {
				t.Errorf("without a limit: %d names, more %v, %v", len(names), more, err)
			}
			b, _ := testBoot(&person{}, config.State{})
			m := &binder{}
			b.sys.Mounter = m
			if _, err := b.bindAll(side, dir, []string{"/d0"}, nil, nil); err != nil {
				t.Fatal(err)
			}
			if told := strings.Contains(strings.Join(b.report.Warnings, "\n"), "not all of them were looked at"); told != tt.more {
				t.Errorf("warnings %q", b.report.Warnings)
			}
			if !tt.more && len(m.to) != min(tt.entries, 1) {
				t.Errorf("bound %q", m.to)
			}
		})
	}
}

// A directory that who has the disk made does not hide one of the encrypted volume.
func TestUnencryptedSideHidesNothingEncrypted(t *testing.T) {
	inside, outside := t.TempDir(), t.TempDir()
	side := func(dir string, names ...string) *os.File {
		t.Helper()
		for _, name := range names {
			if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	volume, outer := side(inside, "home", "var", "srv-secret"), side(outside, "srv", "var-log")
	b, _ := testBoot(&person{}, config.State{})
	m := &binder{}
	b.sys.Mounter = m
	encrypted, err := b.bindAll(volume, inside, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.bindAll(outer, outside, []string{"/srv", "/var/log"}, encrypted, nil); err != nil {
		t.Fatal(err)
	}
	if want := []string{"/home", "/srv/secret", "/var", "/var/log"}; !slices.Equal(m.to, want) {
		t.Errorf("bound %q, want %q", m.to, want)
	}
	if w := b.report.Warnings; len(w) != 1 || !strings.Contains(w[0], `directory "srv" is not bound: it would hide /srv/secret`) {
		t.Errorf("warnings %q", w)
	}
}
