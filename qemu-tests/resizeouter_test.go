package qemutests

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"sealroot/qemu-tests/judge"
	"sealroot/state/layout"
)

// With btrfs around it the volume is made by the first boot, whichever file system is in
// it, grows and shrinks under a writer, and is written to on a full partition. A snapshot
// of the rest does not matter; one of the volume has it read-only until it is repaired.
func TestResizeOuterBtrfsExt4(t *testing.T)  { t.Parallel(); resizeOuterBtrfs(t, judge.Ext4) }
func TestResizeOuterBtrfsBtrfs(t *testing.T) { t.Parallel(); resizeOuterBtrfs(t, judge.Btrfs) }

func resizeOuterBtrfs(t *testing.T, inside judge.Filesystem) {
	const more = 64 << 20
	r := &resizing{t: t, disk: Image{
		Edit:  []string{"recovery: later", "recovery: later\n  partition_filesystem: btrfs\n  auto_resize: both\n  filesystem: " + string(inside)},
		Extra: hostPrograms(t, "/usr/bin/btrfs"),
		Disk:  []string{"--state-size", "900M"},
	}.Build(t), outer: judge.Btrfs, inner: inside, place: layout.ImageSubvolume}
	r.vm = directMachine(t, r.disk).WithTPM().Boot()
	vm := r.vm // until it is switched off
	if got := vm.UpIn("a"); got.State.Unlocked != "created" || got.Degraded {
		t.Fatalf("first boot: %+v", got.State)
	}
	mounts := vm.Run("cat /proc/mounts")
	for _, want := range []string{" /state btrfs rw,nosuid,nodev,noexec", ",subvolid=5,", " /state/encrypted " + string(inside) + " "} {
		if !strings.Contains(mounts, want) {
			t.Errorf("no %q among the mounts:\n%s", want, mounts)
		}
	}
	r.key = []byte(vm.recoveryKey())
	vm.Run("promise " + withinVolume(keptDir) + " 20 1")
	vm.Run("mkdir " + withinVolume(besideDir))
	before := vm.Run("kmsg")
	// What is written for the first time is reserved all the time; once in a thousand looks
	// btrfs says otherwise.
	if l := told[struct{ Looks, Bad, Missing int }](vm, "volume-looks 8 %s", withinVolume(besideDir)); l.Bad > 0 || l.Looks < 20 {
		t.Errorf("beside a writer %d of %d looks found %d bytes that are not reserved", l.Bad, l.Looks, l.Missing)
	}
	const files = 5
	s := told[struct{ Grown, Shrunk, Refused, Files int }](vm, "volume-steps 10 %d 7 %s %d 0s", files, withinVolume(besideDir), besideKeep)
	t.Logf("steps: %+v", s)
	if s.Grown < 2 || s.Shrunk < 2 || s.Files < files {
		t.Errorf("10 steps: %+v", s)
	}

	began := time.Now()
	phase := func(name string) {
		t.Logf("%s: %s", name, time.Since(began).Round(time.Second))
		began = time.Now()
	}
	// Given back, and all of that taken by somebody else while the volume is written to.
	vm.Run("sealroot state resize max")
	most := r.sizes()
	vm.TryRun("sealroot state resize min")
	vm.Run("sealroot state resize +16M")
	now := r.sizes()
	if back := now.OuterFree - most.OuterFree; most.Reserved-now.Reserved < more || back < most.Reserved-now.Reserved-16<<20 {
		t.Errorf("resized from %+v to %+v", most, now)
	}
	phase("resized")
	if f, problem := r.full(1); problem != "" || f.Left > 4<<20 || f.Inside < now.InnerFree/2 {
		t.Errorf("on a full state partition: %+v of %+v: %s", f, now, problem)
	}
	r.whole("on a full state partition")
	vm.Run("rm /state/filler")
	vm.Run("sync")
	if bad := kernelErrors(before, vm.Run("kmsg")); bad != "" {
		t.Errorf("the kernel's log:\n%s", bad)
	}

	phase("filled")
	vm.Run("btrfs subvolume snapshot /state /state/.before")
	if inside == "ext4" { // what is inside does not matter here
		r.boot("after a snapshot of the partition")
		vm = r.vm
	}
	vm.Run("btrfs subvolume snapshot /state/" + layout.ImageSubvolume + " /state/.copy")
	got := r.again()
	vm = r.vm
	if warnings := strings.Join(got.Warnings, "\n"); got.State.Unlocked != "tpm2" || got.Degraded ||
		!strings.Contains(warnings, "the encrypted volume is read-only") || !strings.Contains(warnings, "snapshot") {
		t.Errorf("after a snapshot of the volume: %+v, degraded %v, warnings %q", got.State, got.Degraded, warnings)
	}
	if output, status := vm.TryRun("write " + withinVolume(".written") + " though it is read-only"); status == 0 {
		t.Errorf("the volume is written to: %s", output)
	}
	r.whole("after a snapshot of the volume")
	vm.Run("btrfs subvolume delete -c /state/.copy")
	phase("snapshots")
	vm.Run("sealroot state repair")
	phase("repaired")
	if s := r.sizes(); s.Copied != 0 || s.ReadOnly || s.OverCommitted != 0 {
		t.Errorf("repaired: %+v", s)
	}
	vm.Run("write " + withinVolume(".written") + " after the repair")
	if inside == "ext4" {
		r.boot("after the repair")
		vm = r.vm
		r.shared()
	}
	phase("shared")
	vm.PowerOff()
	phase("ended")
	if v := r.judgeOff(); v.Double != 0 && inside == judge.Btrfs || v.Reserved == 0 {
		t.Errorf("the host judges %+v", v)
	}
}

