package bls

import (
	"bytes"
	"slices"
	"strings"

	"sealroot/slots"
	"sealroot/slots/esp"
	"sealroot/slots/statetext"
)

// StateSize is the size of sealroot/slots: one sector, so that a power cut
// leaves the old or the new content, like GRUB's environment block.
const StateSize = 512

// The lines of sealroot/slots. The file is filled up with newlines.
const (
	keySlots       = "sealroot_slots="
	keyFiles       = "sealroot_files="
	keyBeforeSlots = "sealroot_slots_before="
	keyBeforeFiles = "sealroot_files_before="
)

// record is a state and the names that belong to it, in the order of the slots.
type record struct {
	slots []slots.Slot
	marks []mark
}

func (r record) equal(o record) bool {
	return slices.Equal(r.slots, o.slots) && slices.Equal(r.marks, o.marks)
}

// encode writes the state and the one before it, which is left out when it does
// not fit.
func encode(now, before record) ([]byte, error) {
	text := keySlots + statetext.Format(now.slots) + "\n" + keyFiles + formatMarks(now) + "\n"
	if len(text) > StateSize {
		return nil, ErrFull
	}
	if len(before.slots) > 0 {
		more := keyBeforeSlots + statetext.Format(before.slots) + "\n" + keyBeforeFiles + formatMarks(before) + "\n"
		if len(text)+len(more) <= StateSize {
			text += more
		}
	}
	return append([]byte(text), bytes.Repeat([]byte("\n"), StateSize-len(text))...), nil
}

// decode reads sealroot/slots. A record that is damaged or missing is empty.
func decode(b []byte) (now, before record) {
	if len(b) != StateSize {
		return record{}, record{}
	}
	values := map[string]string{}
	for line := range strings.SplitSeq(string(b), "\n") {
		if i := strings.IndexByte(line, '='); i >= 0 {
			values[line[:i+1]] = line[i+1:]
		}
	}
	return parseRecord(values[keySlots], values[keyFiles]), parseRecord(values[keyBeforeSlots], values[keyBeforeFiles])
}

func parseRecord(state, files string) record {
	list, err := statetext.Parse(state)
	if err != nil {
		return record{}
	}
	r := record{slots: list}
	for i, text := range strings.Split(files, ",") {
		if i >= len(list) {
			return record{}
		}
		rest, ok := strings.CutPrefix(text, list[i].Name)
		m, good := parseMark(rest)
		if !ok || !good {
			return record{}
		}
		r.marks = append(r.marks, m)
	}
	if len(r.marks) != len(list) {
		return record{}
	}
	return r
}

// formatMarks writes "a,b+3-0,c-": committed, with a counter, no file.
func formatMarks(r record) string {
	var parts []string
	for i, m := range r.marks {
		part := r.slots[i].Name + m.counter().String()
		if !m.exists {
			part += "-"
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ",")
}

func parseMark(s string) (mark, bool) {
	switch s {
	case "":
		return mark{exists: true}, true
	case "-":
		return mark{}, true
	}
	count, ok := strings.CutPrefix(s, "+")
	if !ok {
		return mark{}, false
	}
	c, ok := esp.ParseCounter(count)
	return markOf(c), ok
}
