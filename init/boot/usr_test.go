package boot

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/mount/mounttest"
)

func usrBoot(cfg config.Config) (*boot, *mounttest.Recorder) {
	m := &mounttest.Recorder{}
	cfg.Root.Source = config.SourceUsrVerity
	return &boot{cfg: &cfg, report: &report.Report{}, sys: &System{Mounter: m, Log: NewLog(&bytes.Buffer{}), Verity: fakeVerity{}}}, m
}

// The root around a /usr: links only to what /usr has, nobody but root in /root,
// everybody in /tmp, whatever the umask is.
func TestAroundUsr(t *testing.T) {
	dir := t.TempDir()
	if err := makeAround(dir, []string{"bin", "lib", "lib64", "share", "src"}); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		text := e.Name() + " " + info.Mode().String()
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			text = e.Name() + " -> " + to
		}
		got = append(got, text)
	}
	want := []string{"bin -> usr/bin", "boot drwxr-xr-x", "dev drwxr-xr-x", "efi drwxr-xr-x", "etc drwxr-xr-x", "home drwxr-xr-x",
		"lib -> usr/lib", "lib64 -> usr/lib64", "media drwxr-xr-x", "mnt drwxr-xr-x", "opt drwxr-xr-x", "proc dr-xr-xr-x", "root drwx------",
		"run drwxr-xr-x", "srv drwxr-xr-x", "state drwxr-xr-x", "sys dr-xr-xr-x", "tmp dtrwxrwxrwx", "var drwxr-xr-x"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if err := makeAround(dir, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("directories in the place of others: %v", err)
	}
}

// A whole root in the place of a /usr gets no root around it.
func TestWholeRootAsUsr(t *testing.T) {
	dir := t.TempDir()
	if err := makeAround(dir, []string{"bin", "lib", "sbin", "usr"}); !errors.Is(err, errWholeRoot) {
		t.Errorf("got %v, want %v", err, errWholeRoot)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("there are %v, %v", entries, err)
	}
}

// Where the image is, and what is unmounted when it fails: the deeper mount first.
func TestImageOfUsr(t *testing.T) {
	b, m := usrBoot(config.Config{})
	if b.image() != "/usr" || b.imageDir() != "/sysroot/usr" || b.dmName() != "sealroot-usr" {
		t.Errorf("image at %s, now %s, by %s", b.image(), b.imageDir(), b.dmName())
	}
	if p := b.imagePlace("etc"); p != (mount.Place{Root: "/sysroot/usr", Path: "share/factory/etc"}) {
		t.Errorf("/etc comes from %s", p)
	}
	b.dropRoot()
	if got := strings.Join(m.Steps(), "; "); got != "umount /sysroot/usr; umount /sysroot" {
		t.Errorf("steps %q", got)
	}
	root := &boot{cfg: &config.Config{}}
	if root.image() != "/" || root.imageDir() != "/sysroot" || root.dmName() != "sealroot-root" || root.imagePlace("etc").Path != "etc" {
		t.Errorf("image of a root at %s, now %s, by %s, /etc from %s", root.image(), root.imageDir(), root.dmName(), root.imagePlace("etc"))
	}
}

// A root in memory that cannot be mounted is not filled.
func TestMemoryThatCannotBeMounted(t *testing.T) {
	b, m := usrBoot(config.Config{})
	m.FailAt, m.FailWith = 1, errors.New("no memory")
	if err := b.mountMemory(); !errors.Is(err, m.FailWith) || len(b.report.Mounts) > 0 {
		t.Errorf("got %v with mounts %v, want %v", err, b.report.Mounts, m.FailWith)
	}
	if got, want := m.Trace(), "failed: mount -t tmpfs -o nosuid,nodev,mode=0755,size=25%,nr_inodes=1m rootfs ///sysroot\n"; got != want {
		t.Errorf("trace %q, want %q", got, want)
	}
}
