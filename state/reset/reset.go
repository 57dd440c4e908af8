// Package reset is the request for a factory reset that the running system leaves
// in the encrypted volume, where nobody but that system can write. PID 1 reads it
// when the volume is open, before anything in it is used.
package reset

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"sealroot/state/layout"
)

// File holds the request, below the root of the encrypted volume.
const File = layout.ResetRequest

// MaxSize bounds the file, in bytes.
const MaxSize = 64

// ErrFormat: the file does not hold a request for this volume.
var ErrFormat = errors.New("not a request to reset this volume")

// Format is the file's content: a word, and the UUID of the volume to destroy. With
// keepHome the volume stays, and all in it goes but /home.
func Format(volume string, keepHome bool) []byte {
	if keepHome {
		return []byte("factory-reset-keep-home " + volume + "\n")
	}
	return []byte("factory-reset " + volume + "\n")
}

// Read reads a request, which must be for the volume of that UUID. Errors:
// ErrFormat, those of r.
func Read(r io.Reader, volume string) (keepHome bool, err error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return false, err
	}
	if bytes.Equal(text, Format(volume, true)) {
		return true, nil
	}
	if !bytes.Equal(text, Format(volume, false)) {
		return false, fmt.Errorf("%.*q: %w", MaxSize, text, ErrFormat)
	}
	return false, nil
}
