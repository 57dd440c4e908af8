package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/qemu-tests/promises"
	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/ext4"
	"sealroot/state/layout"
	"sealroot/state/luks2"
	"sealroot/state/resize"
)

const (
	volumeRoot = layout.State + "/" + layout.Volume
	// promisedMost is the size of the largest promised file.
	promisedMost = 256 << 10
)

// changeVolume runs the commands for tests of the encrypted volume that grows and
// shrinks. known is false for a word that is none of them. DIR is one of promised files,
// of which KEEP stay; what is told is JSON, sizes are resize.Sizes.
//
//	volume-sizes
//	volume-held: proves that what is not reserved is in balloons and in the record
//	volume-to BYTES: one resize; tells how long it took
//	volume-steps N FILES SEED DIR KEEP PAUSE: so many resizes at random beside a writer
//	  that rests for so long after each file, and more until it has made so many and the
//	  volume has grown and shrunk twice
//	volume-full DIR KEEP SEED FILE: FILE takes all that the state partition has, beside a
//	  writer; then the volume is filled, too
//	volume-stray BYTES|end: what resize2fs does to the mounted file system
//	volume-sparse: gives up what a sparse copy loses: all that was never written to
//	promise DIR N SEED | promised DIR KEEP: makes files, and reads them past the cache
//	fill FILE | rm FILE
//	volume-looks SECONDS DIR: looks at what is reserved, while files are made in DIR
//	write-at-rate FILE BYTES MIB SECONDS: so many bytes to a file, so many MiB per second;
//	  without room it waits for it, so long in all
func changeVolume(w io.Writer, words []string) (known bool, err error) {
	command, ok := map[string]struct {
		args int
		run  func(a []string) (any, error)
	}{
		"volume-sizes":  {0, func([]string) (any, error) { return withVolume((*resize.Volume).Measure) }},
		"volume-held":   {0, func([]string) (any, error) { return withVolume(held) }},
		"volume-to":     {1, func(a []string) (any, error) { return volumeTo(a[0]) }},
		"volume-steps":  {6, func(a []string) (any, error) { return volumeSteps(a) }},
		"volume-full":   {4, func(a []string) (any, error) { return volumeFull(a) }},
		"volume-stray":  {1, func(a []string) (any, error) { return withVolume(stray(a[0])) }},
		"volume-looks":  {2, func(a []string) (any, error) { return volumeLooks(a[0], a[1]) }},
		"volume-sparse": {0, func([]string) (any, error) { return loseUnwritten() }},
		"promise":       {3, func(a []string) (any, error) { return promise(a[0], a[1], a[2]) }},
		"promised":      {2, func(a []string) (any, error) { return promised(a[0], a[1]) }},
		"fill":          {1, func(a []string) (any, error) { return fillWith(a[0]) }},
		"write-at-rate": {4, func(a []string) (any, error) { return writeAtRate(a[0], a[1], a[2], a[3]) }},
		"rm":            {1, func(a []string) (any, error) { return nil, os.Remove(a[0]) }},
	}[words[0]]
	if !ok {
		return false, nil
	}
	if len(words)-1 != command.args {
		return true, fmt.Errorf("%s takes %d words", words[0], command.args)
	}
	told, err := command.run(words[1:])
	if told != nil {
		err = errors.Join(err, json.NewEncoder(w).Encode(told))
	}
	return true, err
}

// volumeImage is the path of encrypted.img, in a subvolume where there is one.
func volumeImage() string {
	path := filepath.Join(layout.State, layout.ImageSubvolume, layout.Image)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	return filepath.Join(layout.State, layout.Image)
}

func withVolume[T any](do func(v *resize.Volume) (T, error)) (told T, err error) {
	v, err := openVolume()
	if err != nil {
		return told, err
	}
	told, err = do(v)
	return told, errors.Join(err, v.Close())
}

// volumeResized is one resize.
type volumeResized struct {
	Took  time.Duration
	Sizes resize.Sizes
}

func volumeTo(size string) (volumeResized, error) {
	want, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return volumeResized{}, err
	}
	return withVolume(func(v *resize.Volume) (r volumeResized, err error) {
		began := time.Now()
		r.Sizes, err = v.Resize(context.Background(), want)
		r.Took = time.Since(began)
		return r, err
	})
}

// volumeStepped is what came of many resizes at random.
type volumeStepped struct {
	Grown, Shrunk, Refused int   // Refused: too near to either end, beside the writer
	Least, Most            int64 // bytes that were reserved
	Off                    int64 // at most so far from what was asked for
	Files                  int   // that the writer made meanwhile
	Took, Slowest          time.Duration
}

const (
	// moreSteps is how long steps may go on for the files, and for leastEach.
	moreSteps = 200 * time.Second
	// leastEach is how often a volume both grows and shrinks, if it can in that time: near
	// to either end a step at random is refused.
	leastEach = 2
)

