package boot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What the stub has left is handed on where it is there; what cannot be is told.
func TestPassOn(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "run/systemd/to")
	if err := passOn(from, to); err != nil {
		t.Errorf("nothing to hand on: %v", err)
	}
	if err := os.WriteFile(from, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := passOn(from, to); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(to); string(text) != "text" {
		t.Errorf("handed on: %q, %v", text, err)
	}
	dangling := filepath.Join(dir, "dangling")
	if err := os.Symlink(filepath.Join(dir, "nowhere", "to"), dangling); err != nil {
		t.Fatal(err)
	}
	for what, paths := range map[string][2]string{"no place": {from, from + "/to"}, "a place that is not there": {from, dangling}, "what cannot be read": {dir, to + "2"}} {
		if err := passOn(paths[0], paths[1]); err == nil || !strings.HasPrefix(err.Error(), "cannot hand on "+paths[0]+": ") {
			t.Errorf("%s: %v, want an error that names the file", what, err)
		}
	}
}
