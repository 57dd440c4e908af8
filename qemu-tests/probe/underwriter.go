package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"sealroot/state/resize"
)

// underWriterMost is how long that may go on: less than whoever asked for it waits.
const underWriterMost = 200 * time.Second

// underWriter lets the volume grow and shrink at random while files are written to a
// directory in it: for some seconds, and on until there were so many files, and it grew
// and shrank so many times each. The end may come in the middle of a resize.
//
//	resize-under-writer SECONDS FILES TIMES DIR
func underWriter(w io.Writer, words []string) error {
	if len(words) != 5 {
		return errors.New("usage: resize-under-writer SECONDS FILES TIMES DIR")
	}
	seconds, err1 := strconv.Atoi(words[1])
	wantFiles, err2 := strconv.ParseInt(words[2], 10, 64)
	wantTimes, err3 := strconv.ParseInt(words[3], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	v, err := openVolume()
	if err != nil {
		return err
	}
	defer v.Close()
	ctx, cancel := context.WithTimeout(context.Background(), underWriterMost)
	defer cancel()
	var files, larger, smaller atomic.Int64
	least := time.Now().Add(time.Duration(seconds) * time.Second)
	written := make(chan error, 1)
	go func() {
		var err error
		for ctx.Err() == nil && err == nil {
			if err = writeNamed(words[4], int(files.Load())); err == nil {
				files.Add(1)
			}
			if time.Now().After(least) && files.Load() >= wantFiles && min(larger.Load(), smaller.Load()) >= wantTimes {
				cancel()
			}
		}
		written <- err
	}()
	random := rand.New(rand.NewPCG(1, 2))
	for ctx.Err() == nil && err == nil {
		var s, after resize.Sizes
		if s, err = v.Measure(); err != nil {
			break
		}
		want := s.MinReserved + random.Int64N(max(s.MaxReserved-s.MinReserved, 1))
		after, err = v.Resize(ctx, want)
		// The writer goes on meanwhile: what was measured may be too old.
		if errors.Is(err, resize.ErrTooSmall) || errors.Is(err, resize.ErrNoRoom) || ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			err = nil
		}
		if after.OverCommitted > 0 {
			err = errors.Join(err, fmt.Errorf("%d bytes are over-committed", after.OverCommitted))
		}
		switch {
		case after.Reserved > s.Reserved:
			larger.Add(1)
		case after.Reserved < s.Reserved:
			smaller.Add(1)
		}
	}
	cancel()
	err = errors.Join(err, <-written)
	fmt.Fprintf(w, "%d files, larger %d times, smaller %d times\n", files.Load(), larger.Load(), smaller.Load())
	return err
}

// writeNamed writes a file under the name of its sum, and removes one from time to time.
func writeNamed(dir string, n int) error {
	b := make([]byte, 1+rand.IntN(256<<10))
	for i := range b {
		b[i] = byte(n + i/64)
	}
	f, err := os.Create(filepath.Join(dir, ".new"))
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, fmt.Sprintf("%x", sha256.Sum256(b)))); err != nil || n%3 != 0 {
		return err
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err == nil && len(names) > 20 {
		err = os.Remove(names[rand.IntN(len(names))])
	}
	return err
}

// verifyNamed reads all such files: verify DIR.
func verifyNamed(w io.Writer, words []string) error {
	names, err := filepath.Glob(filepath.Join(words[len(words)-1], "*"))
	if err != nil {
		return err
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if fmt.Sprintf("%x", sha256.Sum256(b)) != filepath.Base(name) {
			return fmt.Errorf("%s with %d bytes is not what was written", name, len(b))
		}
	}
	fmt.Fprintf(w, "%d files\n", len(names))
	return nil
}
