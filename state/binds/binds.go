// Package binds is the rule that turns the names of directories on the state
// partition into places of the root that they are mounted over. Names come
// from a disk that anyone may have written; the rule is pure.
package binds

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"

	"sealroot/state/layout"
)

// Bind is one directory that belongs over a place of the root.
type Bind struct {
	Name  string // of the directory, directly below /state or /state/encrypted
	To    string // absolute, normalised
	Upper bool   // not bound: the upper layer of the overlay at To (etc only)
}

// Problem is a name that no bind was made of. Name is as it stands on the
// disk: quote it.
type Problem struct {
	Name   string
	Reason string
}

// aliases come before unescaping. They map to the same place as unescaping
// would, except usrlocal, and are the names that everybody needs.
var aliases = map[string]string{
	"home": "/home", "var": "/var", "etc": "/etc", "opt": "/opt", "srv": "/srv",
	"usrlocal": "/usr/local",
}

// reserved are places that PID 1 mounts itself; nothing of the state goes over
// or under them.
var reserved = []string{"/dev", "/proc", "/run", "/state", "/sys"}

// images are places that belong to the image alone, but for what is in own: programs and
// libraries that the real init needs. A directory of the state over one of them would
// keep every slot from starting.
var images = []string{"/bin", "/boot", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr"}

// own is the machine's part of /usr.
const own = "/usr/local"

// Names applies the rule to the names of directories, in any order. Binds come
// sorted by target, so parents before what lies below them. Names that are
// never bound (lost+found, encrypted, encrypted.img and dot names) are passed
// over; any other that gives no bind is a problem. Of several names for one
// target the alias wins, then the first in byte order.
func Names(entries []string) ([]Bind, []Problem) {
	var binds []Bind
	var problems []Problem
	byTarget := map[string]string{}
	for _, name := range inOrder(entries) {
		if NeverBound(name) {
			continue
		}
		to, err := target(name)
		if err != nil {
			problems = append(problems, Problem{name, err.Error()})
			continue
		}
		if other, taken := byTarget[to]; taken {
			if other != name {
				problems = append(problems, Problem{name, fmt.Sprintf("%s is bound from %s already", to, other)})
			}
			continue
		}
		byTarget[to] = name
		binds = append(binds, Bind{Name: name, To: to, Upper: to == "/etc"})
	}
	sort.Slice(binds, func(i, j int) bool { return binds[i].To < binds[j].To })
	return binds, problems
}

// Allowed keeps those binds whose target is on the configuration's allow-list:
// the rule for directories of the unencrypted side. /etc never is, whatever
// the list says: its upper layer would give root to whoever writes the disk.
//
// Nor is one kept that would hide one of mounts, which are there already: binds of the
// encrypted volume, whose Name is a path, and overlays. That is a problem:
// whoever has the disk may have made the directory, and services would read the
// attacker's files, and write secrets in the clear. One below such a mount is
// kept: the list names that very place, as /var/log in the volume's /var. So is one over
// /home, which every volume has: else the list could not allow it at all.
func Allowed(binds []Bind, allow []string, mounts []Bind) (kept []Bind, problems []Problem) {
	for _, b := range binds {
		if b.Upper || !slices.Contains(allow, b.To) {
			continue
		}
		if e := hiddenBy(b.To, mounts); e.To != "" {
			problems = append(problems, Problem{b.Name, "it would hide " + e.To + " (" + e.Name + "): put a dot before the name of the one that is not wanted"})
			continue
		}
		kept = append(kept, b)
	}
	return kept, problems
}

// hiddenBy is the first of the binds that something over to would hide, other than /home.
func hiddenBy(to string, binds []Bind) Bind {
	for _, b := range binds {
		if b.To != "/home" && Within(b.To, to) {
			return b
		}
	}
	return Bind{}
}

// inOrder sorts aliases first, then by name.
func inOrder(entries []string) []string {
	rank := func(name string) int {
		if _, ok := aliases[name]; ok {
			return 0
		}
		return 1
	}
	sorted := slices.Clone(entries)
	sort.Slice(sorted, func(i, j int) bool {
		a, b := sorted[i], sorted[j]
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b)) < 0
	})
	return sorted
}

// NeverBound says that a directory of this name is passed over: it is of the file
// system, of sealroot, or hidden.
func NeverBound(name string) bool {
	return name == "lost+found" || name == layout.Volume || name == layout.Image || strings.HasPrefix(name, ".")
}

// target is the place that a name means.
func target(name string) (string, error) {
	if to, ok := aliases[name]; ok {
		return to, nil
	}
	to, err := unescape(name)
	if err != nil {
		return "", err
	}
	if Reserved(to) {
		return "", fmt.Errorf("%s belongs to the system", to)
	}
	if OfImage(to) {
		return "", fmt.Errorf("%s belongs to the image", to)
	}
	return to, nil
}

// Reserved says that the path, absolute and clean, is in a place that PID 1 mounts
// itself.
func Reserved(path string) bool { return Within(path, reserved...) }

// OfImage says that the path, absolute and clean, is where nothing but the image's
// content may be seen.
func OfImage(path string) bool { return Within(path, images...) && !Within(path, own) }

// Within says that a path is one of the directories, or in one.
func Within(path string, dirs ...string) bool {
	for _, dir := range dirs {
		if rest, ok := strings.CutPrefix(path, dir); ok && (rest == "" || rest[0] == '/') {
			return true
		}
	}
	return false
}

// unescape is systemd's path unescaping (systemd.unit(5), "systemd-escape
// --unescape --path"): "-" is "/" and \xNN is a byte. It refuses more: the
// root itself, and bytes that do not belong into a path or a message.
func unescape(name string) (string, error) {
	var path strings.Builder
	path.WriteByte('/')
	for i := 0; i < len(name); i++ {
		switch c := name[i]; c {
		case '-':
			path.WriteByte('/')
		case '\\':
			b, err := hexByte(name[i:])
			if err != nil {
				return "", err
			}
			path.WriteByte(b)
			i += 3
		default:
			path.WriteByte(c)
		}
	}
	to := path.String()
	if !utf8.ValidString(to) || strings.ContainsFunc(to, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return "", errors.New("control characters or invalid UTF-8 in the target")
	}
	for part := range strings.SplitSeq(to[1:], "/") {
		if part == "" || part == "." || part == ".." {
			return "", fmt.Errorf("%q is not a normalised path", to)
		}
	}
	return to, nil
}

// Escape is the name that unescape makes an absolute, clean path of, other than "/":
// of slashes "-", and \xNN of what could be taken for something else.
func Escape(path string) string {
	const plain = ":_.ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	var name strings.Builder
	for i := 1; i < len(path); i++ {
		switch c := path[i]; {
		case c == '/':
			name.WriteByte('-')
		case strings.IndexByte(plain, c) < 0, c == '.' && i == 1:
			fmt.Fprintf(&name, `\x%02x`, c)
		default:
			name.WriteByte(c)
		}
	}
	return name.String()
}

// hexByte reads \xNN at the start of s.
func hexByte(s string) (byte, error) {
	if len(s) < 4 || s[1] != 'x' {
		return 0, errors.New(`a backslash that is not \xNN`)
	}
	hi, lo := hexDigit(s[2]), hexDigit(s[3])
	if hi < 0 || lo < 0 {
		return 0, errors.New(`a backslash that is not \xNN`)
	}
	return byte(hi<<4 | lo), nil
}

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
