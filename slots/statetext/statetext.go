// Package statetext writes the state of all slots as one short text, for stores
// whose own form cannot express every state: "a:2:0:1,b:3:3:0" is, for each
// slot, name:priority:tries:successful.
package statetext

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"sealroot/slots"
)

// ErrFormat: the text is not the state of slots.
var ErrFormat = errors.New("not the state of slots")

// MaxLen is longer than the state of 26 slots.
const MaxLen = 26 * len("a:15:15:1,")

// Format writes the state.
func Format(list []slots.Slot) string {
	var b strings.Builder
	for i, s := range list {
		if i > 0 {
			b.WriteByte(',')
		}
		good := "0"
		if s.Successful {
			good = "1"
		}
		b.WriteString(s.Name + ":" + strconv.Itoa(s.Priority) + ":" + strconv.Itoa(s.Tries) + ":" + good)
	}
	return b.String()
}

// Parse reads the state. It accepts only what Format writes for slots a to z,
// each named once and in the order of their names: a text is either ours or not.
// ErrFormat for everything else, the empty text included.
func Parse(text string) ([]slots.Slot, error) {
	if len(text) > MaxLen {
		return nil, fmt.Errorf("cannot read %d characters: %w", len(text), ErrFormat)
	}
	var out []slots.Slot
	for part := range strings.SplitSeq(text, ",") {
		f := strings.Split(part, ":")
		if len(f) != 4 {
			return nil, fmt.Errorf("cannot read %q: %w", text, ErrFormat)
		}
		priority, err1 := strconv.Atoi(f[1])
		tries, err2 := strconv.Atoi(f[2])
		if err1 != nil || err2 != nil || priority < 0 || priority > slots.MaxPriority || tries < 0 || tries > slots.MaxTries {
			return nil, fmt.Errorf("cannot read %q: %w", text, ErrFormat)
		}
		out = append(out, slots.Slot{Name: f[0], Priority: priority, Tries: tries, Successful: f[3] == "1"})
	}
	for i, s := range out {
		if len(s.Name) != 1 || s.Name < "a" || s.Name > "z" || i > 0 && s.Name <= out[i-1].Name {
			return nil, fmt.Errorf("cannot read %q: %w", text, ErrFormat)
		}
	}
	if Format(out) != text {
		return nil, fmt.Errorf("cannot read %q: %w", text, ErrFormat)
	}
	return out, nil
}

// For reads the state of exactly the slots named, which are in the order of
// their names. ErrFormat when the text is of other slots.
func For(names []string, text string) ([]slots.Slot, error) {
	list, err := Parse(text)
	if err != nil {
		return nil, err
	}
	same := slices.EqualFunc(list, names, func(s slots.Slot, name string) bool { return s.Name == name })
	if !same {
		return nil, fmt.Errorf("cannot use %q for slots %v: %w", text, names, ErrFormat)
	}
	return list, nil
}

// Merge returns the current state with the slots in want replaced.
// slots.ErrUnknownSlot when one of them does not exist.
func Merge(current, want []slots.Slot) ([]slots.Slot, error) {
	out := slices.Clone(current)
	for _, w := range want {
		i := slices.IndexFunc(out, func(s slots.Slot) bool { return s.Name == w.Name })
		if i < 0 {
			return nil, fmt.Errorf("cannot change slot %q: %w", w.Name, slots.ErrUnknownSlot)
		}
		out[i] = w
	}
	return out, nil
}
