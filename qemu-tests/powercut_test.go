package qemutests

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"sealroot/init/report"
	"sealroot/qemu-tests/writes"
)

// upIn is the probe's line; firmware and boot loaders write much before it.
var upIn = regexp.MustCompile(`probe: up: slot "(.*)", kernel (.*)\n`)

// cuts says how much of a record is tried.
type cuts struct {
	torn  int // random cuts between two flushes, beside the cut after each flush
	boots int // disks that are booted, of all these
	seed  uint64
}

// The record of install, trial and commit is cut after every flush and at some
// random places; `make soak` takes more of these.
func TestPowerCutWrites(t *testing.T) {
	t.Parallel()
	cutWrites(t, cuts{torn: 40, boots: 2, seed: 1})
}

// cutWrites makes the disks that power cuts leave. On each of them the code of
// PID 1, run on the host, starts a slot that veritysetup finds good, now and
// for some boots more; some disks are booted.
func cutWrites(t *testing.T, c cuts) {
	t.Helper()
	began := time.Now()
	base, m, installBegan := recordUpdate(t)
	record := readRecord(t, m.Config.WriteLog)
	before, err := os.Open(base.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	host := newHostBoots(t, base)
	random := rand.New(rand.NewPCG(c.seed, 0))
	first := record.Before(installBegan)
	disks := leftDisks(t, record, first, before, c, random)
	t.Logf("%d requests since the installation began, in %s; %d disks, seed %d", len(record.Entries)-first, time.Since(began).Round(time.Second), len(disks), c.seed)

	chosen := map[string]int{}
	for _, left := range disks {
		for n, d := 0, left.disk.Clone(); n < 4; n++ {
			slot, boots, err := host.boot(d)
			if err != nil {
				t.Fatalf("cut %s, boot %d after it: %v", left.where, n+1, err)
			}
			if n == 0 {
				chosen[fmt.Sprintf("slot %s after %d boots", slot, boots)]++
			}
		}
	}
	t.Logf("%d disks come up on the host: %v; veritysetup verified %d different contents", len(disks), chosen, host.verified)
	if chosen["slot a after 1 boots"] == 0 || chosen["slot b after 1 boots"] == 0 || host.verified < 2 {
		t.Errorf("the cuts do not reach from the old to the new system: %v", chosen)
	}

	// The control: had the slot's content not reached the disk before its bits,
	// this would have been found.
	without := writes.NewDisk(before)
	root := base.Part(t, "root-b")
	for _, e := range record.Entries {
		if e.Overlaps(root.Offset, root.Bytes) {
			continue
		}
		if err := without.ApplyAll(record, []writes.Entry{e}); err != nil {
			t.Fatal(err)
		}
	}
	if slot, _, err := host.boot(without); err == nil {
		t.Errorf("without what was written to root-b, slot %s is found good", slot)
	}

	random.Shuffle(len(disks), func(i, j int) { disks[i], disks[j] = disks[j], disks[i] })
	came := map[string]int{}
	kept := keeper{dir: logDir(t)}
	kept.ifFailed(t, "the recorded writes, and the disk before them", m.Config.WriteLog, base.Path)
	for _, left := range disks[:min(c.boots, len(disks))] {
		slot := bootLeft(t, m, base, left, &kept, nil)
		came["slot "+slot]++
	}
	t.Logf("%d of the disks booted: %v", c.boots, came)
}

// recordUpdate starts a new machine, installs an image into slot b, boots it on
// trial and commits it. It returns the disk as it was before, and the machine,
// and the size of the record when the installation began.
func recordUpdate(t *testing.T) (*Disk, *Machine, int64) {
	t.Helper()
	disk := Image{}.Build(t)
	base := disk.Copy(t)
	m := NewMachine(t, BIOS, disk).WithTPM().withParts(t, readFile(t, Image{}.next(t).Parts(t))).recorded()
	vm := m.Hold().Boot()
	vm.UpIn("a")
	vm.Run("sync")
	info, err := os.Stat(m.Config.WriteLog)
	if err != nil {
		t.Fatal(err)
	}
	vm.Run("sealroot install /dev/vdb")
	vm.Reboot()
	if r := vm.UpIn("b"); !r.Slot.Trial {
		t.Errorf("the installed slot is %+v, want on trial", r.Slot)
	}
	vm.Run("sealroot commit")
	vm.Reboot()
	vm.UpIn("b")
	vm.PowerOff()
	return base, m, info.Size()
}

// leftDisk is the content of a disk after a power cut.
type leftDisk struct {
	disk  *writes.Disk
	where string
}

// leftDisks are those of eachLeft.
func leftDisks(t *testing.T, record *writes.Record, first int, base io.ReaderAt, c cuts, random *rand.Rand) (disks []leftDisk) {
	t.Helper()
	eachLeft(t, record, first, base, c, random, func(left leftDisk) { disks = append(disks, leftDisk{left.disk.Clone(), left.where}) })
	return disks
}

// eachLeft replays a record up to every flush after its first entries, and cuts
// some of the epochs between flushes at random. A disk is do's while it runs.
func eachLeft(t *testing.T, record *writes.Record, first int, base io.ReaderAt, c cuts, random *rand.Rand, do func(leftDisk)) {
	t.Helper()
	epochs := writes.Epochs(record.Entries[first:])
	torn := make([]int, len(epochs))
	for range c.torn {
		torn[random.IntN(len(epochs))]++
	}
	disk := writes.NewDisk(base)
	if err := disk.ApplyAll(record, record.Entries[:first]); err != nil {
		t.Fatal(err)
	}
	do(leftDisk{disk, "before the first write"})
	for i, epoch := range epochs {
		for n := range torn[i] {
			d := disk.Clone()
			if err := d.Torn(record, epoch, random); err != nil {
				t.Fatal(err)
			}
			do(leftDisk{d, fmt.Sprintf("in epoch %d of %d (%d)", i+1, len(epochs), n+1)})
		}
		if err := disk.ApplyAll(record, epoch); err != nil {
			t.Fatal(err)
		}
		do(leftDisk{disk, fmt.Sprintf("after flush %d of %d", i+1, len(epochs))})
	}
}

// bootLeft boots a machine with a disk that a power cut left, and returns the
// slot that came up; after, if there is one, looks at what the boot said and at the
// disk once it is off, and tells whether both are good. Of a boot that is not, the disk
// as it was before, the TPM and the console are kept, also when the test ends there.
func bootLeft(t *testing.T, of *Machine, base *Disk, left leftDisk, kept *keeper, after func(report.Report, *Disk) bool) string {
	t.Helper()
	disk := base.Copy(t)
	if err := left.disk.Save(disk.Path); err != nil {
		t.Fatal(err)
	}
	m := NewMachine(t, of.Config.Firmware, disk)
	m.place = of.place
	m.boots = of.boots // each console has a file of its own
	m.Config.Kernel, m.Config.Initrd, m.Config.Cmdline = of.Config.Kernel, of.Config.Initrd, of.Config.Cmdline
	m.Config.TPM = filepath.Join(t.TempDir(), "tpm")
	tool(t, "cp", "-r", of.Config.TPM, m.Config.TPM)
	vm := m.Boot()
	of.boots = m.boots
	good := false
	defer func() {
		if vm.fine = good; good {
			os.Remove(vm.console)
			return
		}
		t.Errorf("cut %s: the disk, the TPM and the console: %s", left.where, kept.keep(func(dir string) error {
			was := filepath.Join(dir, "disk.img")
			_, err1 := runTool("cp", "-r", of.Config.TPM, filepath.Join(dir, "tpm"))
			_, err2 := runTool("cp", vm.console, dir)
			if err := errors.Join(err1, err2, copySparse(was, base.Path)); err != nil {
				return err
			}
			return left.disk.Save(was)
		}))
	}()
	got := vm.Expect(upIn.String(), bootTime)
	vm.WaitReady(commandTime)
	r := vm.Report()
	good = r.State.Unlocked == "tpm2"
	if !good {
		t.Errorf("cut %s: the state is %+v, want unlocked by tpm2", left.where, r.State)
	}
	vm.PowerOff()
	if after == nil {
		t.Logf("cut %s: slot %s came up", left.where, got[1])
	}
	if got[1] != "a" && got[1] != "b" {
		t.Errorf("cut %s: slot %q came up", left.where, got[1])
		good = false
	}
	if after != nil {
		good = after(r, disk) && good
	}
	if err := os.Remove(disk.Path); err != nil {
		t.Error(err)
	}
	return got[1]
}

// number reads a number from the environment.
func number(t *testing.T, name string, byDefault int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return byDefault
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q is not a number from 1", name, text)
	}
	return n
}
