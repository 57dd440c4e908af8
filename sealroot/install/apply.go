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
	"sealroot/verity/signature"
)

// Options are what a person chooses about an install.
type Options struct {
	Slot  string // "" lets the program choose
	Tries int    // of the trial
	Force bool   // take another image of the version that runs
	// Accept has the last word on a set for a slot, by its manifest; nil: it is taken.
	Accept func(slot string, m manifest.Manifest) error
	// Ready is called when all checks are passed, before the slot changes: with its
	// error nothing is changed. May be nil.
	Ready func() error
}

// Installed is what was done.
type Installed struct {
	Slot        string `json:"slot"`
	Version     string `json:"version"`
	RootHash    string `json:"root_hash"`
	Certificate string `json:"certificate"` // subject of who signed it
}

// Install writes a set into a slot and puts it on trial. The order, for power
// cuts in between:
//
//	checks:    manifest, signature, sizes, superblock, room. Nothing has changed.
//	layers:    among the checks, as they come first in a set: those that are not there
//	           yet, each whole or not at all, under names that no slot has in use.
//	           Of a set that is refused then they stay until the next commit.
//	begin:     see Machine.begin. From its end on the slot is unbootable.
//	image:     tree, root, signature, then layers in partitions of the slot; synced, and
//	           read back against the signed root hashes.
//	boot files: beside the old ones, read back, put in their place.
//	trial:     slots, one-shot, boot log, by slots.Apply.
//
// With ErrUnbootable the slot was being written, and the next install begins
// anew; with bootset.ErrUnarmed it is installed and on trial. With any other error
// of ErrSet, ErrRoom and bootset's nothing changed.
func (m Machine) Install(ctx context.Context, source Source, r Running, o Options) (Installed, error) {
	w, err := m.prepare(source, r, o)
	if err != nil {
		return Installed{Slot: w.slot}, err
	}
	defer w.parts.close()
	defer w.layers.close()
	defer w.closer.Close()
	done := Installed{Slot: w.slot, Version: w.manifest.Version, RootHash: hexOf(w.manifest.RootHash), Certificate: w.signer}
	if err := m.BeginChange(); err != nil {
		return done, err
	}
	if o.Ready != nil {
		if err := o.Ready(); err != nil {
			return done, err
		}
	}
	if err := m.begin(ctx, r, w.slot); err != nil {
		return done, err
	}
	err = inOrder(ctx, []step{
		{"write the image", func() error { return m.writeImage(ctx, w) }},
		// crash point: the image is there, its layers, kernel and initramfs are the old ones
		{"write the layers", func() error { return m.writeLayers(ctx, w) }},
		// crash point: those are there too
		{"check what was written", func() error { return m.checkWritten(ctx, w) }},
		{"write the boot files", func() error { return m.writeBootFiles(w.set, w.slot) }},
		// crash point: everything is there, and the slot is not bootable yet
	})
	if err != nil {
		return done, unbootable(w.slot, err)
	}
	// crash points: those of slots.Apply
	if err := m.Try(r.Boot, w.slot, o.Tries); errors.Is(err, bootset.ErrUnarmed) {
		return done, err // it is installed
	} else if err != nil {
		return done, fmt.Errorf("cannot put slot %s on trial, its image is written: %w", w.slot, err)
	}
	return done, nil
}

func unbootable(slot string, err error) error {
	return fmt.Errorf("slot %s: %w (%w)", slot, err, ErrUnbootable)
}

// work is an install that has passed its checks.
type work struct {
	set
	slot   string
	sig    []byte // content of the signature partition
	parts  slotParts
	layers slotLayers // in partitions of the slot
	tree   io.Reader
	closer io.Closer // of tree
}

// Inspect finds the slot that a set would be installed into, and what its manifest
// says, as far as Install would take it by that. Nothing behind the manifest is read.
func (m Machine) Inspect(source Source, r Running, o Options) (slot string, set manifest.Manifest, err error) {
	w, _, err := m.inspect(source, r, o)
	return w.slot, w.manifest, err
}