func volumeSteps(a []string) (volumeStepped, error) {
	n, err1 := strconv.Atoi(a[0])
	least, err2 := strconv.ParseInt(a[1], 10, 64)
	seed, err3 := strconv.ParseUint(a[2], 10, 64)
	keep, err4 := strconv.Atoi(a[4])
	pause, err5 := time.ParseDuration(a[5])
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return volumeStepped{}, err
	}
	return withVolume(func(v *resize.Volume) (s volumeStepped, err error) {
		began := time.Now()
		var written atomic.Int64
		end := writeBeside(a[3], keep, seed, pause, &written)
		err = s.resize(v, rand.New(rand.NewPCG(seed, 2)), func(step int) bool {
			few := written.Load() < least || min(s.Grown, s.Shrunk) < leastEach
			return step < n || few && time.Since(began) < moreSteps
		})
		made, werr := end()
		s.Files, s.Took = made, time.Since(began)
		return s, errors.Join(err, werr)
	})
}

// writeBeside makes promised files until end is called, counts them, and rests after each.
func writeBeside(dir string, keep int, seed uint64, pause time.Duration, written *atomic.Int64) (end func() (made int, err error)) {
	type result struct {
		made int
		err  error
	}
	done := make(chan result, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		rest := func(int) error {
			written.Add(1)
			time.Sleep(pause)
			return nil
		}
		made, err := promises.Writer{Dir: dir, Keep: keep, Most: promisedMost, Rand: rand.New(rand.NewPCG(seed, 1)), Tell: rest}.Run(ctx)
		done <- result{made, err}
	}()
	return func() (int, error) {
		cancel()
		r := <-done
		return r.made, r.err
	}
}

func (s *volumeStepped) resize(v *resize.Volume, random *rand.Rand, more func(step int) bool) error {
	// checkEvery is after how many steps the invariant is looked at.
	const checkEvery = 10
	now, err := v.Measure()
	if err != nil {
		return err
	}
	s.Least, s.Most = now.Reserved, now.Reserved
	for i := 0; more(i); i++ {
		want := now.MinReserved + random.Int64N(now.MaxReserved-now.MinReserved+1)
		began := time.Now()
		got, err := v.Resize(context.Background(), want)
		s.Slowest = max(s.Slowest, time.Since(began))
		switch {
		case errors.Is(err, resize.ErrTooSmall) || errors.Is(err, resize.ErrNoRoom):
			s.Refused++
		case err != nil:
			return fmt.Errorf("step %d from %d to %d: %w", i, now.Reserved, want, err)
		case want > now.Reserved:
			s.Grown++
		default:
			s.Shrunk++
		}
		if err == nil {
			s.Off = max(s.Off, want-got.Reserved, got.Reserved-want)
		}
		if got.OverCommitted != 0 || got.ReadOnly {
			return fmt.Errorf("step %d from %d to %d: %+v", i, now.Reserved, want, got)
		}
		if i%checkEvery == checkEvery-1 {
			if err := holesAreHeld(got); err != nil {
				return fmt.Errorf("after step %d, from %d to %d: %w", i, now.Reserved, want, err)
			}
		}
		now = got
		s.Least, s.Most = min(s.Least, now.Reserved), max(s.Most, now.Reserved)
	}
	return nil
}

func held(v *resize.Volume) (resize.Sizes, error) {
	s, err := v.Measure()
	if err == nil {
		err = holesAreHeld(s)
	}
	return s, err
}

// holesAreHeld proves that what is not reserved is in balloons and in the record.
func holesAreHeld(s resize.Sizes) error {
	image, err := os.Open(volumeImage())
	if err != nil {
		return err
	}
	defer image.Close()
	h, err := luks2.Read(image, s.Apparent)
	if err != nil {
		return err
	}
	outside, err := os.Open(layout.State)
	if err != nil {
		return err
	}
	defer outside.Close()
	root, err := os.Open(volumeRoot)
	if err != nil {
		return err
	}
	defer root.Close()
	end := s.DataOffset + s.Spanned
	reserved, err := files.Reserved(image, 0, end)
	if err != nil {
		return err
	}
	holes := balloon.Without([]balloon.Range{{Start: 0, End: end}}, reserved)
	list, err := files.List(root, s.Spanned)
	if err != nil && !(errors.Is(err, os.ErrNotExist) && len(holes) == 0) {
		return err
	}
	if loose := balloon.Without(holes, balloon.Shift(files.Held(list), s.DataOffset)); len(loose) > 0 {
		return fmt.Errorf("%d bytes that are not reserved are in no balloon, the first from %d to %d", balloon.Total(loose), loose[0].Start, loose[0].End)
	}
	record, _ := files.ReadRecord(outside, h.UUID())
	if loose := balloon.Without(holes, record.Given); len(loose) > 0 {
		return fmt.Errorf("%d bytes that are not reserved are not recorded, the first from %d to %d", balloon.Total(loose), loose[0].Start, loose[0].End)
	}
	return nil
}

