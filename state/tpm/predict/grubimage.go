package predict

import (
	"archive/tar"
	"bytes"
	"debug/pe"
	"encoding/binary"
	"fmt"
	"io"
)

// Modules inside a program of grub-mkimage (include/grub/kernel.h of GRUB 2.06): a
// header of 24 bytes says where they begin and how long they are together; each has a
// header of its own with its kind and its size.
const (
	grubModulesMagic = 0x676d696d
	grubModulesHead  = 24
	grubModuleHead   = 8
	grubMemdisk      = 1
	grubScriptName   = "grub/grub.cfg"
	maxGRUB          = 16 << 20
)

// ReadGRUBScript returns the grub.cfg inside a program of GRUB's for UEFI that
// sealroot-mkinitramfs made. Errors are ErrGRUB.
func ReadGRUBScript(program io.ReaderAt) ([]byte, error) {
	f, err := pe.NewFile(program)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGRUB, err)
	}
	defer f.Close()
	s := f.Section("mods")
	if s == nil || s.Size > maxGRUB {
		return nil, fmt.Errorf("%w: it has no modules inside", ErrGRUB)
	}
	data, err := io.ReadAll(io.LimitReader(s.Open(), maxGRUB))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGRUB, err)
	}
	disk := grubModule(data, grubMemdisk)
	if disk == nil {
		return nil, fmt.Errorf("%w: it has no memory disk inside", ErrGRUB)
	}
	h := tar.NewReader(bytes.NewReader(disk))
	for {
		entry, err := h.Next()
		if err != nil {
			return nil, fmt.Errorf("%w: its memory disk has no %s: %w", ErrGRUB, grubScriptName, err)
		}
		if entry.Name != grubScriptName {
			continue
		}
		text, err := io.ReadAll(io.LimitReader(h, maxScript+1))
		if err != nil || len(text) > maxScript {
			return nil, fmt.Errorf("%w: cannot read %s inside of it", ErrGRUB, grubScriptName)
		}
		return text, nil
	}
}

// grubModule returns the first module of a kind, nil when there is none.
func grubModule(data []byte, kind uint32) []byte {
	if len(data) < grubModulesHead || binary.LittleEndian.Uint32(data) != grubModulesMagic {
		return nil
	}
	at, size := binary.LittleEndian.Uint64(data[8:]), binary.LittleEndian.Uint64(data[16:])
	if at > uint64(len(data)) || size > uint64(len(data)) || size < at {
		return nil
	}
	for data = data[at:size]; len(data) >= grubModuleHead; {
		length := binary.LittleEndian.Uint32(data[4:])
		if length < grubModuleHead || uint64(length) > uint64(len(data)) {
			return nil
		}
		if binary.LittleEndian.Uint32(data) == kind {
			return data[grubModuleHead:length]
		}
		data = data[length:]
	}
	return nil
}
