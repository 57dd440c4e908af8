// Package layers changes what this machine has beside the layers of its image: the list in
// the encrypted volume (state/layerlist), and what may stand on it.
package layers

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sealroot/init/report"
	"sealroot/sealroot/durable"
	"sealroot/state/layerlist"
	"sealroot/state/layout"
)

// Kept is the list as it is kept in the volume, and how far it is with the image that runs.
type Kept struct {
	volume string
	boot   report.Report
	List   layerlist.List
	// ID names the list; "" when there is none yet, or none that can be read.
	ID string
	// Broken says what cannot be read, and so does not count.
	Broken error
	good   layerlist.List // that the image came up with last
	goodID string
	Proofs layerlist.Proofs
}

// ErrUnproved: the list is good and boots go by it, and nothing notes that its trial is over.
var ErrUnproved = errors.New("the layers of this boot are kept, but still count as on trial")

// Load reads them. volume is the root of the encrypted volume, r is of the boot that runs.
func Load(volume string, r report.Report) Kept {
	k := Kept{volume: volume, boot: r}
	k.List, k.ID, k.Broken = k.list(layerlist.File)
	var bad error
	k.good, k.goodID, bad = k.list(layerlist.GoodFile(k.image()))
	text, err := k.read(layerlist.ProofsFile, layerlist.MaxProofsSize)
	k.Proofs, k.Broken = layerlist.Proofs(text), errors.Join(k.Broken, bad, err)
	return k
}

func (k Kept) image() string { return k.boot.Root.RootHash }

func (k Kept) list(file string) (list layerlist.List, id string, err error) {
	text, err := k.read(file, layerlist.MaxSize)
	if err == nil && text != nil {
		list, err = layerlist.Parse(text)
	}
	if err != nil {
		return nil, "", fmt.Errorf("cannot read %s: %w", filepath.Join(k.volume, file), err)
	}
	if text != nil {
		id = layerlist.ID(text)
	}
	return list, id, nil
}

