package qemutests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// keeper keeps what a failure is about: the folders of tests go when they end. Of one
// test it keeps the first few, for each may have a gigabyte.
type keeper struct {
	dir  string // logDir
	kept int
}

const mostKept = 3

// keep has save write files into a folder that stays, and says which. It ends no test.
func (k *keeper) keep(save func(dir string) error) string {
	if k.kept++; k.kept > mostKept {
		return fmt.Sprintf("not kept, as those of %d failures are", mostKept)
	}
	dir, err := os.MkdirTemp(k.dir, "failed-")
	if err == nil {
		err = save(dir)
	}
	if err != nil {
		return fmt.Sprintf("cannot be kept: %v", err)
	}
	if path, err := filepath.Abs(dir); err == nil {
		dir = path
	}
	return "kept in " + dir
}

// ifFailed keeps files at the end of a test that has failed, whatever is kept already.
func (k *keeper) ifFailed(t *testing.T, what string, paths ...string) {
	t.Helper()
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		t.Logf("%s: %s", what, (&keeper{dir: k.dir}).keep(func(dir string) error {
			for _, path := range paths {
				if err := copySparse(filepath.Join(dir, filepath.Base(path)), path); err != nil {
					return err
				}
			}
			return nil
		}))
	})
}

// What a failure is about is there when its test is over, and of many failures not all.
func TestKept(t *testing.T) {
	k := keeper{dir: t.TempDir()}
	var said []string
	for range mostKept + 1 {
		said = append(said, k.keep(func(dir string) error { return os.WriteFile(filepath.Join(dir, "state"), []byte("whole"), 0o600) }))
	}
	for n, text := range said {
		dir, found := strings.CutPrefix(text, "kept in ")
		if found != (n < mostKept) {
			t.Errorf("failure %d: %s", n+1, text)
		} else if b, err := os.ReadFile(filepath.Join(dir, "state")); found && (err != nil || string(b) != "whole") {
			t.Errorf("failure %d: %q, %v", n+1, b, err)
		}
	}
	if text := (&keeper{dir: filepath.Join(k.dir, "nowhere")}).keep(func(string) error { return nil }); !strings.HasPrefix(text, "cannot be kept") {
		t.Errorf("without a place: %s", text)
	}
}

// copySparse copies a file; what is zero in it becomes a hole.
func copySparse(to, from string) error {
	if text, err := runTool("cp", "--sparse=always", "--reflink=auto", from, to); err != nil {
		return fmt.Errorf("cannot copy %s: %w: %s", from, err, text)
	}
	return nil
}
