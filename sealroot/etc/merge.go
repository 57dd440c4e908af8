// Package etc carries the machine's changes of /etc from one image to the next: it
// reads the trees, has state/etcmerge merge them, and puts the result in the place of
// the old upper layer, whole or not at all. PID 1 runs it as a program of the
// verified root's, before it mounts the overlay.
//
// In the volume, below layout.EtcKept:
//
//	<image>/image     a copy of the image's /etc, made in its first boot: the merge's base
//	<image>/upper     the upper layer as it was when another image took over
//	<image>/failed    the same of an image on trial, which nobody committed
//	<image>/merge-<n> of the live upper layer, and of an upper: start, the layer as it was
//	                  merged; record, a record; trial, there while the image is on trial;
//	                  of another list of layers (chain.go) start is the layer as the
//	                  image took over, merged for the list
//	<image>/added     there once the image's directories were added to /var, or never can be
//	before            the upper layer of a time before there was a merge, while the image
//	                  that took over from it is on trial
//	next              a layer that is made, or the old one until it has its name
//	var.tmp           the unfinished copy of a directory for /var
//
// An upper layer names its owner, image and number of the merge, in an extended
// attribute, so that both change in one rename.
package etc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/state/etcmerge"
	"sealroot/state/layout"
	"sealroot/state/seed"
)

// Names below layout.EtcKept.
const (
	imageDir   = "image"
	upperDir   = "upper"
	failedDir  = "failed"
	startDir   = "start"
	beforeDir  = "before"
	nextDir    = "next"
	recordFile = "record"
	trialFile  = "trial"
	addedFile  = "added"
)

func mergeDir(n uint64) string { return fmt.Sprintf("merge-%d", n) }

// Options say what is merged.
type Options struct {
	Image string // the identity of the image that runs
	Trial bool   // it is on trial
	// PutBackOnly: nothing is merged, for the image's /etc is not whole; what was there
	// before a trial that failed is put back all the same.
	PutBackOnly bool
	// Var is the image's /var (open), whose directories the machine gets where it lacks them,
	// once for as long as the image's copies are kept; or nil.
	Var *os.File
	// Step is asked before every change of the volume; tests cut the power there.
	Step func(name string) error
}

// Result tells what was done.
type Result struct {
	Done    bool // the image had taken over before: nothing was to do
	From    string
	PutBack bool   // the image's own /etc, as it was, for the last one failed on trial
	Failed  string // the image on trial whose changes were put aside, if there is one
	Waits   bool   // PutBackOnly, and /etc is another image's still
	Files   int    // of the new upper layer
	// Conflicts are those of this merge, and of earlier ones those that nobody has looked at.
	Conflicts []etcmerge.Conflict
	VarDirs   int   // directories that /var got
	VarError  error // why it did not get all of them; /etc is merged all the same
}

// record is what is kept of a merge.
type record struct {
	From      string     `json:"from,omitempty"`
	PutBack   bool       `json:"put_back,omitempty"`
	Conflicts []conflict `json:"conflicts,omitempty"`
	chain
}

// maxConflicts is how many of them are kept.
const maxConflicts = 1000

// Merge makes the upper layer of /etc on volume (open: its root) that of the image
// whose /etc is image (open). Nothing may be mounted from that layer, and /proc must
// be mounted. On an error the layer is what it was, or the new one.
func Merge(volume, image *os.File, o Options) (Result, error) {
	if !isIdentity(o.Image) {
		return Result{}, fmt.Errorf("cannot merge /etc: %q: %w", o.Image, ErrIdentity)
	}
	if o.Step == nil {
		o.Step = func(string) error { return nil }
	}
	m := merger{Options: o, volume: volume, lower: image}
	result, err := m.run()
	m.close()
	if err != nil {
		return result, fmt.Errorf("cannot merge /etc: %w", err)
	}
	return result, nil
}

