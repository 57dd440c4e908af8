package resize

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
)

// record is files.WriteRecord.
func (v *Volume) record(given []balloon.Range) error {
	err := files.WriteRecord(v.dir, v.uuid, given)
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: %w", ErrNoRoom, err)
	}
	return err
}

// recorded is what the record has now.
func (v *Volume) recorded() []balloon.Range {
	r, _ := files.ReadRecord(v.dir, v.uuid)
	return r.Given
}
