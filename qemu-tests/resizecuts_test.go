package qemutests

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"sealroot/init/report"
	"sealroot/qemu-tests/judge"
	"sealroot/qemu-tests/writes"
	"sealroot/state/layout"
)

const (
	promisedDir  = "/state/encrypted/.promised" // a name that is never bound
	promisedKeep = 12
	markPart     = "root-b" // slot b is empty
)

// The power goes off while the volume grows and shrinks under a writer: it loses
// nothing, whichever file system is in it and around it, and whichever devices are between
// them. Small fixed samples; `make soak` takes all, or as many as TIMES says.
func TestResizeCuts(t *testing.T) {
	t.Parallel()
	samples := []resizeSample{
		{name: "ext4", inner: judge.Ext4, kills: 2, resizes: 12, flushes: 12, cuts: cuts{torn: 12, boots: 6, seed: 1}},
		{name: "btrfs", inner: judge.Btrfs, kills: 2, resizes: 8, flushes: 8, cuts: cuts{torn: 8, boots: 4, seed: 1}},
		{name: "ext4_in_btrfs", inner: judge.Ext4, outer: judge.Btrfs, kills: 1, resizes: 6, flushes: 8, cuts: cuts{torn: 4, boots: 1, seed: 1}},
		{name: "classic_ext4", inner: judge.Ext4, classic: true, kills: 1, resizes: 6, flushes: 8, cuts: cuts{torn: 4, boots: 1, seed: 1}},
	}
	if soaking() { // TestResizeClassic cuts it once
		samples = append(samples, resizeSample{name: "classic_btrfs", inner: judge.Btrfs, classic: true})
	}
	for _, s := range samples {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			if soaking() {
				s = s.soak(t)
			}
			s.run(t)
		})
	}
}

// resizeSample says how much is tried, and on what.
type resizeSample struct {
	name    string
	inner   judge.Filesystem
	outer   judge.Filesystem // around it: ext4 when empty
	classic bool             // state.device
	kills   int
	resizes int // that are recorded
	flushes int // so many of the disks after a flush; 0: all
	cuts        // in the record; boots 0: all
}

// soak is all of it: each disk of the record is booted.
func (s resizeSample) soak(t *testing.T) resizeSample {
	t.Helper()
	const kills = 60
	times := number(t, "SEALROOT_SOAK", kills)
	seed := number(t, "SEALROOT_SOAK_SEED", int(time.Now().UnixNano()%1e6)+1)
	s.kills, s.resizes, s.flushes = min(times, kills), 8, 0
	s.cuts = cuts{torn: 200, seed: uint64(seed)}
	if times < kills {
		s.boots = times
	}
	return s
}

// image has the file systems, and the devices between them.
func (s resizeSample) image() Image {
	const last = "recovery: later"
	var im Image
	text := last
	if s.inner == judge.Btrfs {
		text += "\n  filesystem: btrfs"
	}
	if s.outer == judge.Btrfs {
		text += "\n  partition_filesystem: btrfs"
	}
	if s.classic {
		text += "\n  device: classic\n  manage_key: true"
		im.Disk = []string{"--state-size", "2G"}
		if s.inner == judge.Ext4 && soaking() {
			im.Disk = []string{"--state-size", "6G"} // it gets larger again and again, and never smaller
		}
	}
	if text != last {
		im.Edit = []string{last, text}
	}
	return im
}

// kind is what the jury has to know.
func (s resizeSample) kind() judge.Case {
	c := judge.Case{Inner: s.inner, Outer: s.outer}
	if s.outer == judge.Btrfs {
		c.Place = layout.ImageSubvolume
	}
	return c
}

// resized is a machine that resizes, and its judges.
type resized struct {
	t       *testing.T
	machine *Machine
	disk    *Disk
	mark    Partition
	jury    *jury
	boots   int
	kept    keeper
}

