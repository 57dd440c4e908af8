// Package efi knows the variables of UEFI firmware that say what is started:
// sealroot's entries, their order and the one-shot BootNext (UEFI 2.10, sections 3.1
// and 3.3), a store of slots beside them, and those of systemd-boot and systemd-stub
// (the Boot Loader Interface), with the default in loader.conf.
package efi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf16"

	"sealroot/slots/guid"
)

var (
	// ErrFormat: a variable does not hold what its name says.
	ErrFormat = errors.New("bad EFI variable")
	// ErrFull: all 65536 numbers of boot entries are taken.
	ErrFull = errors.New("no free boot entry")
)

// Active is the attribute LOAD_OPTION_ACTIVE.
const Active = 1

const (
	maxOption = 64 << 10 // no firmware stores a larger variable
	maxNodes  = 64
)

// LoadOption is a Boot#### variable that starts a file of a GPT partition.
type LoadOption struct {
	Attributes  uint32
	Description string
	Partition   Partition
	Path        string // with backslashes
	Optional    []byte // data for the program; for a UKI its command line
}

// Partition is the hard drive node of a device path.
type Partition struct {
	Number      uint32 // 1-based
	Start, Size uint64 // in sectors
	UUID        guid.GUID
}

// Encode returns the content of the variable: HD(…)/File(…).
func (o LoadOption) Encode() []byte {
	le := binary.LittleEndian
	// hard drive node: media (4), hard drive (1), 42 bytes (UEFI 2.10, 10.3.5.1)
	path := []byte{4, 1, 42, 0}
	path = le.AppendUint32(path, o.Partition.Number)
	path = le.AppendUint64(path, o.Partition.Start)
	path = le.AppendUint64(path, o.Partition.Size)
	path = append(path, o.Partition.UUID[:]...)
	path = append(path, 2, 2) // GPT, signature is a GUID
	// file path node: media (4), file path (4)
	name := encodeText(o.Path)
	path = append(path, 4, 4)
	path = le.AppendUint16(path, uint16(4+len(name)))
	path = append(path, name...)
	path = append(path, 0x7f, 0xff, 4, 0)

	b := le.AppendUint32(nil, o.Attributes)
	b = le.AppendUint16(b, uint16(len(path)))
	b = append(b, encodeText(o.Description)...)
	b = append(b, path...)
	return append(b, o.Optional...)
}

// ParseLoadOption reads a Boot#### variable. An entry that is valid but starts
// something else than a file of a GPT partition has an empty Path. ErrFormat
// when the variable is damaged.
func ParseLoadOption(b []byte) (LoadOption, error) {
	if len(b) < 6 || len(b) > maxOption {
		return LoadOption{}, fmt.Errorf("cannot read a load option of %d bytes: %w", len(b), ErrFormat)
	}
	o := LoadOption{Attributes: binary.LittleEndian.Uint32(b)}
	n := int(binary.LittleEndian.Uint16(b[4:]))
	text, rest, ok := cutText(b[6:])
	if !ok || n > len(rest) {
		return LoadOption{}, fmt.Errorf("cannot read a load option: %w", ErrFormat)
	}
	o.Description = text
	if len(rest) > n {
		o.Optional = append([]byte(nil), rest[n:]...)
	}
	if err := o.parsePath(rest[:n]); err != nil {
		return LoadOption{}, err
	}
	return o, nil
}

// parsePath accepts exactly HD/File/End; other well-formed paths are left out.
func (o *LoadOption) parsePath(b []byte) error {
	var part Partition
	var path string
	var kinds []uint16
	for range maxNodes {
		if len(b) < 4 {
			return fmt.Errorf("cannot read a device path: %w", ErrFormat)
		}
		kind := binary.BigEndian.Uint16(b)
		n := int(binary.LittleEndian.Uint16(b[2:]))
		if n < 4 || n > len(b) {
			return fmt.Errorf("cannot read a device path: %w", ErrFormat)
		}
		node := b[4:n]
		b = b[n:]
		kinds = append(kinds, kind)
		switch kind {
		case 0x7fff:
			if len(kinds) == 3 && kinds[0] == 0x0401 && kinds[1] == 0x0404 && !part.UUID.IsZero() {
				o.Partition, o.Path = part, path
			}
			return nil
		case 0x0401:
			if len(node) != 38 {
				return fmt.Errorf("cannot read a hard drive path: %w", ErrFormat)
			}
			if node[36] == 2 && node[37] == 2 {
				part = Partition{
					Number: binary.LittleEndian.Uint32(node),
					Start:  binary.LittleEndian.Uint64(node[4:]),
					Size:   binary.LittleEndian.Uint64(node[12:]),
					UUID:   guid.GUID(node[20:36]),
				}
			}
		case 0x0404:
			path, _, _ = cutText(append(node[:len(node):len(node)], 0, 0))
		}
	}
	return fmt.Errorf("cannot read a device path: %w", ErrFormat)
}

// encodeText is UTF-16LE with a final NUL.
func encodeText(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return append(b, 0, 0)
}

// cutText reads UTF-16LE up to its NUL.
func cutText(b []byte) (text string, rest []byte, ok bool) {
	var u []uint16
	for i := 0; i+1 < len(b); i += 2 {
		c := binary.LittleEndian.Uint16(b[i:])
		if c == 0 {
			return string(utf16.Decode(u)), b[i+2:], true
		}
		u = append(u, c)
	}
	return "", nil, false
}
