package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"sealroot/sealroot/bootset"
	"sealroot/slots"
	"sealroot/slots/manifest"
)

// CopyOptions are what a person chooses about a copy.
type CopyOptions struct {
	Slot  string // "" lets the program choose
	Force bool   // overwrite a slot on trial
	// Quick takes a committed slot of the same signed root hash and the same
	// boot files for a copy, without reading both images as a whole.
	Quick bool
	// Ready is called when all checks are passed, before the slot changes: with its
	// error nothing is changed. May be nil.
	Ready func(slot string) error
}

// Copied is what was done.
type Copied struct {
	From     string `json:"from"`
	To       string `json:"to"`
	RootHash string `json:"root_hash"`
	// Already: the slot was a committed copy before, and nothing was written.
	Already bool `json:"already"`
}

// Copy makes a slot a copy of the running one, block by block, and commits it
// below that one: no trial is needed, as the same system runs. The running slot
// must be committed and must verify.
//
// The order is that of Install; instead of the trial, slots.FinishCopy is saved
// last. Errors as for Install.
func (m Machine) Copy(ctx context.Context, r Running, o CopyOptions) (Copied, error) {
	list, err := m.Store.Load()
	if err != nil {
		return Copied{}, fmt.Errorf("cannot read the slots: %w", err)
	}
	target, err := chooseSlot(list, r.Running, o.Slot)
	if err != nil {
		return Copied{}, err
	}
	done := Copied{From: r.Running, To: target}
	if err := checkCopy(list, r, target, o.Force); err != nil {
		return done, err
	}
	if _, err := m.kernelStays(list, r, target); err != nil {
		return done, err
	}
	from, err := m.openSlot(r.Running, false)
	if err != nil {
		return done, err
	}
	defer from.close()
	readSource := m.verifyImage
	if o.Quick {
		readSource = m.readSlot
	}
	im, err := readSource(ctx, r.Running, from)
	if err != nil {
		return done, fmt.Errorf("slot %s cannot be copied: %w", r.Running, err)
	}
	done.RootHash = hexOf(im.rootHash)
	to, err := m.openSlot(target, true)
	if err != nil {
		return done, err
	}
	defer to.close()
	params, err := im.params.OfArea(m.areaSize(im, from.verity.Size()))
	if err == nil {
		err = fits(params, to.root.Size(), to.verity.Size())
	}
	if err != nil {
		return done, err
	}
	layers, err := m.openCopies(ctx, r.Running, target, o.Quick)
	if err != nil {
		return done, err
	}
	defer layers.close()
	files, err := m.checkBootFiles(r.Running, target, im)
	if err != nil {
		return done, err
	}
	if done.Already, err = m.isCopy(ctx, list, target, to, im, layers, files, o.Quick); err != nil || done.Already {
		return done, err
	}
	if o.Quick { // it was only looked at so far
		_, err := m.verifyImage(ctx, r.Running, from)
		if err == nil {
			err = layers.verify(ctx, m, r.Running, original)
		}
		if err != nil {
			return done, fmt.Errorf("slot %s cannot be copied: %w", r.Running, err)
		}
	}
	if err := m.BeginChange(); err != nil {
		return done, err
	}
	if o.Ready != nil {
		if err := o.Ready(target); err != nil {
			return done, err
		}
	}
	return done, m.copySlot(ctx, r, target, from, to, im, layers, files)
}

