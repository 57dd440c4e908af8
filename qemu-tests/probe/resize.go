package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/init/report"
	"sealroot/qemu-tests/promises"
	"sealroot/state/layout"
	"sealroot/state/luks2"
	"sealroot/state/resize"
)

// resizeLoop makes promised files in DIR of the volume and lets it grow and shrink at
// random meanwhile, until the time is over, there were so many resizes, or the power is
// off. The number of the last file that is promised is in the first block of the device
// MARK:
//
//	resizeloop SECONDS RESIZES SEED DIR KEEP MARK
func resizeLoop(w io.Writer, words []string) error {
	if len(words) != 7 {
		return errors.New("usage: resizeloop SECONDS RESIZES SEED DIR KEEP MARK")
	}
	seconds, err1 := strconv.Atoi(words[1])
	most, err2 := strconv.Atoi(words[2])
	seed, err3 := strconv.ParseUint(words[3], 10, 64)
	keep, err4 := strconv.Atoi(words[5])
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	v, err := openVolume()
	if err != nil {
		return err
	}
	defer v.Close()
	marks, err := openMarker(words[6])
	if err != nil {
		return err
	}
	defer marks.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(seconds)*time.Second)
	defer cancel()

	type result struct {
		made int
		err  error
	}
	written := make(chan result, 1)
	go func() {
		// Reading what is there and writing are few and small beside the resizes.
		w := promises.Writer{Dir: words[4], Keep: keep, Most: 1 << 20, Rand: rand.New(rand.NewPCG(seed, 1)), Tell: marks.mark}
		made, err := w.Run(ctx)
		if err != nil {
			cancel() // not to be seen only when the resizes end
		}
		written <- result{made, err}
	}()
	steps, err := resizeAtRandom(ctx, v, rand.New(rand.NewPCG(seed, 2)), most)
	cancel()
	files := <-written
	fmt.Fprintf(w, "%d files, %d resizes\n", files.made, steps)
	return errors.Join(err, files.err)
}

func openVolume() (*resize.Volume, error) {
	var c struct {
		State struct{ Device string }
	}
	text, err := os.ReadFile(report.Config)
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil {
		return nil, err
	}
	p := resize.Places{State: layout.State, Lock: layout.ResizeLock}
	if c.State.Device == "classic" {
		p.Device, p.Key = "classic", byManageKey
	}
	return resize.Open(p)
}

// byManageKey opens the volume with the manage key that is kept in it.
func byManageKey(h *luks2.Header) ([]byte, error) {
	manage, err := os.ReadFile(filepath.Join(volumeRoot, layout.ManageKey))
	if err != nil {
		return nil, err
	}
	for _, k := range h.Keyslots() {
		if key, err := h.Unlock(k.ID, bytes.TrimSuffix(manage, []byte("\n"))); err == nil {
			return key, nil
		}
	}
	return nil, luks2.ErrPassphrase
}

// resizeAtRandom resizes until ctx ends, or so often, and counts what was done.
func resizeAtRandom(ctx context.Context, v *resize.Volume, random *rand.Rand, most int) (steps int, err error) {
	for ctx.Err() == nil && steps < most {
		s, err := v.Measure()
		if err != nil {
			return steps, err
		}
		least, most := s.MinReserved, s.MaxReserved
		if s.Classic && s.Filesystem == "ext4" {
			// It never gets smaller. For its devices to change often, half of the sizes are
			// a little beyond its end, the other ones within.
			const little = 16 << 20
			end := s.Reserved + s.GivenBack
			if most = end; random.IntN(2) == 0 {
				least, most = end+1<<20, end+little
			}
		}
		// The writer goes on meanwhile: at either end what was measured is too old soon.
		_, err = v.Resize(ctx, least+random.Int64N(max(most-least, 1)))
		switch {
		case err == nil:
			steps++
		case errors.Is(err, resize.ErrTooSmall) || errors.Is(err, resize.ErrNoRoom) || errors.Is(err, resize.ErrTooLarge):
		case errors.Is(err, ctx.Err()):
		default:
			return steps, err
		}
	}
	return steps, nil
}

// marker writes numbers to a device at once, past every cache.
type marker struct {
	f     *os.File
	block []byte // aligned, as O_DIRECT wants it
}

func openMarker(device string) (*marker, error) {
	f, err := os.OpenFile(device, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	block, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &marker{f, block}, nil
}

func (m *marker) mark(number int) error {
	clear(m.block)
	copy(m.block, promises.Mark(number))
	_, err := m.f.WriteAt(m.block, 0)
	return err
}

func (m *marker) Close() error { return errors.Join(m.f.Close(), unix.Munmap(m.block)) }
