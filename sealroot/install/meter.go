package install

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Meter shows progress on a terminal, or as lines elsewhere.
type Meter struct {
	Out io.Writer
	// Lines writes a line for every tenth instead of changing one line.
	Lines bool
	Now   func() time.Time

	mu    sync.Mutex
	name  string
	total int64
	done  int64
	shown int64 // the last percentage
	begun time.Time
}

// Quiet is a Progress that shows nothing.
type Quiet struct{}

// Step does nothing.
func (Quiet) Step(string, int64) {}

// Add does nothing.
func (Quiet) Add(int64) {}

// Done does nothing.
func (Quiet) Done() {}

var (
	_ Progress = (*Meter)(nil)
	_ Progress = Quiet{}
)

// Step begins a step.
func (m *Meter) Step(name string, total int64) {
	m.Done()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.name, m.total, m.done, m.shown, m.begun = name, max(total, 1), 0, -1, m.Now()
}

// Add counts n more bytes. Calls may come at the same time.
func (m *Meter) Add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done = min(m.done+n, m.total)
	percent := m.done * 100 / m.total
	if m.Lines {
		percent = percent / 10 * 10
	}
	if m.name == "" || percent == m.shown {
		return
	}
	m.shown = percent
	text := fmt.Sprintf("%-18s %3d %%%s", m.name, percent, m.speed())
	if m.Lines {
		fmt.Fprintln(m.Out, text)
		return
	}
	fmt.Fprintf(m.Out, "\r%-45s", text)
}

func (m *Meter) speed() string {
	seconds := m.Now().Sub(m.begun).Seconds()
	if seconds < 0.1 {
		return ""
	}
	return fmt.Sprintf("  %.1f MB/s", float64(m.done)/1e6/seconds)
}

// Done ends the line.
func (m *Meter) Done() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.name != "" && m.shown >= 0 && !m.Lines {
		fmt.Fprintln(m.Out)
	}
	m.name = ""
}
