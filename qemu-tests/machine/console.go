package machine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"time"
)

// What waiting for the console can end in, besides the expected text.
var (
	// ErrTimeout says that the expected text did not come in time.
	ErrTimeout = errors.New("no such text in time")
	// ErrEnded says that the machine ended first.
	ErrEnded = errors.New("the machine ended first")
)

// escapes are the terminal control sequences that boot loaders and shells write.
var escapes = regexp.MustCompile(`\x1b(\[[0-9;?=]*[A-Za-z]|\][^\x07\x1b]*(\x07|\x1b\\)|[()][A-Z0-9]|[=>78cM])`)

// console collects what a guest writes to its first serial port.
type console struct {
	log   io.Writer
	start time.Time

	mu      sync.Mutex
	grew    time.Time
	text    []byte // without escape sequences and carriage returns
	partial []byte // an escape sequence whose end has not come
	line    []byte // the unfinished line of the log
	cursor  int    // Expect looks from here on
	changed chan struct{}
	closed  bool
}

func newConsole(log io.Writer) *console {
	return &console{log: log, start: time.Now(), grew: time.Now(), changed: make(chan struct{})}
}

// readFrom collects until r ends; another reader may follow.
func (c *console) readFrom(r io.Reader) {
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		c.update(func() { c.add(buf[:n]) })
		if err != nil {
			return
		}
	}
}

// end says that nothing comes any more.
func (c *console) end() {
	c.update(func() {
		c.closed = true
		c.add([]byte("\n"))
	})
}

func (c *console) update(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	c.grew = time.Now()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *console) add(b []byte) {
	b = append(c.partial, b...)
	c.partial = nil
	// Keep back what may be the beginning of an escape sequence.
	if i := bytes.LastIndexByte(b, 0x1b); i >= 0 && len(b)-i < 16 && !escapes.Match(b[i:]) {
		c.partial = bytes.Clone(b[i:])
		b = b[:i]
	}
	b = escapes.ReplaceAll(b, nil)
	b = bytes.ReplaceAll(b, []byte("\r"), nil)
	c.text = append(c.text, b...)
	if c.log == nil {
		return
	}
	for _, ch := range b {
		if ch != '\n' {
			c.line = append(c.line, ch)
			continue
		}
		fmt.Fprintf(c.log, "%8.3f %s\n", time.Since(c.start).Seconds(), c.line)
		c.line = c.line[:0]
	}
}

// expect waits for text that matches, after what the last expect matched.
// It returns the match and its groups.
func (c *console) expect(re *regexp.Regexp, timeout time.Duration) ([]string, error) {
	deadline := time.After(timeout)
	for {
		c.mu.Lock()
		rest := c.text[c.cursor:]
		if loc := re.FindSubmatchIndex(rest); loc != nil {
			var groups []string
			for i := 0; i < len(loc); i += 2 {
				group := ""
				if loc[i] >= 0 {
					group = string(rest[loc[i]:loc[i+1]])
				}
				groups = append(groups, group)
			}
			c.cursor += loc[1]
			c.mu.Unlock()
			return groups, nil
		}
		closed, changed := c.closed, c.changed
		c.mu.Unlock()
		if closed {
			return nil, fmt.Errorf("cannot find %q on the console: %w", re, ErrEnded)
		}
		select {
		case <-changed:
		case <-deadline:
			return nil, fmt.Errorf("cannot find %q on the console in %s: %w", re, timeout, ErrTimeout)
		}
	}
}

// tail returns the last n lines.
func (c *console) tail(n int) string {
	lines := strings.Split(strings.TrimRight(c.all(), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// silence is for how long nothing has come.
func (c *console) silence() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.grew)
}

func (c *console) all() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}
