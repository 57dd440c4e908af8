package efi

import (
	"encoding/binary"
	"fmt"
	"slices"

	"sealroot/slots/esp"
)

// EnsureRetry makes sure that the firmware has an entry that starts systemd-boot
// by its own file, next in BootOrder after the entry that was started now. When
// systemd-boot cannot start the kernel image that a one-shot names (damaged, or
// refused by Secure Boot), it ends, and the firmware takes its next entry: with
// this one the default slot runs, without it the machine would wait for a
// person. Nothing is written when all is right.
func (h Hint) EnsureRetry() error {
	want := LoadOption{Attributes: Active, Description: Description("loader"), Partition: h.ESP, Path: esp.EFIPath(esp.SystemdBoot)}
	number, same, err := h.findOption(want)
	if err != nil {
		return err
	}
	if !same {
		if err := h.Vars.Write(bootName(number), Global, persistent, want.Encode()); err != nil {
			return fmt.Errorf("cannot write the second entry of systemd-boot: %w", err)
		}
	}
	order, err := h.order()
	if err != nil || slices.Contains(order, number) {
		return err
	}
	at := len(order)
	if b, err := h.Vars.Read("BootCurrent", Global); err == nil && len(b) == 2 {
		if i := slices.Index(order, binary.LittleEndian.Uint16(b)); i >= 0 {
			at = i + 1
		}
	}
	return h.setOrder(slices.Insert(order, at, number))
}

// findOption returns the number of the entry with want's description and
// partition, and whether it is want already; else of one with its description
// whose partition is gone; else the lowest free number. An entry of a disk that
// is here belongs to that disk's sealroot.
func (h Hint) findOption(want LoadOption) (number uint16, same bool, err error) {
	names, err := h.Vars.List(Global)
	if err != nil {
		return 0, false, fmt.Errorf("cannot list the boot entries: %w", err)
	}
	taken := map[uint16]bool{}
	var orphans []uint16
	for _, name := range names {
		n, ok := bootNumber(name)
		if !ok {
			continue
		}
		taken[n] = true
		o, err := h.entry(bootName(n))
		switch {
		case err != nil || o.Description != want.Description:
		case o.Partition.UUID == want.Partition.UUID:
			return n, o.same(want), nil
		case o.Partition.UUID.IsZero() || h.Exists != nil && !h.Exists(o.Partition.UUID):
			orphans = append(orphans, n)
		}
	}
	if len(orphans) > 0 {
		return orphans[0], false, nil
	}
	for n := range 1 << 16 {
		if !taken[uint16(n)] {
			return uint16(n), false, nil
		}
	}
	return 0, false, fmt.Errorf("cannot add an entry: %w", ErrFull)
}

// same says that the entry is exactly want, which has no optional data.
func (o LoadOption) same(want LoadOption) bool {
	return o.Attributes == want.Attributes && o.Description == want.Description && o.Partition == want.Partition &&
		o.Path == want.Path && len(o.Optional) == 0
}
