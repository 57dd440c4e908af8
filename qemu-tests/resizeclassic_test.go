package qemutests

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"sealroot/qemu-tests/judge"
	"sealroot/state/resize"
	"sealroot/tooltest"
)

// With state.device classic the file, its loop device and its crypt device end where the
// file system ends: made so by the first boot, in use under a writer, by the command with
// a key and never with another one, and by the boot after a power cut.
func TestResizeClassic(t *testing.T) {
	t.Parallel()
	for i, kind := range []judge.Filesystem{judge.Ext4, judge.Btrfs} {
		if kind == judge.Btrfs && !soaking() {
			continue // its devices are those of ext4, and TestResizeBtrfs has its resizes
		}
		t.Run(string(kind), func(t *testing.T) { resizeClassic(t, kind, uint64(i)+3) })
	}
}

func resizeClassic(t *testing.T, kind judge.Filesystem, seed uint64) {
	t.Helper()
	r := &resized{t: t, disk: resizeSample{inner: kind, classic: true}.image().Build(t)}
	r.machine = NewMachine(t, DirectKernel, r.disk).WithTPM()
	r.machine.LoadSlot("a")
	r.mark = r.disk.Part(t, markPart)
	r.machine.place = waitForRoom(t) // for all its boots
	defer func() {
		r.machine.place.Close()
		r.machine.place = nil
	}()
	r.classic(kind)
	vm := r.machine.Boot()
	r.up("second boot", vm.UpIn("a"))
	r.cut(vm, r.loop(600, 1e6, seed), 4*time.Second)
	r.good("cut", r.disk)
	r.classicLast(kind)
}

// modhex are the letters of a recovery key.
const modhex = "cbdefghijklnrtuv"

// classic is the first boot.
func (r *resized) classic(kind judge.Filesystem) {
	t, vm := r.t, r.machine.Boot()
	t.Helper()
	vm.UpIn("a")
	key := vm.recoveryKey()
	r.jury = newJury(t, judge.Case{Inner: kind}, []byte(key))
	r.jury.classic = true
	first := ends(vm)
	if first.Filesystem != string(kind) || !first.Classic || first.Apparent != first.Device || first.Apparent-first.DataOffset-first.Spanned > 16<<20 {
		t.Errorf("%s, first boot: %+v", kind, first)
	}
	before := vm.Run("kmsg")
	// A key of another volume has the right form and opens nothing.
	other := strings.Map(func(c rune) rune {
		if i := strings.IndexRune(modhex, c); i >= 0 {
			return rune(modhex[(i+1)%len(modhex)])
		}
		return c
	}, key)
	vm.Run("write /run/other " + other)
	vm.Run("write /run/own " + key)
	if out, status := vm.TryRun("sealroot state resize --recovery-key-file /run/other +64M"); status != 3 {
		t.Errorf("%s with another key: exit status %d, %s", kind, status, out)
	}
	if now := ends(vm); now.Spanned != first.Spanned || now.Device != first.Device {
		t.Errorf("%s with another key: %+v, before it %+v", kind, now, first)
	}
	vm.Run("sealroot state resize --recovery-key-file /run/own +64M")
	if now := exactly(vm, "with the recovery key"); now.Reserved < first.Reserved+50<<20 {
		t.Errorf("%s with the recovery key: %+v, before it %+v", kind, now, first)
	}
	vm.Run("mkdir " + promisedDir)
	vm.Run("mkdir /var/lib/written")
	seconds := 6
	if kind == judge.Btrfs { // each step takes a second or more
		seconds = 20
	}
	vm.resizeUnderWriter(seconds, "/var/lib/written")
	exactly(vm, "under a writer")
	vm.Run("verify /var/lib/written")
	for _, size := range []string{"max", "900M"} { // by the manage key
		vm.Run("sealroot state resize " + size)
		exactly(vm, "resized to "+size)
	}
	if out := vm.Run("sealroot state status"); !strings.Contains(out, "state.device: classic") {
		t.Errorf("state status says nothing of the devices:\n%s", out)
	}
	if bad := kernelErrors(before, vm.Run("kmsg")); bad != "" {
		t.Errorf("the kernel's log of %s:\n%s", kind, bad)
	}
	vm.PowerOff()
}

