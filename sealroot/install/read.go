package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"sealroot/slots/manifest"
	"sealroot/verity"
	"sealroot/verity/signature"
)

// set is a set whose manifest is trusted, as far as it was read.
type set struct {
	source   Source
	manifest manifest.Manifest
	text     []byte // of the manifest
	message  []byte // its signature
	signer   string // who signed it
}

// openSet reads manifest and signature; nothing else is read before they are
// trusted.
func (m Machine) openSet(source Source) (set, error) {
	text, err := readSmall(source, manifest.File, manifest.MaxSize)
	if err != nil {
		return set{}, err
	}
	message, err := readSmall(source, manifest.SignatureFile, manifest.MaxSize)
	if err != nil {
		return set{}, err
	}
	mf, signer, err := manifest.Open(text, message, m.Certs)
	if err != nil {
		return set{}, fmt.Errorf("%w: %w", ErrSet, err)
	}
	return set{source, mf, text, message, signer.Subject}, nil
}

// readSmall reads a file of at most limit bytes.
func readSmall(source Source, file string, limit int) ([]byte, error) {
	r, err := source.Open(file)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", file, err)
	}
	if len(b) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes: %w", file, limit, ErrSet)
	}
	return b, nil
}

// open opens the next part. It reads as io.EOF only when size and digest are
// those of the manifest, otherwise its error is ErrSet.
func (s set) open(name manifest.Name) (*partReader, error) {
	part, ok := s.manifest.Part(name)
	if !ok {
		return nil, fmt.Errorf("the set has no %s: %w", name, ErrSet)
	}
	return s.openPart(part)
}

func (s set) openPart(part manifest.Part) (*partReader, error) {
	r, err := s.source.Open(part.File)
	if err != nil {
		return nil, err
	}
	return newPartReader(r, part), nil
}

// partReader checks a part while it is read.
type partReader struct {
	io.Closer
	from io.Reader
	part manifest.Part
	left int64
	sum  hash.Hash
}

func newPartReader(r io.ReadCloser, part manifest.Part) *partReader {
	return &partReader{r, r, part, part.Size, sha256.New()}
}

// Read reads from the part.
func (p *partReader) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, p.end()
	}
	n, err := p.from.Read(b[:min(int64(len(b)), p.left)])
	p.sum.Write(b[:n])
	p.left -= int64(n)
	switch {
	case errors.Is(err, io.EOF) && p.left > 0, errors.Is(err, io.ErrUnexpectedEOF):
		return n, fmt.Errorf("%s ends %d bytes too early: %w", p.part.File, p.left, ErrSet)
	case err != nil && !errors.Is(err, io.EOF):
		return n, fmt.Errorf("cannot read %s: %w", p.part.File, err)
	}
	return n, nil
}

func (p *partReader) end() error {
	var more [1]byte
	if _, err := io.ReadFull(p.from, more[:]); err == nil {
		return fmt.Errorf("%s has more than %d bytes: %w", p.part.File, p.part.Size, ErrSet)
	} else if !errors.Is(err, io.EOF) {
		return fmt.Errorf("cannot read %s: %w", p.part.File, err)
	}
	if !bytes.Equal(p.sum.Sum(nil), p.part.SHA256[:]) {
		return fmt.Errorf("%s was changed: its SHA-256 is %x: %w", p.part.File, p.sum.Sum(nil), ErrSet)
	}
	return io.EOF
}

