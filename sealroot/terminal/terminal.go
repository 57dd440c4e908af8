// Package terminal makes text of a disk safe to show.
package terminal

import "strings"

// Printable is text without what would steer a terminal or turn the reading
// direction: each such character becomes a question mark.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069' {
			return '?'
		}
		return r
	}, text)
}
