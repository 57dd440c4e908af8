package boot

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode/utf8"
)

// Log writes lines for a person to the kernel log, where the console, dmesg
// and the journal of the booted system find them. Secrets never go here.
type Log struct {
	mu sync.Mutex
	w  io.Writer
}

// NewLog returns a log that writes one /dev/kmsg record for each line.
func NewLog(w io.Writer) *Log { return &Log{w: w} }

// syslog priorities (facility kern, include/linux/kern_levels.h).
const (
	levelError   = 3
	levelWarning = 4
	levelInfo    = 6
)

// Info says what is going on.
func (l *Log) Info(format string, args ...any) { l.line(levelInfo, format, args...) }

// Warn says what did not go as configured although the boot goes on.
func (l *Log) Warn(format string, args ...any) { l.line(levelWarning, format, args...) }

// Error says what stops the boot, or a slot.
func (l *Log) Error(format string, args ...any) { l.line(levelError, format, args...) }

// maxKmsg is the longest record /dev/kmsg takes (LOG_LINE_MAX in
// kernel/printk/printk.c, less room for the prefix).
const maxKmsg = 900

func (l *Log) line(level int, format string, args ...any) {
	text := clean(fmt.Sprintf(format, args...))
	l.mu.Lock()
	defer l.mu.Unlock()
	// A log that cannot be written must not stop a boot.
	fmt.Fprintf(l.w, "<%d>sealroot: %s\n", level, text)
}

// clean keeps a record on one line, in valid UTF-8 and free of control characters
// (a terminal also obeys those from U+0080 to U+009F): parts of the text come from
// disks and from the kernel command line.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return ' '
		case r < ' ' || r >= 0x7f && r < 0xa0:
			return '?'
		}
		return r
	}, strings.TrimSpace(s))
	if len(s) > maxKmsg {
		n := maxKmsg
		for !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n] + " …"
	}
	return s
}