// isCopy says whether the slot is a committed copy already. What is wrong with
// it is no error: it is about to be written.
func (m Machine) isCopy(ctx context.Context, list []slots.Slot, target string, to slotParts, im image, layers layerCopies, files digests, quick bool) (bool, error) {
	if s, _ := slots.Find(list, target); s.State() != slots.Committed {
		return false, nil
	}
	if held, err := m.readImage(to); err != nil || !bytes.Equal(held.rootHash, im.rootHash) || !layers.alike() {
		return false, nil
	}
	have, err := m.digestsOf(target)
	if err != nil || !have.same(files) || quick {
		return err == nil && have.same(files), err
	}
	_, err = m.verifyImage(ctx, target, to)
	if err == nil {
		err = layers.verify(ctx, m, target, copied)
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	return err == nil, nil
}

// copySlot writes the target.
func (m Machine) copySlot(ctx context.Context, r Running, target string, from, to slotParts, im image, layers layerCopies, files digests) error {
	if err := m.begin(ctx, r, target); err != nil {
		return err
	}
	err := inOrder(ctx, []step{
		{"copy the image", func() error { return m.copyImage(ctx, from, to, im) }},
		// crash point: the image is there, its layers, kernel and initramfs are the old ones
		{"copy the layers", func() error { return layers.write(ctx, m) }},
		// crash point: those are there too
		{"check what was written", func() error {
			held, err := m.verifyImage(ctx, target, to)
			if err == nil {
				err = layers.verify(ctx, m, target, copied)
			}
			return readBack(held.rootHash, im.rootHash, err)
		}},
		{"copy the boot files", func() error { return m.copyBootFiles(r.Running, target, files) }},
		// crash point: everything is there, and the slot is not bootable yet
		{"commit the copy", func() error {
			list, err := m.Store.Load()
			if err != nil {
				return err
			}
			after, err := slots.FinishCopy(list, r.Running, target)
			if err != nil {
				return err
			}
			return m.Store.Save(after)
		}},
	})
	if err != nil {
		return unbootable(target, err)
	}
	return nil
}

// copyImage copies what the image takes of each partition.
func (m Machine) copyImage(ctx context.Context, from, to slotParts, im image) error {
	return m.copyParts(ctx, "root image", from, to, m.areaSize(im, from.verity.Size()), im.params.DataSize())
}

// copyParts copies so many bytes of hash tree and data, and the signature, and makes them
// durable.
func (m Machine) copyParts(ctx context.Context, what string, from, to slotParts, tree, data int64) error {
	defer m.Progress.Done()
	for _, c := range []struct {
		name     string
		from, to Partition
		size     int64
	}{
		{"copy hash tree", from.verity, to.verity, tree},
		{"copy " + what, from.root, to.root, data},
	} {
		m.Progress.Step(c.name, c.size)
		if err := m.stream(ctx, c.to, io.NewSectionReader(c.from, 0, c.size)); err != nil {
			return err
		}
	}
	text, err := signatureText(from.signature)
	if err != nil {
		return err
	}
	if err := writeSignature(to.signature, text); err != nil {
		return err
	}
	return to.reread()
}

// areaSize is what is copied of a hash device of size bytes: the parity too, where
// there is room for it. The superblock does not tell whether there is any.
func (m Machine) areaSize(im image, size int64) int64 {
	p := im.params
	if p.FECRoots = m.FECRoots; p.Validate() != nil || p.AreaSize() > size {
		return im.params.HashSize()
	}
	return p.AreaSize()
}

// signatureText is the signature partition's content without the padding.
func signatureText(p Partition) ([]byte, error) {
	b := make([]byte, min(manifest.MaxSize, p.Size()))
	if n, err := p.ReadAt(b, 0); n < len(b) {
		return nil, err
	}
	return bytes.TrimRight(b, "\x00"), nil
}

// digests are the boot files that a slot has, with their sizes and SHA-256.
type digests map[BootFile]digest

type digest struct {
	size int64
	sum  [sha256.Size]byte
}

func (d digests) same(other digests) bool {
	if len(d) != len(other) {
		return false
	}
	for f, one := range d {
		if other[f] != one {
			return false
		}
	}
	return true
}

func (m Machine) digestsOf(slot string) (digests, error) {
	found := digests{}
	err := m.ESP.With(false, func(dir Folder) error {
		for _, f := range BootFiles() {
			d, err := digestOf(dir, slot, f)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("cannot read %s of slot %s: %w", f, slot, err)
			}
			found[f] = d
		}
		return nil
	})
	return found, err
}

func digestOf(dir Folder, slot string, file BootFile) (digest, error) {
	r, err := dir.Open(slot, file)
	if err != nil {
		return digest{}, err
	}
	defer r.Close()
	h := sha256.New()
	n, err := io.Copy(h, r)
	return digest{n, [sha256.Size]byte(h.Sum(nil))}, err
}

// checkBootFiles finds the boot files of the slot that is copied: those that
// this machine starts from must be there, and what its signed manifest says
// must be true. There must be room for them.
func (m Machine) checkBootFiles(slot, target string, im image) (digests, error) {
	files, err := m.digestsOf(slot)
	if err != nil {
		return nil, err
	}
	for _, f := range m.ESP.Needs() {
		if files[f].size == 0 {
			return nil, fmt.Errorf("slot %s cannot be copied, its %s is missing: %w", slot, f, ErrBad)
		}
	}
	if _, err := m.compareBootFiles(slot, files, im); err != nil {
		return nil, fmt.Errorf("slot %s cannot be copied: %w", slot, err)
	}
	sizes := map[BootFile]int64{}
	for f, d := range files {
		sizes[f] = d.size
	}
	return files, m.ESP.With(false, func(dir Folder) error {
		room, err := dir.Room(target)
		if err != nil {
			return err
		}
		return checkRoom(sizes, room)
	})
}

// copyBootFiles makes the target's boot files those of the source, as they were
// when they were checked.
func (m Machine) copyBootFiles(source, target string, files digests) error {
	return m.ESP.With(true, func(dir Folder) error {
		var written []BootFile
		for _, f := range BootFiles() {
			want, ok := files[f]
			if !ok {
				continue
			}
			r, err := dir.Open(source, f)
			if err != nil {
				return err
			}
			sum := sha256.New()
			err = errors.Join(place(dir, target, f, io.TeeReader(r, sum)), r.Close())
			if err == nil && !bytes.Equal(sum.Sum(nil), want.sum[:]) {
				err = ErrReadBack
			}
			if err != nil {
				return fmt.Errorf("%s: %w", f, err)
			}
			written = append(written, f)
		}
		return dir.Publish(target, written)
	})
}

// checkCopy says whether the slots and this boot allow the copy.
func checkCopy(list []slots.Slot, r Running, target string, force bool) error {
	source, _ := slots.Find(list, r.Running)
	if source.State() != slots.Committed {
		return fmt.Errorf("slot %s is not committed, only a committed slot is copied: %w", r.Running, bootset.ErrRefused)
	}
	if s, _ := slots.Find(list, target); s.State() == slots.Trial && !force {
		return fmt.Errorf("slot %s waits for its trial, --force gives that up: %w", target, bootset.ErrRefused)
	}
	return nil
}