func (m Machine) inspect(source Source, r Running, o Options) (w work, warnings []string, err error) {
	if w.set, err = m.openSet(source); err != nil {
		return work{}, nil, err
	}
	list, err := m.Store.Load()
	if err != nil {
		return work{}, nil, fmt.Errorf("cannot read the slots: %w", err)
	}
	if w.slot, err = chooseSlot(list, r.Running, o.Slot); err != nil {
		return work{}, nil, err
	}
	if _, err := m.kernelStays(list, r, w.slot); err != nil {
		return work{}, nil, err
	}
	if o.Tries < 1 || o.Tries > slots.MaxTries {
		return work{}, nil, fmt.Errorf("%d tries, 1 to %d can be kept: %w", o.Tries, slots.MaxTries, bootset.ErrUsage)
	}
	if err := checkLayout(w.manifest.Layout, m.Layout); err != nil {
		return work{}, nil, err
	}
	if err := checkState(w.manifest.StatePartition, m.State); err != nil {
		return work{}, nil, err
	}
	if warnings, err = checkManifest(w.manifest, r, m.ESP.Needs(), o.Force); err != nil {
		return work{}, nil, err
	}
	return w, warnings, nil
}

// prepare reads and checks all that can be checked before a slot changes.
func (m Machine) prepare(source Source, r Running, o Options) (w work, err error) {
	var warnings []string
	if w, warnings, err = m.inspect(source, r, o); err != nil {
		return work{}, err
	}
	if o.Accept != nil {
		if err := o.Accept(w.slot, w.manifest); err != nil {
			return work{}, err
		}
	}
	if err := m.checkESP(w.set, w.slot); err != nil {
		return work{}, err
	}
	if w.layers, err = m.openLayers(w.slot, w.manifest.InPartitions(), true); err != nil {
		return work{}, err
	}
	opened := w.layers
	defer func() {
		if err != nil {
			err = errors.Join(err, opened.close())
		}
	}()
	if err := w.layers.room(); err != nil {
		return work{}, err
	}
	if err := m.placeLayers(w.set); err != nil {
		return work{}, err
	}
	if w.sig, err = w.readSignature(m); err != nil {
		return work{}, err
	}
	if w.parts, err = m.openSlot(w.slot, true); err != nil {
		return work{}, err
	}
	params, tree, closer, err := w.peekTree()
	if err == nil {
		if err = checkTree(params, w.manifest, w.parts.root.Size(), w.parts.verity.Size()); err != nil {
			err = errors.Join(err, closer.Close())
		}
	}
	if err != nil {
		return work{}, errors.Join(err, w.parts.close())
	}
	for _, text := range warnings {
		m.Say("%s", text)
	}
	w.tree, w.closer = tree, closer
	return w, nil
}

// checkESP says whether the boot files fit beside those that are there.
func (m Machine) checkESP(s set, slot string) error {
	sizes := map[BootFile]int64{Manifest: int64(len(s.text)), ManifestSignature: int64(len(s.message))}
	for _, f := range s.bootParts() {
		part, _ := s.manifest.Part(manifest.Name(f))
		sizes[f] = part.Size
	}
	return m.ESP.With(false, func(dir Folder) error {
		room, err := dir.Room(slot)
		if err != nil {
			return err
		}
		return checkRoom(sizes, room)
	})
}

// bootParts are the boot files of the set that are parts, in its order.
func (s set) bootParts() []BootFile {
	var files []BootFile
	for _, f := range []BootFile{Kernel, Initrd, UKI} {
		if s.manifest.Has(manifest.Name(f)) {
			files = append(files, f)
		}
	}
	return files
}

// begin makes the slot unbootable. Power cuts in between:
//
//	default:  the loader's default leaves the slot if it still names it, for the
//	          slot whose kernel runs: see kernelStays.
//	one-shot: a trial of the slot that was pending is over; cut here, PID 1
//	          counts a try of it and goes on.
//	log:      what was remembered of the slot.
//	slots:    now it is unbootable.
func (m Machine) begin(ctx context.Context, r Running, slot string) error {
	list, err := m.Store.Load()
	if err != nil {
		return fmt.Errorf("cannot read the slots: %w", err)
	}
	after, err := slots.BeginUpdate(list, slot)
	if err != nil {
		return err
	}
	kernel, err := m.kernelStays(list, r, slot)
	if err != nil {
		return err
	}
	return inOrder(ctx, []step{
		{"move the boot loader's default off slot " + slot, func() error {
			if kernel == "" {
				return nil
			}
			return m.Loader.SetDefault(kernel)
		}},
		// crash point: the default is the kernel that runs anyway
		{"clear the one-shot", func() error {
			if m.Loader == nil {
				return nil
			}
			if armed, err := m.Loader.Get(); err != nil || armed != slot {
				return err
			}
			return m.Loader.Clear()
		}},
		// crash point: a trial that was pending lost its one-shot
		{"write the boot log", func() error {
			if m.Log == nil {
				return nil
			}
			return m.Log.Record(slots.LogChange{Forget: []string{slot}})
		}},
		// crash point: the slot is what it was, only its reason is gone
		{"make slot " + slot + " unbootable", func() error { return m.Store.Save(after) }},
		// crash point: unbootable, not a byte of it changed
	})
}

