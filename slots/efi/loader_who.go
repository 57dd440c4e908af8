package efi

import (
	"errors"
	"io/fs"

	"sealroot/slots/esp"
)

// Loaded says whose kernel runs. All it is made of may be forged: it chooses
// between signed things only.
type Loaded struct {
	// Kind says what is known.
	Kind LoadedKind
	// Slot is the slot whose kernel runs, with KnownSlot only.
	Slot string
	// From is what said so, for a person: the command line or a variable with
	// its value. "" when nothing did.
	From string
}

// LoadedKind is what is known about the kernel that runs.
type LoadedKind int

const (
	// NoSlot: nobody said, or what From says is no file of a slot, and then foreign
	// to every slot.
	NoSlot LoadedKind = iota
	// KnownSlot: it is the kernel of Loaded.Slot.
	KnownSlot
	// FallbackFile: firmware without boot entries started EFI/BOOT/BOOTX64.EFI;
	// FallbackSlots tells of which slots that is a copy.
	FallbackFile
)

// LoadedSlot finds out whose kernel runs. word is the value of sealroot.slot= on
// the command line, which GRUB's configuration sets, "" when there is none. Then
// systemd-boot is asked (LoaderEntrySelected), then the stub
// (LoaderImageIdentifier, which names systemd-boot itself when that ran, and so
// must come second). v is nil without UEFI. An error says that a variable could
// not be read; what is returned beside it is still right, at worst unknown.
func LoadedSlot(v Vars, word string) (Loaded, error) {
	if word != "" {
		return Loaded{Kind: KnownSlot, Slot: word, From: "sealroot.slot=" + word}, nil
	}
	if v == nil {
		return Loaded{}, nil
	}
	id, err := readText(v, entrySelected, Systemd)
	if err == nil {
		l := Loaded{From: entrySelected + " " + id}
		if slot, _, ok := esp.ParseUKIName(id); ok {
			l.Kind, l.Slot = KnownSlot, slot
		}
		return l, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return Loaded{}, err // some loader ran: the other variable is not about the kernel
	}
	path, err := readText(v, imageIdentifier, Systemd)
	if errors.Is(err, fs.ErrNotExist) {
		return Loaded{}, nil
	}
	if err != nil {
		return Loaded{}, err
	}
	l := Loaded{From: imageIdentifier + " " + path}
	if slot, _, ok := esp.SlotOfImage(path); ok {
		l.Kind, l.Slot = KnownSlot, slot
	} else if esp.IsFallback(path) {
		l.Kind = FallbackFile
	}
	return l, nil
}
