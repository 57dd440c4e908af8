package etc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sort"

	"golang.org/x/sys/unix"

	"sealroot/state/etcmerge"
	"sealroot/state/layout"
)

// ErrNever: no boot has merged /etc.
var ErrNever = errors.New("no boot has merged /etc on this volume")

// Diff is how /etc differs from that of the image that runs.
type Diff struct {
	Image string `json:"image"`
	// Before is the image that ran before it, when it was merged.
	Before string `json:"before,omitempty"`
	// PutAside is where the upper layer of a trial that failed lies, whose changes
	// were not taken over.
	PutAside  string     `json:"put_aside,omitempty"`
	Conflicts []Conflict `json:"conflicts"`
	Added     []string   `json:"added"`   // paths below /etc
	Changed   []string   `json:"changed"` // content, kind, mode, owner or attributes
	Removed   []string   `json:"removed"`
}

// Conflict is a file that both sides changed, as the last merge found it.
type Conflict struct {
	Path string `json:"path"` // below /etc
	What string `json:"what"`
	// ImageHas is where the image's version can be read, OldImageHas that of the
	// image before; empty where it has none.
	ImageHas    string `json:"image_has,omitempty"`
	OldImageHas string `json:"old_image_has,omitempty"`
}

// maxRecord bounds the record of a merge that is read.
const maxRecord = 4 << 20

// Compare compares /etc with the image's, for the volume mounted at path. Errors:
// ErrNever.
func Compare(volume string) (Diff, error) {
	m := merger{}
	defer m.close()
	d, err := m.compare(volume)
	if err != nil {
		return Diff{}, fmt.Errorf("cannot compare /etc: %w", err)
	}
	return d, nil
}

func (m *merger) compare(volume string) (Diff, error) {
	merge, live, err := m.current(volume)
	if err != nil {
		return Diff{}, err
	}
	if live.image == "" || m.kept == nil {
		return Diff{}, ErrNever
	}
	_, image, err := m.stored(tree{}, live.image, imageDir)
	if err != nil {
		return Diff{}, err
	}
	if image == nil {
		return Diff{}, ErrNever
	}
	upper, err := m.dir(m.volume, layout.Etc)
	if err != nil {
		return Diff{}, err
	}
	own, machine, err := m.over(*image, upper)
	if err != nil {
		return Diff{}, err
	}
	d := differences(own.entries, machine.entries)
	d.Image, d.Conflicts = live.image, []Conflict{}
	aside, err := m.failed(live)
	if err != nil {
		return Diff{}, err
	}
	if aside != "" {
		d.PutAside = path.Join(volume, layout.EtcKept, aside)
	}
	if merge == nil {
		return d, nil
	}
	r, err := readRecord(merge)
	if err != nil {
		return Diff{}, err
	}
	d.Before = r.From
	if r.PutBack {
		d.PutAside = path.Join(volume, layout.EtcKept, r.From, failedDir)
	}
	for _, c := range r.Conflicts {
		d.Conflicts = append(d.Conflicts, Conflict{
			Path: c.Path, What: c.What,
			ImageHas: m.where(volume, live.image, c.Path), OldImageHas: m.where(volume, r.From, c.Path),
		})
	}
	return d, nil
}

// failed is where the layer of the last trial lies that failed since the live one was
// merged, below layout.EtcKept; "" for none.
func (m *merger) failed(live owner) (string, error) {
	images, err := names(m.kept)
	if err != nil {
		return "", err
	}
	last, at := live, ""
	for _, image := range images {
		for _, name := range []string{failedDir, upperDir} {
			name = path.Join(image, name)
			dir, err := m.dir(m.kept, name)
			if err != nil {
				return "", err
			}
			if dir == nil {
				continue
			}
			// One that has not got its own name yet is another one's upper.
			o, err := readOwner(dir)
			if err != nil {
				return "", err
			}
			failed := path.Base(name) == failedDir
			if !failed {
				if failed, err = m.isFailed(image, o); err != nil {
					return "", err
				}
			}
			if failed && o.merge >= last.merge {
				last, at = o, name
			}
		}
	}
	return at, nil
}

// where is the path of a file in the copy of an image's /etc; "" when it has none.
func (m *merger) where(volume, image, name string) string {
	if image == "" {
		return ""
	}
	f, err := openIn(m.kept, path.Join(image, imageDir, name), unix.O_PATH)
	if err != nil {
		return ""
	}
	f.Close()
	return path.Join(volume, layout.EtcKept, image, imageDir, name)
}

// differences lists the names that differ.
func differences(image, machine etcmerge.Tree) Diff {
	d := Diff{Added: []string{}, Changed: []string{}, Removed: []string{}}
	for name, e := range machine {
		if i, there := image[name]; !there {
			d.Added = append(d.Added, name)
		} else if !same(i, e) {
			d.Changed = append(d.Changed, name)
		}
	}
	for name := range image {
		if _, there := machine[name]; !there {
			d.Removed = append(d.Removed, name)
		}
	}
	for _, list := range [][]string{d.Added, d.Changed, d.Removed} {
		sort.Strings(list)
	}
	return d
}

func readRecord(merge *os.File) (record, error) {
	f, err := openIn(merge, recordFile, unix.O_RDONLY|unix.O_NONBLOCK)
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, nil
	}
	if err != nil {
		return record{}, err
	}
	defer f.Close()
	var r record
	if err := json.NewDecoder(io.LimitReader(f, maxRecord)).Decode(&r); err != nil {
		return record{}, fmt.Errorf("cannot read the record of the merge: %w", err)
	}
	if r.From != "" && !isIdentity(r.From) {
		return record{}, fmt.Errorf("cannot read the record of the merge: %q: %w", r.From, ErrIdentity)
	}
	return r, nil
}
