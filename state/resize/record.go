package resize

import (
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
