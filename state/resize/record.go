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
	return noRoom(files.WriteRecord(v.dir, v.uuid, given))
}

// recorded is what the record has now.
func (v *Volume) recorded() []balloon.Range {
	r, _ := files.ReadRecord(v.dir, v.uuid)
	return r.Given
}

// noRoom makes ErrNoRoom of what the outer file system says when it has none: btrfs needs
// some for its metadata also to give back. Not where it says so of a sync: what it was asked
// for before may have been done, and is not on stable storage.
func noRoom(err error) error {
	full := errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
	if full && !errors.Is(err, ErrNoRoom) {
		return fmt.Errorf("%w: %w", ErrNoRoom, err)
	}
	return err
}
