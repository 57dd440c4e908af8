package layers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/mkinitramfs/layer"
	"sealroot/mkinitramfs/layer/over"
	"sealroot/mount"
	"sealroot/mount/loop"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/install"
	"sealroot/slots/manifest"
	"sealroot/verity/osrelease"
	"sealroot/verity/signature"
)

// Image is an image whose content and signature were verified.
type Image struct {
	Layer   manifest.Layer // without File
	Signer  string         // subject of the certificate
	Release osrelease.Release
	Clashes []over.Clash // with the root that runs
	// MachineEtc: what Clashes say of /etc may be the machine's own doing, whose files lie
	// above those of all images there, and stay.
	MachineEtc bool
	file       *os.File // the draft
}

// Wanted is what an image has to be.
type Wanted struct {
	Name       string // of the layer; "" for the only one that the image has
	Filesystem string
	Certs      []*signature.Certificate // one of them vouches for the content
	Show       Mounter
	Root       string // of the system that runs, with which it is compared
	Usr        bool   // the layer lies over its usr alone
}

// Mounter makes the tree of a verified image visible: the part of f from offset on has a
// file system. What it returns is closed after use.
type Mounter func(f *os.File, filesystem string, offset, size int64) (tree *os.File, err error)

// Open copies an image to draft, an empty file that nobody else has, verifies the copy as a
// whole, and reads what it is for and what it does to the root: of the file at path, which
// others may be writing, nothing counts. The file has at most room bytes. draft stays the
// caller's. Errors: install.ErrSet; bootset.ErrUsage, when the image has more names and none
// is wanted; bootset.ErrRefused.
func Open(ctx context.Context, path string, draft *os.File, room func(size int64) error, want Wanted) (*Image, error) {
	im := &Image{file: draft}
	err := im.copy(ctx, path, room)
	if err == nil {
		err = im.read(ctx, want)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot add %s: %w", path, err)
	}
	return im, nil
}

func (im *Image) copy(ctx context.Context, path string, room func(size int64) error) error {
	// a FIFO would wait for its other end
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("it is no plain file: %w", install.ErrSet)
	}
	if err := room(info.Size()); err != nil {
		return err
	}
	im.Layer.Size, err = io.Copy(im.file, reader{ctx, io.NewSectionReader(f, 0, info.Size())})
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w on the state partition: %w", install.ErrRoom, err)
	}
	return err
}

// reader ends with its context.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

func (im *Image) read(ctx context.Context, want Wanted) error {
	in, err := layer.Read(im.file, im.Layer.Size)
	if err != nil {
		return fmt.Errorf("%w: %w", install.ErrSet, err)
	}
	hash, signer, err := signature.Verify(in.Signature, want.Certs)
	if err != nil {
		return fmt.Errorf("%w: %w", install.ErrSet, err)
	}
	im.Layer.RootHash, im.Signer = hash, signer.Subject
	if is, filesystem := layer.Filesystem(in.Data), want.Filesystem; is != filesystem {
		return fmt.Errorf("its file system is %s, the image that runs has %s, and its initramfs mounts no other; make the layer with --filesystem %s: %w", is, filesystem, filesystem, install.ErrSet)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, reader{ctx, io.NewSectionReader(im.file, 0, im.Layer.Size)}); err != nil {
		return err
	}
	im.Layer.SHA256 = [32]byte(sum.Sum(nil))
	tree, err := want.Show(im.file, want.Filesystem, in.DataOffset, in.Data.Size())
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := im.describe(tree, want.Name); err != nil {
		return err
	}
	if im.Clashes, im.MachineEtc, err = compare(want.Root, tree, want.Usr); err != nil {
		return fmt.Errorf("cannot compare it with the root: %w", err)
	}
	return nil
}

// describe finds the extension-release file and with it the name.
func (im *Image) describe(tree *os.File, name string) error {
	folder, prefix := osrelease.ExtensionPath(""), ""
	folder, prefix = folder[:strings.LastIndex(folder, "/")], folder[strings.LastIndex(folder, "/")+1:]
	dir, err := mount.OpenBeneath(tree, folder, unix.O_RDONLY|unix.O_DIRECTORY, mount.Strict)
	if err != nil {
		return fmt.Errorf("it does not say what it is for: %w: %w", install.ErrSet, err)
	}
	defer dir.Close()
	entries, err := dir.Readdirnames(100)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	var names []string
	for _, e := range entries {
		if n, ok := strings.CutPrefix(e, prefix); ok && config.IsLayerName(n) {
			names = append(names, n)
		}
	}
	switch {
	case name != "": // it shows below whether it is there
	case len(names) == 1:
		name = names[0]
	case len(names) == 0:
		return fmt.Errorf("it has no /%s: %w", osrelease.ExtensionPath("NAME"), install.ErrSet)
	default:
		return fmt.Errorf("it has the names %s; choose with --name: %w", strings.Join(names, ", "), bootset.ErrUsage)
	}
	f, err := mount.OpenBeneath(tree, osrelease.ExtensionPath(name), unix.O_RDONLY|unix.O_NONBLOCK, mount.Strict)
	if err != nil {
		return fmt.Errorf("it is no layer %q: %w: %w", name, install.ErrSet, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, osrelease.MaxSize+1))
	if err != nil {
		return err
	}
	if im.Release, err = osrelease.Parse(text); err != nil {
		return fmt.Errorf("%w: %w", install.ErrSet, err)
	}
	im.Layer.Name = name
	return nil
}

// RootHash in lower-case hex.
func (im *Image) RootHash() string { return hex.EncodeToString(im.Layer.RootHash) }

// Show is the Mounter of the kernel: a loop device, and a mount that nobody else sees.
func Show(f *os.File, filesystem string, offset, size int64) (*os.File, error) {
	d, err := loop.Attach(f, loop.Options{ReadOnly: true, Autoclear: true, Offset: uint64(offset), SizeLimit: uint64(size)})
	if err != nil {
		return nil, err
	}
	defer d.Release() // the mount holds it
	return mount.Filesystem{Type: filesystem, Source: d.Path, Attr: mount.ReadOnly | mount.NoSUID | mount.NoDev | mount.NoExec}.Open()
}
