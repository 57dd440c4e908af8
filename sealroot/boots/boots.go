// Package boots keeps the reports of the last boots on the state partition, as
// files .sealroot/boots/<n>-<boot id>.json. The partition is not encrypted and
// anybody may have written it: what is read there is bounded and a hint.
package boots

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/state/layout"
)

// State is where PID 1 mounts the state partition.
const State = layout.State

// Keep is how many reports are kept.
const Keep = 10

const (
	folder    = layout.Boots
	temporary = ".new"
	// maxReport bounds one report, maxNames the names that are looked at.
	maxReport = 256 << 10
	maxNames  = 1000
	maxNumber = 999_999_999
)

// ErrReport: this is no boot report.
var ErrReport = errors.New("not a boot report")

// Report is one that is kept.
type Report struct {
	Number   int // counts up from boot to boot
	BootID   string
	Recorded time.Time // when it was kept, by a clock that may have been wrong
	Text     []byte    // boot.json as it was, or ErrReport when it is none now
}

// Record keeps reports, the oldest first; one whose boot is kept already is
// left out. The oldest ones beyond Keep are deleted. Each file is written under
// another name, synced and renamed, so that a power cut leaves it whole or not
// there; a leftover is overwritten by the next call.
func Record(state string, reports ...[]byte) error {
	dir, err := open(state, true)
	if err != nil {
		return fmt.Errorf("cannot keep a boot report: %w", err)
	}
	defer dir.Close()
	kept, err := list(dir)
	if err != nil {
		return fmt.Errorf("cannot keep a boot report: %w", err)
	}
	var errs []error
	for _, text := range reports {
		id, err := bootID(text)
		if err == nil && !slices.ContainsFunc(kept, func(n name) bool { return n.id == id }) {
			next := name{1, id}
			if len(kept) > 0 {
				next.number = kept[len(kept)-1].number + 1
			}
			if err = write(dir, next, text); err == nil {
				kept = append(kept, next)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot keep a boot report: %w", err))
		}
	}
	for _, old := range kept[:max(0, len(kept)-Keep)] {
		// crash point: one more than Keep; the next call deletes it
		if err := dir.Remove(old.file()); err != nil {
			errs = append(errs, fmt.Errorf("cannot delete an old boot report: %w", err))
		}
	}
	return errors.Join(errs...)
}

// List returns the reports that are kept, the oldest first, at most Keep. A
// file that cannot be read is an error beside the others.
func List(state string) ([]Report, error) {
	dir, err := open(state, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list the boot reports: %w", err)
	}
	defer dir.Close()
	names, err := list(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot list the boot reports: %w", err)
	}
	var all []Report
	var errs []error
	for _, n := range names[max(0, len(names)-Keep):] {
		r, err := read(dir, n)
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot read a boot report: %w", err))
			continue
		}
		all = append(all, r)
	}
	return all, errors.Join(errs...)
}

// open opens the folder. Links in its path cannot lead out of the partition.
func open(state string, make bool) (*os.Root, error) {
	root, err := os.OpenRoot(state)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if make {
		if err := root.MkdirAll(folder, 0o700); err != nil {
			return nil, err
		}
	}
	return root.OpenRoot(folder)
}

type name struct {
	number int
	id     string
}

func (n name) file() string { return strconv.Itoa(n.number) + "-" + n.id + ".json" }

// list returns the names that are ours by number.
func list(dir *os.Root) ([]name, error) {
	d, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	files, err := d.Readdirnames(maxNames)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var names []name
	for _, f := range files {
		if n, ok := parse(f); ok {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, func(a, b name) int {
		if a.number != b.number {
			return a.number - b.number
		}
		return strings.Compare(a.id, b.id)
	})
	return names, nil
}

// parse reads a file name; one that this package would not write is not ours.
func parse(file string) (name, bool) {
	stem, ok := strings.CutSuffix(file, ".json")
	if !ok {
		return name{}, false
	}
	number, id, ok := strings.Cut(stem, "-")
	if !ok || !validID(id) {
		return name{}, false
	}
	n, err := strconv.Atoi(number)
	// a number at the end of the range could end the count
	if err != nil || n < 1 || n >= maxNumber || strconv.Itoa(n) != number {
		return name{}, false
	}
	return name{n, id}, true
}

// validID accepts the kernel's boot IDs.
func validID(id string) bool {
	return len(id) > 0 && len(id) <= 64 && strings.Trim(id, "0123456789abcdef-") == ""
}

// bootID is the boot that a report is of.
func bootID(text []byte) (string, error) {
	var r struct {
		BootID string `json:"boot_id"`
	}
	if len(text) > maxReport {
		return "", fmt.Errorf("%d bytes: %w", len(text), ErrReport)
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return "", fmt.Errorf("%w: %w", ErrReport, err)
	}
	if !validID(r.BootID) {
		return "", fmt.Errorf("boot ID %.80q: %w", r.BootID, ErrReport)
	}
	return r.BootID, nil
}

func write(dir *os.Root, n name, text []byte) (err error) {
	// Whatever has the name: a link or a pipe must not be written through.
	if err := dir.RemoveAll(temporary); err != nil {
		return err
	}
	f, err := dir.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	// crash point: a part of the report under the temporary name
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	// crash point: whole, under the temporary name
	if err := dir.Rename(temporary, n.file()); err != nil {
		return err
	}
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func read(dir *os.Root, n name) (Report, error) {
	f, err := dir.OpenFile(n.file(), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return Report{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Report{}, err
	}
	if !st.Mode().IsRegular() {
		return Report{}, fmt.Errorf("%s: %w", path.Join(folder, n.file()), ErrReport)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxReport+1))
	if err != nil {
		return Report{}, err
	}
	if id, err := bootID(text); err != nil || id != n.id {
		return Report{}, errors.Join(fmt.Errorf("%s: %w", path.Join(folder, n.file()), ErrReport), err)
	}
	return Report{Number: n.number, BootID: n.id, Recorded: st.ModTime(), Text: text}, nil
}

// SameBoot says whether two reports are of one boot.
func SameBoot(a, b []byte) bool {
	one, errA := bootID(a)
	other, errB := bootID(b)
	return errA == nil && errB == nil && one == other
}

// Valid says whether the text is a report that Record would keep.
func Valid(text []byte) bool {
	_, err := bootID(text)
	return err == nil
}
