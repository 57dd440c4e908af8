// Package guid is the GUID of GPT tables and EFI variables: 16 bytes on disk of
// which the first three fields are little-endian (UEFI 2.10, appendix A).
package guid

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// ErrFormat: the text is not a GUID.
var ErrFormat = errors.New("not a GUID")

// GUID holds the bytes in the order they have on disk.
type GUID [16]byte

// Parse reads the 36-character form, in either case.
func Parse(s string) (GUID, error) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return GUID{}, fmt.Errorf("cannot parse %.40q: %w", s, ErrFormat)
	}
	var g GUID
	b, err := hex.DecodeString(s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:])
	if err != nil {
		return GUID{}, fmt.Errorf("cannot parse %.40q: %w", s, ErrFormat)
	}
	copy(g[:], b)
	return g.swap(), nil
}

// Must is Parse for constants; it panics when s is not a GUID.
func Must(s string) GUID {
	g, err := Parse(s)
	if err != nil {
		panic(err)
	}
	return g
}

// Random makes a version 4 GUID from 16 bytes of r.
func Random(r io.Reader) (GUID, error) {
	var g GUID
	if _, err := io.ReadFull(r, g[:]); err != nil {
		return GUID{}, fmt.Errorf("cannot make a GUID: %w", err)
	}
	g[6] = g[6]&0x0f | 0x40
	g[8] = g[8]&0x3f | 0x80
	return g.swap(), nil
}

// FromText is the GUID whose text, without its dashes, is the bytes in hexadecimal:
// how the Discoverable Partitions Specification reads one out of a root hash.
func FromText(b [16]byte) GUID { return GUID(b).swap() }

// String is the 36-character form in lower case.
func (g GUID) String() string {
	b := g.swap()
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// IsZero says that all bytes are zero, which marks an unused GPT entry.
func (g GUID) IsZero() bool { return g == GUID{} }

// swap converts between the order of the text and the order on disk.
func (g GUID) swap() GUID {
	o := g
	binary.BigEndian.PutUint32(o[0:], binary.LittleEndian.Uint32(g[0:]))
	binary.BigEndian.PutUint16(o[4:], binary.LittleEndian.Uint16(g[4:]))
	binary.BigEndian.PutUint16(o[6:], binary.LittleEndian.Uint16(g[6:]))
	return o
}
