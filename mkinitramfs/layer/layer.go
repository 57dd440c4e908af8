// Package layer packs the image of a layer into a file: a partition table with data,
// hash tree and signature, as the Discoverable Partitions Specification has images
// and systemd-dissect(1) reads them.
package layer

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"sealroot/init/config"
	"sealroot/slots/gpt"
	"sealroot/slots/guid"
	"sealroot/verity"
	"sealroot/verity/signature"
)

// ErrImage: a file that is not the image of a layer.
var ErrImage = errors.New("not the image of a layer")

const (
	sectorSize = 512
	alignment  = 1 << 20
)

// Parts are what is packed.
type Parts struct {
	Data, Tree io.ReaderAt
	DataSize   int64 // bytes, a multiple of 4096
	TreeSize   int64
	RootHash   []byte
	Signature  []byte // content of the signature partition
}

// Pack writes the image to out, which is empty. Equal parts give equal images.
func Pack(out *os.File, p Parts) error {
	sizes := [3]int64{p.DataSize, p.TreeSize, int64(len(p.Signature))}
	var start [3]int64
	end := int64(alignment)
	for i, size := range sizes {
		start[i] = end
		end += (size + alignment - 1) / alignment * alignment
	}
	end += alignment // the backup of the table
	if err := out.Truncate(end); err != nil {
		return fmt.Errorf("cannot size the image of a layer: %w", err)
	}
	table, err := gpt.New(half(p.RootHash[8:]), end, sectorSize)
	if err != nil {
		return err
	}
	// The specification's way to find the tree of some data: their UUIDs are the halves
	// of the root hash.
	ids := [3]guid.GUID{half(p.RootHash), half(p.RootHash[len(p.RootHash)-16:]), half(p.RootHash[4:])}
	for i, kind := range []string{gpt.TypeRoot, gpt.TypeVerity, gpt.TypeSig} {
		last := start[i] + (sizes[i]+sectorSize-1)/sectorSize*sectorSize
		if err := table.Add(gpt.Partition{
			Type: guid.Must(kind), UUID: ids[i], Name: []string{"root", "root-verity", "root-verity-sig"}[i],
			First: uint64(start[i] / sectorSize), Last: uint64(last/sectorSize) - 1,
		}); err != nil {
			return err
		}
	}
	for i, from := range []io.ReaderAt{p.Data, p.Tree, bytes.NewReader(p.Signature)} {
		to := io.NewOffsetWriter(out, start[i])
		if _, err := io.Copy(to, io.NewSectionReader(from, 0, sizes[i])); err != nil {
			return fmt.Errorf("cannot write the image of a layer: %w", err)
		}
	}
	return table.Write(out)
}

func half(hash []byte) guid.GUID { return guid.FromText([16]byte(hash)) }

// Open reads the image of a layer as a whole and returns the root hash that its
// signature partition names and its content has: ErrImage, verity.ErrCorrupt.
func Open(path string) (rootHash []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot use %s as a layer: %w", path, err)
		}
	}()
	im, f, err := OpenFile(path, Read)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return im.Signature.RootHash, nil
}

// OpenFile opens the file of an image for as long as what lies in it is read, and has read,
// which is Read or Find, look at it.
func OpenFile(path string, read func(f io.ReaderAt, size int64) (Image, error)) (Image, *os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return Image{}, nil, err
	}
	var im Image
	info, err := f.Stat()
	if err == nil {
		im, err = read(f, info.Size())
	}
	if err != nil {
		return Image{}, nil, errors.Join(err, f.Close())
	}
	return im, f, nil
}

// Image is what lies in an image. Who signed it is not checked.
type Image struct {
	Data       *io.SectionReader // the file system
	DataOffset int64             // where it begins, in bytes
	Tree       *io.SectionReader // superblock and hash tree
	Params     verity.Params
	Signed     *io.SectionReader // its signature, as it lies there
	Signature  signature.Signature
}

// Read reads the image of a layer as a whole: its content has the root hash that its
// signature names. Errors: ErrImage, verity.ErrCorrupt.
func Read(f io.ReaderAt, size int64) (Image, error) {
	im, err := Find(f, size)
	if err != nil {
		return Image{}, err
	}
	if im.Signature, err = signature.Read(im.Signed); err != nil {
		return Image{}, fmt.Errorf("%w: %w", ErrImage, err)
	}
	superblock := make([]byte, verity.SuperblockSize)
	if _, err := im.Tree.ReadAt(superblock, 0); err != nil {
		return Image{}, err
	}
	im.Params, err = verity.ParseSuperblock(superblock)
	if err == nil {
		err = im.Params.Fits(im.Data.Size(), im.Tree.Size())
	}
	if err != nil {
		return Image{}, fmt.Errorf("%w: %w", ErrImage, err)
	}
	if err := verity.Verify(im.Data, im.Tree, im.Params, im.Signature.RootHash); err != nil {
		return Image{}, err
	}
	return im, nil
}

// Find tells where data, hash tree and signature lie, and reads none of them. Errors:
// ErrImage.
func Find(f io.ReaderAt, size int64) (Image, error) {
	table, err := gpt.Read(f, size, sectorSize)
	if err != nil {
		return Image{}, fmt.Errorf("%w: %w", ErrImage, err)
	}
	data, tree, sig, err := table.Image()
	if err == nil && sig == nil {
		err = errors.New("it has no signature partition")
	}
	if err != nil {
		return Image{}, fmt.Errorf("%w: %w", ErrImage, err)
	}
	in := func(p gpt.Partition) *io.SectionReader {
		return io.NewSectionReader(f, table.Offset(p), table.Size(p))
	}
	return Image{Data: in(data), DataOffset: table.Offset(data), Tree: in(tree), Signed: in(*sig)}, nil
}

// Filesystem tells a file system by its magic number: squashfs, erofs or unknown.
func Filesystem(data io.ReaderAt) string {
	head := make([]byte, 1028)
	if _, err := data.ReadAt(head, 0); err != nil {
		return "unknown"
	}
	switch {
	case string(head[:4]) == "hsqs":
		return "squashfs"
	case string(head[1024:]) == "\xe2\xe1\xf5\xe0":
		return "erofs"
	}
	return "unknown"
}

// FillIn puts the root hashes of images into a configuration that was read from a file
// in dir.
func FillIn(c *config.Config, dir string) error {
	for i := range c.Layers {
		l := &c.Layers[i]
		if l.Image == "" {
			continue
		}
		if !filepath.IsAbs(l.Image) {
			l.Image = filepath.Join(dir, l.Image)
		}
		hash, err := Open(l.Image)
		if err != nil {
			return err
		}
		l.Hash = hex.EncodeToString(hash)
	}
	return nil
}
