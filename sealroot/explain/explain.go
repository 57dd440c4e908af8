// Package explain says what is mounted where in a root that PID 1 has assembled, and
// why: of a boot by its report, of an image by its configuration. Both are pure
// functions; nothing is looked at and nothing mounted.
package explain

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"sealroot/sealroot/terminal"
)

// Schema is the version of the JSON form.
const Schema = 1

// Explanation is what is told of one boot, or of those to come.
type Explanation struct {
	Schema int `json:"schema"`
	// Plan: of an image, which no machine has booted.
	Plan  bool   `json:"plan"`
	Slot  string `json:"slot"`
	Image string `json:"image"` // name and version
	// Mounts stand in the order in which they are made: a later one hides an earlier
	// one at the same place.
	Mounts []Mount `json:"mounts"`
	// Notes say what is not mounted, and what nobody can know before.
	Notes []string `json:"notes,omitempty"`
}

// Mount is one place and what is mounted there.
type Mount struct {
	Where   string   `json:"where"`
	What    string   `json:"what"`
	Type    string   `json:"type"`
	Options []string `json:"options,omitempty"`
	Why     string   `json:"why"`
	// DependsOn is the state of the machine that decides about it, in a plan.
	DependsOn string `json:"depends_on,omitempty"`
}

func (e *Explanation) note(format string, args ...any) {
	e.Notes = append(e.Notes, fmt.Sprintf(format, args...))
}

// JSON is the form for programs, indented, with a final newline.
func (e Explanation) JSON() ([]byte, error) {
	b, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(b, '\n'), nil
}

// Text is the form for people. Names come from a disk: what would steer a terminal is
// not in it.
func (e Explanation) Text() string {
	var b strings.Builder
	verb := "is"
	if e.Plan {
		verb = "would be"
	}
	fmt.Fprintf(&b, "slot %s, %s: what %s mounted, in this order\n\n", terminal.Printable(e.Slot), terminal.Printable(e.Image), verb)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, m := range e.Mounts {
		what := m.What + " (" + strings.Join(append([]string{m.Type}, m.Options...), ", ") + ")"
		fmt.Fprintf(w, "%s\t%s\n\t%s\n", terminal.Printable(m.Where), terminal.Printable(what), terminal.Printable(m.Why))
		if m.DependsOn != "" {
			fmt.Fprintf(w, "\tdepends on: %s\n", terminal.Printable(m.DependsOn))
		}
	}
	w.Flush()
	for i, n := range e.Notes {
		if i == 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "- %s\n", terminal.Printable(n))
	}
	return b.String()
}