// read reads a file as PID 1 does; nil without one.
func (k Kept) read(file string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(filepath.Join(k.volume, file), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && text == nil {
		text = []byte{} // a file that is empty
	}
	return text, err
}

func (k Kept) write(file string, text []byte) error {
	return durable.WriteFile(filepath.Join(k.volume, file), text)
}

func (k Kept) prove(id, state string) error {
	if err := k.write(layerlist.ProofsFile, []byte(k.Proofs.With(k.image(), id, state))); err != nil {
		return fmt.Errorf("cannot note how far a list of layers is: %w", err)
	}
	return nil
}

func (k Kept) state() string { return k.Proofs.Of(k.image(), k.ID) }

// inUse tells whether this boot goes by the list.
func (k Kept) inUse() bool { return k.ID != "" && k.ID == k.boot.LayerList }

// Aside tells whether there is a list that this image does not go by, and will not.
func (k Kept) Aside() bool {
	return k.ID != "" && !k.inUse() && k.ID != k.goodID && k.state() != layerlist.New && !k.Waits()
}

// Waits tells whether the list waits for this slot's commit: it is on trial itself.
func (k Kept) Waits() bool {
	return k.boot.Slot.Trial && k.ID != "" && !k.inUse() && k.ID != k.goodID && k.state() == ""
}

// OnTrial tells whether this boot is the trial of a list, and was not committed yet.
func (k Kept) OnTrial() bool {
	id := k.boot.LayerList
	return k.boot.LayerTrial && id != "" && id != k.goodID && k.Proofs.Of(k.image(), id) == layerlist.Tried
}

// Base is the list that a change begins from: the one that this image has, or will have at
// its next boot. What was dropped is no part of it.
func (k Kept) Base() layerlist.List {
	if k.ID == k.goodID || k.inUse() || k.Waits() || k.ID != "" && k.state() == layerlist.New {
		return k.List
	}
	return k.good
}

// MayChange refuses a change while something is on trial. Its error is bootset.ErrRefused.
func (k Kept) MayChange() error {
	switch {
	case k.OnTrial():
		return refused("the layers of this boot are on trial: sealroot commit keeps them first, or the next boot drops them")
	case k.Waits():
		return refused("the layers wait for this slot, which is on trial: first sealroot commit")
	}
	return nil
}

// Save replaces the list, durably, and has the next boot of this image try it, unless the
// image came up with just that. A power cut leaves the old list or the new one.
func (k Kept) Save(l layerlist.List) (trial bool, err error) {
	text := l.Format()
	id := layerlist.ID(text)
	if trial = id != k.goodID; trial && k.Proofs.Of(k.image(), id) != layerlist.New {
		if err := k.prove(id, layerlist.New); err != nil {
			return false, err
		}
	}
	// crash point: asked for, and not the list
	if err := k.write(layerlist.File, text); err != nil {
		return false, fmt.Errorf("cannot save the list of layers: %w", err)
	}
	return trial, nil
}

// Remove saves the list without a layer that was added. It takes it from the good list too,
// at first: what is gone does not come back, and is on trial only with another change.
func (k Kept) Remove(name string) (trial bool, err error) {
	if k.goodID != "" && (k.good.Hash(name) != "" || k.good.Off(name)) {
		// Under another ID it would no more tell that a commit was cut short.
		if k.Proofs.Of(k.image(), k.goodID) == layerlist.Tried {
			if err := k.prove(k.goodID, layerlist.Good); err != nil {
				return false, err
			}
			k.Proofs = k.Proofs.With(k.image(), k.goodID, layerlist.Good)
		}
		text := k.good.Removed(name).Format()
		if err := k.write(layerlist.GoodFile(k.image()), text); err != nil {
			return false, fmt.Errorf("cannot save the list of layers: %w", err)
		}
		k.goodID = layerlist.ID(text)
	}
	// crash point: the list still names it, and counts as dropped
	return k.Save(k.Base().Removed(name))
}

// Retry has the next boot try the list once more.
func (k Kept) Retry() error { return k.prove(k.ID, layerlist.New) }

// Commit notes that this boot came up with the list that it goes by. What is right already
// is not written again. Errors: ErrUnproved.
func (k Kept) Commit() (changed bool, err error) {
	id := k.boot.LayerList
	switch {
	case k.Waits():
		return false, k.Retry()
	case id == "" || id == k.goodID && k.Proofs.Of(k.image(), id) != layerlist.Tried:
		return false, nil
	case id == k.goodID: // a commit was cut short
	case id == k.ID:
		if err := k.write(layerlist.GoodFile(k.image()), k.List.Format()); err != nil {
			return false, fmt.Errorf("cannot keep the list of layers: %w", err)
		}
	case k.OnTrial():
		return false, cmp.Or(k.Broken, errors.New("the list of layers is not the one that this boot began with"))
	default: // a layer of it was removed since
		return false, nil
	}
	// crash point: the list is good; the next commit notes that its trial is over
	if err := k.prove(id, layerlist.Good); err != nil {
		return false, fmt.Errorf("%w: %w", ErrUnproved, err)
	}
	return true, nil
}

// Files are the images that the list needs, and those of the lists that these images fall
// back to, as layout.LayerImage has them.
func Files(volume string, images []string) ([]string, error) {
	lists := []string{layerlist.File}
	for _, image := range images {
		lists = append(lists, layerlist.GoodFile(image))
	}
	var files []string
	for _, file := range lists {
		list, _, err := Kept{volume: volume}.list(file)
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			if e.Hash != "" {
				files = append(files, layout.LayerImage(e.Name, e.Hash))
			}
		}
	}
	return files, nil
}

// Forget removes the good lists of all other images.
func Forget(volume string, images []string) error {
	kept := map[string]bool{}
	for _, image := range images {
		kept[filepath.Join(volume, layerlist.GoodFile(image))] = true
	}
	files, err := filepath.Glob(filepath.Join(volume, layout.LayersGood) + "*")
	for _, file := range files {
		if !kept[file] {
			err = errors.Join(err, os.Remove(file))
		}
	}
	return err
}
