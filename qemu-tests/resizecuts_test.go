package qemutests

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sealroot/init/report"
	"sealroot/qemu-tests/judge"
	"sealroot/qemu-tests/promises"
	"sealroot/qemu-tests/writes"
	"sealroot/state/layout"
	"sealroot/state/luks2"
)

const (
	promisedDir  = "/state/encrypted/.promised" // a name that is never bound
	promisedKeep = 12
	markPart     = "root-b" // slot b is empty
)

// The power goes off while the volume grows and shrinks under a writer: it loses
// nothing. A small fixed sample; `make soak` takes all, or as many as TIMES says.
func TestResizeCuts(t *testing.T) {
	t.Parallel()
	s := resizeSample{kills: 4, resizes: 25, flushes: 40, cuts: cuts{torn: 30, boots: 12, seed: 1}}
	if soaking() {
		const kills = 60
		times := number(t, "SEALROOT_SOAK", kills)
		seed := number(t, "SEALROOT_SOAK_SEED", int(time.Now().UnixNano()%1e6)+1)
		s = resizeSample{kills: min(times, kills), resizes: 12, cuts: cuts{torn: 200, seed: uint64(seed)}}
		if times < kills {
			s.boots = times
		}
	}
	resizeCuts(t, s)
}

// resizeSample says how much is tried.
type resizeSample struct {
	kills   int
	resizes int // that are recorded
	flushes int // so many of the disks after a flush; 0: all
	cuts        // in the record; boots 0: all
}

// resized is a machine that resizes, and its judge.
type resized struct {
	t        *testing.T
	machine  *Machine
	disk     *Disk
	state    Partition // on the disk
	mark     Partition
	key      []byte         // the volume's recovery key
	base     *Disk          // as it was before the record
	original string         // its state partition
	found    map[string]int // where the cuts were, as the disks tell
	told     int            // the last promised file, of all disks
}

func resizeCuts(t *testing.T, s resizeSample) {
	t.Helper()
	r := &resized{t: t, disk: Image{}.Build(t)}
	// Its place is free while the host judges what was recorded.
	r.machine = NewMachine(t, DirectKernel, r.disk).WithTPM()
	r.machine.LoadSlot("a")
	r.state, r.mark = r.disk.Part(t, "state"), r.disk.Part(t, markPart)
	vm := r.machine.Boot()
	vm.UpIn("a")
	r.key = []byte(vm.recoveryKey())
	vm.Run("mkdir " + promisedDir)
	vm.PowerOff()
	r.kill(s.kills, s.seed)
	r.cutWrites(s)
}

// loop is the probe's command.
func (r *resized) loop(seconds, resizes int, seed uint64) string {
	return fmt.Sprintf("resizeloop %d %d %d %s %d /dev/vda%d", seconds, resizes, seed, promisedDir, promisedKeep, r.mark.Number)
}

// judge judges a state partition; mark is the beginning of what the loop marks.
func (r *resized) judge(state string, mark []byte) (judge.Verdict, error) {
	told, err := promises.Told(mark)
	if err != nil {
		return judge.Verdict{}, err
	}
	r.told = max(r.told, told)
	return judge.Case{
		State: state, Dir: r.t.TempDir(), Balloons: layout.Balloons, Record: layout.GivenBack,
		Unlock: func(h *luks2.Header) ([]byte, error) {
			key, _, err := h.Authorize(r.key, luks2.NewBudget(nil))
			return key, err
		},
		Files: func(root string) error {
			_, err := promises.Check(filepath.Join(root, filepath.Base(promisedDir)), promisedKeep, told)
			return err
		},
	}.Judge()
}

// good wants a disk to be good, and counts where the cut was.
func (r *resized) good(where string, disk *Disk) {
	r.t.Helper()
	state := disk.Extract(r.t, "state")
	r.goodState(where, state, disk.Read(r.t, markPart, 0, sectorSize))
}

