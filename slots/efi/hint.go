package efi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"sealroot/slots"
	"sealroot/slots/esp"
	"sealroot/slots/guid"
)

// The vendors of the variables we use.
const (
	Global  = "8be4df61-93ca-11d2-aa0d-00e098032b8c" // UEFI
	Systemd = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f" // Boot Loader Interface
)

// attributes of boot variables: non-volatile, boot and run time
const persistent = 7

// Vars are the firmware's variables. A variable that does not exist is
// fs.ErrNotExist.
type Vars interface {
	Read(name, vendor string) (data []byte, err error)
	Write(name, vendor string, attributes uint32, data []byte) error
	Delete(name, vendor string) error
	// List returns the names of the vendor's variables.
	List(vendor string) ([]string, error)
}

// Description is the name of a slot's entry in the firmware's menu.
func Description(slot string) string { return "sealroot " + slot }

// Path is where the slot's unified kernel image is on the ESP.
func Path(slot string) string { return esp.EFIPath(esp.UKI(slot)) }

// Hint is the one-shot BootNext, with the entries it needs.
type Hint struct {
	Vars Vars
	ESP  Partition // of the boot disk
	// Exists says whether this machine has a partition. An entry of ours for one
	// that is gone is used anew; nil: all exist, each disk has entries of its own.
	Exists func(partition guid.GUID) bool
}

var _ slots.Hint = Hint{}

// Get returns the slot that BootNext names, "" when there is none or it names
// somebody else's entry.
func (h Hint) Get() (string, error) {
	b, err := h.Vars.Read("BootNext", Global)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("cannot read BootNext: %w", err)
	}
	if len(b) != 2 {
		return "", fmt.Errorf("cannot read BootNext: %w", ErrFormat)
	}
	o, err := h.entry(bootName(binary.LittleEndian.Uint16(b)))
	if err != nil || o.Partition.UUID != h.ESP.UUID {
		return "", nil // it points nowhere: the firmware will ignore it as we do
	}
	slot, ok := strings.CutPrefix(o.Description, Description(""))
	if !ok || o.Path != Path(slot) {
		return "", nil
	}
	return slot, nil
}

// Arm sets BootNext to the slot's entry, which it makes when the firmware has
// forgotten it.
func (h Hint) Arm(slot string) error {
	n, err := h.Ensure(slot)
	if err != nil {
		return err
	}
	if err := h.Vars.Write("BootNext", Global, persistent, binary.LittleEndian.AppendUint16(nil, n)); err != nil {
		return fmt.Errorf("cannot set BootNext: %w", err)
	}
	return nil
}

// Clear deletes BootNext when it names one of our entries.
func (h Hint) Clear() error {
	slot, err := h.Get()
	if err != nil || slot == "" {
		return err
	}
	if err := h.Vars.Delete("BootNext", Global); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot clear BootNext: %w", err)
	}
	return nil
}

// Ensure makes sure that the slot's entry exists and is right, and that it is
// in BootOrder (a new one at the end: only a commit moves it to the front).
// It returns the number of Boot####. Nothing is written when all is right.
func (h Hint) Ensure(slot string) (uint16, error) {
	want := h.option(slot)
	number, same, err := h.findOption(want)
	if err != nil {
		return 0, err
	}
	if !same {
		if err := h.Vars.Write(bootName(number), Global, persistent, want.Encode()); err != nil {
			return 0, fmt.Errorf("cannot write the entry of slot %s: %w", slot, err)
		}
	}
	order, err := h.order()
	if err != nil {
		return 0, err
	}
	if !slices.Contains(order, number) {
		if err := h.setOrder(append(order, number)); err != nil {
			return 0, err
		}
	}
	return number, nil
}

// IsDefault says whether the slot's entry is right and the first in BootOrder.
func (h Hint) IsDefault(slot string) (bool, error) {
	order, err := h.order()
	if err != nil || len(order) == 0 {
		return false, err
	}
	o, err := h.entry(bootName(order[0]))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrFormat) {
		return false, nil // forgotten or damaged, and so not ours
	}
	return err == nil && h.right(o, slot), err
}

// right says whether the entry is what Ensure would write for the slot.
func (h Hint) right(o LoadOption, slot string) bool { return o.same(h.option(slot)) }

func (h Hint) option(slot string) LoadOption {
	return LoadOption{Attributes: Active, Description: Description(slot), Partition: h.ESP, Path: Path(slot)}
}

// SetDefault puts the slot's entry first in BootOrder, as a commit does.
func (h Hint) SetDefault(slot string) error {
	n, err := h.Ensure(slot)
	if err != nil {
		return err
	}
	order, err := h.order()
	if err != nil {
		return err
	}
	if len(order) > 0 && order[0] == n {
		return nil
	}
	rest := slices.DeleteFunc(order, func(m uint16) bool { return m == n })
	return h.setOrder(append([]uint16{n}, rest...))
}

func (h Hint) entry(name string) (LoadOption, error) {
	b, err := h.Vars.Read(name, Global)
	if err != nil {
		return LoadOption{}, fmt.Errorf("cannot read %s: %w", name, err)
	}
	return ParseLoadOption(b)
}

func (h Hint) order() ([]uint16, error) {
	b, err := h.Vars.Read("BootOrder", Global)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read BootOrder: %w", err)
	}
	if len(b)%2 != 0 || len(b) > 1<<17 {
		return nil, fmt.Errorf("cannot read BootOrder: %w", ErrFormat)
	}
	var out []uint16
	for i := 0; i < len(b); i += 2 {
		out = append(out, binary.LittleEndian.Uint16(b[i:]))
	}
	return out, nil
}

func (h Hint) setOrder(order []uint16) error {
	var b []byte
	for _, n := range order {
		b = binary.LittleEndian.AppendUint16(b, n)
	}
	if err := h.Vars.Write("BootOrder", Global, persistent, b); err != nil {
		return fmt.Errorf("cannot write BootOrder: %w", err)
	}
	return nil
}

func bootName(n uint16) string { return fmt.Sprintf("Boot%04X", n) }

func bootNumber(name string) (uint16, bool) {
	digits, ok := strings.CutPrefix(name, "Boot")
	if !ok || len(digits) != 4 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 16)
	return uint16(n), err == nil
}
