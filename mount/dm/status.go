package dm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrStatus means that the kernel's answer cannot be read.
var ErrStatus = errors.New("bad device-mapper status")

// Status is one target of a device: of its table, or of its state.
type Status struct {
	Start, Length uint64 // in 512-byte sectors
	Type          string // e.g. "verity"
	Text          string // e.g. "V"
}

// String is the line as dmsetup(8) prints it.
func (s Status) String() string {
	if s.Text == "" {
		return fmt.Sprintf("%d %d %s", s.Start, s.Length, s.Type)
	}
	return fmt.Sprintf("%d %d %s %s", s.Start, s.Length, s.Type, s.Text)
}

// parseStatus reads count records of struct dm_target_spec, each with its text
// behind it, beginning at byte start of the ioctl buffer. Unlike in a table
// that is loaded, next counts from the start of the data and not from the
// record before (uapi/linux/dm-ioctl.h).
func parseStatus(buf []byte, start, count int) ([]Status, error) {
	if start < 0 || start > len(buf) || count < 0 || count > 1024 {
		return nil, fmt.Errorf("%w: %d records at byte %d of %d", ErrStatus, count, start, len(buf))
	}
	data := buf[start:]
	var list []Status
	at := 0
	for i := range count {
		if at > len(data)-unix.SizeofDmTargetSpec {
			return nil, fmt.Errorf("%w: record %d begins at byte %d of %d", ErrStatus, i, at, len(data))
		}
		spec := data[at : at+unix.SizeofDmTargetSpec]
		next := int(binary.NativeEndian.Uint32(spec[20:24]))
		if next < at+unix.SizeofDmTargetSpec || next > len(data) {
			return nil, fmt.Errorf("%w: record %d ends at byte %d of %d", ErrStatus, i, next, len(data))
		}
		list = append(list, Status{
			Start:  binary.NativeEndian.Uint64(spec[0:8]),
			Length: binary.NativeEndian.Uint64(spec[8:16]),
			Type:   text(spec[24:40]),
			Text:   text(data[at+unix.SizeofDmTargetSpec : next]),
		})
		at = next
	}
	return list, nil
}

// text is a string up to its NUL.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
