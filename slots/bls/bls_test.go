package bls

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/slots"
	"sealroot/slots/esp"
)

var errCut = errors.New("power cut")

// how a rename looks after the power was cut in it.
const (
	notDone = iota
	bothNames
	done
	cutKinds
)

// memory is a directory that loses power: the operation number limit does not
// succeed, and is left as kind says.
type memory struct {
	names map[string]bool
	text  []byte
	ops   int
	limit int // -1: never
	kind  int
}

func newMemory(names ...string) *memory {
	m := &memory{names: map[string]bool{}, limit: -1}
	for _, n := range names {
		m.names[n] = true
	}
	return m
}

func (m *memory) clone() *memory {
	return &memory{names: maps.Clone(m.names), text: bytes.Clone(m.text), limit: -1}
}

// cut reports that the power goes in this operation or went before it.
func (m *memory) cut() (now, dead bool) {
	m.ops++
	return m.ops-1 == m.limit, m.limit >= 0 && m.ops-1 >= m.limit
}

func (m *memory) Names() ([]string, error) { return slices.Sorted(maps.Keys(m.names)), nil }

func (m *memory) Rename(from, to string) error {
	if !m.names[from] || m.names[to] {
		return fmt.Errorf("rename %s to %s: %w", from, to, fs.ErrInvalid)
	}
	now, dead := m.cut()
	if dead && !(now && m.kind != notDone) {
		return errCut
	}
	m.names[to] = true
	if !now || m.kind == done {
		delete(m.names, from)
	}
	if dead {
		return errCut
	}
	return nil
}

func (m *memory) ReadState() ([]byte, error) {
	if m.text == nil {
		return nil, fs.ErrNotExist
	}
	return bytes.Clone(m.text), nil
}

func (m *memory) WriteState(b []byte) error {
	now, dead := m.cut()
	if !dead || now && m.kind == done {
		m.text = bytes.Clone(b)
	}
	if dead {
		return errCut
	}
	return nil
}

// withText adds sealroot/slots for a committed and b on trial with 3 tries.
func (m *memory) withText(t *testing.T) *memory {
	t.Helper()
	_, text, err := Initial([]slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 3}})
	if err != nil {
		t.Fatal(err)
	}
	m.text = text
	return m
}

func (m *memory) store() Store { return Store{Dir: m, Slots: []string{"a", "b"}} }

// boot is systemd-boot starting the slot's file: it counts.
func (m *memory) boot(t *testing.T, slot string) Counted {
	t.Helper()
	names, _ := m.Names()
	name, ok := FileOf(names, slot)
	if !ok {
		t.Fatalf("no file of slot %s in %v", slot, names)
	}
	_, c, _ := esp.ParseUKIName(name)
	if !c.Counted {
		return Counted{}
	}
	next := esp.Counting(max(c.Left-1, 0), c.Done+1)
	delete(m.names, name)
	m.names[esp.UKIName(slot, next)] = true
	return Counted{slot, next}
}

func (m *memory) list() string { return strings.Join(slices.Sorted(maps.Keys(m.names)), " ") }