// writeImage writes tree, root image and signature, and makes them durable.
func (m Machine) writeImage(ctx context.Context, w work) error {
	defer m.Progress.Done()
	tree, _ := w.manifest.Part(manifest.Verity)
	m.Progress.Step("write hash tree", tree.Size)
	if err := m.stream(ctx, w.parts.verity, w.tree); err != nil {
		return err
	}
	root, err := w.open(manifest.Root)
	if err != nil {
		return err
	}
	defer root.Close()
	m.Progress.Step("write root image", root.part.Size)
	if err := m.stream(ctx, w.parts.root, root); err != nil {
		return err
	}
	if err := writeSignature(w.parts.signature, w.sig); err != nil {
		return err
	}
	return w.parts.reread()
}

// writeSignature pads with zeros over whatever a longer one left.
func writeSignature(to Partition, text []byte) error {
	padded := make([]byte, min(signature.MaxSize, to.Size()))
	if copy(padded, text) < len(text) {
		return fmt.Errorf("the signature has %d bytes, its partition %d: %w", len(text), to.Size(), ErrRoom)
	}
	_, err := to.WriteAt(padded, 0)
	return err
}

const (
	chunk = 1 << 20
	// syncEvery bounds what is in memory only: without it the writes would look
	// fast, and the first sync would take minutes that nothing can end.
	syncEvery = 64 << 20
)

// stream copies to the beginning of a partition, in whole chunks.
func (m Machine) stream(ctx context.Context, to Partition, from io.Reader) error {
	buf := make([]byte, chunk)
	for at, synced := int64(0), int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(from, buf)
		if n > 0 {
			if _, err := to.WriteAt(buf[:n], at); err != nil {
				return err
			}
			at += int64(n)
			m.Progress.Add(int64(n))
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return to.Sync()
		case err != nil:
			return err
		case at-synced >= syncEvery:
			if err := to.Sync(); err != nil {
				return err
			}
			synced = at
		}
	}
}

// checkWritten verifies what the medium holds now.
func (m Machine) checkWritten(ctx context.Context, w work) error {
	im, err := m.verifyImage(ctx, w.slot, w.parts)
	if err == nil {
		err = m.verifyLayers(ctx, w.slot, w.layers)
	}
	return readBack(im.rootHash, w.manifest.RootHash, err)
}

// readBack judges what was verified after writing: err is why it is no good image.
func readBack(got, want []byte, err error) error {
	switch {
	case errors.Is(err, ErrBad):
		return fmt.Errorf("%w: %w", ErrReadBack, err)
	case err == nil && !bytes.Equal(got, want):
		return fmt.Errorf("%w: its root hash is %x, not %x", ErrReadBack, got, want)
	}
	return err
}

// writeBootFiles makes the slot's boot files exactly those of the set.
func (m Machine) writeBootFiles(s set, slot string) error {
	return m.ESP.With(true, func(dir Folder) error {
		files := s.bootParts()
		for _, f := range files {
			r, err := s.open(manifest.Name(f))
			if err == nil {
				err = errors.Join(place(dir, slot, f, r), r.Close())
			}
			if err != nil {
				return fmt.Errorf("%s: %w", f, err)
			}
		}
		for _, f := range []struct {
			name    BootFile
			content []byte
		}{{Manifest, s.text}, {ManifestSignature, s.message}} {
			if err := place(dir, slot, f.name, bytes.NewReader(f.content)); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			files = append(files, f.name)
		}
		return dir.Publish(slot, files)
	})
}

// place writes one file and reads it back.
func place(dir Folder, slot string, file BootFile, content io.Reader) error {
	sum := sha256.New()
	if err := dir.Write(slot, file, io.TeeReader(content, sum)); err != nil {
		return err
	}
	back, err := dir.Written(slot, file)
	if err != nil {
		return err
	}
	got := sha256.New()
	_, err = io.Copy(got, back)
	if err = errors.Join(err, back.Close()); err != nil {
		return err
	}
	if !bytes.Equal(sum.Sum(nil), got.Sum(nil)) {
		return ErrReadBack
	}
	return nil
}

// readFile reads a small boot file; nil when the slot has none.
func readFile(dir Folder, slot string, file BootFile) ([]byte, error) {
	r, err := dir.Open(slot, file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, manifest.MaxSize))
}