func (r *resized) goodState(where, state string, mark []byte) {
	r.t.Helper()
	v, err := r.judge(state, mark)
	if err != nil {
		r.t.Errorf("%s: %v", where, err)
	}
	r.found[place(v)]++
	if err := os.Remove(state); err != nil {
		r.t.Error(err)
	}
}

// place says where in a resize a disk is.
func place(v judge.Verdict) string {
	switch {
	case v.Beyond > 0:
		return "reserved for the end and not yet used"
	case v.Double > 0 && v.Double < v.Balloons:
		return "balloons partly given back"
	case v.Double > 0:
		return "balloons and nothing given back"
	case v.Balloons > 0:
		return "balloons given back"
	default:
		return "no balloon"
	}
}

// up wants nothing to be said of the volume at a boot.
func (r *resized) up(where string, got report.Report) {
	r.t.Helper()
	for _, warning := range got.Warnings {
		// A torn superblock is made good, and said.
		if strings.Contains(warning, "volume") && !strings.Contains(warning, "superblock") {
			r.t.Errorf("%s: %s", where, warning)
		}
	}
	if got.State.Unlocked != "tpm2" || got.Degraded {
		r.t.Errorf("%s: degraded %t, state %+v", where, got.Degraded, got.State)
	}
}

// kill kills the machine so many times at random in the loop. After each cut, and after
// the boot that follows the last, the disk is good.
func (r *resized) kill(times int, seed uint64) {
	r.t.Helper()
	r.found = map[string]int{}
	random := rand.New(rand.NewPCG(seed, 0))
	r.machine.place = waitForRoom(r.t) // for all of them: the machine is on nearly all the time
	defer func() {
		r.machine.place.Close()
		r.machine.place = nil
	}()
	for n := range times + 1 {
		vm := r.machine.Boot()
		r.up(fmt.Sprintf("boot %d", n+1), vm.UpIn("a"))
		where := fmt.Sprintf("cut %d", n+1)
		if n == times {
			where = "after the last boot"
			vm.Kill()
		} else {
			r.cut(vm, r.loop(600, 1e6, random.Uint64()), time.Second/2+time.Duration(random.Int64N(int64(5*time.Second))))
		}
		r.good(where, r.disk)
	}
	r.t.Logf("%d power cuts by SIGKILL, seed %d, %d files promised: %v", times, seed, r.told, r.found)
}

// cut runs a command that does not end, and cuts the power.
func (r *resized) cut(vm *VM, command string, delay time.Duration) {
	r.t.Helper()
	done := make(chan string, 1)
	go func() {
		output, status, err := vm.guest.Run(command, commandTime)
		done <- fmt.Sprintf("status %d, %v: %s", status, err, output)
	}()
	select {
	case how := <-done:
		r.t.Errorf("%q ended: %s", command, how)
	case <-time.After(delay):
	}
	vm.Kill()
}

