package luks2

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strconv"
)

// reader takes fields out of parsed JSON and keeps the first thing that was
// wrong; after that it returns zero values, and the caller looks at err once.
type reader struct{ err error }

// object is a JSON object with the place it stands at, for messages.
type object struct {
	path    string
	members map[string]value
}

func (r *reader) failf(sentinel error, path, format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s: %s", sentinel, path, fmt.Sprintf(format, args...))
	}
}

// object checks that v is an object that has no keys but the ones named.
func (r *reader) object(path string, v value, keys ...string) object {
	if v.kind != kindObject {
		r.failf(ErrHeader, path, "not an object")
		return object{path: path}
	}
	for _, k := range slices.Sorted(maps.Keys(v.members)) {
		if !slices.Contains(keys, k) {
			r.failf(ErrUnsupported, path, "unknown key %.40q", k)
		}
	}
	return object{path: path, members: v.members}
}

func (r *reader) get(o object, key string, k kind) value {
	v, ok := o.members[key]
	if !ok {
		r.failf(ErrHeader, o.path, "%s is missing", key)
		return value{}
	}
	if v.kind != k {
		r.failf(ErrHeader, o.path, "%s has the wrong type", key)
		return value{}
	}
	return v
}

// numbered returns the members of an object whose keys are ids ("0" to "31").
func (r *reader) numbered(path string, v value) map[int]value {
	if v.kind != kindObject {
		r.failf(ErrHeader, path, "not an object")
		return nil
	}
	m := make(map[int]value, len(v.members))
	for _, k := range slices.Sorted(maps.Keys(v.members)) {
		if id, ok := parseID(k); ok {
			m[id] = v.members[k]
		} else {
			r.failf(ErrHeader, path, "%.40q is not an id", k)
		}
	}
	return m
}

// parseID accepts "0" to "31" in their only spelling.
func parseID(s string) (int, bool) {
	if len(s) == 0 || len(s) > 2 {
		return 0, false
	}
	id, err := strconv.Atoi(s)
	if err != nil || id < 0 || id >= MaxKeyslots || strconv.Itoa(id) != s {
		return 0, false
	}
	return id, true
}

// text returns a string that must be one of allowed; what is not is a feature
// that we refuse.
func (r *reader) text(o object, key string, allowed ...string) string {
	s := r.get(o, key, kindString).text
	if i := slices.Index(allowed, s); i >= 0 {
		return allowed[i] // ours, not the disk's
	}
	r.failf(ErrUnsupported, o.path, "%s is %.40q", key, s)
	return ""
}

// number returns a JSON number between lo and hi; outside of them the error
// wraps sentinel.
func (r *reader) number(o object, key string, lo, hi int, sentinel error) int {
	s := r.get(o, key, kindNumber).text
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || strconv.FormatInt(n, 10) != s || n < int64(lo) || n > int64(hi) {
		r.failf(sentinel, o.path, "%s is %.40s, want %d to %d", key, s, lo, hi)
		return 0
	}
	return int(n)
}

// u64 returns a 64-bit number, which LUKS2 writes as a string.
func (r *reader) u64(o object, key string) uint64 {
	s := r.get(o, key, kindString).text
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || strconv.FormatUint(n, 10) != s {
		r.failf(ErrHeader, o.path, "%s is not a number: %.40q", key, s)
		return 0
	}
	return n
}

// bytes returns base64 of lo to hi bytes.
func (r *reader) bytes(o object, key string, lo, hi int) []byte {
	b, err := base64.StdEncoding.Strict().DecodeString(r.get(o, key, kindString).text)
	if err != nil || len(b) < lo || len(b) > hi {
		r.failf(ErrHeader, o.path, "%s is not base64 of %d to %d bytes", key, lo, hi)
		return nil
	}
	return b
}

// ids returns an array of ids without repetition, sorted.
func (r *reader) ids(o object, key string) []int {
	ids := []int{}
	for _, e := range r.get(o, key, kindArray).elems {
		id, ok := parseID(e.text)
		if e.kind != kindString || !ok || slices.Contains(ids, id) {
			r.failf(ErrHeader, o.path, "%s holds a bad id", key)
			return nil
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
