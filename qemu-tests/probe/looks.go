package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/resize"
)

// looked is what came of looking at what is reserved while it is written to for the first
// time.
type looked struct {
	Looks, Bad int
	Missing    int64 // bytes in all the bad ones
}

// volumeLooks looks for some seconds at the image of a volume that is reserved as a whole,
// while files are made in a directory of the volume.
func volumeLooks(seconds, dir string) (l looked, err error) {
	limit, err := strconv.Atoi(seconds)
	if err != nil {
		return l, err
	}
	s, err := withVolume((*resize.Volume).Measure)
	if err != nil {
		return l, err
	}
	end := s.DataOffset + s.Spanned
	image, err := os.Open(volumeImage())
	if err != nil {
		return l, err
	}
	defer image.Close()
	var stop atomic.Bool
	done := make(chan error, 1)
	go func() {
		var err error
		for n := 0; err == nil && !stop.Load(); n++ {
			// Of a new file each block is written for the first time.
			err = writeNew(filepath.Join(dir, "look"+strconv.Itoa(n)))
		}
		done <- err
	}()
	all := []balloon.Range{{Start: 0, End: end}}
	for began := time.Now(); time.Since(began) < time.Duration(limit)*time.Second && err == nil; l.Looks++ {
		var there []balloon.Range
		if there, err = files.Reserved(image, 0, end); err != nil {
			break
		}
		if n := balloon.Total(balloon.Without(all, there)); n > 0 {
			l.Bad++
			l.Missing += n
		}
	}
	stop.Store(true)
	err = errors.Join(err, <-done)
	list, _ := filepath.Glob(filepath.Join(dir, "look*"))
	for _, name := range list {
		err = errors.Join(err, os.Remove(name))
	}
	return l, err
}

func writeNew(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 96<<10))
	return errors.Join(err, f.Sync(), f.Close())
}
