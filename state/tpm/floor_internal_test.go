package tpm

import (
	"errors"
	"testing"
)

func FuzzParseFloor(f *testing.F) {
	f.Add(Floor{3, [32]byte{1, 2, 31: 3}}.encode())
	f.Fuzz(func(t *testing.T, record []byte) {
		n, err := parseFloor(record)
		if err != nil && (n != (Floor{}) || !errors.Is(err, ErrFloor)) {
			t.Errorf("%+v, %v", n, err)
		}
		if err == nil && string(n.encode()) != string(record) {
			t.Errorf("%x reads as %+v", record, n)
		}
	})
}
