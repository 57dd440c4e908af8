package qemutests

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sealroot/goldentest"
)

// What the initramfs held is free after the hand-over: of the same kernel with the same
// root, on which the same modules are loaded, 2 MiB at most are missing where sealroot
// booted it, dm-verity's own among them. What it is compared with is an initramfs that
// holds no more than a small program and the modules that Debian's kernel needs for a
// disk, and leaves by means of its own: a kernel with those built in takes no other. An
// init that does not delete the initramfs is the control.
//
// The image's init is what sealroot takes for systemd: it gets the arguments, the
// environment and the files that systemd wants, the memory file of its arguments among
// them, and finds no mount of the initramfs.
func TestRootMemoryAfterHandOver(t *testing.T) {
	t.Parallel()
	program := string(readFile(t, probe(t)))
	text := string(readFile(t, Image{}.whole().configFile()))
	_, state, _ := strings.Cut(text, "\nstate:\n")
	state, _, _ = strings.Cut(state, "\netc: overlay")
	edit := []string{state, "  create: none\n"}
	disk := Image{Edit: edit, Extra: map[string]string{
		"usr/lib/systemd/systemd": program, "usr/sbin/init": linkTo + "../lib/systemd/systemd",
	}}.Build(t)
	m := directMachine(t, disk)
	// Whether a program's heap gets one huge page or two is chance, and so is whether anybody
	// has read from one that holds nothing, which the kernel then keeps.
	m.Config.Cmdline += " transparent_hugepage=never"
	vm := m.Boot()
	vm.UpIn("a")
	goldentest.Check(t, "handed-over.start", vm.started())
	goldentest.Check(t, "handed-over.mounts", mountLines(vm.Run("cat /proc/self/mountinfo")))
	modules := vm.Run("cat /proc/modules")
	ours, oursText := vm.freeKiB()
	vm.PowerOff()

	m.Config.Initrd = plainInitramfs(t, fmt.Sprintf("/dev/vda%d squashfs", disk.Part(t, "root-a").Number), modules)
	vm = m.Boot()
	vm.Expect(`probe: up: slot ""`, probeTime)
	vm.WaitReady(commandTime)
	if got := vm.Run("cat /proc/modules"); moduleNames(got) != moduleNames(modules) {
		t.Errorf("the modules are\n%s\nwith sealroot\n%s", moduleNames(got), moduleNames(modules))
	}
	plain, plainText := vm.freeKiB()
	vm.PowerOff()
	const most = 2 << 10
	if missing := plain - ours; missing > most {
		t.Errorf("%d KiB are missing after the hand-over, at most %d may be\nwithout an initramfs' contents:\n%s\nwith sealroot:\n%s", missing, most, plainText, oursText)
	} else {
		t.Logf("%d KiB are missing after the hand-over", missing)
	}

	m.Config.Initrd = initramfsOf(t, overlaid(t, "../init", "mount/free.go", `package mount

import (
	"errors"
	"os"
)

var ErrNotInitramfs = errors.New("not an initramfs")

func FreeInitramfs(*os.File) error { return nil }
`), edit)
	vm = m.Boot()
	vm.UpIn("a")
	kept, _ := vm.freeKiB()
	vm.PowerOff()
	if missing := plain - kept; missing <= most {
		t.Errorf("control: where the initramfs is kept, %d KiB are missing", missing)
	} else {
		t.Logf("control: where the initramfs is kept, %d KiB are missing", missing)
	}
}

// started is what the probe was started with, as lines; the number of a file that is
// passed differs from build to build.
func (vm *VM) started() string {
	vm.t.Helper()
	var got struct {
		Args, Environment []string
		FDs               map[string]string
	}
	if err := json.Unmarshal([]byte(vm.Run("start")), &got); err != nil {
		vm.t.Fatal(err)
	}
	passed := got.Args[len(got.Args)-1]
	lines := []string{"arguments: " + strings.TrimSuffix(strings.Join(got.Args, " "), " "+passed) + " N"}
	for _, e := range got.Environment {
		lines = append(lines, "environment: "+e)
	}
	files := []string{}
	for fd, name := range got.FDs {
		if fd == passed {
			fd = "N"
		}
		files = append(files, "file "+fd+": "+name)
	}
	slices.Sort(files)
	return strings.Join(append(lines, files...), "\n") + "\n"
}

// freeKiB is the memory that is free or programs' own once all caches are dropped, and all
// the kernel says of it. The only program is the probe, which is the same in each boot; but
// how much its heap has grown is chance. What a CPU keeps of free pages, up to the low
// watermark of a zone, is not in MemFree: all of it after PID 1 has overwritten what is
// unused.
func (vm *VM) freeKiB() (kib int, told string) {
	vm.t.Helper()
	for range 3 {
		vm.Run("write /proc/sys/vm/drop_caches 3")
	}
	meminfo, zones := vm.Run("cat /proc/meminfo"), vm.Run("cat /proc/zoneinfo")
	for _, name := range []string{"MemFree", "AnonPages"} {
		kib += vm.meminfoKiB(meminfo, name)
	}
	kept := 0
	for line := range strings.Lines(zones) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "count:" {
			pages, _ := strconv.Atoi(f[1])
			kept += pages * 4
		}
	}
	return kib + kept, fmt.Sprintf("kept by the CPU: %d KiB\n%s", kept, meminfo)
}

// meminfoKiB is what a line of /proc/meminfo says.
func (vm *VM) meminfoKiB(text, name string) int {
	vm.t.Helper()
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != name+":" {
			continue
		}
		kib, err := strconv.Atoi(f[1])
		if err != nil {
			vm.t.Fatal(err)
		}
		return kib
	}
	vm.t.Fatalf("no %s in\n%s", name, text)
	return 0
}

// moduleNames are the names in the text of /proc/modules, sorted.
func moduleNames(text string) string {
	var names []string
	for line := range strings.Lines(text) {
		name, _, _ := strings.Cut(line, " ")
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// plainInitramfs is an initramfs with the probe, which goes to root (device and type) once
// it has loaded the modules of /proc/modules, the last line first.
func plainInitramfs(t *testing.T, root, modules string) string {
	t.Helper()
	files := map[string]string{}
	k := kernel(t, "6.1")
	tree := filepath.Join(k.Dir, "lib/modules", k.Release)
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			files[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Rename(probe(t), filepath.Join(dir, "init")); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "plain"), []byte(root+"\n"), 0o644)
	lines := strings.Split(strings.TrimSpace(modules), "\n")
	slices.Reverse(lines)
	for i, line := range lines {
		name, _, _ := strings.Cut(line, " ")
		writeFile(t, filepath.Join(dir, "modules", fmt.Sprintf("%03d-%s.ko", i, name)), readFile(t, files[name]), 0o644)
	}
	return packInitramfs(t, dir)
}
