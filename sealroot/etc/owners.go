package etc

import (
	"maps"
	"os"

	"sealroot/state/etcmerge"
)

// Owners of the image's files are numbers of its own account files. Where the machine's
// have other numbers for the same names, the files go by the names.

// owners tells whom what an image owns belongs to here, by numbers of users and of groups
// that are others here.
type owners [2]map[uint32]uint32

func ownersOf(image, here etcmerge.Files) (o owners) {
	for i, text := range [...][2][]byte{{image.Passwd, here.Passwd}, {image.Group, here.Group}} {
		if text[0] != nil && text[1] != nil {
			o[i] = etcmerge.Owners(text[0], text[1])
		}
	}
	return o
}

// of are the owners that a file has here; moved is false when they are the image's.
func (o owners) of(uid, gid uint32) (user, group uint32, moved bool) {
	user, newUser := o[0][uid]
	group, newGroup := o[1][gid]
	if !newUser {
		user = uid
	}
	if !newGroup {
		group = gid
	}
	return user, group, newUser || newGroup
}

// ownedBy is an image's tree with the owners that its files have by these account files.
// A file that changes hands loses its set-user-ID and set-group-ID bits, as with chown:
// they were given to another one.
func (t tree) ownedBy(here etcmerge.Files) tree {
	o := ownersOf(t.entries.Accounts(), here)
	if t.mixed {
		for _, numbers := range o {
			maps.DeleteFunc(numbers, func(_, here uint32) bool { return here == 0 })
		}
	}
	if len(o[0])+len(o[1]) == 0 {
		return t
	}
	owned := tree{entries: make(etcmerge.Tree, len(t.entries)), at: t.at}
	for name, e := range t.entries {
		var moved bool
		if e.UID, e.GID, moved = o.of(e.UID, e.GID); moved && e.Kind != etcmerge.Dir {
			e.Mode &^= 0o6000
		}
		owned.entries[name] = e
	}
	return owned
}

// over puts the layer that a directory holds over an image's tree, and returns that tree
// with the owners that its files have with this layer.
func (m *merger) over(image tree, dir *os.File) (base, machine tree, err error) {
	nodes, err := m.reader.read(dir)
	if err != nil {
		return tree{}, tree{}, err
	}
	base = image.ownedBy(stack(image, dir, nodes).entries.Accounts())
	return base, stack(base, dir, nodes), nil
}

// merge3 merges trees; owned is the image's with the owners that its files are to have.
func merge3(base, image, machine tree) (owned tree, plan etcmerge.Plan, conflicts []etcmerge.Conflict) {
	accounts, _ := etcmerge.Accounts(base.entries.Accounts(), image.entries.Accounts(), machine.entries.Accounts())
	owned = image.ownedBy(accounts)
	plan, conflicts = etcmerge.Merge3(base.entries, owned.entries, machine.entries)
	return owned, plan, conflicts
}