// volumeFilled is what came of filling both file systems.
type volumeFilled struct {
	Outside int64 // bytes of FILE
	Left    int64 // bytes that the state partition has left for anybody
	Inside  int64 // bytes that went into the volume until that was full as well
	Files   int   // that the writer made meanwhile
}

func volumeFull(a []string) (f volumeFilled, err error) {
	keep, err1 := strconv.Atoi(a[1])
	seed, err2 := strconv.ParseUint(a[2], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return f, err
	}
	end := writeBeside(a[0], keep, seed, 0, new(atomic.Int64))
	f.Outside, err = fillWith(a[3])
	if err == nil {
		f.Left, err = leftIn(layout.State)
	}
	if err == nil {
		f.Inside, err = writeAll(filepath.Join(volumeRoot, ".filler"))
	}
	f.Files, err1 = end()
	if errors.Is(err1, unix.ENOSPC) { // that is what the volume may say once it is full
		err1 = nil
	}
	return f, errors.Join(err, err1)
}

// writeAll writes a file until its file system is full, has it on the disk, and removes it.
func writeAll(name string) (size int64, err error) {
	f, err := os.Create(name)
	if err != nil {
		return 0, err
	}
	block := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{})
	for err == nil {
		random.Read(block)
		var n int
		n, err = f.Write(block)
		size += int64(n)
	}
	if errors.Is(err, unix.ENOSPC) {
		err = f.Sync()
	}
	return size, errors.Join(err, f.Close(), os.Remove(name))
}

// fillWith gives all that a file system has to one file, and tells its size. What has it
// only once it was written, as btrfs has, is asked again, until that gains nothing twice.
func fillWith(name string) (size int64, err error) {
	f, err := os.Create(name)
	if err != nil {
		return 0, err
	}
	more := func(step int64) (gained int64) {
		first := size
		for step >= balloon.BlockSize && err == nil {
			switch err = unix.Fallocate(int(f.Fd()), 0, size, step); {
			case err == nil:
				size += step
			case errors.Is(err, unix.EINTR):
				err = nil
			case errors.Is(err, unix.ENOSPC):
				step, err = step/2, f.Truncate(size) // a part may have been had
			}
		}
		return size - first
	}
	more(1 << 30)
	for nothing := 0; nothing < 2 && err == nil; {
		if err = unix.Syncfs(int(f.Fd())); err == nil && more(1<<20) == 0 {
			nothing++
		}
	}
	return size, errors.Join(err, f.Sync(), f.Close())
}

func leftIn(dir string) (int64, error) {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	return int64(st.Bavail) * st.Bsize, err
}

// stray grows the inner file system by some bytes, or to the device's end, and reserves
// nothing.
func stray(by string) func(v *resize.Volume) (resize.Sizes, error) {
	return func(v *resize.Volume) (resize.Sizes, error) {
		s, err := v.Measure()
		if err != nil {
			return s, err
		}
		size := s.Apparent - s.DataOffset
		if by != "end" {
			n, err := strconv.ParseInt(by, 10, 64)
			if err != nil {
				return s, err
			}
			size = s.Spanned + n
		}
		root, err := os.Open(volumeRoot)
		if err != nil {
			return s, err
		}
		err = ext4.Resize(int(root.Fd()), uint64(size)/balloon.BlockSize)
		if err = errors.Join(err, unix.Syncfs(int(root.Fd())), root.Close()); err != nil {
			return s, err
		}
		return v.Measure()
	}
}

// loseUnwritten punches what is reserved of encrypted.img and was never written to: a
// copy of the file that skips zeros has no room for it. It tells how many bytes.
func loseUnwritten() (lost int64, err error) {
	unix.Sync()
	f, err := os.OpenFile(volumeImage(), os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	list, err := files.Map(f, 0, info.Size())
	for _, e := range list {
		if err == nil && e.Flags&balloon.FlagUnwritten != 0 {
			err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, e.Logical, e.Length)
			lost += e.Length
		}
	}
	return lost, errors.Join(err, f.Sync())
}

// promise makes files that nobody may lose.
func promise(dir, count, seed string) (made int, err error) {
	n, err1 := strconv.Atoi(count)
	s, err2 := strconv.ParseUint(seed, 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return 0, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	w := promises.Writer{Dir: dir, Keep: 1 << 20, Most: promisedMost, Rand: rand.New(rand.NewPCG(s, 3))}
	return w.Run(&askedSoOften{context.Background(), n})
}

// askedSoOften ends after it was asked so often: a Writer asks before each file.
type askedSoOften struct {
	context.Context
	left int
}

func (a *askedSoOften) Err() error {
	if a.left--; a.left < 0 {
		return context.Canceled
	}
	return nil
}

// promised reads the files past the cache, and tells how many there are.
func promised(dir, keep string) (int, error) {
	n, err := strconv.Atoi(keep)
	if err != nil {
		return 0, err
	}
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return 0, err
	}
	return promises.Check(dir, n, 0)
}
