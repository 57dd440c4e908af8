package slots

import (
	"errors"
	"fmt"
	"testing"
)

// One thing that failed is one line, which tells each operation once.
func TestErrorsAreOneLine(t *testing.T) {
	failed := func(what string) map[string]error {
		return map[string]error{what: fmt.Errorf("cannot %s: %w", what, errors.New("broken"))}
	}
	trial := Decision{Slots: []Slot{{Name: "b"}}, SetDefault: "b", Rearm: "b", Log: LogChange{SetPauses: true}}
	for _, tt := range []struct {
		fails string
		do    func(f failing) error
		want  string
	}{
		{"save", func(f failing) error { return Apply(trial, f, f, f) },
			"slot store not written: cannot save: broken"},
		{"default", func(f failing) error { return Apply(trial, f, f, f) },
			"boot loader's default not written: slot b: cannot default: broken"},
		{"arm", func(f failing) error { return Apply(trial, f, f, f) },
			"boot loader's one-shot not written: slot b: cannot arm: broken"},
		{"clear", func(f failing) error { return Apply(Decision{ClearArmed: true}, f, f, f) },
			"boot loader's one-shot not written: cannot clear: broken"},
		{"record", func(f failing) error { return Apply(trial, f, f, f) },
			"boot log not written: cannot record: broken"},
		{"save", func(f failing) error { return CommitNow(Commitment{Running: "b", Loaded: "b"}, f, f, f) },
			"cannot commit slot b: slot store not written: cannot save: broken"},
		{"default", func(f failing) error { return CommitNow(Commitment{Running: "b", Loaded: "b"}, f, f, f) },
			"boot loader's default not written: slot b: cannot default: broken"},
		{"clear", func(f failing) error { return CommitNow(Commitment{Running: "b", Loaded: "b"}, f, f, f) },
			"boot loader's one-shot not written: cannot clear: broken"},
		{"record", func(f failing) error { return CommitNow(Commitment{Running: "b", Loaded: "b"}, f, f, f) },
			"boot log not written: cannot record: broken"},
	} {
		var trace []string
		if err := tt.do(failing{failed(tt.fails), &trace}); err == nil || err.Error() != tt.want {
			t.Errorf("%s fails: %v\nwant: %s", tt.fails, err, tt.want)
		}
	}
}
