package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/mount"
)

// binder notes what is bound. At the places in missing nothing can be.
type binder struct {
	mount.Mounter
	to, missing []string
}

func (b *binder) Bind(m mount.Bind) error {
	if slices.Contains(b.missing, m.To.Path) {
		return unix.ENOENT
	}
	b.to = append(b.to, m.To.Path)
	return nil
}

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
			if err := b.bindAll(side, dir, []string{"/d0"}, nil); err != nil {
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

// A directory that who has the disk made does not hide one of the encrypted volume. One
// that is bound nowhere cannot be hidden.
func TestUnencryptedSideHidesNothingEncrypted(t *testing.T) {
	for _, tt := range []struct {
		name             string
		missing          []string
		overlay          string
		inside, outside  []string
		bound, complaint []string
	}{
		{
			"below_its_place", nil, "", []string{"home", "var", "srv-secret"}, []string{"srv", "var-log"},
			[]string{"/home", "/srv/secret", "/var", "/var/log"}, []string{`directory "srv" is not bound: it would hide /srv/secret`},
		},
		{
			"one_name_on_both_sides", nil, "", []string{"home", "var", "srv"}, []string{"srv", "var-log"},
			[]string{"/home", "/srv", "/var", "/var/log"}, []string{`directory "srv" is not bound: it would hide /srv (`},
		},
		{
			"not_in_the_image", []string{"/srv/old"}, "", []string{"etc", "home", "var", "srv-old"}, []string{"srv"},
			[]string{"/home", "/var", "/srv"}, []string{"cannot bind /srv/old: "},
		},
		{
			"an_overlay", nil, "/srv/app", []string{"home", "var"}, []string{"srv", "var-log"},
			[]string{"/home", "/var", "/var/log"}, []string{`directory "srv" is not bound: it would hide /srv/app (overlay)`},
		},
		{
			"in_an_overlay", nil, "/var", []string{"home", "var"}, []string{"srv", "var-log"},
			[]string{"/home", "/var", "/srv", "/var/log"}, nil,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			side := func(names []string) *os.File {
				t.Helper()
				dir := t.TempDir()
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
			volume, outer := side(tt.inside), side(tt.outside)
			b, _ := testBoot(&person{}, config.State{})
			m := &binder{missing: tt.missing}
			b.sys.Mounter = m
			if tt.overlay != "" {
				b.noteOverlay(tt.overlay, 0)
			}
			if err := b.bindAll(volume, volume.Name(), nil, nil); err != nil {
				t.Fatal(err)
			}
			if err := b.bindAll(outer, outer.Name(), []string{"/srv", "/var/log"}, nil); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(m.to, tt.bound) {
				t.Errorf("bound %q, want %q", m.to, tt.bound)
			}
			w := b.report.Warnings
			if !slices.EqualFunc(w, tt.complaint, strings.Contains) {
				t.Errorf("warnings %q", w)
			}
		})
	}
}
