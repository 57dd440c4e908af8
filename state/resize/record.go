package resize

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/layout"
)

// record keeps which ranges of encrypted.img are given back, on stable storage when
// it returns. A file system that is full takes it: it is written in place, the older
// of two copies first.
func (v *Volume) record(given []balloon.Range) error {
	f, err := files.OpenRecord(v.dir)
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: %w", ErrNoRoom, err)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	r, slot := files.ReadRecord(v.dir, v.uuid)
	b, err := balloon.Record{Serial: r.Serial + 1, Volume: v.uuid, Given: balloon.Join(given)}.Encode()
	if err == nil {
		_, err = f.WriteAt(b, int64(1-slot)*balloon.SlotBytes)
	}
	if err == nil {
		err = f.Sync()
	}
	if now, _ := files.ReadRecord(v.dir, v.uuid); err == nil && now.Serial != r.Serial+1 {
		err = errors.New("it does not read as it was written")
	}
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", layout.GivenBack, err)
	}
	return nil
}

// recorded is what the record has now.
func (v *Volume) recorded() []balloon.Range {
	r, _ := files.ReadRecord(v.dir, v.uuid)
	return r.Given
}
