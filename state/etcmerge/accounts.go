package etcmerge

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The fields of passwd and group that hold numbers, and those of group and gshadow
// that hold lists of names.
const (
	idField      = 2 // uid in passwd, gid in group
	gidField     = 3 // in passwd
	membersField = 3 // in group and gshadow; gshadow has administrators before
	adminsField  = 2 // in gshadow
)

// The numbers that a system user of the image's may get in place of its own, the
// highest first, as systemd-sysusers takes them.
const minSystem, maxSystem = 100, 999

// Accounts merges account files by entry: a user or group that the image adds is
// there, one that the machine added stays, and of one that both have each field is
// merged, the members of a group one by one. Three rules go beyond that:
//
//   - A number never changes. The files of the machine are owned by it.
//   - One that the image adds and whose number somebody of the machine's own has gets
//     another below 1000, and is a conflict: files of the image with the old number
//     belong to the other one. It is left out when no number is free, when its group
//     would be another one, or its range of subordinate numbers somebody else's.
//   - One that the image removed goes, if the machine has not changed it: for a user
//     in passwd or shadow, whose password is there, for a group in group or gshadow.
//
// Where one side changed nothing the result is the other side's, byte for byte, unless the
// image has another number for a name that the machine has. Lines that are no entries are
// those of the machine.
func Accounts(base, image, machine Files) (Files, []Conflict) {
	switch {
	case base.equal(machine) && !renumbers(machine, image):
		return image, nil
	case base.equal(image):
		return machine, nil
	}
	a := accounts{base: base, image: image, machine: machine, merged: machine}
	groups := a.numbers("group")
	a.primary(groups)
	a.numbered("group", groups, nil)
	a.numbered("passwd", a.numbers("passwd"), a.groupOf(groups))
	for _, name := range []string{"shadow", "gshadow"} {
		a.merge(name, byName, nil)
	}
	for _, name := range []string{"subuid", "subgid"} {
		a.merge(name, byLine, a.apart(name))
	}
	return a.merged, a.conflicts
}

func (f Files) equal(o Files) bool {
	for _, name := range AccountFiles() {
		if string(f.get(name)) != string(o.get(name)) {
			return false
		}
	}
	return true
}

// renumbers tells whether the image has a user or group of the machine's with another
// number: package managers give numbers in the order in which an image is built.
func renumbers(machine, image Files) bool {
	for _, file := range []string{"passwd", "group"} {
		theirs := entries(parse(image.get(file), byName))
		for _, l := range parse(machine.get(file), byName) {
			i, inImage := theirs[l.key]
			if l.key != "" && inImage && number(field(i, idField)) != number(field(l, idField)) {
				return true
			}
		}
	}
	return false
}

type accounts struct {
	base, image, machine, merged Files
	conflicts                    []Conflict
	leftOut                      []string // names that got no number
}

func (a *accounts) conflict(file, format string, args ...any) {
	a.conflicts = append(a.conflicts, Conflict{file, fmt.Sprintf(format, args...)})
}

// merge merges one file. renumber may change an entry that the image adds, and
// leaves it out with ok false.
func (a *accounts) merge(file string, keyOf func([]string) string, renumber func(line) (l line, ok bool)) {
	if a.machine.get(file) == nil || a.image.get(file) == nil {
		return // the whole file is the machine's matter, or the image's
	}
	base, image := entries(parse(a.base.get(file), keyOf)), parse(a.image.get(file), keyOf)
	theirs := entries(image)
	machine := parse(a.machine.get(file), keyOf)
	mine := entries(machine)
	goes := a.goes(file, keyOf)
	var kept, added []line
	for _, l := range machine {
		if l.key == "" {
			kept = append(kept, l)
			continue
		}
		b, inBase := base[l.key]
		i, inImage := theirs[l.key]
		switch {
		case inImage:
			kept = append(kept, a.entry(file, b, i, l))
		case goes(l): // the image removed it
		default:
			kept = append(kept, l)
			if inBase {
				a.conflict(file, "%s: the image removed it and the machine changed it; it stays", name(l))
			}
		}
	}
	for _, i := range image {
		if _, there := mine[i.key]; i.key == "" || there || slices.Contains(a.leftOut, name(i)) {
			continue
		}
		if b, inBase := base[i.key]; inBase {
			if b.text != i.text {
				a.conflict(file, "%s: the machine removed it and the image changed it; it stays away", name(i))
			}
			continue
		}
		if renumber != nil {
			l, ok := renumber(i)
			if !ok {
				continue
			}
			i = l
		}
		added = append(added, i)
	}
	a.merged.set(file, join(kept, added))
}

