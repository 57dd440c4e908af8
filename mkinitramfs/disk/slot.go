package disk

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"sealroot/init/cmdline"
	"sealroot/init/config"
	"sealroot/mkinitramfs/initramfs"
	"sealroot/mkinitramfs/keys"
	"sealroot/mkinitramfs/rootcheck"
	"sealroot/mkinitramfs/uki"
	"sealroot/slots/manifest"
	"sealroot/verity"
	"sealroot/verity/signature"
	"sealroot/verity/signature/sign"
)

// SlotInput is what one version is made from.
type SlotInput struct {
	Rootfs        string // directory, tar, or "-" for stdin
	Kernel        string // bzImage
	KernelVersion string // release; "" reads it from the kernel
	ModulesDir    string // "" takes the modules out of the root
	Config        *config.Config
	ConfigDir     string
	Cmdline       string // further kernel parameters
	Extra         string // directory of files to add; "" for none
	RootModules   bool   // the root must hold the kernel's modules
}

// parts is the boot set of one version: the files of a set (package manifest)
// in a folder of their own, and what the disk needs to know of them. No file
// knows its slot.
type parts struct {
	dir       string // holds the files, named as file has it
	fs        string // of the image
	role      string // of the image: root or usr
	release   string // kernel release
	rootSize  int64  // bytes
	params    verity.Params
	rootHash  []byte
	manifest  []byte // manifest.json
	signed    []byte // manifest.sig
	names     []manifest.Name
	signature []byte // content of the signature partition
	kernel    []byte
	initrd    []byte
	osRelease []byte
	previous  []crypto.Signer // PCR policy keys of before that sign too
	files     []setFile       // behind the manifest, in the order of the set
	// inPartitions are the layers with partitions of their own.
	inPartitions []partitioned
	layers       []rootcheck.Layer // images of layers, as the root is judged with them
}

// setFile is a file of a set, and where its content is.
type setFile struct{ name, path string }

// partitioned is a layer whose parts lie in the folder of the set.
type partitioned struct {
	manifest.Layer
	params verity.Params
}

// path is where a part is.
func (p parts) path(name manifest.Name) string { return filepath.Join(p.dir, p.file(name)) }

// file is the name of a part's file in a set.
func (p parts) file(name manifest.Name) string {
	switch name {
	case manifest.Root:
		return p.role + "." + p.fs
	case manifest.Verity:
		return p.role + ".verity"
	case manifest.Signature:
		return p.role + ".verity-sig"
	case manifest.Kernel:
		return "vmlinuz"
	case manifest.Initrd:
		return "initrd"
	}
	return "sealroot.efi"
}

// buildParts makes everything of one version in dir: the set in a folder of its
// own, beside what is needed on the way.
func (b *Builder) buildParts(ctx context.Context, in SlotInput, dir string) (parts, error) {
	p := parts{dir: filepath.Join(dir, "set"), fs: filesystemOf(in), role: string(in.Config.Root.ImageRole()), release: in.KernelVersion}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return parts{}, fmt.Errorf("cannot make work directory: %w", err)
	}
	var err error
	if p.kernel, err = os.ReadFile(in.Kernel); err != nil {
		return parts{}, fmt.Errorf("cannot read kernel: %w", err)
	}
	if p.release == "" {
		if p.release, err = b.kernelRelease(in.Kernel); err != nil {
			return parts{}, err
		}
	}
	if p.layers, err = b.readLayers(ctx, in.Config, dir); err != nil {
		return parts{}, err
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"root image, kernel " + p.release, func() error { return b.rootImage(ctx, in, &p, dir) }},
		{"hash tree and signature", func() error { return b.protect(in, &p) }},
		{"initramfs", func() error { return b.initrd(ctx, in, &p, dir) }},
		{bootText(in), func() error { return b.bootParts(ctx, in, &p, dir) }},
		{"manifest", func() error { return b.describe(in, &p) }},
	} {
		if err := b.step(step.name, step.do); err != nil {
			return parts{}, err
		}
	}
	return p, nil
}

