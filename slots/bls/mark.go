package bls

import (
	"cmp"
	"math"
	"sort"

	"sealroot/slots"
	"sealroot/slots/esp"
)

// mark is what the name of a slot's file says. The zero value is no file.
type mark struct {
	exists     bool
	counted    bool
	left, done int
}

func markOf(c esp.Counter) mark { return mark{true, c.Counted, c.Left, c.Done} }

// counter is the counter of the file's name.
func (m mark) counter() esp.Counter {
	if !m.counted {
		return esp.Counter{}
	}
	return esp.Counting(m.left, m.done)
}

// file is a slot's file.
type file struct {
	mark
	slot string
	name string // as the directory has it
}

// sortFiles picks each slot's file. A rename that power was cut in may leave two
// names for one file: the worse of them counts, a name with a counter before one
// without, fewer boots left before more. The others are returned as surplus.
func sortFiles(names []string) (files map[string]file, surplus []file) {
	var all []file
	for _, n := range names {
		if slot, c, ok := esp.ParseUKIName(n); ok {
			all = append(all, file{markOf(c), slot, n})
		}
	}
	sort.Slice(all, func(i, j int) bool {
		a, b := all[i], all[j]
		if a.counted != b.counted {
			return a.counted
		}
		return cmp.Or(cmp.Compare(a.left, b.left), cmp.Compare(b.done, a.done), cmp.Compare(a.name, b.name)) < 0
	})
	files = map[string]file{}
	for _, f := range all {
		if _, taken := files[f.slot]; taken {
			surplus = append(surplus, f)
		} else {
			files[f.slot] = f
		}
	}
	return files, surplus
}

// loaderCounts says that the loader's counting leads from one name to the other,
// in one boot or more.
func loaderCounts(from, to mark) bool {
	if !from.exists || !to.exists || !from.counted || !to.counted {
		return false
	}
	n := to.done - from.done
	return n > 0 && to.left == max(from.left-n, 0)
}

// beforeCount is the name before the loader counted once.
func (m mark) beforeCount() mark {
	return mark{true, true, m.left + 1, max(m.done-1, 0)}
}

// target is the name that a slot's state asks for, from the name it has. owed
// says that the loader has counted a boot that the state still shows as a try.
func target(now mark, s slots.Slot, owed bool) mark {
	switch s.State() {
	case slots.Committed:
		return mark{exists: true}
	case slots.Trial:
		switch {
		case now.counted && (now.left == s.Tries || owed && now.left+1 == s.Tries):
			return now
		case now.counted && now.left > s.Tries:
			return mark{true, true, s.Tries, min(now.done+now.left-s.Tries, math.MaxInt32)}
		}
		return mark{true, true, s.Tries, 0}
	}
	switch {
	case now.counted && now.left == 0:
		return now
	case now.counted && s.State() == slots.Spent:
		return mark{true, true, 0, min(now.done+1, math.MaxInt32)}
	case now.counted:
		return mark{true, true, 0, now.done}
	}
	return mark{true, true, 0, 0}
}
