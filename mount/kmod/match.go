package kmod

import "strings"

// Match tells whether a device's modalias fits the pattern of a module's alias,
// as fnmatch(3) with no flags does it: * and ? match any byte, also a slash,
// and [a-f], [!x], [^x] one of a set; a backslash takes the next byte as it is.
// A pattern with an unfinished set fits only itself. The time is bounded by the product of
// the two lengths.
func Match(pattern, alias string) bool {
	p, a := 0, 0
	star, from := -1, 0 // last *, and where in alias it was tried
	for a < len(alias) {
		if p < len(pattern) && pattern[p] == '*' {
			star, from = p, a
			p++
			continue
		}
		if n, ok := matchOne(pattern[p:], alias[a]); ok {
			p += n
			a++
			continue
		}
		if star < 0 {
			return false
		}
		// Let the last star take one byte more.
		from++
		p, a = star+1, from
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// matchOne matches one byte against the pattern's first element and returns the
// element's length.
func matchOne(pattern string, c byte) (n int, ok bool) {
	if pattern == "" {
		return 0, false
	}
	switch pattern[0] {
	case '?':
		return 1, true
	case '[':
		if n, ok, closed := matchSet(pattern, c); closed {
			return n, ok
		}
	case '\\':
		if len(pattern) > 1 {
			return 2, pattern[1] == c
		}
	}
	return 1, pattern[0] == c
}

// matchSet matches a byte against a set that begins the pattern.
func matchSet(pattern string, c byte) (n int, ok, closed bool) {
	i := 1
	negated := i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^')
	if negated {
		i++
	}
	for first := i; i < len(pattern); i++ {
		lo := pattern[i]
		if lo == ']' && i > first {
			return i + 1, ok != negated, true
		}
		hi := lo
		if i+2 < len(pattern) && pattern[i+1] == '-' && pattern[i+2] != ']' {
			hi = pattern[i+2]
			i += 2
		}
		if lo <= c && c <= hi {
			ok = true
		}
	}
	return 0, false, false
}
