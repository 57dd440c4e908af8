// Package kexec starts a slot's kernel from the kernel that runs, past firmware and boot
// loader: what is loaded is what the slot's signed manifest names, and which slot boots
// then PID 1 of that kernel decides, as after any other start.
package kexec

import (
	"bytes"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"strings"

	"sealroot/sealroot/bootset"
	"sealroot/slots"
)

// Kernel is what kexec_file_load(2) takes.
type Kernel struct {
	Image   []byte // bzImage
	Initrd  []byte
	Cmdline string
}

// Boots makes sure that PID 1 of a slot's own kernel, started by kexec, boots that slot
// and counts nothing that only a start by the boot loader may count. o is what PID 1
// will see, but for the kernel that runs. Errors: bootset.ErrUsage, ErrRefused.
func Boots(o slots.Observed, slot string) error {
	s, ok := slots.Find(o.Slots, slot)
	if !ok {
		return fmt.Errorf("cannot start slot %q: there is no such slot: %w", slot, bootset.ErrUsage)
	}
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("cannot start slot %s by kexec: %s: %w", slot, fmt.Sprintf(format, args...), bootset.ErrRefused)
	}
	switch {
	case s.State() == slots.Trial:
		return refuse("it is on trial, and whether firmware, boot loader and TPM take it is a part of that: restart the machine")
	case o.Armed == slot:
		return refuse("the boot loader was asked to load its kernel, which has not come yet: restart the machine")
	}
	o.Loaded = slot
	d, err := slots.Decide(o)
	switch {
	case err != nil:
		return refuse("%v", err)
	case d.Slot != slot || d.Reboot || d.Spends != "":
		return refuse("the slots say that slot %s comes first (%s)", Next(o), strings.Join(d.Lines, "; "))
	case d.Why == slots.BecauseLastResort:
		return refuse("no slot is bootable: restart the machine, or install an image")
	}
	return nil
}

// Next is the slot that the slots say comes first, whatever kernel runs.
func Next(o slots.Observed) string {
	o.Loaded = ""
	d, err := slots.Decide(o)
	if err != nil {
		return "?"
	}
	return d.Slot
}

// Words of the command line that are of one start only: those of GRUB and of sealroot.
const (
	grubWord = "BOOT_IMAGE="
	ourWords = "sealroot."
)

// maxLine is x86's COMMAND_LINE_SIZE without the final zero, in bytes.
const maxLine = 2047

// Line is a command line for the slot's kernel: the one given, which is that of a
// unified kernel image, or under GRUB the one that runs, as grub.cfg gives all slots the
// same; and in front the words by which GRUB tells the slot, and the partition (its UUID,
// "" for unknown) it was loaded from. Errors: bootset.ErrRefused.
func Line(line, slot, partUUID string) (string, error) {
	words := []string{ourWords + "slot=" + slot}
	if partUUID != "" {
		words = append(words, ourWords+"disk="+partUUID)
	}
	for _, w := range strings.Fields(line) {
		if !strings.HasPrefix(w, grubWord) && !strings.HasPrefix(w, ourWords) {
			words = append(words, w)
		}
	}
	all := strings.Join(words, " ")
	if len(all) > maxLine {
		return "", fmt.Errorf("cannot start slot %s by kexec: its command line has %d bytes, at most %d: %w", slot, len(all), maxLine, bootset.ErrRefused)
	}
	return all, nil
}

// errSections: an image lacks what a kernel is started from.
var errSections = errors.New("no usable unified kernel image")

// maxSection bounds a section, in bytes.
const maxSection = 1 << 30

// FromUKI takes a unified kernel image apart (UAPI.5). Cmdline is that of the image.
func FromUKI(uki []byte) (k Kernel, err error) {
	f, err := pe.NewFile(bytes.NewReader(uki))
	if err != nil {
		return Kernel{}, fmt.Errorf("%w: %w", errSections, err)
	}
	defer f.Close()
	var line []byte
	for _, s := range []struct {
		name string
		to   *[]byte
	}{{".linux", &k.Image}, {".initrd", &k.Initrd}, {".cmdline", &line}} {
		if *s.to, err = section(f, s.name); err != nil {
			return Kernel{}, err
		}
	}
	k.Cmdline = strings.TrimRight(string(line), "\x00\n ")
	return k, nil
}

// section is what a section holds, without what fills it up in the file.
func section(f *pe.File, name string) ([]byte, error) {
	s := f.Section(name)
	if s == nil {
		return nil, fmt.Errorf("%w: it has no section %s", errSections, name)
	}
	size := min(s.VirtualSize, s.Size)
	if size > maxSection {
		return nil, fmt.Errorf("%w: section %s of %d bytes", errSections, name, size)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(s.Open(), data); err != nil {
		return nil, fmt.Errorf("%w: cannot read section %s: %w", errSections, name, err)
	}
	return data, nil
}
