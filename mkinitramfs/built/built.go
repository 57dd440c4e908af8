// Package built reads what mkinitramfs has made: disk images, sets of parts and
// unified kernel images. It believes what it reads: whoever made an image asks
// about it.
package built

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"sealroot/init/config"
	"sealroot/mkinitramfs/initramfs"
	"sealroot/mkinitramfs/tools"
	"sealroot/slots/esp"
	"sealroot/slots/gpt"
	"sealroot/slots/manifest"
	"sealroot/state/tpm/predict"
	"sealroot/verity/signature"
)

// ErrImage: the file is not what can be read here; the text says why.
var ErrImage = errors.New("not an image of sealroot-mkinitramfs")

// maxFile bounds a kernel image or initramfs, in bytes.
const maxFile = 1 << 30

// sectorSize is that of all our disks.
const sectorSize = 512

// Options say which image is meant.
type Options struct {
	// Slot of a disk image.
	Slot string
	// RootHash goes with a unified kernel image, which does not name its root.
	RootHash []byte
}

// Read finds out what decides the PCRs of an image: a disk image, the folder or
// tar of a set of parts, or a unified kernel image. Errors are ErrImage, those of
// predict and those of reading.
func Read(ctx context.Context, run tools.Runner, path string, o Options) (predict.Image, error) {
	r := reader{run: run, options: o}
	im, err := r.read(ctx, path)
	if err != nil {
		return predict.Image{}, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return im, nil
}

// Config is the configuration in the initramfs of an image. Errors are as those of
// Read.
func Config(ctx context.Context, run tools.Runner, path string, o Options) (*config.Config, error) {
	r := reader{run: run, options: o}
	if _, err := r.read(ctx, path); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return r.config, nil
}

// ConfigIn is the configuration in an initramfs. Errors are those of its reader.
func ConfigIn(initrd []byte) (*config.Config, error) { return initramfs.ReadConfig(initrd) }

type reader struct {
	run     tools.Runner
	options Options
	config  *config.Config // of the initramfs
}

func (r *reader) read(ctx context.Context, path string) (predict.Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return predict.Image{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return predict.Image{}, err
	}
	if info.IsDir() {
		return r.parts(dirPart(path))
	}
	head := make([]byte, 2*sectorSize)
	if _, err := f.ReadAt(head, 0); err != nil {
		return predict.Image{}, fmt.Errorf("%w: %w", ErrImage, err)
	}
	switch {
	case bytes.HasPrefix(head[sectorSize:], []byte(gpt.Signature)):
		return r.disk(ctx, f, info.Size())
	case string(head[257:262]) == "ustar":
		return r.parts(tarPart(f))
	case bytes.HasPrefix(head, []byte("MZ")):
		if len(r.options.RootHash) == 0 {
			return predict.Image{}, fmt.Errorf("%w: a unified kernel image does not name its root: give --root-hash", ErrImage)
		}
		return r.image(f, nil, r.options.RootHash)
	}
	return predict.Image{}, fmt.Errorf("%w: neither a disk, nor a tar of parts, nor a unified kernel image", ErrImage)
}

// image reads a unified kernel image, or where that is nil the initramfs.
func (r *reader) image(uki io.ReaderAt, initrd, rootHash []byte) (predict.Image, error) {
	im := predict.Image{RootHash: rootHash}
	if uki != nil {
		var err error
		if im.Sections, err = predict.ReadUKI(uki); err != nil {
			return predict.Image{}, err
		}
		for _, s := range im.Sections {
			if s.Name == ".initrd" {
				initrd = s.Data
			}
		}
	}
	c, err := initramfs.ReadConfig(initrd)
	if err != nil {
		return predict.Image{}, err
	}
	r.config = c
	// What PID 1 measures stands in os-release, where it comes from here.
	im.Role, im.SecurityVersion, im.RootPCR = string(c.Root.ImageRole()), c.SecurityVersion, c.Trust.MeasurePCR
	for _, l := range c.Images() {
		im.Layers = append(im.Layers, predict.Layer{Name: l.Name, RootHash: l.Hash})
	}
	return im, nil
}

// part reads one file of a set.
type part func(file string) ([]byte, error)

func dirPart(dir string) part {
	return func(file string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, file)) }
}

func tarPart(f *os.File) part {
	return func(file string) ([]byte, error) {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		for t := tar.NewReader(f); ; {
			h, err := t.Next()
			if err != nil {
				return nil, fmt.Errorf("%w: it has no %s: %w", ErrImage, file, err)
			}
			if h.Name == file {
				return io.ReadAll(io.LimitReader(t, maxFile))
			}
		}
	}
}

func (r *reader) parts(read part) (predict.Image, error) {
	text, err := read(manifest.File)
	if err != nil {
		return predict.Image{}, err
	}
	m, err := manifest.Parse(text)
	if err != nil {
		return predict.Image{}, err
	}
	for _, name := range []manifest.Name{manifest.UKI, manifest.Initrd} {
		p, ok := m.Part(name)
		if !ok {
			continue
		}
		data, err := read(p.File)
		if err != nil {
			return predict.Image{}, err
		}
		if name == manifest.UKI {
			return r.image(bytes.NewReader(data), nil, m.RootHash)
		}
		return r.image(nil, data, m.RootHash)
	}
	return predict.Image{}, fmt.Errorf("%w: the set has neither a unified kernel image nor an initramfs", ErrImage)
}

// disk reads the signature partition of a slot and its file on the EFI system
// partition.
func (r *reader) disk(ctx context.Context, f *os.File, size int64) (predict.Image, error) {
	table, err := gpt.Read(f, size, sectorSize)
	if err != nil {
		return predict.Image{}, err
	}
	slot := r.options.Slot
	sig, err := table.InSlot(gpt.NamingOf(table), slot, gpt.Sig)
	if err != nil {
		return predict.Image{}, err
	}
	s, err := signature.Read(io.NewSectionReader(f, table.Offset(sig), table.Size(sig)))
	if err != nil {
		return predict.Image{}, fmt.Errorf("slot %s: %w", slot, err)
	}
	part, err := table.ByName(gpt.LabelESP)
	if err != nil {
		return predict.Image{}, err
	}
	drive := f.Name() + "@@" + strconv.FormatInt(table.Offset(part), 10)
	// The name may hold a counter.
	uki, err := r.copyOut(ctx, drive, strings.TrimSuffix(esp.UKI(slot), ".efi")+"*.efi")
	if err == nil {
		return r.image(bytes.NewReader(uki), nil, s.RootHash)
	}
	initrd, grubErr := r.copyOut(ctx, drive, esp.Initrd(slot))
	if grubErr != nil {
		return predict.Image{}, errors.Join(err, grubErr)
	}
	return r.image(nil, initrd, s.RootHash)
}

// copyOut reads a file, whose name may be a pattern, of a FAT file system inside
// the disk image.
func (r *reader) copyOut(ctx context.Context, drive, file string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "sealroot-predict-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := r.run.Run(ctx, nil, "mcopy", "-n", "-i", drive, "::/"+file, dir); err != nil {
		return nil, err
	}
	found, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%w: %d files %s", ErrImage, len(found), file)
	}
	return os.ReadFile(filepath.Join(dir, found[0].Name()))
}
