package bounded_test

import (
	"os"
	"path/filepath"
	"testing"

	"sealroot/bounded"
)

// A list that was cut short would be one of fewer modules.
func TestReadFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(path, []byte("eight by"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := bounded.ReadFile(path, 8); string(text) != "eight by" || err != nil {
		t.Errorf("at its limit: %q, %v", text, err)
	}
	if text, err := bounded.ReadFile(path, 7); text != nil || err == nil {
		t.Errorf("beyond its limit: %q, %v", text, err)
	}
}