func name(l line) string { return l.fields[0] }

// goes returns a function that tells whether an entry of the machine's is one that the
// image removed, and the machine has not changed.
func (a *accounts) goes(file string, keyOf func([]string) string) func(line) bool {
	base, image := entries(parse(a.base.get(file), keyOf)), entries(parse(a.image.get(file), keyOf))
	machine := parse(a.machine.get(file), keyOf)
	changed := map[string]bool{} // in the file that has the rest of the entry
	if pair := pairOf(file); pair != "" {
		base := entries(parse(a.base.get(pair), byName))
		for _, l := range parse(a.machine.get(pair), byName) {
			if l.key == "" || base[l.key].text != l.text { // without a key it may be the second of its name
				changed[name(l)] = true
			}
		}
	}
	return func(l line) bool {
		_, inImage := image[l.key]
		b, inBase := base[l.key]
		return l.key != "" && inBase && !inImage && b.text == l.text && !changed[name(l)] && !twice(machine, l)
	}
}

// pairOf is the file that has the rest of an entry; "" for none.
func pairOf(file string) string {
	switch file {
	case "passwd":
		return "shadow"
	case "shadow":
		return "passwd"
	case "group":
		return "gshadow"
	case "gshadow":
		return "group"
	}
	return ""
}

// twice tells whether a line of the same name stands behind an entry: without the
// entry that would begin to count.
func twice(list []line, l line) bool {
	return slices.ContainsFunc(list, func(o line) bool { return o.key == "" && name(o) == name(l) })
}

// entry merges one that image and machine have, field by field. Fields are named by
// their place: no error or conflict may hold a password.
func (a *accounts) entry(file string, base, image, machine line) line {
	if image.text == machine.text || base.text == image.text {
		return machine
	}
	if len(image.fields) != len(machine.fields) || base.fields != nil && len(base.fields) != len(machine.fields) {
		a.conflict(file, "%s: image and machine have it with different fields; the machine's stays", name(machine))
		return machine
	}
	fields := slices.Clone(machine.fields)
	for n := 1; n < len(fields); n++ {
		b, i, m := "", image.fields[n], machine.fields[n]
		if base.fields != nil {
			b = base.fields[n]
		}
		switch {
		case i == m:
		case isNumber(file, n):
			a.conflict(file, "%s: the image has number %s and the machine %s, which stays: its files have it", name(machine), i, m)
		case isMembers(file, n):
			fields[n] = members(b, i, m)
		case base.fields != nil && b == m:
			fields[n] = i
		case base.fields == nil || b != i:
			a.conflict(file, "%s: both changed field %d; the machine's stays", name(machine), n+1)
		}
	}
	return fromFields(machine.key, fields)
}

func isNumber(file string, field int) bool {
	return field == idField && (file == "passwd" || file == "group") || field == gidField && file == "passwd"
}

func isMembers(file string, field int) bool {
	return field == membersField && (file == "group" || file == "gshadow") || field == adminsField && file == "gshadow"
}

// members merges lists of names: what either side added is there, what either side
// removed is not.
func members(base, image, machine string) string {
	b, i, m := names(base), names(image), names(machine)
	var list []string
	for _, n := range m {
		if !slices.Contains(b, n) || slices.Contains(i, n) {
			list = append(list, n)
		}
	}
	for _, n := range i {
		if !slices.Contains(b, n) && !slices.Contains(m, n) {
			list = append(list, n)
		}
	}
	return strings.Join(list, ",")
}

