package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/mount"
	"sealroot/mount/child"
	"sealroot/state"
)

// aMachine has an image and a volume, and boots them.
type aMachine struct {
	t   *testing.T
	cfg config.Config
}

func (m aMachine) step(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// image makes the files of an image, below /images.
func (m aMachine) image(name string, files map[string]string) {
	m.t.Helper()
	for _, dir := range strings.Fields("etc home var state opt proc run usr/local srv/spool") {
		m.step(os.MkdirAll(filepath.Join("/images", name, dir), 0o755))
	}
	usableRoot(m.t, filepath.Join("/images", name))
	m.step(os.WriteFile(filepath.Join("/images", name, "etc/machine-id"), nil, 0o444))
	for path, text := range files {
		path = filepath.Join("/images", name, path)
		m.step(os.MkdirAll(filepath.Dir(path), 0o755))
		m.step(os.WriteFile(path, []byte(text), 0o644))
	}
}

// boot assembles the root of a slot with an image, and returns what it warns of.
func (m aMachine) boot(slot, image string, readOnly bool) []string {
	m.t.Helper()
	for _, dir := range []string{newRoot, "/volume"} {
		m.step(os.MkdirAll(dir, 0o755))
	}
	m.step(unix.Mount("/images/"+image, newRoot, "", unix.MS_BIND, ""))
	m.step(unix.Mount("", newRoot, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	m.step(unix.Mount("outer", stateDir, "tmpfs", 0, "mode=0755"))
	m.step(os.Mkdir(encryptedDir, 0o755))
	m.step(unix.Mount("/volume", encryptedDir, "", unix.MS_BIND, ""))
	b, _ := testBoot(&person{}, config.State{Create: config.CreateFirstBoot})
	b.sys.Mounter = mount.Kernel{}
	b.sys.RunProgram = func(context.Context, string, ...string) (child.Result, error) { return child.Result{}, fs.ErrNotExist }
	b.cfg.Binds, b.cfg.Overlays, b.cfg.Etc = m.cfg.Binds, m.cfg.Overlays, config.EtcReadOnly
	b.report.Slot.Name, b.report.Root.RootHash = slot, image
	if readOnly {
		b.volume.volume = &state.Volume{ReadOnly: errors.New("for this test")}
		m.step(unix.Mount("", encryptedDir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	}
	m.step(b.assemble(context.Background()))
	return b.report.Warnings
}

// off ends a boot.
func (m aMachine) off() {
	m.t.Helper()
	m.step(unix.Unmount(newRoot, unix.MNT_DETACH))
	m.step(os.RemoveAll(runDir))
}

// has tells of files of the root that are not as they should be; "" is for none.
func (m aMachine) has(want map[string]string) {
	m.t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		text, err := os.ReadFile(filepath.Join(newRoot, name))
		if string(text) != want[name] || want[name] == "" && !errors.Is(err, fs.ErrNotExist) {
			m.t.Errorf("%s: %q, %v, want %q", name, text, err, want[name])
		}
	}
}

func (m aMachine) write(files map[string]string) {
	m.t.Helper()
	for name, text := range files {
		m.step(os.WriteFile(filepath.Join(newRoot, name), []byte(text), 0o644))
	}
}

// mounts are the overlays and binds below the new root: place and flags.
func (m aMachine) mounts() string {
	m.t.Helper()
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	m.step(err)
	var list []string
	for line := range strings.Lines(mountsBelow(string(text))) {
		f := strings.Fields(line)
		list = append(list, strings.TrimPrefix(f[0], newRoot)+" "+f[1]+" "+f[2])
	}
	return strings.Join(list, "\n")
}

// Directories that are writable over what the image has: also below /var, which is the
// volume's by then, and with the upper layer in a place of the volume that has a name.
// All show what the running image has under what was changed; what belongs to a slot,
// and to the image in it, is not seen by another.
func TestWritableParts(t *testing.T) {
	inOwnRoot(t, func(t *testing.T) {
		m := aMachine{t: t}
		m.cfg.Overlays = []config.Overlay{
			{Path: "/var/lib/pkg", Upper: config.UpperPerSlot}, {Path: "/var/lib/shared", Upper: config.UpperEncrypted},
			{Path: "/usr/local", Upper: config.UpperPerSlot}, {Path: "/var/lib/none", Upper: config.UpperEncrypted},
		}
		m.cfg.Binds.Extra = []config.ExtraBind{
			{From: "encrypted/opt", To: "/opt", Seed: config.SeedOverlay, Options: []string{"nodev", "nosuid"}},
			{From: "encrypted/app", To: "/var/lib/app", Seed: config.SeedOverlay},
			{From: "encrypted/spool", To: "/srv/spool", Seed: config.SeedTmpfiles},
		}
		files := func(version string) map[string]string {
			all := map[string]string{}
			for _, dir := range strings.Fields("var/lib/pkg var/lib/shared usr/local opt var/lib/app srv/spool") {
				all[dir+"/image"], all[dir+"/changed"] = version, version
			}
			return all
		}
		m.image("one", files("1"))
		m.image("two", files("2"))
		for _, image := range []string{"one", "two"} {
			m.step(os.Chown("/images/"+image+"/srv/spool", 5, 6))
			m.step(unix.Chmod("/images/"+image+"/srv/spool", 0o2750))
			m.step(unix.Chmod("/images/"+image+"/var/lib/pkg", 0o750))
		}
		const none = "cannot make /var/lib/none writable: cannot open /sysroot//var/lib/none: no such file or directory"

		warns := func(got []string) {
			t.Helper()
			if !slices.Equal(got, []string{none}) {
				t.Errorf("warns %q, want %q", got, none)
			}
		}
		warns(m.boot("a", "one", false))
		m.has(map[string]string{
			"var/lib/pkg/image": "1", "var/lib/shared/image": "1", "usr/local/image": "1", "opt/image": "1", "var/lib/app/image": "1",
			"srv/spool/image": "", // tmpfiles.d would make it
		})
		want := strings.Join([]string{
			" ro,relatime tmpfs", "/etc/machine-id ro,nosuid,nodev,noexec,relatime tmpfs", "/home rw,nosuid,nodev,relatime tmpfs", "/opt rw,nosuid,nodev,relatime overlay", "/srv/spool rw,relatime tmpfs",
			"/state rw,relatime tmpfs", "/state/encrypted rw,relatime tmpfs", "/usr/local rw,nodev,relatime overlay", "/var rw,nodev,relatime tmpfs",
			"/var/lib/app rw,relatime overlay", "/var/lib/pkg rw,nosuid,nodev,relatime overlay", "/var/lib/shared rw,nosuid,nodev,relatime overlay",
		}, "\n")
		if got := m.mounts(); got != want {
			t.Errorf("mounts\n%s\nwant\n%s", got, want)
		}
		for path, want := range map[string]string{"srv/spool": "42750 5:6", "var/lib/pkg": "40750 0:0"} {
			var st unix.Stat_t
			m.step(unix.Stat(filepath.Join(newRoot, path), &st))
			if got := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid); got != want {
				t.Errorf("/%s is %s, want %s", path, got, want)
			}
		}
		change := map[string]string{}
		for _, dir := range strings.Fields("var/lib/pkg var/lib/shared usr/local opt var/lib/app srv/spool") {
			change[dir+"/changed"] = "by a"
		}
		m.write(change)
		m.off()
		if text, err := os.ReadFile("/volume/.sealroot/overlays/opt/extra/opt/upper/changed"); string(text) != "by a" {
			t.Errorf("the upper layer of /opt: %q, %v", text, err)
		}
		if text, err := os.ReadFile("/volume/var/lib/pkg/changed"); string(text) != "1" {
			t.Errorf("below the overlay /var has %q, %v, want what it was seeded with", text, err)
		}

		warns(m.boot("b", "two", false))
		m.has(map[string]string{
			"var/lib/pkg/image": "2", "var/lib/shared/image": "2", "usr/local/image": "2", "opt/image": "2", "var/lib/app/image": "2", // the running image's
			"var/lib/shared/changed": "by a", "opt/changed": "by a", "var/lib/app/changed": "by a", "srv/spool/changed": "by a",
			"var/lib/pkg/changed": "2", "usr/local/changed": "2", // no other slot's
		})
		m.write(map[string]string{"var/lib/pkg/changed": "by b", "opt/changed": "by b"})
		m.off()

		warns(m.boot("a", "one", false)) // rolled back
		m.has(map[string]string{"var/lib/pkg/changed": "by a", "var/lib/pkg/image": "1", "usr/local/changed": "by a", "opt/changed": "by b", "opt/image": "1"})
		m.off()

		// The same slot with another image, and that image in another slot.
		for slot, image := range map[string]string{"a": "two", "b": "one"} {
			warns(m.boot(slot, image, false))
			m.has(map[string]string{"var/lib/pkg/changed": map[string]string{"one": "1", "two": "2"}[image]})
			m.off()
		}

		// A volume that must not be written shows what was changed.
		warns(m.boot("a", "one", true))
		m.has(map[string]string{"var/lib/pkg/changed": "by a", "opt/changed": "by b", "var/lib/app/image": "1"})
		m.write(map[string]string{"var/lib/pkg/changed": "for now", "opt/changed": "for now"})
		m.off()
		warns(m.boot("a", "one", false))
		m.has(map[string]string{"var/lib/pkg/changed": "by a", "opt/changed": "by b"})
		m.off()

		// Where root has put a link, nothing is mounted, and nothing stays aside.
		m.step(os.Rename("/volume/var/lib/pkg", "/volume/var/lib/was"))
		m.step(os.Symlink("/run", "/volume/var/lib/pkg"))
		got := strings.Join(m.boot("a", "one", false), "\n")
		if !strings.Contains(got, "cannot make /var/lib/pkg writable: ") || !strings.Contains(got, mount.ErrUnsafePath.Error()) {
			t.Errorf("over a link: warns %q", got)
		}
		if got := m.mounts(); strings.Contains(got, "/pkg") || strings.Contains(got, "/overlays/") || strings.Contains(got, "/run") {
			t.Errorf("over a link: mounts\n%s", got)
		}
		m.off()
	})
}

// A trial whose image makes more directories writable, and that fails: the image that
// comes back has its own content where it always had it.
func TestWritablePartsOfAFailedTrial(t *testing.T) {
	inOwnRoot(t, func(t *testing.T) {
		m := aMachine{t: t}
		m.image("1", map[string]string{"opt/image": "1", "opt/second": "1", "srv/spool/image": "1"})
		m.image("2", map[string]string{"opt/image": "2", "opt/second": "2", "srv/spool/image": "2"})
		overlay := config.Binds{Extra: []config.ExtraBind{
			{From: "encrypted/opt", To: "/opt", Seed: config.SeedOverlay}, {From: "encrypted/srv-spool", To: "/srv/spool", Seed: config.SeedOverlay},
		}}
		once := config.Binds{Extra: []config.ExtraBind{{From: "encrypted/opt", To: "/opt", Seed: config.SeedOnce}}}
		boot := func(slot, image string, binds config.Binds, want map[string]string) {
			t.Helper()
			m.cfg.Binds = binds
			if got := m.boot(slot, image, false); len(got) > 0 {
				t.Errorf("image %s warns %q", image, got)
			}
			m.has(want)
		}
		boot("b", "2", overlay, map[string]string{"opt/image": "2", "opt/second": "2", "srv/spool/image": "2"})
		m.write(map[string]string{"opt/image": "changed"})
		m.off()
		boot("a", "1", config.Binds{}, map[string]string{"opt/image": "1", "opt/second": "1", "srv/spool/image": "1"})
		m.off()
		boot("b", "2", overlay, map[string]string{"opt/image": "changed", "opt/second": "2"})
		m.off()
		boot("a", "1", once, map[string]string{"opt/image": "1", "opt/second": "1"}) // begun by what it has, not by the changes
		m.off()
	})
}

// What the volume has by a name in an overlay below /var is seen.
func TestBindsByNameOverOverlays(t *testing.T) {
	inOwnRoot(t, func(t *testing.T) {
		m := aMachine{t: t}
		m.cfg.Overlays = []config.Overlay{{Path: "/var/lib/pkg", Upper: config.UpperEncrypted}}
		m.image("1", map[string]string{"var/lib/pkg/image": "1", "var/lib/pkg/cache/image": "1", "var/lib/other/image": "1"})
		for dir, text := range map[string]string{"var-lib-pkg-cache": "in it", "var-lib-other": "beside it"} {
			m.step(os.MkdirAll(filepath.Join("/volume", dir), 0o755))
			m.step(os.WriteFile(filepath.Join("/volume", dir, "own"), []byte(text), 0o644))
		}
		if got := m.boot("a", "1", false); len(got) > 0 {
			t.Errorf("warns %q", got)
		}
		m.has(map[string]string{"var/lib/pkg/image": "1", "var/lib/pkg/cache/own": "in it", "var/lib/pkg/cache/image": "", "var/lib/other/own": "beside it"})
		m.off()
	})
}
