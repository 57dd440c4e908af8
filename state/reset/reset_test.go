package reset

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

const volume = "11111111-2222-4333-8444-aaaaaaaaaaaa"

func TestRead(t *testing.T) {
	if err := Read(bytes.NewReader(Format(volume)), volume); err != nil {
		t.Error(err)
	}
	for _, text := range []string{
		"", "factory-reset", string(Format("")), strings.TrimSpace(string(Format(volume))), string(Format(volume)) + "\n",
		" " + string(Format(volume)), strings.ToUpper(string(Format(volume))),
		string(Format("11111111-2222-4333-8444-bbbbbbbbbbbb")), strings.Repeat("x", 1<<16),
	} {
		if err := Read(strings.NewReader(text), volume); !errors.Is(err, ErrFormat) || len(err.Error()) > 200 {
			t.Errorf("%.80q: got %v, want ErrFormat", text, err)
		}
	}
}
