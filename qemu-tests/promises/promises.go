// Package promises writes files of which a power cut may take none, and tells from
// what is on the disk alone whether it took one.
//
// Files are made one after the other, f-<number>-<sha256 of the content>. The next
// one is begun only when the one before it and its name are on stable storage, so
// each file but the last is a promise. Once there are more than Keep, the oldest is
// removed. From this follows what a disk may hold, whenever the power went off: with
// hi the highest number there, all of hi-Keep+1 to hi (from 1 on), perhaps older ones
// that were not removed yet, without a gap; and all of them but hi whole. That the last
// ones are gone together is seen by who was told of them.
package promises

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrBroken says that a promise was not kept: a file is gone, or is not whole.
var ErrBroken = errors.New("a file that was on stable storage is lost")

const prefix = "f-"

// file is one that is there.
type file struct {
	number int
	name   string
	sum    string // of its content, in hex
}

// Writer makes files in Dir.
type Writer struct {
	Dir  string
	Keep int   // so many of the last files stay; from 1
	Most int64 // bytes of the largest file
	Rand *rand.Rand
	// Tell, if there is one, is called with each file's number once it is on stable
	// storage: from then on the file is promised to somebody.
	Tell func(number int) error
}

// Run makes files until ctx ends or one cannot be made, going on after those that are
// there. It returns how many it made. Errors: those of the file system (without room
// for the next file it has promised nothing), never that of ctx.
func (w Writer) Run(ctx context.Context) (made int, err error) {
	list, err := files(w.Dir)
	if err != nil {
		return 0, err
	}
	// The last one is perhaps not whole: it was no promise, and its successor would
	// make it one.
	if n := len(list); n > 0 {
		last := list[n-1]
		if whole, err := last.whole(w.Dir); err != nil || !whole {
			if err = errors.Join(err, os.Remove(filepath.Join(w.Dir, last.name)), syncDir(w.Dir)); err != nil {
				return 0, err
			}
			list = list[:n-1]
		}
	}
	next := 1
	if n := len(list); n > 0 {
		next = list[n-1].number + 1
	}
	for ; ctx.Err() == nil; next++ {
		f, err := w.make(next)
		if err != nil {
			return made, err
		}
		made++
		if w.Tell != nil {
			if err := w.Tell(next); err != nil {
				return made, err
			}
		}
		for list = append(list, f); len(list) > w.Keep; list = list[1:] {
			if err := os.Remove(filepath.Join(w.Dir, list[0].name)); err != nil {
				return made, err
			}
		}
	}
	return made, nil
}

// make makes one file, on stable storage with its name.
func (w Writer) make(number int) (file, error) {
	content := make([]byte, w.Rand.Int64N(w.Most)+1)
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], w.Rand.Uint64())
	rand.NewChaCha8(seed).Read(content)
	sum := sha256.Sum256(content)
	f := file{number: number, sum: hex.EncodeToString(sum[:])}
	f.name = fmt.Sprintf("%s%d-%s", prefix, number, f.sum)
	out, err := os.OpenFile(filepath.Join(w.Dir, f.name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return file{}, err
	}
	_, err = io.Copy(out, bytes.NewReader(content))
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err == nil {
		err = syncDir(w.Dir)
	}
	if err != nil {
		return file{}, errors.Join(err, os.Remove(filepath.Join(w.Dir, f.name)))
	}
	return f, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Check judges what a Writer that keeps so many files has left in dir, when it had told
// of file told as the last (0: of none, or nobody knows), and returns how many promises
// there were. Errors: ErrBroken with the file; those of reading.
func Check(dir string, keep, told int) (promised int, err error) {
	list, err := files(dir)
	if err != nil {
		return 0, err
	}
	if len(list) == 0 || list[len(list)-1].number < told {
		if told > 0 {
			err = fmt.Errorf("%w: file %d, and all after it", ErrBroken, told)
		}
		return 0, err
	}
	first, last := list[0].number, list[len(list)-1].number
	if oldest := max(1, last-keep+1); first > oldest {
		return 0, fmt.Errorf("%w: file %d, as %d is there and %d are kept", ErrBroken, oldest, last, keep)
	}
	for i, f := range list {
		if f.number != first+i {
			return 0, fmt.Errorf("%w: file %d, as %d is there", ErrBroken, first+i, f.number)
		}
		if f.number == last && last > told {
			break
		}
		whole, err := f.whole(dir)
		if err != nil {
			return 0, fmt.Errorf("%w: %w", ErrBroken, err)
		}
		if !whole {
			return 0, fmt.Errorf("%w: the content of file %d is another one", ErrBroken, f.number)
		}
		promised++
	}
	return promised, nil
}

// files are those in dir, by number. Other names are an error: nothing else is there.
func files(dir string) ([]file, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	list := make([]file, 0, len(entries))
	seen := map[int]bool{}
	for _, e := range entries {
		digits, sum, _ := strings.Cut(strings.TrimPrefix(e.Name(), prefix), "-")
		n, err := strconv.Atoi(digits)
		if err != nil || n < 1 || seen[n] || len(sum) != 2*sha256.Size || e.Name() != fmt.Sprintf("%s%d-%s", prefix, n, sum) {
			return nil, fmt.Errorf("%w: there is a file %q, which nobody made", ErrBroken, e.Name())
		}
		seen[n] = true
		list = append(list, file{n, e.Name(), sum})
	}
	slices.SortFunc(list, func(a, b file) int { return a.number - b.number })
	return list, nil
}

// whole says that the file's content is the one that its name tells of.
func (f file) whole(dir string) (bool, error) {
	in, err := os.Open(filepath.Join(dir, f.name))
	if err != nil {
		return false, err
	}
	defer in.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, in); err != nil {
		return false, err
	}
	return hex.EncodeToString(sum.Sum(nil)) == f.sum, nil
}

const mark = "promised file "

// Mark is a number as a Writer's user notes it where no file system is.
func Mark(number int) []byte { return fmt.Appendf(nil, "%s%d\n", mark, number) }

// Told reads the beginning of what Mark was written to: 0 where it was not yet.
func Told(b []byte) (number int, err error) {
	text, there := bytes.CutPrefix(b, []byte(mark))
	if !there {
		return 0, nil
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	return strconv.Atoi(string(line))
}
