package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/goldentest"
	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/mount/child"
)

// inOwnRoot runs a test with a root directory and a mount namespace of its own, as PID
// 1 has them in an initramfs. Both end with the thread that runs it.
func inOwnRoot(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test mounts: run it as root")
	}
	dir := t.TempDir()
	t.Run("in_own_root", func(t *testing.T) {
		runtime.LockOSThread() // and never unlocked: the thread is thrown away
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS))
		must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		must(unix.Mount("initramfs", dir, "tmpfs", 0, "mode=0755"))
		must(os.Mkdir(dir+"/proc", 0o755))
		must(unix.Mount("/proc", dir+"/proc", "", unix.MS_BIND|unix.MS_REC, ""))
		must(unix.Chroot(dir))
		must(os.Chdir("/"))
		test(t)
	})
}

// hostileRoot makes an image at newRoot, with a state on which every name, link, node
// and attribute lies.
func hostileRoot(t *testing.T) {
	t.Helper()
	step := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dirs := func(root string, names ...string) {
		for _, name := range names {
			step(os.MkdirAll(filepath.Join(root, name), 0o755))
		}
	}
	image := "/image"
	dirs(image, "etc/secret", "home/user", "var/lib/loop", "state", "srv/pool", "opt/secret", "mnt", "usr/local", "seeded", "over", "empty", "run", "proc")
	for _, name := range []string{"etc/whiteout", "etc/secret/file", "opt/secret/file", "seeded/file"} {
		step(os.WriteFile(filepath.Join(image, name), []byte("of the image\n"), 0o644))
	}
	usableRoot(t, image)
	dirs("/", "run/host", newRoot)
	// read-only, as a verified image is
	step(unix.Mount(image, newRoot, "", unix.MS_BIND, ""))
	step(unix.Mount("", newRoot, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	step(unix.Mount("outer", stateDir, "tmpfs", flags|unix.MS_NOSYMFOLLOW, "mode=0755"))
	dirs(stateDir, "encrypted", "home", "etc", "usr", "srv", "srv-pool", "srv-..-etc")
	step(os.Symlink("/run", stateDir+"/pool"))
	step(os.Symlink("/", stateDir+"/var"))
	step(unix.Mount("volume", encryptedDir, "tmpfs", flags, "mode=0755"))
	in := encryptedDir
	dirs(in, ".sealroot/overlays/opt/upper/redirected", "etc/opaque", "etc/redirected", "home", "var/lib", "proc", "run-host", "state-encrypted",
		`\x2e\x2e`, "var-..-..-run", "home-user", "var-escape-host", "var-lib-loop", "var-fifo", "usrlocal", "usr-local", "usr", "usr-bin", "sbin", "home/user", ".sealroot/seed-empty.tmp/x")
	for name, to := range map[string]string{
		"db": "/run", "var/escape": "/run", "opt": "/", "mnt": "../..", "loop": "loop", "var/lib/loop": "loop", "etc/link": "/run",
		".sealroot/overlays/usr-local": "/run", ".sealroot/overlays/over": "/run",
	} {
		step(os.Symlink(to, filepath.Join(in, name)))
	}
	step(unix.Mkfifo(in+"/var/fifo", 0o644))
	step(unix.Mknod(in+"/etc/whiteout", unix.S_IFCHR, 0))
	step(unix.Mknod(in+"/etc/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	step(unix.Setxattr(in+"/etc/opaque", "trusted.overlay.opaque", []byte("y"), 0))
	step(unix.Setxattr(in+"/etc/redirected", "trusted.overlay.redirect", []byte("/secret"), 0))
	step(unix.Setxattr(in+"/.sealroot/overlays/opt/upper/redirected", "trusted.overlay.redirect", []byte("/secret"), 0))
	deep, err := unix.Open(in+"/home", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	for range 5000 {
		step(err)
		step(unix.Mkdirat(deep, "deep", 0o755))
		below, openErr := unix.Openat(deep, "deep", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		unix.Close(deep)
		deep, err = below, openErr
	}
	step(errors.Join(err, unix.Close(deep)))
}

// The layers of a boot over a hostile state: the mounts are those of a golden list,
// nothing outside of the new root is touched. The control, built with lookups that
// follow links, mounts and makes a directory there.
func TestAssembleHostileState(t *testing.T) {
	var list string
	var warnings, before, after []string
	read := map[string]error{}
	inOwnRoot(t, func(t *testing.T) {
		hostileRoot(t)
		b, _ := testBoot(&person{}, config.State{Create: config.CreateFirstBoot})
		b.sys.Mounter = mount.Kernel{}
		b.sys.RunProgram = func(context.Context, string, ...string) (child.Result, error) { return child.Result{}, fs.ErrNotExist }
		b.cfg.Etc = config.EtcOverlay
		b.cfg.Binds = config.Binds{Unencrypted: []string{"/srv", "/srv/pool"}, Extra: []config.ExtraBind{
			{From: "encrypted/db", To: "/var/lib/db"},
			{From: "encrypted/data", To: "/var/escape/outside"},
			{From: "encrypted/good", To: "/var/lib/good", Options: []string{"nosuid", "nodev", "noexec"}},
			{From: "pool/x", To: "/srv/pool"},
			{From: "encrypted/seeded", To: "/seeded", Seed: config.SeedOnce},
			{From: "encrypted/loop", To: "/over", Seed: config.SeedOverlay},
			{From: "encrypted/empty", To: "/empty", Seed: config.SeedTmpfiles},
		}}
		b.cfg.Overlays = []config.Overlay{{Path: "/opt", Upper: config.UpperEncrypted}, {Path: "/mnt", Upper: config.UpperMemory}, {Path: "/usr/local", Upper: config.UpperEncrypted}, {Path: "/var/lib/loop", Upper: config.UpperPerSlot}}
		b.report.Slot, b.report.Root.RootHash = report.Slot{Name: "a", Successful: true}, "00ff"
		outer, err := openDir(stateDir)
		if err != nil {
			t.Fatal(err)
		}
		defer outer.Close()
		b.volume.outer = outer
		before = outside(t)
		if err := b.assemble(context.Background()); err != nil {
			t.Fatal(err)
		}
		after, warnings = outside(t), b.report.Warnings
		text, err := os.ReadFile("/proc/thread-self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		list = mountsBelow(string(text))
		for _, name := range []string{"etc/whiteout", "etc/redirected/file", "etc/null", "opt/redirected/file", "etc/secret/file", "opt/secret/file", "seeded/file"} {
			_, read[name] = os.ReadFile(filepath.Join(newRoot, name))
		}
	})
	if t.Failed() {
		return
	}
	if mount.Beneath&unix.RESOLVE_NO_SYMLINKS == 0 { // the control
		if !strings.Contains(list, "/run/outside ") || !slices.Contains(after, "/run/outside") {
			t.Errorf("nothing is mounted outside:\n%s\n%q", list, after)
		}
		return
	}
	goldentest.Check(t, "hostile-state.txt", list+"\n"+strings.Join(warnings, "\n")+"\n")
	// sealroot's own folder in memory is where the volatile layers lie, and one of the
	// initramfs where overlays wait for their places
	own := func(name string) bool {
		return strings.HasPrefix(name, runDir) || name == "/overlays" || name == "/overlays/var-lib-loop"
	}
	if after = slices.DeleteFunc(after, own); !slices.Equal(after, before) {
		t.Errorf("outside of the root there was\n%q\nand is\n%q", before, after)
	}
	for name, want := range map[string]error{
		"etc/whiteout": fs.ErrNotExist, "etc/null": fs.ErrPermission, "etc/redirected/file": fs.ErrPermission, "opt/redirected/file": fs.ErrPermission,
		"etc/secret/file": nil, "opt/secret/file": nil, "seeded/file": nil, // controls: the content is there
	} {
		if !errors.Is(read[name], want) {
			t.Errorf("%s: %v, want %v", name, read[name], want)
		}
	}
	cmd := exec.Command("go", "test", "-tags=followslinks", "-count=1", "-run=^TestAssembleHostileState$", ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("control: %v\n%s", err, out)
	}
}

// outside lists what there is beside image, new root and /proc.
func outside(t *testing.T) (names []string) {
	t.Helper()
	err := filepath.WalkDir("/", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case slices.Contains([]string{"/proc", "/image", newRoot}, name):
			return fs.SkipDir
		}
		names = append(names, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// mountsBelow are the mounts of mountinfo without what differs from run to run: place,
// flags, type, source, and which directory of that. /proc is the host's.
func mountsBelow(mountinfo string) string {
	var lines []string
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(strings.TrimSpace(line), " - ")
		place, fs := strings.Fields(before), strings.Fields(after)
		if len(place) < 6 || len(fs) < 2 || regexp.MustCompile(`^/($|proc)`).MatchString(place[4]) {
			continue
		}
		lines = append(lines, fmt.Sprintf("%s %s %s %s %s", place[4], place[5], fs[0], fs[1], place[3]))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}