// classicLast is the boot after the power cut.
func (r *resized) classicLast(kind judge.Filesystem) {
	t, vm := r.t, r.machine.Boot()
	t.Helper()
	r.up("after a power cut", vm.UpIn("a"))
	vm.Run("verify /var/lib/written")
	vm.Run("write /run/own " + string(r.jury.key))
	if kind == judge.Ext4 { // its journal may know of another size than its superblock
		vm.Run("sealroot state resize --recovery-key-file /run/own min")
	}
	exactly(vm, "after a power cut")
	vm.Run("sealroot state remove --recovery-key-file /run/own manage")
	if out, status := vm.TryRun("sealroot state resize +3G"); status != 3 || !strings.Contains(out, "--recovery-key-file") {
		t.Errorf("%s without a key: exit status %d, %s", kind, status, out)
	}
	now := exactly(vm, "without a key")
	vm.PowerOff()
	part := r.disk.Extract(t, "state")
	r.jury.rest()
	v, err := r.jury.judge(part, r.disk.Read(t, markPart, 0, sectorSize))
	if err != nil || v.File != now.Spanned || v.Spanned != now.Spanned {
		t.Errorf("%s, off: %+v, %v; before it %+v", kind, v, err, now)
	}
	dir := t.TempDir()
	tooltest.Run(t, "mount", "-o", "loop,ro,noload", part, dir)
	defer tooltest.Run(t, "umount", dir)
	image := filepath.Join(dir, "encrypted.img")
	if dump := tool(t, "cryptsetup", "luksDump", image); !strings.Contains(dump, "aes-xts-plain64") {
		t.Errorf("cryptsetup reads\n%s", dump)
	}
	if info, err := os.Stat(image); err != nil || info.Size() != now.Apparent {
		t.Errorf("%s, off: encrypted.img %+v, %v", kind, info, err)
	}
}

// resizeUnderWriter has the volume grow and shrink under a writer to a directory in it,
// for so many seconds at least, and until enough has happened, however slow the host is.
func (vm *VM) resizeUnderWriter(seconds int, dir string) {
	vm.t.Helper()
	const wantFiles, wantTimes = 10, 2
	said := vm.Run(fmt.Sprintf("resize-under-writer %d %d %d %s", seconds, wantFiles, wantTimes, dir))
	vm.t.Log(strings.TrimSpace(said))
	var files, larger, smaller int
	if _, err := fmt.Sscanf(said, "%d files, larger %d times, smaller %d times", &files, &larger, &smaller); err != nil || files < wantFiles || larger < wantTimes || smaller < wantTimes {
		vm.t.Errorf("grown and shrunk under a writer: %q, %v", said, err)
	}
}

// ends are the sizes; the loop device is as long as the file.
func ends(vm *VM) resize.Sizes {
	vm.t.Helper()
	s := told[resize.Sizes](vm, "volume-sizes")
	sectors, err := strconv.ParseInt(strings.TrimSpace(vm.Run("cat /sys/block/loop0/size")), 10, 64)
	if err != nil || sectors*512 != s.Apparent {
		vm.t.Errorf("the loop device has %d sectors, %v; the file %+v", sectors, err, s)
	}
	return s
}

// exactly wants file and devices to end where the file system does.
func exactly(vm *VM, when string) resize.Sizes {
	vm.t.Helper()
	s := ends(vm)
	if end := s.DataOffset + s.Spanned; s.Apparent != end || s.Device != end || s.OverCommitted != 0 || s.ReadOnly {
		vm.t.Errorf("%s: %+v, want all to end at %d", when, s, end)
	}
	return s
}
