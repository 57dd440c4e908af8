package recovery

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestKeptKeyIsReplaced: at every point one of the files holds the old key or the
// new one, root's own, and Forget leaves neither.
func TestKeptKeyIsReplaced(t *testing.T) {
	path := keep(t, "old", 0o600)
	content := func(p string) string {
		key, err := Read(p)
		if err != nil && !errors.Is(err, ErrNone) {
			t.Fatal(err)
		}
		return string(key)
	}
	for range 2 { // the second time something is left over
		if err := Prepare(path, []byte("new")); err != nil {
			t.Fatal(err)
		}
		if content(path) != "old" || content(Pending(path)) != "new" {
			t.Errorf("prepared: %q and %q", content(path), content(Pending(path)))
		}
	}
	if err := Publish(path); err != nil || content(path) != "new" || content(Pending(path)) != "" {
		t.Errorf("published: %q and %q, %v", content(path), content(Pending(path)), err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := errors.Join(Prepare(path, []byte("next")), Forget(path), Forget(path)); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
