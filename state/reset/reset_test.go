package reset

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

const volume = "11111111-2222-4333-8444-aaaaaaaaaaaa"

func TestRead(t *testing.T) {
	for _, keepHome := range []bool{true, false} {
		if got, err := Read(bytes.NewReader(Format(volume, keepHome)), volume); err != nil || got != keepHome {
			t.Errorf("keep %v: got %v, %v", keepHome, got, err)
		}
		if n := len(Format(volume, keepHome)); n > MaxSize {
			t.Errorf("a request has %d bytes, more than %d", n, MaxSize)
		}
	}
	for _, text := range []string{
		"", "factory-reset", "factory-reset-keep-home", string(Format(volume, true)) + "\n", string(Format("", false)), strings.TrimSpace(string(Format(volume, false))), string(Format(volume, false)) + "\n",
		" " + string(Format(volume, false)), strings.ToUpper(string(Format(volume, false))),
		string(Format("11111111-2222-4333-8444-bbbbbbbbbbbb", false)), strings.Repeat("x", 1<<16),
	} {
		if keepHome, err := Read(strings.NewReader(text), volume); keepHome || !errors.Is(err, ErrFormat) || len(err.Error()) > 200 {
			t.Errorf("%.80q: got %v, want ErrFormat", text, err)
		}
	}
}
