package etc

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"os"
	"slices"

	"sealroot/state/etcmerge"
)

// conflict is one as a record keeps it.
type conflict struct {
	etcmerge.Conflict
	// File is a digest of the file as the merge left it; "" in records of before.
	File string `json:"file,omitempty"`
}

// digest tells files apart as a merge does.
func digest(e etcmerge.Entry) string {
	// Without flags it is as in records of a time when nobody looked at them.
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %x %o %d %d%s", e.Kind, e.Sum, e.Mode, e.UID, e.GID, e.Flags))
	return fmt.Sprintf("%x", sum[:8])
}

// earlier is what a merge takes over the conflicts of: those of the image that ran last,
// or, of one that comes back to what it had, its own.
type earlier struct {
	merge string // its directory
	etc   tree   // as it was when another image took over, or is now
	since bool   // changes since then count too: from base to machine
}

// carry adds the conflicts of an earlier merge that nobody has looked at: the file is what
// that merge left, and not what the image has.
func (m *merger) carry(found []etcmerge.Conflict, s sides, result func(name string) (etcmerge.Entry, bool)) ([]etcmerge.Conflict, error) {
	if s.before.merge == "" {
		return found, nil
	}
	dir, err := m.dir(m.kept, s.before.merge)
	if err != nil || dir == nil {
		return found, err
	}
	old, err := readRecord(dir)
	if err != nil { // as one of before
		return found, nil
	}
	all := slices.Clone(found)
	for _, c := range old.Conflicts {
		now, isImage := result(c.Path)
		again := slices.ContainsFunc(found, func(f etcmerge.Conflict) bool {
			return f.Path == c.Path && (f.What == c.What || now.Text == nil)
		})
		touched := digest(s.before.etc.entries[c.Path]) != c.File ||
			s.before.since && digest(s.base.entries[c.Path]) != digest(s.machine.entries[c.Path])
		if !again && !touched && !isImage {
			all = append(all, c.Conflict)
		}
	}
	slices.SortStableFunc(all, func(a, b etcmerge.Conflict) int { return cmp.Compare(a.Path, b.Path) })
	return all, nil
}

// withFiles are the conflicts of a merge for its record; layer is what it made.
func (m *merger) withFiles(found []etcmerge.Conflict, layer *os.File) ([]conflict, error) {
	if len(found) == 0 {
		return nil, nil
	}
	again := merger{} // its own bounds: all of this was read before
	_, now, err := again.over(m.own, layer)
	if err != nil {
		return nil, err
	}
	list := make([]conflict, 0, len(found))
	for _, c := range found {
		list = append(list, conflict{c, digest(now.entries[c.Path])})
	}
	return list, nil
}