func load(t *testing.T, s Store) []slots.Slot {
	t.Helper()
	got, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func save(t *testing.T, s Store, want []slots.Slot) {
	t.Helper()
	if err := s.Save(want); err != nil {
		t.Fatal(err)
	}
}

// allStates are all states of two slots with small numbers.
func allStates() [][]slots.Slot {
	var one []slots.Slot
	for priority := range 3 {
		for tries := range 3 {
			one = append(one, slots.Slot{Priority: priority, Tries: tries}, slots.Slot{Priority: priority, Tries: tries, Successful: true})
		}
	}
	var out [][]slots.Slot
	for _, a := range one {
		for _, b := range one {
			a.Name, b.Name = "a", "b"
			out = append(out, []slots.Slot{a, b})
		}
	}
	return out
}

// From every state to every other: what was saved is loaded, and a power cut in
// any write, whatever it leaves of a rename, leaves the old or the new state;
// saving once more then repairs it.
func TestSaveSurvivesPowerCuts(t *testing.T) {
	states := allStates()
	cuts := 0
	for i, from := range states {
		m := newMemory("sealroot-a.efi", "sealroot-b+0-0.efi")
		save(t, m.store(), from)
		if got := load(t, m.store()); !slices.Equal(got, from) {
			t.Fatalf("saved %v, loaded %v; names %s", from, got, m.list())
		}
		for j := i % 31; j < len(states); j += 31 { // one pair in 31, each state on both sides
			to := states[j]
			for limit := 0; ; limit++ {
				finished := false
				for kind := range cutKinds {
					c := m.clone()
					c.limit, c.kind = limit, kind
					if finished = c.store().Save(to) == nil; finished {
						break
					}
					cuts++
					after := c.clone()
					got := load(t, after.store())
					if !slices.Equal(got, from) && !slices.Equal(got, to) {
						t.Fatalf("from %v to %v, cut in write %d (kind %d): %v; names %s, text\n%s", from, to, limit, kind, got, after.list(), after.text)
					}
					save(t, after.store(), to)
					if got := load(t, after.store()); !slices.Equal(got, to) {
						t.Fatalf("from %v to %v, cut in write %d, saved again: %v; names %s", from, to, limit, got, after.list())
					}
				}
				if finished {
					break
				}
			}
		}
	}
	t.Logf("%d power cuts", cuts)
	if cuts < 5000 {
		t.Errorf("only %d cuts were tried", cuts)
	}
}

func TestSaveOfTheSameWritesNothing(t *testing.T) {
	for _, withText := range []bool{true, false} {
		m := newMemory("sealroot-a.efi", "sealroot-b+2-1.efi")
		if withText {
			save(t, m.store(), []slots.Slot{{Name: "a", Priority: 2, Successful: true}, {Name: "b", Priority: 3, Tries: 2}})
		}
		m.boot(t, "b")
		m.ops = 0
		now := load(t, m.store())
		save(t, m.store(), now)
		if same, err := m.store().Unchanged(now); !same || err != nil || m.ops != 0 {
			t.Errorf("text %v: %d writes, unchanged %v, %v", withText, m.ops, same, err)
		}
	}
}

// A trial that arrives: the loader counts, the state machine spends the same
// try, and that is one try.
func TestLoaderAndStateMachineCountOnce(t *testing.T) {
	for _, withText := range []bool{true, false} {
		m := newMemory("sealroot-a.efi", "sealroot-b+3-0.efi")
		if withText {
			m.withText(t)
		}
		for left := 2; left >= 0; left-- {
			s := m.store()
			s.Counted = m.boot(t, "b")
			before := load(t, s)
			if before[1].Tries != left+1 || before[1].State() != slots.Trial {
				t.Fatalf("text %v: before the try is spent: %v", withText, before)
			}
			after, err := slots.Spend(before, "b")
			if err != nil {
				t.Fatal(err)
			}
			save(t, s, after)
			if got := load(t, s); got[1].Tries != left {
				t.Fatalf("text %v: after the try is spent: %v; names %s", withText, got, m.list())
			}
			if want := esp.UKIName("b", esp.Counting(left, 3-left)); !m.names[want] {
				t.Fatalf("names %s, want %s", m.list(), want)
			}
		}
		if got := load(t, m.store()); got[1].State() != slots.Spent {
			t.Errorf("text %v: %v, want b given up", withText, got[1])
		}
	}
}

// Boots that nobody saved: one shows as a try, the others are gone.
func TestBootsThatNeverArrived(t *testing.T) {
	m := newMemory("sealroot-a.efi", "sealroot-b+3-0.efi").withText(t)
	for _, want := range []int{3, 2, 1, 1, 1} {
		m.boot(t, "b")
		if got := load(t, m.store()); got[1].Tries != want {
			t.Fatalf("names %s: %v, want %d tries", m.list(), got[1], want)
		}
	}
	spent, _ := slots.Spend(load(t, m.store()), "b")
	save(t, m.store(), spent)
	if got := load(t, m.store()); got[1].State() != slots.Spent {
		t.Errorf("%v, want given up", got[1])
	}
}

// What somebody else did to the names wins over the text.
func TestNamesWin(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files []string
		want  []slots.Slot
	}{
		{"blessed_by_systemd", []string{"sealroot-a.efi", "sealroot-b.efi"},
			[]slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Successful: true}}},
		{"marked_bad_by_systemd", []string{"sealroot-a.efi", "sealroot-b+0-1.efi"},
			[]slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b"}}},
		{"file_is_gone", []string{"sealroot-a.efi"},
			[]slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b"}}},
		{"put_on_trial_by_hand", []string{"sealroot-a+5.efi", "sealroot-b+3-0.efi"},
			[]slots.Slot{{Name: "a", Priority: 1, Tries: 5}, {Name: "b", Priority: 2, Tries: 3}}},
		{"worse_of_two_names", []string{"sealroot-a.efi", "sealroot-b.efi", "sealroot-b+2-1.efi", "sealroot-b+1-2.efi"},
			[]slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 2}}}, // one count shows as a try
		{"letters_of_another_case", []string{"SEALROOT-A.EFI", "Sealroot-B+3-0.efi"},
			[]slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 3}}},
		{"more_tries_than_there_are", []string{"sealroot-a.efi", "sealroot-b+2147483647.efi"},
			[]slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 15}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newMemory(tc.files...).withText(t)
			if got := load(t, c.store()); !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

