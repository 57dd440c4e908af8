package etcmerge

import (
	"slices"
	"strings"
)

// Files are the account files of one /etc; nil for one that is not there.
type Files struct {
	Passwd, Shadow, Group, Gshadow, Subuid, Subgid []byte
}

// Accounts are the account files of a tree.
func (t Tree) Accounts() (f Files) {
	for _, name := range AccountFiles() {
		f.set(name, t[name].Text)
	}
	return f
}

// AccountFiles are the names of the files of Files.
func AccountFiles() []string {
	return []string{"passwd", "shadow", "group", "gshadow", "subuid", "subgid"}
}

func (f *Files) at(name string) *[]byte {
	switch name {
	case "passwd":
		return &f.Passwd
	case "shadow":
		return &f.Shadow
	case "group":
		return &f.Group
	case "gshadow":
		return &f.Gshadow
	case "subuid":
		return &f.Subuid
	}
	return &f.Subgid
}

func (f *Files) get(name string) []byte       { return *f.at(name) }
func (f *Files) set(name string, text []byte) { *f.at(name) = text }

// line is one line of an account file: fields between colons (man 5 passwd, group,
// shadow, gshadow, subuid).
type line struct {
	text   string // as it stands, without its end
	fields []string
	key    string // what names the entry; "" for a line that is none
}

// parse reads the lines of a file. Of several with one key the first counts, as for
// the C library; the others are lines without a key.
func parse(text []byte, keyOf func(fields []string) string) []line {
	var list []line
	seen := map[string]bool{}
	for _, l := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		if l == "" && len(text) <= 1 {
			continue
		}
		e := line{text: l, fields: strings.Split(l, ":")}
		if key := keyOf(e.fields); !seen[key] {
			e.key, seen[key] = key, key != ""
		}
		list = append(list, e)
	}
	return list
}

// byName names an entry by its first field. Comments, and lines of NIS ("+", "-")
// are no entries.
func byName(fields []string) string {
	if len(fields) < 2 || fields[0] == "" || strings.ContainsAny(fields[0][:1], "#+-") {
		return ""
	}
	return fields[0]
}

// byLine: a user may have several ranges in subuid and subgid.
func byLine(fields []string) string {
	if byName(fields) == "" {
		return ""
	}
	return strings.Join(fields, ":")
}

func entries(list []line) map[string]line {
	m := map[string]line{}
	for _, l := range list {
		if l.key != "" {
			m[l.key] = l
		}
	}
	return m
}

// join writes lines, new ones before the lines of NIS at the end, which must stay
// last.
func join(kept, added []line) []byte {
	at := len(kept)
	for at > 0 && strings.HasPrefix(kept[at-1].text, "+") {
		at--
	}
	var b strings.Builder
	for _, l := range slices.Concat(kept[:at], added, kept[at:]) {
		b.WriteString(l.text + "\n")
	}
	return []byte(b.String())
}

func fromFields(key string, fields []string) line {
	return line{strings.Join(fields, ":"), fields, key}
}
