// Package initramfs packs PID 1, its configuration and the kernel modules into
// a newc cpio archive (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).
// Equal inputs give equal bytes: the archive is measured and signed.
package initramfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"

	"sealroot/init/config"
	"sealroot/mkinitramfs/modules"
	"sealroot/mount/kmod"
)

// Places in the archive, as PID 1 knows them.
const (
	initPath    = "init"
	releasePath = "etc/initrd-release"
)

// ErrInput means that the parts of an initramfs do not fit together.
var ErrInput = errors.New("initramfs cannot be made of these parts")

// Compression is how the archive is stored.
type Compression string

// The compressions that every kernel since 5.9 can be built to read.
const (
	Zstd Compression = "zstd"
	None Compression = "none"
)

// File is a small file with its base name.
type File struct {
	Name    string
	Content []byte
}

// Input is everything that goes into an initramfs.
type Input struct {
	Init         []byte // the static PID 1
	Config       *config.Config
	Modules      modules.List
	ReadModule   func(file string) ([]byte, error) // see modules.Tree.ReadModule
	Certificates map[config.Role][]File            // PEM
	PCRPublic    []byte                            // PEM, may be empty
	PCRPrevious  []File                            // PEM, see config.TPM2.PreviousKeys
	Escrow       []File                            // PEM, see config.State.Escrow
}

// RootCertificates are the files that vouch for the images of slots.
func (in Input) RootCertificates() []File {
	var files []File
	for _, role := range in.Config.RootRoles() {
		files = append(files, in.Certificates[role]...)
	}
	return files
}

// Records returns the content of the archive, parents before children.
func Records(in Input) ([]cpio.Record, error) {
	b := builder{seen: map[string]bool{}}
	if len(in.Init) == 0 {
		return nil, fmt.Errorf("cannot pack initramfs without init: %w", ErrInput)
	}
	if len(in.RootCertificates()) == 0 {
		return nil, fmt.Errorf("cannot pack initramfs without a certificate for the image (trust.%s): %w", in.Config.Root.ImageRole(), ErrInput)
	}
	var kernel config.Kernel
	if in.Config.Kernel != nil {
		kernel = *in.Config.Kernel
	}
	kernel.Release = in.Modules.Release
	cfg, err := in.Config.Embed(kernel)
	if err != nil {
		return nil, err
	}
	text, err := cfg.Encode()
	if err != nil {
		return nil, err
	}
	list, err := in.Modules.Encode()
	if err != nil {
		return nil, err
	}

	// PID 1 mounts on these; the new root goes to sysroot.
	for _, dir := range []string{"dev", "proc", "run", "sys", "sysroot"} {
		b.dir(dir)
	}
	b.file(initPath, in.Init, 0o755)
	b.file(strings.TrimPrefix(config.Path, "/"), text, 0o644)
	b.file(strings.TrimPrefix(kmod.ListPath, "/"), list, 0o644)
	b.file(releasePath, initrdRelease(&cfg), 0o644)
	for _, role := range config.Roles() {
		for _, f := range in.Certificates[role] {
			b.file(path.Join(strings.TrimPrefix(config.CertificatesDir, "/"), string(role), f.Name), f.Content, 0o644)
		}
	}
	for _, f := range in.Escrow {
		b.file(path.Join(strings.TrimPrefix(config.EscrowDir, "/"), f.Name), f.Content, 0o644)
	}
	if len(in.PCRPublic) > 0 {
		b.file(strings.TrimPrefix(config.PublicKeyPath, "/"), in.PCRPublic, 0o644)
	}
	for _, f := range in.PCRPrevious {
		b.file(path.Join(strings.TrimPrefix(config.PreviousKeysDir, "/"), f.Name), f.Content, 0o644)
	}
	for i, m := range in.Modules.Modules {
		content, err := in.ReadModule(in.Modules.Files[i])
		if err != nil {
			return nil, err
		}
		b.file(strings.TrimPrefix(m.Path, "/"), content, 0o644)
	}
	cpio.MakeAllReproducible(b.records)
	return b.records, nil
}

// initrdRelease is the os-release file of the initramfs (man os-release).
func initrdRelease(cfg *config.Config) []byte {
	return fmt.Appendf(nil, "ID=sealroot\nNAME=sealroot\nPRETTY_NAME=\"sealroot initramfs\"\nIMAGE_ID=%q\nIMAGE_VERSION=%q\n", cfg.Name, cfg.Version)
}

// builder collects records and makes parent directories.
type builder struct {
	records []cpio.Record
	seen    map[string]bool
}

func (b *builder) dir(name string) {
	if name == "." || b.seen[name] {
		return
	}
	b.dir(path.Dir(name))
	b.seen[name] = true
	b.records = append(b.records, cpio.Directory(name, 0o755))
}

func (b *builder) file(name string, content []byte, perm uint64) {
	if b.seen[name] {
		return
	}
	b.dir(path.Dir(name))
	b.seen[name] = true
	b.records = append(b.records, cpio.StaticRecord(content, cpio.Info{Name: name, Mode: cpio.S_IFREG | perm}))
}

// maxWindow is the largest zstd window used: the kernel allocates one while it
// unpacks (lib/decompress_unzstd.c allows 128 MiB; small machines do not).
const maxWindow = 8 << 20

// Write writes the archive.
func Write(w io.Writer, records []cpio.Record, c Compression) error {
	var archive bytes.Buffer
	rw := cpio.Newc.Writer(&archive)
	if err := cpio.WriteRecords(rw, slices.Clone(records)); err != nil {
		return fmt.Errorf("cannot write cpio archive: %w", err)
	}
	if err := cpio.WriteTrailer(rw); err != nil {
		return fmt.Errorf("cannot write cpio archive: %w", err)
	}
	switch c {
	case None:
		_, err := w.Write(archive.Bytes())
		return err
	case Zstd:
		// EncodeAll makes one frame of known size, and the same one each time.
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression),
			zstd.WithWindowSize(maxWindow), zstd.WithEncoderConcurrency(1), zstd.WithSingleSegment(false))
		if err != nil {
			return fmt.Errorf("cannot compress initramfs: %w", err)
		}
		defer e.Close()
		_, err = w.Write(e.EncodeAll(archive.Bytes(), nil))
		return err
	}
	return fmt.Errorf("cannot compress initramfs with %q, only zstd and none: %w", c, ErrInput)
}
