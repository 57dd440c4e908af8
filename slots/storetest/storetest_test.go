package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"sealroot/slots"
	"sealroot/slots/efi"
	"sealroot/slots/fixed"
	"sealroot/slots/gpt"
	"sealroot/slots/grubenv"
	"sealroot/slots/guid"
	"sealroot/slots/slotstest"
)

// gptImage is a disk with two slots, and partitions of others around them.
func gptImage(t *testing.T, sectorSize int) []byte {
	t.Helper()
	const size, unit = 256 << 10, 32 << 10
	id := func(n byte) guid.GUID {
		g, err := guid.Random(bytes.NewReader(bytes.Repeat([]byte{n}, 16)))
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	table, err := gpt.New(id(1), size, sectorSize)
	if err != nil {
		t.Fatal(err)
	}
	at := uint64(unit / sectorSize)
	for i, p := range []gpt.Partition{
		{Type: guid.Must(gpt.TypeESP), Name: gpt.LabelESP, Attributes: 1 << 50},
		{Type: guid.Must(gpt.TypeRoot), Name: gpt.RootLabel("b"), Attributes: gpt.Attributes(1 << 60)},
		{Type: guid.Must(gpt.TypeRoot), Name: gpt.RootLabel("a"), Attributes: gpt.Attributes(0).WithSlot(1, 0, true)},
		{Type: guid.Must(gpt.TypeState), Name: "somebody's", Attributes: 1 << 63},
	} {
		p.UUID, p.First, p.Last = id(byte(10+i)), at, at+uint64(unit/sectorSize)-1
		at = p.Last + 1
		if err := table.Add(p); err != nil {
			t.Fatal(err)
		}
	}
	d := slotstest.NewDisk(make([]byte, size))
	if err := table.Write(d); err != nil {
		t.Fatal(err)
	}
	return d.Bytes()
}

// fixedMedium has nothing to write to.
type fixedMedium struct{}

func (fixedMedium) Open() slots.Store { return fixed.Store{Names: []string{"a"}} }
func (fixedMedium) Writes() int       { return 0 }
func (fixedMedium) Foreign() string   { return "" }

func fixedSubject() Subject {
	return Subject{
		Slots:  []string{"a"},
		New:    func() Medium { return fixedMedium{} },
		Claims: func(l []slots.Slot) bool { return l[0] == slots.Slot{Name: "a", Priority: 1, Successful: true} },
	}
}

func TestSlotsStores(t *testing.T) {
	folder := func(kind string) Subject {
		s, err := Folder(t.TempDir(), kind)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for name, s := range map[string]Subject{
		"gpt_512":              GPT(gptImage(t, 512), 512),
		"gpt_4096":             GPT(gptImage(t, 4096), 4096),
		"grubenv_darch":        Grubenv(grubenv.Darch),
		"grubenv_rauc":         Grubenv(grubenv.RAUC),
		"bls":                  Names(),
		"efi":                  EFI(),
		"fixed":                fixedSubject(),
		"grubenv_darch_folder": folder("grubenv-darch"),
		"grubenv_rauc_folder":  folder("grubenv-rauc"),
		"bls_folder":           folder("bls"),
	} {
		t.Run(name, func(t *testing.T) { Run(t, s) })
	}
}

func TestFixedSaysSo(t *testing.T) {
	err := fixed.Store{Names: []string{"a"}}.Save([]slots.Slot{{Name: "a", Priority: 2, Successful: true}})
	if !errors.Is(err, fixed.ErrFixed) {
		t.Errorf("got %v, want ErrFixed", err)
	}
}

// Firmware whose flash is full or locked: nothing is saved, and committed boots
// go on with what Load says.
func TestRefusingFirmware(t *testing.T) {
	for _, refuse := range []error{syscall.ENOSPC, syscall.EROFS} {
		m := EFI().New().(fakeVars)
		want := first()
		if err := m.Open().Save(want); err != nil {
			t.Fatal(err)
		}
		m.vars.Refuse = refuse
		if err := m.Open().Save([]slots.Slot{{Name: "b", Priority: 2, Tries: 3}}); !errors.Is(err, refuse) {
			t.Errorf("got %v, want %v", err, refuse)
		}
		if err := m.Open().Save(want); err != nil {
			t.Errorf("saving what is so already: %v", err)
		}
		if got, err := m.Open().Load(); err != nil || !slices.Equal(got, want) {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
	}
	none := efi.Store{Names: []string{"a", "b"}}
	if got, err := none.Load(); err != nil || len(got) != 2 || !got[0].Successful {
		t.Errorf("no firmware: got %v, %v, want two good slots", got, err)
	}
	if err := none.Save(first()); !errors.Is(err, efi.ErrNoVariables) {
		t.Errorf("no firmware: got %v, want ErrNoVariables", err)
	}
}

// unreadable is a variable that exists and cannot be read.
type unreadable struct{ *slotstest.Vars }

func (unreadable) Read(name, _ string) ([]byte, error) {
	return nil, &fs.PathError{Op: "read", Path: name, Err: syscall.EIO}
}

// A guess must not replace a state that is there.
func TestUnreadableVariableIsKept(t *testing.T) {
	vars := slotstest.NewVars()
	s := efiStore(unreadable{vars})
	if got, err := s.Load(); err != nil || len(got) != 2 || !got[0].Successful {
		t.Errorf("got %v, %v, want two good slots", got, err)
	}
	if err := s.Save(first()); err == nil || vars.Ops() != 0 {
		t.Errorf("got %v, %d writes, want an error and none", err, vars.Ops())
	}
}

// recorder is a T that notes failures.
type recorder struct{ failed bool }

func (*recorder) Helper()                 { /* nothing to mark */ }
func (*recorder) Logf(string, ...any)     { /* nobody listens */ }
func (r *recorder) Errorf(string, ...any) { r.failed = true }
func (r *recorder) Fatalf(string, ...any) {
	r.failed = true
	runtime.Goexit()
}

// fails says whether the suite finds fault with the subject.
func fails(s Subject) bool {
	var r recorder
	done := make(chan struct{})
	go func() {
		defer close(done)
		Run(&r, s)
	}()
	<-done
	return r.failed
}

// wrong is a store in memory with one fault.
type wrong struct {
	*wrongState
	fault string
}

type wrongState struct {
	list    []slots.Slot
	writes  int
	foreign string
	limit   int
}

func (w wrong) Open() slots.Store { return w }
func (w wrong) Writes() int       { return w.writes }
func (w wrong) Foreign() string   { return w.foreign }
func (w wrong) CutAfter(n int)    { w.limit = w.writes + n }
func (w wrong) Outcomes() []Medium {
	s := *w.wrongState
	s.limit = -1
	if s.writes == w.limit && w.fault == "torn" {
		s.list = []slots.Slot{{Name: "a"}, {Name: "b"}}
	}
	return []Medium{wrong{&s, w.fault}}
}

func (w wrong) Load() ([]slots.Slot, error) {
	out := slices.Clone(w.list)
	if w.fault == "fewer_tries" && out[1].Tries > 10 {
		out[1].Tries = 10
	}
	return out, nil
}

func (w wrong) Save(want []slots.Slot) error {
	if slices.Equal(want, w.list) && w.fault != "writes_always" {
		return nil
	}
	next := slices.Clone(w.list)
	for _, s := range want {
		i := slices.IndexFunc(next, func(o slots.Slot) bool { return o.Name == s.Name })
		switch {
		case i >= 0:
			next[i] = s
		case w.fault != "any_name":
			return slots.ErrUnknownSlot
		}
	}
	if w.fault == "forgets_others" && len(want) == 1 {
		next[0] = slots.Slot{Name: "a"}
	}
	if w.limit >= 0 && w.writes >= w.limit {
		return slotstest.ErrPowerCut
	}
	if w.fault == "hurts_others" {
		w.foreign = fmt.Sprint(want)
	}
	w.list = next
	w.writes++
	return nil
}

// The suite must be able to find fault.
func TestSuiteFindsFaults(t *testing.T) {
	for _, fault := range []string{"", "fewer_tries", "writes_always", "any_name", "forgets_others", "hurts_others", "torn"} {
		s := Subject{Slots: []string{"a", "b"}, States: 300, New: func() Medium {
			return wrong{&wrongState{list: first(), limit: -1}, fault}
		}}
		if got := fails(s); got != (fault != "") {
			t.Errorf("fault %q: the suite fails %v", fault, got)
		}
	}
}