// shared has the service give space to the volume, to the partition, and to who has made
// the file system larger. With btrfs around it a step may take half a minute where the host
// is slow: who writes waits for it. (TestResizeService has nobody wait, with ext4.)
func (r *resizing) shared() {
	t, vm := r.t, r.vm
	t.Helper()
	before := r.sizes()
	const rate, more = 8, 48 << 20
	const patience = 120
	inside, outside := withinVolume(".much"), "/state/much"
	r.serve()
	r.writeAtRate(inside, before.InnerFree+more, rate, patience)
	grown := r.sizes()
	if grown.Reserved < before.Reserved+more {
		t.Errorf("the service has let it grow from %+v to %+v", before, grown)
	}
	vm.Run("rm " + inside)
	r.writeAtRate(outside, grown.OuterFree+more, rate, patience)
	if now := r.sizes(); now.Reserved > grown.Reserved-more || now.OverCommitted != 0 {
		t.Errorf("the service has let it shrink from %+v to %+v", grown, now)
	}
	vm.Run("rm " + outside)
	r.strayed(fmt.Sprintf("volume-stray %d", 16<<20))
	said := vm.Run("cat " + served)
	t.Logf("the service says:\n%s", said)
	list := servedDecisions(said)
	for _, action := range []string{"grow", "shrink", "reserve"} {
		if !slices.ContainsFunc(list, func(d decision) bool { return d.Action == action }) {
			t.Errorf("the service tells of no %s", action)
		}
	}
	if problem := unmended(list); problem != "" {
		t.Errorf("the service: %s", problem)
	}
	r.whole("the service was at work")
}

// judgeOff judges the disk of a machine that was switched off in order.
func (r *resizing) judgeOff() judge.Verdict {
	r.t.Helper()
	path := r.disk.Extract(r.t, "state")
	defer os.Remove(path)
	v, err := r.judged(path)
	if err != nil {
		r.t.Error(err)
	}
	return v
}

// writeAtRate writes so many bytes to a file while the service runs, so many MiB per second,
// and waits for room for so many seconds.
func (r *resizing) writeAtRate(name string, bytes int64, rate, patience int) {
	r.t.Helper()
	if output, status := r.vm.TryRun(fmt.Sprintf("write-at-rate %s %d %d %d", name, bytes, rate, patience)); status != 0 {
		r.t.Fatalf("%d MiB to %s: %s: %+v; the service says:\n%s", bytes>>20, name, output, r.sizes(), r.vm.Run("cat "+served))
	}
}
