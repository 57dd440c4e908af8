package efi

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"sealroot/slots"
	"sealroot/slots/esp"
)

// The variables of the Boot Loader Interface (vendor Systemd) that are used
// here, as systemd-boot 252 and systemd-stub 252 set and read them.
const (
	entryOneShot    = "LoaderEntryOneShot"
	entryDefault    = "LoaderEntryDefault"
	entrySelected   = "LoaderEntrySelected"
	imageIdentifier = "LoaderImageIdentifier"
	bootCountPath   = "LoaderBootCountPath"
)

// EntryPattern is the text that makes systemd-boot pick a slot, in
// LoaderEntryOneShot, LoaderEntryDefault and the line "default" of loader.conf:
// a pattern over the names of the entries in lower case, which have the boot
// counter in them. One text fits before and after the loader has counted.
func EntryPattern(slot string) string {
	return strings.TrimSuffix(esp.UKIName(slot, esp.Counter{}), ".efi") + "[+.]*"
}

// slotOfEntry understands EntryPattern and, as bootctl writes them, the names of
// entries; "" for anybody else's entry.
func slotOfEntry(id string) string {
	for c := 'a'; c <= 'z'; c++ {
		if id == EntryPattern(string(c)) {
			return string(c)
		}
	}
	slot, _, _ := esp.ParseUKIName(id)
	return slot
}

// LoaderHint is the one-shot and the default of systemd-boot. Its entries are
// sorted by version, so that a new image comes first and an older one never
// would: the slot is always named, which makes downgrades the same as updates.
type LoaderHint struct{ Vars Vars }

var _ slots.Loader = LoaderHint{}

// Get returns the slot that is loaded at the next boot only, "" when there is
// none. A variable that systemd-boot would not understand is none.
func (h LoaderHint) Get() (string, error) { return h.get(entryOneShot) }

// Arm sets the one-shot.
func (h LoaderHint) Arm(slot string) error { return h.set(entryOneShot, slot) }

// Default returns the slot that is loaded without a one-shot, "" when the variable
// names none; systemd-boot goes by loader.conf then.
func (h LoaderHint) Default() (string, error) { return h.get(entryDefault) }

// IsDefault says whether the variable is what SetDefault writes.
func (h LoaderHint) IsDefault(slot string) (bool, error) {
	id, err := readText(h.Vars, entryDefault, Systemd)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrFormat) {
		return false, nil
	}
	return id == EntryPattern(slot) && err == nil, err
}

// SetDefault sets the slot that is loaded without a one-shot.
func (h LoaderHint) SetDefault(slot string) error { return h.set(entryDefault, slot) }

// Clear deletes the one-shot when it is for one of our slots.
func (h LoaderHint) Clear() error {
	slot, err := h.Get()
	if err != nil || slot == "" {
		return err
	}
	if err := h.Vars.Delete(entryOneShot, Systemd); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot clear %s: %w", entryOneShot, err)
	}
	return nil
}

func (h LoaderHint) get(name string) (string, error) {
	id, err := readText(h.Vars, name, Systemd)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrFormat) {
		return "", nil
	}
	return slotOfEntry(id), err
}

// set writes nothing when the variable is right already: flash wears out.
func (h LoaderHint) set(name, slot string) error {
	want := EntryPattern(slot)
	if id, err := readText(h.Vars, name, Systemd); err == nil && id == want {
		return nil
	}
	if err := h.Vars.Write(name, Systemd, persistent, encodeText(want)); err != nil {
		return fmt.Errorf("cannot set %s: %w", name, err)
	}
	return nil
}

// BootCounted says whose try systemd-boot has counted in this boot, and the
// counter in the file's name after that. "" when it counted nothing.
func BootCounted(v Vars) (slot string, c esp.Counter, err error) {
	path, err := readText(v, bootCountPath, Systemd)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrFormat) {
		return "", esp.Counter{}, nil
	}
	if err != nil {
		return "", esp.Counter{}, err
	}
	slot, c, ok := esp.SlotOfImage(path)
	if !ok || !c.Counted {
		return "", esp.Counter{}, nil
	}
	return slot, c, nil
}
