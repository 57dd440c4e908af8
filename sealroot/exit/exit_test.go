package exit

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// pretend is a machine whose state lies in a file on the root's disk: each thing
// goes only when nothing lies on it any more.
type pretend struct {
	on       map[string]string // what is there, and what it lies on
	order    []string          // of the mounts
	stuck    string            // never goes
	slow     int               // looks until stuck goes after all; 0: never
	readOnly []string
	slept    int
}

func (p *pretend) take(name string) error {
	if name == p.stuck {
		return errors.New("busy: " + name)
	}
	for _, below := range p.on {
		if below == name {
			return errors.New("busy: " + name)
		}
	}
	delete(p.on, name)
	return nil
}

func (p *pretend) kind(prefix string) (names []string) {
	for _, name := range p.order {
		if _, there := p.on[name]; there && strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return names
}

func (p *pretend) Mounts() ([]string, error) {
	return append([]string{"/", "/proc", "/oldrootless"}, p.kind("/old")...), nil
}
func (p *pretend) Mappers() ([]string, error) { return p.kind("dm:"), nil }
func (p *pretend) Loops() ([]string, error)   { return p.kind("/dev/loop"), nil }
func (p *pretend) Move(from, to string) error {
	for i, name := range p.order {
		rest, in := strings.CutPrefix(name, from)
		on, there := p.on[name]
		if !in || !there {
			continue
		}
		delete(p.on, name)
		if rest == "" {
			on = ""
		}
		p.order[i], p.on[to+rest] = to+rest, on
		for what, below := range p.on {
			if below == name {
				p.on[what] = to + rest
			}
		}
	}
	return nil
}
func (p *pretend) Unmount(where string) error  { return p.take(where) }
func (p *pretend) Remove(name string) error    { return p.take(name) }
func (p *pretend) Detach(path string) error    { return p.take(path) }
func (p *pretend) ReadOnly(where string) error { p.readOnly = append(p.readOnly, where); return nil }
func (p *pretend) Sleep(time.Duration) {
	if p.slept++; p.slept == p.slow {
		p.stuck = ""
	}
}

func running() *pretend {
	order := []string{"dm:root", "/oldroot", "/oldroot/state", "/dev/loop0", "dm:state", "/oldroot/state/encrypted", "/oldroot/etc", "/oldroot/var", "/oldroot/var/lib/x"}
	return &pretend{order: order, on: map[string]string{
		"dm:root": "", "/oldroot": "dm:root", "/oldroot/state": "/oldroot", "/dev/loop0": "/oldroot/state", "dm:state": "/dev/loop0",
		"/oldroot/state/encrypted": "dm:state", "/oldroot/etc": "/oldroot/state/encrypted", "/oldroot/var": "/oldroot/etc", "/oldroot/var/lib/x": "/oldroot/var",
	}}
}

func TestApart(t *testing.T) {
	p := running()
	if left := Apart(p); len(left) > 0 || len(p.on) > 0 || p.slept > 0 {
		t.Errorf("left %q, still there %v, slept %d times", left, p.on, p.slept)
	}

	p = running()
	p.stuck, p.slow = "/oldroot/var", 3
	if left := Apart(p); len(left) > 0 || len(p.on) > 0 {
		t.Errorf("held for a while: left %q, still there %v", left, p.on)
	}

	// The root lies on files of the state, which is mounted in it.
	p = running()
	p.order = append(p.order, "/dev/loop1", "dm:layer")
	p.on["/dev/loop1"], p.on["dm:layer"], p.on["/oldroot"] = "/oldroot/state", "/dev/loop1", "dm:layer"
	if left := Apart(p); len(left) > 0 || len(p.on) > 0 {
		t.Errorf("with layers: left %q, still there %v", left, p.on)
	}

	p = running()
	p.stuck = "/oldroot/var"
	left := Apart(p)
	want := []string{"mount /oldroot/var", "mount /oldroot/etc", "mount /oldstate/encrypted", "mount /oldstate", "device-mapper device dm:state", "loop device /dev/loop0"}
	if !slices.Equal(left, want) {
		t.Errorf("held for good: left\n%q, want\n%q", left, want)
	}
	if !slices.Equal(p.readOnly, []string{"/oldroot/var", "/oldroot/etc", "/oldstate/encrypted", "/oldstate"}) {
		t.Errorf("read-only: %q", p.readOnly)
	}
	if p.slept != idleRounds+1 { // one before the state was moved
		t.Errorf("slept %d times, want %d: it must end", p.slept, idleRounds+1)
	}
}

func TestParseMounts(t *testing.T) {
	const text = `22 1 254:3 / / ro,relatime shared:1 - squashfs /dev/mapper/sealroot-root ro
23 22 0:21 / /a\040b\134 rw - tmpfs tmpfs rw

garbage
`
	if got := parseMounts(text); !slices.Equal(got, []string{"/", `/a b\`}) {
		t.Errorf("got %q", got)
	}
}

func TestUnwritten(t *testing.T) {
	const text = "MemTotal:         498196 kB\nDirty:                12 kB\nWriteback:             4 kB\nWritebackTmp:         99 kB\nHugePages_Total:       0\n"
	for text, want := range map[string]int64{text: 16 << 10, "": 0, "Dirty:": 0, "Dirty: x kB": 0} {
		if got := unwritten(text); got != want {
			t.Errorf("%q: %d bytes, want %d", text, got, want)
		}
	}
}

func TestParseEnding(t *testing.T) {
	for _, e := range []Ending{PowerOff, Reboot, Halt, KExec} {
		if got, err := ParseEnding([]string{string(e), "--log-level", "6"}); got != e || err != nil {
			t.Errorf("%s: got %s, %v", e, got, err)
		}
	}
	for _, args := range [][]string{nil, {"exit"}, {""}} {
		if got, err := ParseEnding(args); got != Reboot || err == nil {
			t.Errorf("%q: got %s, %v, want a restart and an error", args, got, err)
		}
	}
}
