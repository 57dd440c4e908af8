package hooks

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/sealroot/durable"
	"sealroot/state/layout"
)

// Ran is what is kept in the volume of the system that ran last.
type Ran struct {
	System
	From System `json:"from"` // the one that ran before it
	// Failed are the post-rollback hooks that failed in its first boot, and why.
	Failed []string `json:"failed,omitempty"`
}

// ErrRecord: the record of the system that ran last says nothing.
var ErrRecord = errors.New("bad record")

// maxRan bounds the record, in bytes.
const maxRan = 64 << 10

// Last reads what ran last; the zero value when nobody noted it. volume is the root of
// the encrypted volume. Errors: ErrRecord.
func Last(volume string) (Ran, error) {
	f, err := os.OpenFile(filepath.Join(volume, layout.LastRan), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return Ran{}, nil
	}
	if err != nil {
		return Ran{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxRan))
	if err != nil {
		return Ran{}, err
	}
	return parseRan(text)
}

func parseRan(text []byte) (Ran, error) {
	var r Ran
	if err := json.Unmarshal(text, &r); err != nil {
		return Ran{}, fmt.Errorf("cannot read which system ran last: %w: %w", ErrRecord, err)
	}
	if r.RootHash == "" {
		return Ran{}, fmt.Errorf("cannot read which system ran last: %w: no root hash", ErrRecord)
	}
	if !r.System.plain() || !r.From.plain() {
		return Ran{}, fmt.Errorf("cannot read which system ran last: %w: slot, root hash or version is none", ErrRecord)
	}
	return r, nil
}

// plain says that a system can be told to a hook, which makes paths of what it is told.
func (s System) plain() bool {
	return isWord(s.Slot, 64) && isWord(s.RootHash, 128) && isWord(s.Version, 128)
}

func isWord(s string, most int) bool {
	return len(s) <= most && !strings.ContainsFunc(s, notPlain) && s != "." && s != ".."
}

func notPlain(r rune) bool {
	return !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-+~^:", r)
}

// PlainVersion is the version of an image as hooks are told it: what could be no part
// of a file's name is _ there.
func PlainVersion(version string) string {
	version = strings.Map(func(r rune) rune {
		if notPlain(r) {
			return '_'
		}
		return r
	}, version)
	if version = version[:min(len(version), 128)]; version == "." || version == ".." {
		return "_"
	}
	return version
}

// Keep notes what runs, durably: a power cut leaves the note of before or this one. Errors:
// ErrRecord for a system that no record can tell of.
func (r Ran) Keep(volume string) error { return r.write(filepath.Join(volume, layout.LastRan)) }

// Prepare writes the note beside the one that counts, so that Settle needs no room on
// the volume. Errors: ErrRecord.
func (r Ran) Prepare(volume string) error { return r.write(filepath.Join(volume, layout.NextRan)) }

// Settle makes the prepared note the one that counts, durably.
func Settle(volume string) error {
	if err := durable.Rename(filepath.Join(volume, layout.NextRan), filepath.Join(volume, layout.LastRan)); err != nil {
		return fmt.Errorf("cannot note which system runs: %w", err)
	}
	return nil
}

func (r Ran) write(path string) error {
	text, err := json.Marshal(r)
	if err == nil && len(text) > maxRan { // what the hooks have said
		r.Failed = []string{"more hooks than can be listed here"}
		text, err = json.Marshal(r)
	}
	if err == nil {
		_, err = parseRan(text)
	}
	if err != nil {
		return fmt.Errorf("cannot note which system runs: %w", err)
	}
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := durable.WriteFile(path, text); err != nil {
		return fmt.Errorf("cannot note which system runs: %w", err)
	}
	return nil
}

// RolledBack tells whether a boot came back to an image: it is not on trial, and the
// system that ran last was another one in another slot. (Another image in the same slot,
// with no trial, was written there by hand.)
func (r Ran) RolledBack(now System, trial bool) bool {
	return r.RootHash != "" && !trial && r.RootHash != now.RootHash && r.Slot != now.Slot
}
