package mount

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const manyLayers = 300

// aloneEnv is set in the process that a test started in a mount namespace of its own:
// what begins a thread cannot be tried in one that only a thread has.
const aloneEnv = "SEALROOT_TEST_ALONE"

// More lower directories than a string of fsconfig(2), or their paths the page of
// mount(2), can hold: both ways have all of them in their order.
func TestOverlayOfManyDirectories(t *testing.T) {
	dir := os.Getenv(aloneEnv)
	if dir == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestOverlayOfManyDirectories$", "-test.v")
		cmd.Env = append(os.Environ(), aloneEnv+"="+t.TempDir())
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil || strings.Count(string(out), "--- PASS") != 4 {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if err := (Kernel{}).Mount(Point{What: "tmpfs", Where: dir, Type: "tmpfs"}); err != nil {
		t.Fatal(err)
	}
	where := filepath.Join(dir, "m")
	mustMkdir(t, where)
	var places []Place
	for i := range manyLayers {
		name := fmt.Sprintf("layer-with-quite-a-long-name-%d", i)
		mustMkdir(t, filepath.Join(dir, name))
		mustWrite(t, filepath.Join(dir, name, fmt.Sprint("of-", i)), "x")
		mustWrite(t, filepath.Join(dir, name, "all"), fmt.Sprint(i))
		if i > 0 {
			mustWrite(t, filepath.Join(dir, name, "without-the-topmost"), fmt.Sprint(i))
		}
		places = append(places, Place{dir, name})
	}
	open := func(p Place) *os.File { return mustOpen(t, filepath.Join(p.Root, p.Path)) }
	for _, way := range []struct {
		name string
		make func() error
	}{
		{"as_the_kernel_has_it", func() error {
			return Kernel{}.Overlay(Overlay{Lower: places, Attr: ReadOnly | NoDev}, Place{dir, "m"})
		}},
		{"one_by_one", func() error {
			o := OverlayDirs{Attr: ReadOnly | NoDev}
			var each []string
			for _, p := range places {
				o.Lower = append(o.Lower, open(p))
				each = append(each, "lowerdir+="+fdPath(o.Lower[len(o.Lower)-1]))
			}
			err := MountAt(o.filesystem(each), mustOpen(t, where))
			if err != nil && !knowsLowerdirPlus() { // Linux 6.8: before it the way is the third
				return o.classic(mustOpen(t, where))
			}
			return err
		}},
		{"by_mount_2", func() error {
			o := OverlayDirs{Attr: ReadOnly | NoDev}
			for _, p := range places {
				o.Lower = append(o.Lower, open(p))
			}
			return o.classic(mustOpen(t, where))
		}},
	} {
		t.Run(way.name, func(t *testing.T) {
			if err := way.make(); err != nil {
				t.Fatal(err)
			}
			entries, err := os.ReadDir(where)
			if err != nil || len(entries) != manyLayers+2 {
				t.Errorf("%d entries, %v", len(entries), err)
			}
			if all, below := mustRead(t, filepath.Join(where, "all")), mustRead(t, filepath.Join(where, "without-the-topmost")); all != "0" || below != "1" {
				t.Errorf("the topmost are %s and %s, want 0 and 1", all, below)
			}
			if line := mountLine(t, where); line[5] != "ro,nodev,relatime" {
				t.Errorf("attributes %s", line[5])
			}
			if err := (Kernel{}).Unmount(where); err != nil {
				t.Error(err)
			}
		})
	}
}

// knowsLowerdirPlus asks the kernel for its release.
func knowsLowerdirPlus() bool {
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return true
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(text), "%d.%d", &major, &minor); err != nil {
		return true
	}
	return major > 6 || major == 6 && minor >= 8
}

// A tree of mounts changes its place, and the place where it was has nothing any more.
func TestMove(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		for _, where := range []string{"from", "from/below"} {
			if err := (Kernel{}).Mount(Point{What: "tmpfs", Where: filepath.Join(dir, where), Type: "tmpfs"}); err != nil {
				t.Fatal(err)
			}
		}
		mustWrite(t, filepath.Join(dir, "from/below/file"), "x")
		mustMkdir(t, filepath.Join(dir, "to"))
		if err := (Kernel{}).Move(Place{dir, "from"}, Place{dir, "to"}); err != nil {
			t.Fatal(err)
		}
		if got := mustRead(t, filepath.Join(dir, "to/below/file")); got != "x" {
			t.Errorf("got %q", got)
		}
		if entries, err := os.ReadDir(filepath.Join(dir, "from")); err != nil || len(entries) > 0 {
			t.Errorf("%v is left, %v", entries, err)
		}
	})
}