// readSignature reads the part that goes into the signature partition, which
// must vouch for the same root hash as the manifest.
func (s set) readSignature(m Machine) ([]byte, error) {
	r, err := s.open(manifest.Signature)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if r.part.Size > signature.MaxSize {
		return nil, fmt.Errorf("%s has %d bytes, at most %d: %w", r.part.File, r.part.Size, signature.MaxSize, ErrSet)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	sig, err := signature.Parse(text)
	var hash []byte
	if err == nil {
		hash, _, err = signature.Verify(sig, m.Certs)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", r.part.File, ErrSet, err)
	}
	if !bytes.Equal(hash, s.manifest.RootHash) {
		return nil, fmt.Errorf("%s is for root hash %x, the manifest says %x: %w", r.part.File, hash, s.manifest.RootHash, ErrSet)
	}
	return text, nil
}

// peekTree opens the hash tree and reads its superblock; tree reads all of it.
func (s set) peekTree() (p verity.Params, tree io.Reader, closer io.Closer, err error) {
	r, err := s.open(manifest.Verity)
	if err != nil {
		return verity.Params{}, nil, nil, err
	}
	first := make([]byte, verity.SuperblockSize)
	if _, err = io.ReadFull(r, first); err == nil {
		p, err = verity.ParseSuperblock(first)
	}
	if err != nil {
		return verity.Params{}, nil, nil, errors.Join(fmt.Errorf("%s: %w: %w", r.part.File, ErrSet, err), r.Close())
	}
	return p, io.MultiReader(bytes.NewReader(first), r), r, nil
}

// slotParts are the open partitions of a slot.
type slotParts struct {
	root, verity, signature Partition
}

// openSlot opens the three partitions of a slot.
func (m Machine) openSlot(slot string, write bool) (slotParts, error) {
	return openParts(func(part manifest.Name) (Partition, error) { return m.Disk.OpenPart(slot, part, write) })
}

func openParts(open func(manifest.Name) (Partition, error)) (p slotParts, err error) {
	for _, one := range []struct {
		name manifest.Name
		to   *Partition
	}{{manifest.Root, &p.root}, {manifest.Verity, &p.verity}, {manifest.Signature, &p.signature}} {
		if *one.to, err = open(one.name); err != nil {
			*one.to = nil
			return slotParts{}, errors.Join(err, p.close())
		}
	}
	return p, nil
}

func (p slotParts) all() []Partition { return []Partition{p.root, p.verity, p.signature} }

func (p slotParts) close() error {
	var errs []error
	for _, one := range p.all() {
		if one != nil {
			errs = append(errs, one.Close())
		}
	}
	return errors.Join(errs...)
}

// reread makes what was written durable, and has it read from the medium again.
func (p slotParts) reread() error {
	for _, one := range p.all() {
		if err := one.Sync(); err != nil {
			return err
		}
		if err := one.Forget(); err != nil {
			return err
		}
	}
	return nil
}

// image is what the partitions of a slot hold, by its signature.
type image struct {
	rootHash []byte
	signer   string
	params   verity.Params
}

// readImage reads signature and superblock of a slot. Its error is ErrBad, or
// that of the disk.
func (m Machine) readImage(p slotParts) (image, error) {
	sig, err := signature.Read(p.signature)
	if errors.Is(err, signature.ErrFormat) {
		return image{}, fmt.Errorf("%w: %w", ErrBad, err)
	}
	if err != nil {
		return image{}, err
	}
	hash, signer, err := signature.Verify(sig, m.Certs)
	if err != nil {
		return image{}, fmt.Errorf("%w: root hash %x: %w", ErrBad, sig.RootHash, err)
	}
	params, err := readParams(p, hash)
	if err != nil {
		return image{}, err
	}
	return image{hash, signer.Subject, params}, nil
}

// readParams reads the superblock of what has that root hash. Its error is ErrBad, or
// that of the disk.
func readParams(p slotParts, hash []byte) (verity.Params, error) {
	return paramsOf(p.root, p.verity, hash)
}

// sized is what has a size in bytes, a partition or a part of a file.
type sized interface {
	io.ReaderAt
	Size() int64
}

func paramsOf(data, tree sized, hash []byte) (verity.Params, error) {
	params, err := verity.ReadSuperblock(tree)
	if err == nil {
		err = params.Fits(data.Size(), tree.Size())
	}
	if err == nil && params.Algorithm.Size() != len(hash) {
		err = fmt.Errorf("%w: the root hash is not of %s", verity.ErrParams, params.Algorithm)
	}
	for _, bad := range []error{verity.ErrSuperblock, verity.ErrParams, verity.ErrAlgorithm} {
		if errors.Is(err, bad) {
			return verity.Params{}, fmt.Errorf("%w: %w", ErrBad, err)
		}
	}
	return params, err
}

// readSlot is readImage with the signature of verifyImage.
func (m Machine) readSlot(_ context.Context, _ string, p slotParts) (image, error) {
	return m.readImage(p)
}

// verifyImage reads the whole image of a slot and compares it with the root
// hash that its signature vouches for. Its error is ErrBad, or that of the disk.
func (m Machine) verifyImage(ctx context.Context, slot string, p slotParts) (image, error) {
	im, err := m.readImage(p)
	if err != nil {
		return image{}, err
	}
	if err := m.verifyTree(ctx, "verify slot "+slot, p.root, p.verity, im.params, im.rootHash); err != nil {
		return image{}, err
	}
	return im, nil
}

// verifyTree reads data as a whole and compares it with a root hash. Its error is ErrBad,
// or that of the disk.
func (m Machine) verifyTree(ctx context.Context, step string, data, tree io.ReaderAt, params verity.Params, rootHash []byte) error {
	m.Progress.Step(step, params.DataSize())
	defer m.Progress.Done()
	err := verity.Verify(watched{ctx, data, m.Progress.Add}, watched{ctx, tree, nil}, params, rootHash)
	if errors.Is(err, verity.ErrCorrupt) {
		return fmt.Errorf("%w: %w", ErrBad, err)
	}
	return err
}

// watched ends reading with ctx, and tells how far it is. Calls may come at the
// same time.
type watched struct {
	ctx  context.Context
	from io.ReaderAt
	add  func(int64)
}

func (w watched) ReadAt(b []byte, off int64) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := w.from.ReadAt(b, off)
	if w.add != nil {
		w.add(int64(n))
	}
	return n, err
}

// hex is a hash as people and files write it.
func hexOf(b []byte) string { return hex.EncodeToString(b) }
