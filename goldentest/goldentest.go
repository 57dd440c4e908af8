// Package goldentest compares what tests get with files of testdata.
package goldentest

import (
	"os"
	"path/filepath"
	"testing"
)

// Check compares got with the file name in testdata; with SEALROOT_GOLDEN set it
// writes that file anew first.
func Check(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("SEALROOT_GOLDEN") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}
