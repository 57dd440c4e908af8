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
	"time"

	"sealroot/state/resize"
)

// underWriter lets the volume grow and shrink at random for some seconds while files
// are written to a directory in it: resize-under-writer SECONDS DIR.
func underWriter(w io.Writer, words []string) error {
	if len(words) != 3 {
		return errors.New("usage: resize-under-writer SECONDS DIR")
	}
	seconds, err := strconv.Atoi(words[1])
	if err != nil {
		return err
	}
	v, err := openVolume()
	if err != nil {
		return err
	}
	defer v.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(seconds)*time.Second)
	defer cancel()
	written := make(chan error, 1)
	files := 0
	go func() {
		var err error
		for ; ctx.Err() == nil && err == nil; files++ {
			err = writeNamed(words[2], files)
		}
		written <- err
	}()
	random := rand.New(rand.NewPCG(1, 2))
	larger, smaller := 0, 0
	for ctx.Err() == nil && err == nil {
		var s, after resize.Sizes
		if s, err = v.Measure(); err != nil {
			break
		}
		want := s.MinReserved + random.Int64N(max(s.MaxReserved-s.MinReserved, 1))
		after, err = v.Resize(ctx, want)
		// The writer goes on meanwhile: what was measured may be too old.
		if errors.Is(err, resize.ErrTooSmall) || errors.Is(err, resize.ErrNoRoom) || errors.Is(err, context.DeadlineExceeded) {
			err = nil
		}
		if after.OverCommitted > 0 {
			err = errors.Join(err, fmt.Errorf("%d bytes are over-committed", after.OverCommitted))
		}
		switch {
		case after.Reserved > s.Reserved:
			larger++
		case after.Reserved < s.Reserved:
			smaller++
		}
	}
	cancel()
	err = errors.Join(err, <-written)
	fmt.Fprintf(w, "%d files, larger %d times, smaller %d times\n", files, larger, smaller)
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
