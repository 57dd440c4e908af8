// Package install fills a slot: with a set of image parts (Install), or with a
// copy of the slot that runs (Copy). It also checks what a slot holds (Verify).
//
// The slot is unbootable from before its first byte changes until all of it has
// been read back from the medium and proved right. The slot that runs is never
// written. What is decided is decided in plan.go, on values; the other files
// act, over the interfaces below.
package install

import (
	"context"
	"errors"
	"io"

	"sealroot/sealroot/bootset"
	"sealroot/slots/manifest"
	"sealroot/verity/signature"
)

var (
	// ErrSet: the set of parts is damaged, incomplete, or not signed by anybody
	// whom this machine trusts. Nothing of a slot changed, unless the text says
	// that the slot stays unbootable.
	ErrSet = errors.New("unusable image")
	// ErrRoom: the parts do not fit.
	ErrRoom = errors.New("not enough room")
	// ErrNoPartition: the disk was made without partitions for a layer.
	ErrNoPartition = errors.New("the disk has no partition for it")
	// ErrReadBack: the medium did not keep what was written.
	ErrReadBack = errors.New("what was written does not read back")
	// ErrBad: a slot does not hold what its signature promises.
	ErrBad = errors.New("slot does not verify")
	// ErrUnbootable goes with an error that left the slot unbootable: it was
	// being written. The slot that runs is untouched.
	ErrUnbootable = errors.New("slot is not bootable until it is written again")
)

// Partition is one open partition of a slot.
type Partition interface {
	io.ReaderAt
	io.WriterAt
	Size() int64 // bytes
	// Sync returns when everything written is on the medium.
	Sync() error
	// Forget drops what the kernel keeps in memory of the partition, so that it
	// is read from the medium again.
	Forget() error
	Close() error
}

// Disk opens the partitions of a slot: manifest.Root, Verity and Signature.
type Disk interface {
	OpenPart(slot string, part manifest.Name, write bool) (Partition, error)
	// OpenLayer opens the same of a layer that lies in partitions of the slot; the error
	// is ErrNoPartition when the disk has none for it.
	OpenLayer(slot, layer string, part manifest.Name, write bool) (Partition, error)
}

// Layers is where the images of layers are, on the state partition; all slots share it.
type Layers interface {
	// Holds says whether a layer is there, with the content that the manifest names, as
	// the medium has it.
	Holds(l manifest.Layer) (bool, error)
	// Open opens the image that has the name of a layer, to be read from the medium; only
	// name and root hash count. The error is ErrBad where none is there.
	Open(l manifest.Layer) (LayerImage, error)
	// Write writes a layer whole, in place of what has its name, and makes it durable.
	Write(l manifest.Layer, content io.Reader) error
}

// BootFile is one file of a slot on the EFI system partition.
type BootFile string

// The boot files: those that are parts, and the signed manifest, which tells
// what the slot holds.
const (
	Kernel            = BootFile(manifest.Kernel)
	Initrd            = BootFile(manifest.Initrd)
	UKI               = BootFile(manifest.UKI)
	Manifest          = BootFile(manifest.File)
	ManifestSignature = BootFile(manifest.SignatureFile)
)

// BootFiles are all boot files, in the order in which they are written.
func BootFiles() []BootFile { return []BootFile{Kernel, Initrd, UKI, Manifest, ManifestSignature} }

// Folder is the EFI system partition while it is mounted.
type Folder interface {
	// Room is what there is for a slot's new files.
	Room(slot string) (Room, error)
	// Open opens a slot's file; the error is fs.ErrNotExist when it has none.
	Open(slot string, file BootFile) (io.ReadCloser, error)
	// Write writes a new file beside the slot's own one, and makes it durable.
	Write(slot string, file BootFile, content io.Reader) error
	// Written opens what Write wrote, as the medium has it.
	Written(slot string, file BootFile) (io.ReadCloser, error)
	// Publish puts the files that were written in the place of the slot's own
	// ones, and removes those of its files that were not written. A power cut
	// leaves any of both; no file of another slot is touched.
	Publish(slot string, files []BootFile) error
}

// Room is room for boot files, in bytes.
type Room struct {
	Free int64 // for the new files of a slot, beside its old ones
	Old  int64 // that Publish, or the commit after it, gives free
	// Fallback: a commit writes one more copy of the unified kernel image before
	// it deletes the old one.
	Fallback bool
}

// ESP is where the boot files are.
type ESP interface {
	// Needs are the files from which the loader of this machine starts a slot.
	Needs() []BootFile
	// With mounts it, for writing or not, and unmounts it after use.
	With(write bool, use func(Folder) error) error
}

// Machine is what is installed on.
type Machine struct {
	bootset.Machine
	Disk Disk
	ESP  ESP
	// Layers is nil on a machine that keeps no state.
	Layers Layers
	// Certs are the certificates of the role root; nothing else is trusted.
	Certs []*signature.Certificate
	// Layout is how the disk is laid out and started.
	Layout manifest.Layout
	// State is the type of the state partition's file system now, "" for none known.
	State string
	// Own are the layers of the running system that lie in partitions of its slot, with
	// name and root hash.
	Own []manifest.Layer
	// FECRoots is root.verity.fec_roots of the running system.
	FECRoots int
	// Say is told what a person should know, one line each. Not nil.
	Say func(format string, args ...any)
	// Progress is told what is going on. Not nil.
	Progress Progress
}

// Progress shows how far a long step is.
type Progress interface {
	// Step begins a step over total bytes; the one before has ended.
	Step(name string, total int64)
	// Add says that n more bytes are done.
	Add(n int64)
	// Done ends the last step.
	Done()
}

// Running is what the boot report says of the system that runs.
type Running struct {
	bootset.Boot
	Name            string // product
	Version         string
	RootHash        string // lower-case hex
	SecurityVersion int
	// Floor is the rollback floor, in force or asked for; 0 without.
	Floor int
	// WasCommitted: the slot was committed when this boot began.
	WasCommitted bool
	// KernelDead: the boot log says that the slot's own kernel never came.
	KernelDead bool
}

// step is one change that lasts, with what it is for in an error.
type step struct {
	name string
	do   func() error
}

// inOrder runs the steps until one fails or ctx ends.
func inOrder(ctx context.Context, steps []step) error {
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.do(); err != nil {
			return &stepError{s.name, err}
		}
	}
	return nil
}

// stepError says which step failed.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return "cannot " + e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }
