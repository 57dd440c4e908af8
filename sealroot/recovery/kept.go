package recovery

import (
	"errors"
	"fmt"
	"io/fs"

	"sealroot/sealroot/durable"
	"sealroot/state/layout"
)

// A kept key and its keyslot change together. The file of the new key is written
// beside the old one first (Prepare), then the header changes, then the file takes
// its name (Publish). Crash points:
//
//	before the header: the old key opens, the new file is good for nothing
//	after it:          the new file holds the key, under the name that Pending gives
//
// Whoever uses a kept key tries both.

// Pending is where the new key of the file at path waits.
func Pending(path string) string { return path + layout.PendingSuffix }

// Prepare writes the new key of the file at path, and is done when it is on stable
// storage.
func Prepare(path string, key []byte) error {
	if err := destroy(Pending(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := durable.Create(Pending(path), key); err != nil {
		return fmt.Errorf("cannot keep the new key: %w", err)
	}
	return nil
}

// Publish gives the new key the name of the old one.
func Publish(path string) error {
	if err := durable.Rename(Pending(path), path); err != nil {
		return fmt.Errorf("cannot keep the new key: %w", err)
	}
	return nil
}

// Drop deletes the new key of a change that never was.
func Drop(path string) error { return destroy(Pending(path)) }

// Forget deletes a kept key, and one that waits; it is no error when there is none.
func Forget(path string) error {
	var errs []error
	for _, p := range []string{path, Pending(path)} {
		if err := destroy(p); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