type merger struct {
	Options
	volume, lower, kept *os.File
	live                owner
	last                chain    // of the live layer's merge
	lastTrial           bool     // that was on trial, and never committed
	own                 tree     // the image's, as it has it
	start               []change // what this merge's start holds; nil: what the layer does
	opened              []*os.File
	reader              reader
}

func (m *merger) close() {
	for _, f := range m.opened {
		f.Close()
	}
}

// dir opens a directory for as long as the merge runs; nil when there is none.
func (m *merger) dir(in *os.File, name string) (*os.File, error) {
	d, err := openIn(in, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m.opened = append(m.opened, d)
	return d, nil
}

// ensure opens a directory that is made if need be.
func (m *merger) ensure(in *os.File, name string) (*os.File, error) {
	if err := unix.Mkdirat(int(in.Fd()), name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("cannot make %s/%s: %w", in.Name(), name, err)
	}
	d, err := m.dir(in, name)
	if err == nil && d == nil {
		err = fs.ErrNotExist
	}
	return d, err
}

// run merges, and then adds directories to /var, which may take its time: a boot that ends
// before they are all there has its /etc.
func (m *merger) run() (Result, error) {
	result, err := m.merge()
	if err == nil && m.Var != nil && !m.PutBackOnly {
		result.VarDirs, result.VarError, err = m.varDirs()
	}
	return result, err
}

func (m *merger) merge() (Result, error) {
	upper, err := m.ensure(m.volume, layout.Etc)
	if err != nil {
		return Result{}, err
	}
	if m.live, err = readOwner(upper); err != nil {
		return Result{}, err
	}
	if m.live.image == m.Image {
		return Result{Done: true}, nil
	}
	private, err := m.ensure(m.volume, layout.Private)
	if err != nil {
		return Result{}, err
	}
	if m.kept, err = m.ensure(private, strings.TrimPrefix(layout.EtcKept, layout.Private+"/")); err != nil {
		return Result{}, err
	}
	if err := m.tidy(m.live); err != nil {
		return Result{}, err
	}
	if err := m.readLast(); err != nil {
		return Result{}, err
	}
	failed, err := m.putBack()
	if err != nil {
		return Result{}, err
	}
	if upper, err = m.dir(m.volume, layout.Etc); err != nil {
		return Result{}, err
	}
	if m.live.image == m.Image {
		return Result{From: failed, PutBack: true, Failed: failed}, nil
	}
	if m.PutBackOnly {
		return Result{Failed: failed, Waits: true}, nil
	}
	result, err := m.replace(upper)
	result.Failed = failed
	return result, err
}

// replace puts a new layer in the place of the live one.
func (m *merger) replace(upper *os.File) (Result, error) {
	if err := m.keepImage(); err != nil {
		return Result{}, err
	}
	next := owner{m.Image, m.live.merge + 1}
	result, err := m.build(upper, next)
	if err != nil {
		// What is half made would take the place that the next boot needs too.
		return Result{}, errors.Join(err, m.step("remove", func() error { return seed.Remove(m.kept, nextDir) }))
	}
	if err := m.step("exchange", func() error { return m.exchange(m.kept, nextDir) }); err != nil {
		return Result{}, err
	}
	if err := m.tidy(next); err != nil {
		return result, err
	}
	return result, m.collect(next)
}

// step makes one change of the volume.
func (m *merger) step(name string, change func() error) error {
	if err := m.Step(name); err != nil {
		return err
	}
	return change()
}

// keepImage copies the image's /etc, if that was not done.
func (m *merger) keepImage() error {
	dir, err := m.ensure(m.kept, m.Image)
	if err != nil {
		return err
	}
	const unfinished = imageDir + ".tmp"
	if there, err := m.dir(dir, imageDir); err != nil || there != nil {
		return err
	}
	if err := m.step("remove image.tmp", func() error { return seed.Remove(dir, unfinished) }); err != nil {
		return err
	}
	if err := m.step("copy image", func() error { return seed.Tree(m.lower, dir, unfinished) }); err != nil {
		return err
	}
	return m.step("name image", func() error {
		if err := unix.Syncfs(int(dir.Fd())); err != nil {
			return fmt.Errorf("cannot sync: %w", err)
		}
		if err := unix.Renameat2(int(dir.Fd()), unfinished, int(dir.Fd()), imageDir, unix.RENAME_NOREPLACE); err != nil {
			return fmt.Errorf("cannot rename the copy of the image's /etc: %w", err)
		}
		return syncDirs(dir, m.kept)
	})
}

// build makes the new layer, next, and what is kept beside it.
func (m *merger) build(upper *os.File, next owner) (Result, error) {
	list, result, err := m.plan(upper)
	if err != nil {
		return result, err
	}
	if err := m.Step("make next"); err != nil {
		return result, err
	}
	layer, err := seed.MakeDir(m.kept, nextDir)
	if err != nil {
		return result, err
	}
	defer layer.Close()
	if err := write(layer, list, m.Step); err != nil {
		return result, err
	}
	if m.start == nil {
		m.start = list
	}
	if err := seed.Attributes(upper, layer); err != nil {
		return result, err
	}
	if err := m.step("mark /var", func() error { return m.markVar(next.image) }); err != nil {
		return result, err
	}
	if err := m.step("record", func() error { return m.keepRecord(layer, next, result) }); err != nil {
		return result, err
	}
	return result, m.step("own", func() error {
		if err := unix.Syncfs(int(layer.Fd())); err != nil {
			return fmt.Errorf("cannot sync: %w", err)
		}
		if err := writeOwner(layer, next); err != nil {
			return err
		}
		return syncDirs(layer)
	})
}

// keepRecord makes the directory of this merge.
func (m *merger) keepRecord(layer *os.File, next owner, result Result) error {
	dir, err := m.ensure(m.kept, next.image)
	if err != nil {
		return err
	}
	name := mergeDir(next.merge)
	if err := seed.Remove(dir, name); err != nil {
		return err
	}
	merge, err := seed.MakeDir(dir, name)
	if err != nil {
		return err
	}
	defer merge.Close()
	if err := m.keepStart(layer, merge); err != nil {
		return err
	}
	conflicts, err := m.withFiles(result.Conflicts, layer)
	if err != nil {
		return err
	}
	text, err := json.Marshal(record{result.From, result.PutBack, conflicts, m.chain(next)})
	if err != nil {
		return err
	}
	if err := createFile(merge, recordFile, text); err != nil || !m.Trial {
		return err
	}
	return createFile(merge, trialFile, nil)
}

func (m *merger) keepStart(layer, merge *os.File) error {
	dir, err := seed.MakeDir(merge, startDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	// Part of the step that makes the record: none of it counts before the layer does.
	if err := write(dir, m.start, func(string) error { return nil }); err != nil {
		return err
	}
	return seed.Attributes(layer, dir)
}

// exchange is the moment at which the layer counts that is in dir as name.
func (m *merger) exchange(dir *os.File, name string) error {
	if err := unix.Renameat2(int(dir.Fd()), name, int(m.volume.Fd()), layout.Etc, unix.RENAME_EXCHANGE); err != nil {
		return fmt.Errorf("cannot exchange the upper layers: %w", err)
	}
	return syncDirs(m.volume, dir)
}

func createFile(dir *os.File, name string, text []byte) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("cannot make %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

func names(dir *os.File) ([]string, error) {
	again, err := openIn(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer again.Close()
	list, err := again.Readdirnames(maxEntries)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	slices.Sort(list)
	return list, nil
}

func syncDirs(dirs ...*os.File) error {
	for _, d := range dirs {
		if err := unix.Fsync(int(d.Fd())); err != nil {
			return fmt.Errorf("cannot sync %s: %w", d.Name(), err)
		}
	}
	return nil
}