// cutWrites records what the loop writes, and judges disks that a cut leaves: after
// flushes, and within epochs at random. Some of them are booted. The controls are
// at the end of the record.
func (r *resized) cutWrites(s resizeSample) {
	t := r.t
	t.Helper()
	began := time.Now()
	r.base = r.disk.Copy(t)
	r.original = r.base.Extract(t, "state")
	m := r.machine.recorded()
	vm := m.Boot()
	vm.UpIn("a")
	// What was written so far; the record's entries are in the file at once.
	written := func() int64 {
		info, err := os.Stat(m.Config.WriteLog)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	marks := []int64{written()}
	did := vm.Run(r.loop(600, s.resizes, s.seed))
	vm.Run("sync")
	marks = append(marks, written())
	// What the library must not do, each time put right again.
	controls := []struct {
		wrong string
		want  error // of a disk in between
	}{
		{"unlink-first", judge.ErrUnbacked},
		{"punch-first", judge.ErrUnbacked},
		{"forget", judge.ErrUnrecorded},
	}
	for _, c := range controls {
		vm.Run("resizewrong " + c.wrong)
		marks = append(marks, written())
	}
	vm.PowerOff()
	record := readRecord(t, m.Config.WriteLog)
	m.Config.WriteLog = ""
	var ends []int
	for _, at := range marks {
		ends = append(ends, record.Before(at))
	}
	t.Logf("%s in %d requests, in %s", did, ends[1]-ends[0], time.Since(began).Round(time.Second))
	before, err := os.Open(r.base.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	disk := writes.NewDisk(before)
	if err := disk.ApplyAll(record, record.Entries[:ends[1]]); err != nil {
		t.Fatal(err)
	}
	for i, c := range controls {
		var found error
		for _, epoch := range writes.Epochs(record.Entries[ends[i+1]:ends[i+2]]) {
			if err := disk.ApplyAll(record, epoch); err != nil {
				t.Fatal(err)
			}
			if found == nil {
				found = r.judgeLeftDisk(disk)
			}
		}
		if !errors.Is(found, c.want) {
			t.Errorf("control %q: %v, want it found that %v", c.wrong, found, c.want)
		}
		if err := r.judgeLeftDisk(disk); err != nil {
			t.Errorf("control %q, put right: %v", c.wrong, err)
		}
		t.Logf("control %q: %v", c.wrong, found)
	}
	r.judgeLeft(s, m, *record, ends[0], ends[1], before)
}

// judgeLeft judges disks that cuts between the first of these entries and the last leave.
func (r *resized) judgeLeft(s resizeSample, m *Machine, record writes.Record, first, end int, before *os.File) {
	t := r.t
	t.Helper()
	r.found = map[string]int{}
	record.Entries = record.Entries[:end]
	random := rand.New(rand.NewPCG(s.seed, 0))
	total := 1 + len(writes.Epochs(record.Entries[first:])) + s.torn
	order := random.Perm(total)
	if s.flushes > 0 {
		order = order[:min(total, s.flushes+s.torn)]
	}
	rank := map[int]int{}
	for i, n := range order {
		rank[n] = i
	}
	n, booted := 0, 0
	eachLeft(t, &record, first, before, s.cuts, random, func(left leftDisk) {
		i, chosen := rank[n]
		if n++; !chosen {
			return
		}
		r.goodState("cut "+left.where, r.saved(left.disk), r.marked(left.disk))
		if s.boots > 0 && i >= s.boots {
			return
		}
		booted++
		bootLeft(t, m, r.base, left, func(got report.Report, d *Disk) {
			r.up("boot after cut "+left.where, got)
			r.good("booted after cut "+left.where, d)
		})
	})
	t.Logf("%d disks of %d that a power cut leaves, %d of them booted and judged again, seed %d, %d files promised: %v", len(order), total, booted, s.seed, r.told, r.found)
	if r.told == 0 || len(r.found) < 2 {
		t.Errorf("the cuts reach no resize: %d files promised, %v", r.told, r.found)
	}
}

func (r *resized) judgeLeftDisk(disk *writes.Disk) error {
	r.t.Helper()
	state := r.saved(disk)
	_, err := r.judge(state, r.marked(disk))
	return errors.Join(err, os.Remove(state))
}

// saved is the state partition of a disk that a cut leaves, in a file.
func (r *resized) saved(disk *writes.Disk) string {
	r.t.Helper()
	path := filepath.Join(r.t.TempDir(), "state")
	tool(r.t, "cp", "--sparse=always", r.original, path)
	if err := disk.SaveRange(path, r.state.Offset, r.state.Bytes); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// marked is the beginning of what the loop marked on it.
func (r *resized) marked(disk *writes.Disk) []byte {
	r.t.Helper()
	b := make([]byte, sectorSize)
	if _, err := disk.ReadAt(b, r.mark.Offset); err != nil {
		r.t.Fatal(err)
	}
	return b
}
