package tpm

import (
	"errors"
	"testing"
)

func FuzzParseFloor(f *testing.F) {
	f.Add(encodeFloor(3))
	f.Fuzz(func(t *testing.T, record []byte) {
		n, err := parseFloor(record)
		if err != nil && (n != 0 || !errors.Is(err, ErrFloor)) {
			t.Errorf("%d, %v", n, err)
		}
		if err == nil && string(encodeFloor(n)) != string(record) {
			t.Errorf("%x reads as %d", record, n)
		}
	})
}
