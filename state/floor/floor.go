// Package floor decides about the rollback floor, the lowest security version
// that a machine still boots. The TPM keeps it (state/tpm). The running system,
// for which the TPM is closed, asks for a higher one in a file of the encrypted
// volume, where nobody but that system can write; PID 1 raises it at the next
// boot.
package floor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"

	"sealroot/state/layout"
)

// File holds the floor that was asked for last, as a decimal number and a
// newline. It lies below the root of the encrypted volume, and stays there: with
// it the floor is set anew when the TPM has lost it and a person has opened the
// volume.
const File = layout.RollbackFloor

// MaxSize bounds the file, in bytes.
const MaxSize = 16

// ErrFormat: the file does not hold a floor.
var ErrFormat = errors.New("not a rollback floor")

// Format is the file's content.
func Format(floor int) []byte { return append(strconv.AppendInt(nil, int64(floor), 10), '\n') }

// Read reads a request from a file, as Parse does.
func Read(r io.Reader) (int, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return 0, err
	}
	return Parse(text)
}

// Parse reads the file's content. Errors are ErrFormat.
func Parse(text []byte) (int, error) {
	digits, ok := bytes.CutSuffix(text, []byte("\n"))
	n, err := strconv.ParseUint(string(digits), 10, 31)
	if !ok || err != nil || !bytes.Equal(Format(int(n)), text) {
		return 0, fmt.Errorf("%.*q: %w", MaxSize, text, ErrFormat)
	}
	return int(n), nil
}

// Known is what is known at boot, once the volume is open.
type Known struct {
	// TPM is the floor in the TPM, 0 without one; Lost says that there is none
	// that can be believed, or that it was written for another volume. A volume is
	// opened then by a person only, or was made just now.
	TPM  int
	Lost bool
	// Asked is what File says, 0 without one.
	Asked int
	// Running is the security version of what runs: of root and unified kernel
	// image the lower one.
	Running int
}

// Next is what to do.
type Next struct {
	// Refuse: what runs is below the floor.
	Refuse bool
	// Write: the TPM's floor is to become Floor.
	Write bool
	Floor int
	// Waits: a higher floor was asked for than what runs has; the next boot of
	// one that has it raises the floor.
	Waits bool
}

// Decide is asked once for each boot. The floor never goes down, and never above
// what runs: what cannot boot must not be demanded by itself.
func Decide(k Known) Next {
	known := max(k.TPM, k.Asked)
	switch {
	case k.Lost && known > k.Running:
		return Next{Refuse: true, Floor: known}
	case k.Lost:
		return Next{Write: true, Floor: known}
	case k.Running < k.TPM:
		return Next{Refuse: true, Floor: k.TPM}
	case k.Asked > k.Running:
		return Next{Floor: k.TPM, Waits: true}
	case k.Asked > k.TPM:
		return Next{Write: true, Floor: k.Asked}
	}
	return Next{Floor: k.TPM}
}
