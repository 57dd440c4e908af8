package exit

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// pretendEntry is a process whose n-th step fails.
type pretendEntry struct {
	failAt int // from 1; 0: none
	steps  int
	mounts map[string]string // where, and what lies there
	root   string
	execs  [][]string
	wentOn [][]string
	stuck  bool // what failed once fails for good
}

var errStep = errors.New("no")

func (p *pretendEntry) step() error {
	if p.steps++; p.steps == p.failAt || p.stuck && p.failAt > 0 && p.steps > p.failAt {
		return errStep
	}
	return nil
}

func (p *pretendEntry) Mount(from, to string, flags uintptr) error {
	if err := p.step(); err != nil || from == "" {
		return err
	}
	if flags&unix.MS_MOVE == 0 {
		p.mounts[to] = from
		return nil
	}
	what, there := p.mounts[from]
	if !there {
		return unix.EINVAL
	}
	delete(p.mounts, from)
	p.mounts[to] = what
	return nil
}

func (p *pretendEntry) Unmount(where string) error {
	if err := p.step(); err != nil {
		return err
	}
	for at := range p.mounts {
		if strings.HasPrefix(at, where+"/") {
			return unix.EBUSY
		}
	}
	delete(p.mounts, where)
	return nil
}

func (p *pretendEntry) Pivot(dir, _ string) error {
	err := p.step()
	if err == nil {
		p.root = dir
	}
	return err
}

func (p *pretendEntry) Exec(program string, args []string) error {
	p.execs = append(p.execs, append([]string{program}, args...))
	return errStep
}

func (p *pretendEntry) GoOn(err error, args []string) {
	if err != nil {
		p.wentOn = append(p.wentOn, args)
	}
}

// An init is told that it failed only where it can end by itself: with /dev, /sys and /proc
// where it knows them. Behind the change of the root the machine ends, also without exec.
func TestEnd(t *testing.T) {
	before := map[string]string{"/dev": "devtmpfs", "/sys": "sysfs", "/proc": "proc", "/run": "tmpfs"}
	run := func(p *pretendEntry) (dir string, err error) {
		dir = t.TempDir()
		p.mounts = maps.Clone(before)
		return dir, end(p, dir, Halt)
	}

	p := &pretendEntry{}
	dir, err := run(p)
	if want := [][]string{{Program, Program, "halt"}}; p.root != dir || !slices.EqualFunc(p.execs, want, slices.Equal) {
		t.Errorf("root %s, executed %q; want %s, %q", p.root, p.execs, dir, want)
	}
	if want := [][]string{{"halt"}}; !errors.Is(err, errStep) || !slices.EqualFunc(p.wentOn, want, slices.Equal) {
		t.Errorf("a failed exec: %v, went on with %q; want %q", err, p.wentOn, want)
	}
	moved := map[string]string{dir: dir, dir + "/run": "/run", "/run": "tmpfs", dir + "/dev": "devtmpfs", dir + "/sys": "sysfs", dir + "/proc": "proc"}
	if !maps.Equal(p.mounts, moved) {
		t.Errorf("mounts %v, want %v", p.mounts, moved)
	}

	all := p.steps
	if all != 8 {
		t.Errorf("%d steps, want 8", all)
	}
	for n := 1; n <= all; n++ {
		p := &pretendEntry{failAt: n}
		_, err := run(p)
		if !errors.Is(err, errStep) || p.root != "" || len(p.execs)+len(p.wentOn) > 0 {
			t.Errorf("step %d fails: %v, root %q, executed %q, went on %q", n, err, p.root, p.execs, p.wentOn)
		}
		if !maps.Equal(p.mounts, before) {
			t.Errorf("step %d fails: mounts are %v, want them as they were", n, p.mounts)
		}
	}

	p = &pretendEntry{failAt: all, stuck: true}
	if _, err := run(p); !errors.Is(err, errStep) || strings.Count(err.Error(), "cannot take it back") != 5 {
		t.Errorf("no way back: %v, want each thing told that stays", err)
	}
}
