// Package keystest gives tests the keys of a builder. They are made once for a test
// program: looking for primes takes a second each time, ten times of what is tested.
package keystest

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"sealroot/mkinitramfs/keys"
)

// file is one of the files that keys.Generate makes.
type file struct {
	content []byte
	mode    os.FileMode
}

var ours, others = sync.OnceValues(generate), sync.OnceValues(generate)

// Write puts a set of keys into dir, which is made when missing, as keys.Generate
// does. The set is the same at each call.
func Write(t *testing.T, dir string) { t.Helper(); write(t, dir, ours) }

// WriteOther is Write for another set, none of whose keys are those of Write.
func WriteOther(t *testing.T, dir string) { t.Helper(); write(t, dir, others) }

func write(t *testing.T, dir string, set func() (map[string]file, error)) {
	t.Helper()
	files, err := set()
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	for name, f := range files {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), f.content, f.mode)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

func generate() (map[string]file, error) {
	dir, err := os.MkdirTemp("", "keys")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := keys.Generate(dir, "test", time.Now()); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	files := map[string]file{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		files[e.Name()] = file{content, info.Mode()}
	}
	return files, nil
}