func (b *Builder) kernelRelease(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("cannot read kernel: %w", err)
	}
	defer f.Close()
	release, err := KernelRelease(f)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return release, nil
}

// modulesDir is where the initramfs takes its modules from: the directory
// given, else what the root held.
func modulesDir(in SlotInput, dir string) string {
	if in.ModulesDir != "" {
		return in.ModulesDir
	}
	return filepath.Join(dir, "modules")
}

// stampOf returns the newest time stamp that the image shall hold, and where to
// read the root: one that comes on stdin is kept in dir, as it is read twice.
func (b *Builder) stampOf(rootfs, dir string) (from string, stamp int64, err error) {
	from = rootfs
	if rootfs == "-" {
		from = filepath.Join(dir, "root.tar")
		if err := spool(b.Stdin, from); err != nil {
			return "", 0, err
		}
	}
	if b.Time.Unix() > 0 {
		return from, b.Time.Unix(), nil
	}
	stamp, err = newest(from)
	return from, stamp, err
}

// protect makes the hash tree and signs its root.
func (b *Builder) protect(in SlotInput, p *parts) error {
	v := in.Config.Root.Verity
	params, err := verity.Params{
		Algorithm: verity.Algorithm(v.Algorithm), DataBlockSize: v.DataBlockSize, HashBlockSize: v.HashBlockSize,
		HashStart: 1, Salt: saltOf(in, p.release), UUID: uuidOf(in, p.release), FECRoots: v.FECRoots,
	}.ForData(p.rootSize)
	if err != nil {
		return err
	}
	if at := v.TreeAt(); at != 0 && p.rootSize > at {
		return fmt.Errorf("cannot put the hash tree behind the root image: it has %d bytes, root.verity.tree_at_mib says %d: %w", p.rootSize, at, ErrSize)
	}
	data, err := os.Open(p.path(manifest.Root))
	if err != nil {
		return fmt.Errorf("cannot read root image: %w", err)
	}
	defer data.Close()
	hash, err := os.Create(p.path(manifest.Verity))
	if err != nil {
		return fmt.Errorf("cannot write hash tree: %w", err)
	}
	p.params = params
	p.rootHash, err = verity.Format(data, params, hash)
	if err == nil && params.FECRoots > 0 {
		err = verity.BuildFEC(data, hash, params, hash)
	}
	if err := errors.Join(err, hash.Close()); err != nil {
		return fmt.Errorf("cannot write hash tree: %w", err)
	}
	if p.signature, err = sign.RootHash(p.rootHash, b.Signing.ImageCert, b.Signing.ImageKey); err != nil {
		return err
	}
	return writePart(p.path(manifest.Signature), p.signature)
}

// saltOf and uuidOf are those of a hash tree. They follow from the version, so that
// equal inputs give equal root hashes; nothing needs them to be unpredictable.
func saltOf(in SlotInput, release string) []byte {
	salt := sha256.Sum256([]byte("salt: " + seedOf(in, release)))
	return salt[:]
}

func uuidOf(in SlotInput, release string) [16]byte {
	id := sha256.Sum256([]byte("uuid: " + seedOf(in, release)))
	return uuidFrom([16]byte(id[:16]))
}

// seedOf is what the random-looking values of a version follow from.
func seedOf(in SlotInput, release string) string {
	return fmt.Sprintf("sealroot image %q %q %d %q", in.Config.Name, in.Config.Version, in.Config.SecurityVersion, release)
}

