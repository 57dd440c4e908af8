package etcmerge

import "strconv"

// Owners tells whom what the image owns belongs to here: by a number of the image's
// passwd (or group), the number that the entry of this name has in the merged file,
// where that is another one. An entry that was left out gets 0: its number may be
// somebody else's.
func Owners(image, merged []byte) map[uint32]uint32 {
	here := entries(parse(merged, byName))
	owners := map[uint32]uint32{}
	for _, l := range parse(image, byName) {
		id, ok := ownerNumber(l)
		if _, done := owners[id]; l.key == "" || !ok || done {
			continue
		}
		owners[id], _ = ownerNumber(here[l.key])
	}
	for id, owner := range owners {
		if id == owner {
			delete(owners, id)
		}
	}
	return owners
}

func ownerNumber(l line) (id uint32, ok bool) {
	n, err := strconv.ParseUint(number(field(l, idField)), 10, 32)
	return uint32(n), err == nil
}