func names(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

// numbers is who has which number in passwd or group.
type numbers struct {
	image   map[string]line
	holders map[string]string // by number: whom the machine gave it, against the image
	used    map[string]bool   // by anybody
}

func (a *accounts) numbers(file string) numbers {
	n := numbers{entries(parse(a.image.get(file), byName)), map[string]string{}, map[string]bool{}}
	goes := a.goes(file, byName)
	for _, l := range parse(a.machine.get(file), byName) {
		id := number(field(l, idField))
		n.used[id] = true
		i, inImage := n.image[l.key]
		if !goes(l) && id != "" && (l.key == "" || !inImage || number(field(i, idField)) != id) && n.holders[id] == "" {
			n.holders[id] = name(l)
		}
	}
	for _, i := range n.image {
		n.used[number(field(i, idField))] = true
	}
	return n
}

// primary adds the groups that only a user of the machine's holds: as the primary one,
// while no group has the number, or the one that has it goes.
func (a *accounts) primary(groups numbers) {
	image := entries(parse(a.image.get("passwd"), byName))
	goes, groupGoes := a.goes("passwd", byName), a.goes("group", byName)
	stay := map[string]bool{}
	for _, l := range parse(a.machine.get("group"), byName) {
		if !groupGoes(l) {
			stay[number(field(l, idField))] = true
		}
	}
	for _, l := range parse(a.machine.get("passwd"), byName) {
		gid := number(field(l, gidField))
		i, inImage := image[l.key]
		if gid == "" || goes(l) || l.key != "" && inImage && number(field(i, gidField)) == gid {
			continue
		}
		groups.used[gid] = true
		if !stay[gid] && groups.holders[gid] == "" {
			groups.holders[gid] = name(l)
		}
	}
}

// groupOf returns a function that gives the number that a group of the image has in
// the merged file, by that in the image. ok is false when it would be another group.
func (a *accounts) groupOf(n numbers) func(gid string) (here string, ok bool) {
	merged := entries(parse(a.merged.get("group"), byName))
	return func(gid string) (string, bool) {
		for _, i := range parse(a.image.get("group"), byName) {
			if here, there := merged[i.key]; there && i.key != "" && number(field(i, idField)) == number(gid) {
				return field(here, idField), true
			}
		}
		return gid, n.holders[number(gid)] == ""
	}
}

// numbered merges passwd or group. groupOf is that of the merged group, for passwd.
func (a *accounts) numbered(file string, n numbers, groupOf func(gid string) (string, bool)) {
	a.merge(file, byName, func(l line) (line, bool) {
		fields := slices.Clone(l.fields)
		if gid := field(l, gidField); groupOf != nil && gid != "" {
			here, ok := groupOf(gid)
			if !ok {
				a.leaveOut(file, l, "its group %s is another one here", gid)
				return line{}, false
			}
			fields[gidField] = here
		}
		id := field(l, idField)
		if holder := n.holders[number(id)]; holder != "" {
			free := freeNumber(n.used)
			if free == "" {
				a.leaveOut(file, l, "its number %s is that of %s here, and none below %d is free", id, holder, maxSystem+1)
				return line{}, false
			}
			n.used[free] = true
			fields[idField] = free
			a.conflict(file, "%s has number %s in the image and %s here, where %s has %s: files of the image outside /etc and /var with that number are those of %s", name(l), id, free, holder, id, holder)
		}
		return fromFields(l.key, fields), true
	})
}

// leaveOut leaves one of the image's out of this file and those that are merged
// later.
func (a *accounts) leaveOut(file string, l line, format string, args ...any) {
	a.leftOut = append(a.leftOut, name(l))
	a.conflict(file, "%s is left out: %s", name(l), fmt.Sprintf(format, args...))
}

// apart leaves out ranges of the image's that somebody else has on the machine: two
// users' containers would be one.
func (a *accounts) apart(file string) func(line) (line, bool) {
	machine := parse(a.machine.get(file), byLine)
	return func(l line) (line, bool) {
		for _, m := range machine {
			if m.key != "" && name(m) != name(l) && overlap(m, l) {
				a.conflict(file, "%s is left out: its range overlaps that of %s here", name(l), name(m))
				return line{}, false
			}
		}
		return l, true
	}
}

// overlap tells whether two ranges (man 5 subuid) have a number in common. One that
// cannot be read has none.
func overlap(a, b line) bool {
	span := func(l line) (first, end uint64, ok bool) {
		first, err := strconv.ParseUint(field(l, 1), 10, 32)
		count, err2 := strconv.ParseUint(field(l, 2), 10, 32)
		return first, first + count, err == nil && err2 == nil && count > 0
	}
	first, end, ok := span(a)
	first2, end2, ok2 := span(b)
	return ok && ok2 && first < end2 && first2 < end
}

// number is a number as strtoul(3) reads it, without leading zeros; what is none
// stays as it is.
func number(text string) string {
	n, err := strconv.ParseUint(strings.TrimPrefix(strings.TrimSpace(text), "+"), 10, 32)
	if err != nil {
		return text
	}
	return strconv.FormatUint(n, 10)
}

func field(l line, n int) string {
	if n < len(l.fields) {
		return l.fields[n]
	}
	return ""
}

// freeNumber is the highest number of a system user that nobody has; "" for none.
func freeNumber(used map[string]bool) string {
	for n := maxSystem; n >= minSystem; n-- {
		if id := strconv.Itoa(n); !used[id] {
			return id
		}
	}
	return ""
}