// initrd makes the initramfs.
func (b *Builder) initrd(ctx context.Context, in SlotInput, p *parts, dir string) error {
	cfg, err := tied(in.Config, p.rootHash)
	if err == nil {
		cfg, err = withCmdline(cfg, uki.Cmdline(in.Cmdline), p.rootHash)
	}
	if err != nil {
		return err
	}
	input, err := initramfs.Gather(ctx, initramfs.Sources{
		Config: cfg, ConfigDir: in.ConfigDir, KeysDir: b.Signing.Dir, Init: b.Init,
		ModulesDir: modulesDir(in, dir), Release: p.release, Depmod: b.depmod,
	})
	if err != nil {
		return err
	}
	b.warnOfDates(input)
	b.warnOfDevelopment(in)
	if !trusts(input, b.Signing.ImageCert) {
		return fmt.Errorf("cannot make an image that would not boot: %s of %s is not among trust.%s%s: %w",
			keys.ImageCert, b.Signing.Dir, p.role, orDev(cfg), initramfs.ErrInput)
	}
	if p.previous, err = b.Signing.policyKeys(ctx, input); err != nil {
		return err
	}
	records, err := initramfs.Records(input)
	if err != nil {
		return err
	}
	var out sliceWriter
	if err := initramfs.Write(&out, records, initramfs.Zstd); err != nil {
		return err
	}
	p.initrd = out
	return nil
}

func orDev(c *config.Config) string {
	if c.Build == config.Development {
		return " or trust.dev"
	}
	return ""
}

// tied is the configuration with the root hash of the image in it, where it asks
// for that; one that names another root is refused.
func tied(c *config.Config, rootHash []byte) (*config.Config, error) {
	text := hex.EncodeToString(rootHash)
	switch c.Root.Hash {
	case "", text:
		return c, nil
	case config.HashEmbed:
		with := *c
		with.Root.Hash = text
		return &with, nil
	}
	return nil, fmt.Errorf("cannot make an image that would not boot: its root hash is %s, root.hash of the configuration is %s; use root.hash: %s: %w",
		text, c.Root.Hash, config.HashEmbed, initramfs.ErrInput)
}

// withCmdline is the configuration with the command line of the UKI in it, where
// that is to be honoured; one that names another root is refused.
func withCmdline(c *config.Config, line string, rootHash []byte) (*config.Config, error) {
	if c.Trust.Cmdline != config.CmdlineMeasured {
		return c, nil
	}
	role, other := config.RoleRoot, config.RoleUsr
	if c.Root.Usr() {
		role, other = other, role
	}
	read := cmdline.ParseVouched(line, string(role))
	if text := hex.EncodeToString(rootHash); read.RootHash != "" && read.RootHash != text {
		return nil, fmt.Errorf("cannot make an image that would not boot: its root hash is %s, %shash= of the command line is %s: %w",
			text, role, read.RootHash, initramfs.ErrInput)
	}
	if cmdline.ParseVouched(line, string(other)).RootHash != "" {
		return nil, fmt.Errorf("cannot honour %shash= of the command line: root.source is %s, use %shash=: %w", other, c.Root.Source, role, initramfs.ErrInput)
	}
	data, tree, err := cmdline.Partitions(line, string(role))
	if err != nil {
		return nil, fmt.Errorf("cannot honour the command line: %w", err)
	}
	if data+tree != "" && c.Root.Partitions != config.PartitionsDiscoverable {
		return nil, fmt.Errorf("cannot honour systemd.verity_* of the command line: with root.partitions %s the slot says which partition is taken: %w", c.Root.Partitions, initramfs.ErrInput)
	}
	with := *c
	with.Kernel = &config.Kernel{Cmdline: line, Data: data, Hash: tree}
	return &with, nil
}

// trusts says whether the initramfs holds the certificate for root images.
func trusts(in initramfs.Input, cert *x509.Certificate) bool {
	for _, f := range in.RootCertificates() {
		certs, err := signature.ParseCertificates(f.Content)
		if err != nil {
			continue
		}
		for _, c := range certs {
			if bytes.Equal(c.Raw, cert.Raw) {
				return true
			}
		}
	}
	return false
}

type sliceWriter []byte

func (s *sliceWriter) Write(p []byte) (int, error) {
	*s = append(*s, p...)
	return len(p), nil
}

// uuidFrom marks 16 bytes as a random UUID (RFC 9562, version 4).
func uuidFrom(b [16]byte) [16]byte {
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return b
}
