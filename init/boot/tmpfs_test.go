package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
)

// Directories in memory are empty at each boot, over what the volume has; links are made
// where a boot can write, and nothing is followed to a place, nor replaced there.
func TestTmpfsAndLinks(t *testing.T) {
	inOwnRoot(t, func(t *testing.T) {
		m := aMachine{t: t}
		m.image("1", map[string]string{"srv/scratch/image": "1", "var/cache/image": "1"})
		m.step(os.MkdirAll("/outside", 0o755))
		m.cfg.Binds.Tmpfs = []config.Tmpfs{
			{To: "/srv/scratch", SizeMiB: 4, Mode: "1770", Options: []string{"noexec"}}, {To: "/var/cache/new"}, {To: "/var/link/x"}, {To: "/missing"},
		}
		m.cfg.Binds.Symlinks = []config.Symlink{
			{At: "/var/www", To: "/srv/www"}, {At: "/var/link/x", To: "y"}, {At: "/var/there", To: "y"}, {At: "/srv/x", To: "y"}, {At: "/var/no/dir", To: "y"},
		}
		for i := range 2 {
			if i == 0 {
				m.step(os.MkdirAll("/volume/var", 0o755))
				m.step(os.Symlink("/outside", "/volume/var/link"))
				m.step(os.WriteFile("/volume/var/there", []byte("x"), 0o644))
				m.step(os.MkdirAll("/volume/home", 0o755))
			}
			got := strings.Join(m.boot("a", "1", false), "\n")
			for _, want := range []string{"cannot mount a tmpfs at /var/link/x: ", "cannot mount a tmpfs at /missing: ",
				"cannot make the link /var/link/x: ", "cannot make the link /var/there: symlink: file exists", "cannot make the link /srv/x: symlink: read-only file system", "cannot make the link /var/no/dir: "} {
				if !strings.Contains(got, want) {
					t.Errorf("no warning %q in\n%s", want, got)
				}
			}
			if n := strings.Count(got, "\n") + 1; n != 6 {
				t.Errorf("%d warnings:\n%s", n, got)
			}
			m.has(map[string]string{"srv/scratch/image": "", "var/cache/new/x": "", "var/there": "x"})
			m.write(map[string]string{"srv/scratch/x": "1", "var/cache/new/x": "1"})
			if to, err := os.Readlink(newRoot + "/var/www"); err != nil || to != "/srv/www" {
				t.Errorf("the link leads to %q, %v", to, err)
			}
			var st unix.Stat_t
			m.step(unix.Stat(newRoot+"/srv/scratch", &st))
			if got := fmt.Sprintf("%o", st.Mode); got != "41770" {
				t.Errorf("mode %s", got)
			}
			want := "/srv/scratch rw,nosuid,nodev,noexec,relatime tmpfs\n"
			if got := m.mounts(); !strings.Contains(got, want) || !strings.Contains(got, "/var/cache/new rw,nosuid,nodev,relatime tmpfs") {
				t.Errorf("mounts\n%s", got)
			}
			if err := os.WriteFile(newRoot+"/srv/scratch/large", make([]byte, 5<<20), 0o644); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("5 MiB in 4: %v", err)
			}
			m.off()
		}
		if names, err := os.ReadDir("/outside"); err != nil || len(names) > 0 {
			t.Errorf("outside there is %v, %v", names, err)
		}
		if _, err := os.Stat("/volume/var/cache/new/x"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("what was written to memory is in the volume: %v", err)
		}
	})
}