func (s resizeSample) run(t *testing.T) {
	began := time.Now()
	r := &resized{t: t, disk: s.image().Build(t), kept: keeper{dir: logDir(t)}}
	r.machine = NewMachine(t, DirectKernel, r.disk).WithTPM()
	r.machine.LoadSlot("a")
	r.mark = r.disk.Part(t, markPart)
	// The machine is on nearly all the time. Its place is free when there is only something
	// left to judge.
	r.machine.place = waitForRoom(t)
	defer func() { r.machine.place.Close() }()
	waited := time.Since(began)
	vm := r.machine.Boot()
	vm.UpIn("a")
	r.jury = newJury(t, s.kind(), []byte(vm.recoveryKey()))
	r.jury.classic = s.classic
	vm.Run("mkdir " + promisedDir)
	vm.Run("sync") // on a slow host the first cut comes before the loop does
	random := rand.New(rand.NewPCG(s.seed, 0))
	r.kill(vm, fmt.Sprintf("power cut 1 of %d", s.kills), random)
	var drawOn func()
	if s.classic { // while there is much to grow into
		drawOn = r.cutWrites(s)
		r.kills(s, random)
	} else {
		r.kills(s, random)
		drawOn = r.cutWrites(s)
	}
	r.machine.place.Close()
	r.jury.rest()
	drawOn()
	t.Logf("%s, of them %s for an image and a place", time.Since(began).Round(time.Second), waited.Round(time.Second))
}

// loop is the probe's command.
func (r *resized) loop(seconds, resizes int, seed uint64) string {
	return fmt.Sprintf("resizeloop %d %d %d %s %d /dev/vda%d", seconds, resizes, seed, promisedDir, promisedKeep, r.mark.Number)
}

// good has the jury judge a disk as it is now.
func (r *resized) good(where string, disk *Disk) {
	r.t.Helper()
	state := disk.Extract(r.t, "state")
	mark := disk.Read(r.t, markPart, 0, sectorSize)
	r.jury.add(func() { r.jury.good(where, state, mark) })
}

// turn lets others have the machine's place now and then.
func (r *resized) turn() {
	const boots = 15
	if r.boots++; r.boots%boots == 0 {
		r.machine.place.Close()
		r.machine.place = waitForRoom(r.t)
	}
}

// up wants nothing to be said of the volume at a boot.
func (r *resized) up(where string, got report.Report) (good bool) {
	r.t.Helper()
	good = true
	for _, warning := range got.Warnings {
		// A torn superblock is made good, and said.
		if strings.Contains(warning, "volume") && !strings.Contains(warning, "superblock") {
			r.t.Errorf("%s: %s", where, warning)
			good = false
		}
	}
	if got.State.Unlocked != "tpm2" || got.Degraded {
		r.t.Errorf("%s: degraded %t, state %+v", where, got.Degraded, got.State)
		good = false
	}
	return good
}

// kills kills the machine in the loop so many times in all: the first time is over. After
// each cut the disk is good, and comes up.
func (r *resized) kills(s resizeSample, random *rand.Rand) {
	r.t.Helper()
	for n := 2; n <= s.kills; n++ {
		r.turn()
		vm := r.machine.Boot()
		where := fmt.Sprintf("power cut %d of %d", n, s.kills)
		r.up("boot before "+where, vm.UpIn("a"))
		r.kill(vm, where, random)
	}
	r.jury.add(func() {
		r.t.Logf("%d power cuts by SIGKILL, seed %d: %s", s.kills, s.seed, r.jury.summary())
	})
}

