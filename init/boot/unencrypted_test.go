package boot

import (
	"fmt"
	"os"
	"path/filepath"
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
