package dm

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// answer lays records out as drivers/md/dm-ioctl.c, retrieve_status, does: each
// record's next counts from the start of the data.
func answer(records ...Status) []byte {
	b := make([]byte, unix.SizeofDmIoctl)
	start := len(b)
	for _, r := range records {
		spec := make([]byte, unix.SizeofDmTargetSpec)
		binary.NativeEndian.PutUint64(spec[0:], r.Start)
		binary.NativeEndian.PutUint64(spec[8:], r.Length)
		copy(spec[24:], r.Type)
		at := len(b)
		b = append(append(append(b, spec...), r.Text...), 0)
		for len(b)%8 != 0 {
			b = append(b, 0)
		}
		binary.NativeEndian.PutUint32(b[at+20:], uint32(len(b)-start))
	}
	return append(b, make([]byte, 64)...)
}

func TestParseStatus(t *testing.T) {
	want := []Status{{0, 2048, "verity", "V"}, {2048, 8, "crypt", ""}, {2056, 16, "linear", "7:0 0"}}
	got, err := parseStatus(answer(want...), unix.SizeofDmIoctl, len(want))
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if got, want := want[0].String()+"|"+want[1].String(), "0 2048 verity V|2048 8 crypt"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestParseStatusRefuses(t *testing.T) {
	good := answer(Status{0, 8, "verity", "V"})
	bad := func(change func(b []byte)) []byte {
		b := slices.Clone(good)
		change(b[unix.SizeofDmIoctl:])
		return b
	}
	tests := []struct {
		name         string
		buf          []byte
		start, count int
	}{
		{"start_outside", good, len(good) + 1, 1},
		{"negative_count", good, unix.SizeofDmIoctl, -1},
		{"count_too_large", good, unix.SizeofDmIoctl, 1 << 20},
		{"one_record_more", good[:len(good)-64], unix.SizeofDmIoctl, 2},
		{"next_at_itself", bad(func(b []byte) { binary.NativeEndian.PutUint32(b[20:], 0) }), unix.SizeofDmIoctl, 1},
		{"next_outside", bad(func(b []byte) { binary.NativeEndian.PutUint32(b[20:], 1<<30) }), unix.SizeofDmIoctl, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseStatus(tt.buf, tt.start, tt.count)
			if !errors.Is(err, ErrStatus) || got != nil {
				t.Errorf("got %v, %v, want nothing and %v", got, err, ErrStatus)
			}
		})
	}
}

func FuzzParseStatus(f *testing.F) {
	f.Add(answer(Status{0, 8, "verity", "V"}), unix.SizeofDmIoctl, 1)
	f.Add(answer(Status{0, 8, "a", "b"}, Status{8, 8, "c", "d"}), unix.SizeofDmIoctl, 2)
	f.Add([]byte{}, 0, 0)
	f.Fuzz(func(t *testing.T, buf []byte, start, count int) {
		got, err := parseStatus(buf, start, count)
		if err != nil && got != nil {
			t.Errorf("got %v with error %v", got, err)
		}
		if err == nil && len(got) != count {
			t.Errorf("got %d records, want %d", len(got), count)
		}
	})
}