// kill kills the machine at random in the loop.
func (r *resized) kill(vm *VM, where string, random *rand.Rand) {
	r.t.Helper()
	delay := time.Second/2 + time.Duration(random.Int64N(int64(5*time.Second)))
	r.cut(vm, r.loop(600, 1e6, random.Uint64()), delay)
	r.good(fmt.Sprintf("%s, after %s", where, delay.Round(time.Millisecond)), r.disk)
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

// resizeControl is what the library must not do: a disk in between is found to be wrong.
type resizeControl struct {
	wrong string // the probe does it
	want  error
	// Entries of the record: before it, when it was done, when it is right again.
	first, done, end int
}

// controls are those of what is tried.
func (s resizeSample) controls() []*resizeControl {
	if s.classic {
		return []*resizeControl{{wrong: "cut-first", want: judge.ErrShort}}
	}
	if s.inner == judge.Btrfs {
		return []*resizeControl{
			{wrong: "grow-first", want: judge.ErrUnbacked},
			{wrong: "punch-end", want: judge.ErrUnbacked},
		}
	}
	return []*resizeControl{
		{wrong: "unlink-first", want: judge.ErrUnbacked},
		{wrong: "punch-first", want: judge.ErrUnbacked},
		{wrong: "forget", want: judge.ErrUnrecorded},
	}
}

// cutWrites records what the loop writes, and judges disks that a cut leaves: after
// flushes, and within epochs at random. Some of them are booted. The controls are
// at the end of the record. It returns what judgeLeft does.
func (r *resized) cutWrites(s resizeSample) (drawOn func()) {
	t := r.t
	t.Helper()
	base := r.disk.Copy(t)
	r.jury.original = base.Extract(t, "state")
	r.jury.state, r.jury.mark = r.disk.Part(t, "state"), r.mark
	m := r.machine.recorded()
	vm := m.Boot()
	r.up("boot with a record", vm.UpIn("a"))
	var marks []int64
	// What was written so far; the record's entries are in the file at once.
	mark := func() {
		info, err := os.Stat(m.Config.WriteLog)
		if err != nil {
			t.Fatal(err)
		}
		marks = append(marks, info.Size())
	}
	mark()
	began := time.Now()
	did := vm.Run(r.loop(600, s.resizes, s.seed))
	took := time.Since(began)
	vm.Run("sync")
	mark()
	tried := s.controls()
	for _, c := range tried {
		vm.Run("resizewrong prepare")
		mark()
		vm.Run("resizewrong " + c.wrong)
		mark()
		vm.Run("resizewrong repair")
		mark()
	}
	vm.PowerOff()
	record := readRecord(t, m.Config.WriteLog)
	r.kept.ifFailed(t, "the recorded writes, and the disk before them", m.Config.WriteLog, base.Path)
	m.Config.WriteLog = ""
	var ends []int
	for _, at := range marks {
		ends = append(ends, record.Before(at))
	}
	t.Logf("%s in %d requests, in %s", strings.TrimSpace(did), ends[1]-ends[0], took.Round(time.Second))
	before, err := os.Open(base.Path)
	if err != nil {
		t.Fatal(err)
	}
	// The jury reads it, too: whatever ends this test, that has ended first.
	t.Cleanup(func() {
		r.jury.end()
		before.Close()
	})
	for i, c := range tried {
		c.first, c.done, c.end = ends[3*i+2], ends[3*i+3], ends[3*i+4]
	}
	r.jury.add(func() { r.jury.controls(record, before, tried) })

	some := *record
	some.Entries = record.Entries[:ends[1]]
	return r.judgeLeft(s, m, base, newLeftOver(s.cuts, &some, ends[0], before))
}

// leftOver are the disks that cuts of a record leave, by their numbers in eachLeft, in an
// order at random.
type leftOver struct {
	cuts   cuts
	record *writes.Record
	first  int // the first entry that a cut is after
	before *os.File
	order  []int
}

func newLeftOver(c cuts, record *writes.Record, first int, before *os.File) leftOver {
	l := leftOver{cuts: c, record: record, first: first, before: before}
	l.order = l.random().Perm(1 + len(writes.Epochs(record.Entries[first:])) + c.torn)
	// The disk that the last boot left is always one of them.
	i := slices.Index(l.order, 0)
	l.order[0], l.order[i] = l.order[i], l.order[0]
	return l
}

func (l leftOver) random() *rand.Rand { return rand.New(rand.NewPCG(l.cuts.seed, 0)) }

// each does something with the disks from one place of the order up to another.
func (l leftOver) each(t *testing.T, from, to int, do func(place int, left leftDisk)) {
	t.Helper()
	places := map[int]int{}
	for i, n := range l.order[from:to] {
		places[n] = from + i
	}
	random := l.random()
	random.Perm(len(l.order)) // the disks are the same each time
	n := 0
	eachLeft(t, l.record, l.first, l.before, l.cuts, random, func(left leftDisk) {
		if place, chosen := places[n]; chosen {
			do(place, left)
		}
		n++
	})
}

// judgeLeft judges disks that cuts leave, and boots some. What it returns is to be done
// once all is judged: it draws more disks where these were all in one place of a resize.
func (r *resized) judgeLeft(s resizeSample, m *Machine, base *Disk, l leftOver) (drawOn func()) {
	t := r.t
	t.Helper()
	most := len(l.order)
	if s.flushes > 0 {
		most = min(most, s.flushes+s.torn)
	}
	booted := 0
	l.each(t, 0, most, func(place int, left leftDisk) {
		d := left.disk.Clone()
		r.jury.add(func() { r.jury.goodLeft("cut "+left.where, d) })
		if s.boots > 0 && place >= s.boots {
			return
		}
		booted++
		r.turn()
		bootLeft(t, m, base, left, &r.kept, func(got report.Report, d *Disk) bool {
			r.good("booted after cut "+left.where, d)
			return r.up("boot after cut "+left.where, got)
		})
	})
	places := map[string]int{}
	r.jury.add(func() {
		maps.Copy(places, r.jury.found)
		t.Logf("%d disks of %d that a power cut leaves, %d of them booted and judged again, seed %d: %s", most, len(l.order), booted, s.seed, r.jury.summary())
	})
	return func() {
		t.Helper()
		const atOnce = 8
		// Two places of resizes at least, or one with two amounts that are reserved.
		reached := func() bool { return r.jury.told > 0 && (len(places) > 1 || len(r.jury.reserved) > 1) }
		for ; !reached() && most < len(l.order); most += atOnce {
			l.each(t, most, min(most+atOnce, len(l.order)), func(_ int, left leftDisk) {
				d := left.disk.Clone()
				r.jury.add(func() { r.jury.goodLeft("cut "+left.where, d) })
			})
			r.jury.rest()
			maps.Copy(places, r.jury.found)
			t.Logf("%d disks more: %v", atOnce, places)
		}
		if !reached() {
			t.Errorf("the cuts reach no resize: %d files promised, places %v", r.jury.told, places)
		}
	}
}

// controls wants a disk amid each of them to be found wrong, and one at its end good.
func (j *jury) controls(record *writes.Record, base *os.File, tried []*resizeControl) {
	disk, at := writes.NewDisk(base), 0
	apply := func(entries []writes.Entry) {
		if err := disk.ApplyAll(record, entries); err != nil {
			j.t.Error(err)
		}
	}
	for _, c := range tried {
		apply(record.Entries[at:c.first])
		var found error
		for _, epoch := range writes.Epochs(record.Entries[c.first:c.done]) {
			if apply(epoch); found == nil {
				_, found = j.judgeLeft(disk)
			}
		}
		if !errors.Is(found, c.want) {
			j.t.Errorf("control %q: %v, want it found that %v", c.wrong, found, c.want)
		}
		apply(record.Entries[c.done:c.end])
		at = c.end
		if _, err := j.judgeLeft(disk); err != nil {
			j.t.Errorf("control %q, put right: %v", c.wrong, err)
		}
		j.t.Logf("control %q: %v", c.wrong, found)
	}
}
