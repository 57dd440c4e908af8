package qemutests

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"sealroot/qemu-tests/judge"
	"sealroot/qemu-tests/promises"
	"sealroot/qemu-tests/writes"
	"sealroot/state/layout"
	"sealroot/state/luks2"
)

// jury judges state partitions one after the other, while machines run. What it knows is
// its goroutine's, which ends no test: it fails it.
type jury struct {
	t       *testing.T
	kind    judge.Case // of all partitions: the file systems, and where the volume is
	classic bool       // its devices end with it
	key     []byte     // the volume's recovery key
	dir     string
	kept    keeper

	// Of disks in memory: the state partition before the first write, where it is on
	// them, and where the loop marks what is promised.
	original    string
	state, mark Partition

	found    map[string]int // where the cuts were, as the disks tell, since the last summary
	reserved map[int64]bool // how much was, on disks that cuts left and that are good
	told     int            // the last promised file, of all disks
	cases    chan func()
	ended    chan struct{}
	end      func() // waits until all is judged, and lets nothing follow
}

// newJury is for a volume of some kind with a recovery key.
func newJury(t *testing.T, kind judge.Case, key []byte) *jury {
	t.Helper()
	j := &jury{
		t: t, kind: kind, key: key, dir: t.TempDir(), kept: keeper{dir: logDir(t)}, found: map[string]int{}, reserved: map[int64]bool{},
		cases: make(chan func(), 4096), ended: make(chan struct{}),
	}
	go func() {
		defer close(j.ended)
		for do := range j.cases {
			if t.Context().Err() == nil { // else the test was ended
				do()
			}
		}
	}()
	j.end = sync.OnceFunc(func() {
		close(j.cases)
		<-j.ended
	})
	t.Cleanup(j.end)
	return j
}

// add has the jury do something after all that it has to do already.
func (j *jury) add(do func()) { j.cases <- do }

// rest waits until all is judged.
func (j *jury) rest() {
	done := make(chan struct{})
	j.add(func() { close(done) })
	<-done
}

// summary tells where the cuts were, and begins anew.
func (j *jury) summary() string {
	text := fmt.Sprintf("%d files promised, %v", j.told, j.found)
	j.found = map[string]int{}
	return text
}

// good wants a state partition to be good, and removes it.
func (j *jury) good(where, state string, mark []byte) {
	judged := filepath.Join(j.dir, "judged") // which its journals change
	var v judge.Verdict
	err := copySparse(judged, state)
	if err == nil {
		v, err = j.judge(judged, mark)
		err = errors.Join(err, os.Remove(judged))
	}
	j.verdict(where, v, err, func(dir string) error { return copySparse(filepath.Join(dir, "state"), state) })
	if err := os.Remove(state); err != nil {
		j.t.Error(err)
	}
}

// goodLeft wants it of a disk that a power cut leaves.
func (j *jury) goodLeft(where string, disk *writes.Disk) {
	v, err := j.judgeLeft(disk)
	if err == nil {
		j.reserved[v.Reserved+v.Beyond] = true
	}
	j.verdict(where, v, err, func(dir string) error { return j.save(disk, filepath.Join(dir, "state")) })
}

// verdict notes where the cut was; save keeps the partition that is not good.
func (j *jury) verdict(where string, v judge.Verdict, err error, save func(dir string) error) {
	place := j.place(v)
	j.found[place]++
	switch {
	case err != nil:
		j.t.Errorf("%s, %d files promised: %v; %+v; the state partition: %s", where, j.told, err, v, j.kept.keep(save))
	case soaking():
		j.t.Logf("%s: good, %s, %d files promised", where, place, j.told)
	}
}

// judgeLeft judges the state partition of a disk that a power cut leaves.
func (j *jury) judgeLeft(disk *writes.Disk) (judge.Verdict, error) {
	mark := make([]byte, sectorSize)
	if _, err := disk.ReadAt(mark, j.mark.Offset); err != nil {
		return judge.Verdict{}, err
	}
	state := filepath.Join(j.dir, "state")
	if err := j.save(disk, state); err != nil {
		return judge.Verdict{}, err
	}
	v, err := j.judge(state, mark)
	return v, errors.Join(err, os.Remove(state))
}

// save writes the state partition of a disk in memory.
func (j *jury) save(disk *writes.Disk, path string) error {
	if err := copySparse(path, j.original); err != nil {
		return err
	}
	return disk.SaveRange(path, j.state.Offset, j.state.Bytes)
}

// judge judges a state partition; mark is the beginning of what the loop marks.
func (j *jury) judge(state string, mark []byte) (judge.Verdict, error) {
	told, err := promises.Told(mark)
	if err != nil {
		return judge.Verdict{}, err
	}
	j.told = max(j.told, told)
	c := j.kind
	c.State, c.Dir, c.Balloons, c.Record = state, j.dir, layout.Balloons, layout.GivenBack
	c.Unlock = func(h *luks2.Header) ([]byte, error) {
		key, _, err := h.Authorize(j.key, luks2.NewBudget(nil))
		return key, err
	}
	c.Files = func(root string) error {
		_, err := promises.Check(filepath.Join(root, filepath.Base(promisedDir)), promisedKeep, told)
		return err
	}
	return c.Judge()
}

// place says where in a resize a disk is.
func (j *jury) place(v judge.Verdict) string {
	place := "reserved as far as it spans"
	switch {
	case v.Double > 0 && v.Double < v.Balloons:
		place = "balloons partly given back"
	case v.Double > 0:
		place = "balloons and nothing given back"
	case v.Balloons > 0:
		place = "balloons given back"
	}
	// This stays where a grow was cut, until a boot after a clean one.
	if v.Beyond > 0 {
		place += " (reserved behind the end)"
	}
	if j.classic && v.File > v.Spanned {
		place += " (a longer file)"
	}
	return place
}
