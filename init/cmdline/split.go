package cmdline

import (
	"fmt"
	"strings"
)

// word is one parameter as the kernel sees it.
type word struct {
	name, value string
	hasValue    bool
	afterDashes bool // behind "--": for init, not for the kernel
}

// printable is the word for a log: one line of plain ASCII, cut to a sane
// length, so that nobody writes escape sequences to a console through it.
func (w word) printable() string {
	s := w.name
	if w.hasValue {
		s += "=" + w.value
	}
	if len(s) > 80 {
		s = s[:80] + "..."
	}
	quoted := fmt.Sprintf("%+q", s)
	return quoted[1 : len(quoted)-1]
}

// split cuts the line into parameters by the rules of the kernel's
// lib/cmdline.c (next_arg) and kernel/params.c (parse_args): space inside
// double quotes does not separate, quotes around a value or a whole parameter
// fall away, others stay.
func split(line string) []word {
	if end := strings.IndexByte(line, 0); end >= 0 {
		line = line[:end]
	}
	var words []word
	dashes := false
	for line = skipSpaces(line); line != ""; line = skipSpaces(line) {
		var w word
		w, line = next(line)
		if w.name == "--" && !w.hasValue && !dashes {
			dashes = true
			continue
		}
		w.afterDashes = dashes
		words = append(words, w)
	}
	return words
}

func next(line string) (w word, rest string) {
	quoted := line[0] == '"'
	if quoted {
		line = line[1:]
	}
	inQuote := quoted
	equals, end := 0, 0
	for ; end < len(line) && (inQuote || !isSpace(line[end])); end++ {
		// Like the kernel: an = in the first place begins no value.
		if equals == 0 && line[end] == '=' {
			equals = end
		}
		if line[end] == '"' {
			inQuote = !inQuote
		}
	}
	text, rest := line[:end], line[end:]
	if equals > 0 {
		w.name, w.value, w.hasValue = text[:equals], text[equals+1:], true
		if value, ok := strings.CutPrefix(w.value, `"`); ok {
			w.value = strings.TrimSuffix(value, `"`)
		} else if quoted {
			w.value = strings.TrimSuffix(w.value, `"`)
		}
		return w, rest
	}
	if quoted {
		text = strings.TrimSuffix(text, `"`)
	}
	w.name = text
	return w, rest
}

func skipSpaces(s string) string {
	for s != "" && isSpace(s[0]) {
		s = s[1:]
	}
	return s
}

// isSpace is that of the kernel's lib/ctype.c, which counts Latin-1's no-break
// space.
func isSpace(c byte) bool {
	return c == ' ' || c >= '\t' && c <= '\r' || c == 0xa0
}