// A text on the ESP may say anything; it counts only while it is what the names
// say too.
func TestTextCannotClaimWhatNamesDeny(t *testing.T) {
	m := newMemory("sealroot-a.efi", "sealroot-b+0-3.efi")
	forged := keySlots + "a:1:0:1,b:9:0:1\n" + keyFiles + "a,b+0-3\n"
	m.text = append([]byte(forged), bytes.Repeat([]byte("\n"), StateSize-len(forged))...)
	if got := load(t, m.store()); got[1].Bootable() {
		t.Errorf("%v is bootable", got[1])
	}
}

func TestSlotWithoutFile(t *testing.T) {
	m := newMemory("sealroot-a.efi")
	good := slots.Slot{Name: "a", Priority: 1, Successful: true}
	if err := m.store().Save([]slots.Slot{good, {Name: "b", Priority: 2, Tries: 3}}); !errors.Is(err, ErrNoFile) || m.ops != 0 {
		t.Errorf("%v after %d writes, want ErrNoFile before the first", err, m.ops)
	}
	save(t, m.store(), []slots.Slot{good, {Name: "b"}})
	if err := m.store().Save([]slots.Slot{{Name: "c"}}); !errors.Is(err, slots.ErrUnknownSlot) {
		t.Errorf("a slot that is not there: %v", err)
	}
}

func TestSurplusNameIsPutAsideNotRemoved(t *testing.T) {
	m := newMemory("sealroot-a.efi", "sealroot-b.efi", "sealroot-b+1-2.efi", "sealroot-b.1")
	save(t, m.store(), []slots.Slot{{Name: "b", Priority: 2, Successful: true}})
	if got, want := m.list(), "sealroot-a.efi sealroot-b.1 sealroot-b.2 sealroot-b.efi"; got != want {
		t.Errorf("names %s, want %s", got, want)
	}
}

func TestInitial(t *testing.T) {
	list := []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 3}}
	counters, text, err := Initial(list)
	if err != nil || len(text) != StateSize {
		t.Fatalf("%d bytes, %v", len(text), err)
	}
	m := newMemory(esp.UKIName("a", counters["a"]), esp.UKIName("b", counters["b"]))
	m.text = text
	if got := load(t, m.store()); !slices.Equal(got, list) {
		t.Errorf("%v, want %v; names %s", got, list, m.list())
	}
	if got, want := m.list(), "sealroot-a.efi sealroot-b+3-0.efi"; got != want {
		t.Errorf("names %s, want %s", got, want)
	}
}

func TestTree(t *testing.T) {
	root := t.TempDir()
	tree := Tree(root)
	s := Store{Dir: tree, Slots: []string{"a", "b"}}
	if got := load(t, s); len(got) != 2 || got[0].Bootable() {
		t.Errorf("an empty partition: %v", got)
	}
	dir := filepath.Join(root, "EFI/Linux")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sealroot-a.efi", "sealroot-b+0-0.efi"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	trial := []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 3}}
	save(t, s, trial)
	spent := []slots.Slot{trial[0], {Name: "b", Priority: 2, Tries: 2}}
	save(t, s, spent)
	if got := load(t, s); !slices.Equal(got, spent) {
		t.Errorf("%v, want %v", got, spent)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "sealroot-b+2-1.efi")); err != nil || string(b) != "sealroot-b+0-0.efi" {
		t.Errorf("slot b's file: %q, %v", b, err)
	}
	if info, err := os.Stat(filepath.Join(root, "sealroot/slots")); err != nil || info.Size() != StateSize {
		t.Errorf("sealroot/slots: %v, %v", info, err)
	}
	if err := tree.Rename("sealroot-a.efi", "sealroot-b+2-1.efi"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("rename onto another file: %v", err)
	}
}
