package disk

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sealroot/init/config"
	"sealroot/mkinitramfs/initramfs"
	"sealroot/mkinitramfs/keys"
	"sealroot/mkinitramfs/uki"
	"sealroot/slots/manifest"
	"sealroot/state/tpm/pcrsig"
	"sealroot/verity/osrelease"
	"sealroot/verity/signature"
)

// bootNames are the parts that a boot loader starts: what the disk does not
// carry no update could keep in step.
func bootNames(l config.Loader) []manifest.Name {
	if l == config.LoaderGRUB {
		return []manifest.Name{manifest.Kernel, manifest.Initrd}
	}
	return []manifest.Name{manifest.UKI}
}

func bootText(in SlotInput) string {
	if in.Config.Boot.Loader == config.LoaderGRUB {
		return "kernel and initramfs for GRUB"
	}
	return "unified kernel image"
}

// bootParts writes the files that the boot loader starts.
func (b *Builder) bootParts(ctx context.Context, in SlotInput, p *parts, dir string) error {
	boot := bootNames(in.Config.Boot.Loader)
	p.names = slices.Concat([]manifest.Name{manifest.Signature, manifest.Verity, manifest.Root}, boot)
	if !slices.Contains(boot, manifest.UKI) {
		return errors.Join(writePart(p.path(manifest.Kernel), p.kernel), writePart(p.path(manifest.Initrd), p.initrd))
	}
	return uki.Build(ctx, b.Tools, uki.Image{
		OSRelease: p.osRelease, Cmdline: uki.Cmdline(in.Cmdline),
		Kernel: p.kernel, Initrd: p.initrd, Time: b.Time,
		PCRPublicKey: b.Signing.PCRPublic, PCRKey: b.Signing.PCRKey, PCRPrevious: p.previous,
	}, b.Signing.Secure, p.path(manifest.UKI), dir)
}

func writePart(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return fmt.Errorf("cannot write part: %w", err)
	}
	return nil
}

// describe makes the manifest and signs it.
func (b *Builder) describe(in SlotInput, p *parts) error {
	m := manifest.Manifest{
		Name: in.Config.Name, Version: in.Config.Version, SecurityVersion: in.Config.SecurityVersion,
		Architecture: manifest.Architecture, KernelRelease: p.release, RootHash: p.rootHash,
		Layout: &manifest.Layout{
			Loader: string(in.Config.Boot.Loader), Store: string(in.Config.Boot.Store),
			Source: sourceOf(in), PartUUIDs: in.Config.Root.PartUUIDs.Line(),
			Partitions: in.Config.Root.Partitions, TreeAtMiB: in.Config.Root.Verity.TreeAtMiB,
			Filesystem: in.Config.Root.Filesystem,
		},
	}
	m.System = systemOf(p.osRelease, in.Config)
	var policyKeys []string
	if in.Config.State.TPM2.Signed() {
		for _, key := range append([]crypto.Signer{b.Signing.PCRKey}, p.previous...) {
			public, ok := key.Public().(*rsa.PublicKey)
			if !ok {
				return fmt.Errorf("cannot use %s: %w", keys.PCRPublic, pcrsig.ErrKey)
			}
			policyKeys = append(policyKeys, fingerprint(public))
		}
	}
	m.Sealed = in.Config.State.SealedUnder(policyKeys...)
	m.StatePartition = statePartition(in.Config.State)
	for _, name := range p.names {
		part, err := digest(p.path(name))
		if err != nil {
			return err
		}
		part.Name, part.File = name, p.file(name)
		m.Parts = append(m.Parts, part)
	}
	images := map[string]string{} // of layers on the state partition
	for _, l := range in.Config.Images() {
		hash, err := hex.DecodeString(l.Hash)
		if err != nil {
			return fmt.Errorf("cannot use the root hash of layer %s: %w", l.Name, err)
		}
		described := manifest.Layer{Name: l.Name, RootHash: hash}
		if l.From == config.LayerFromPartition {
			described, err = p.unpackLayer(described, l)
		} else {
			var file manifest.Part
			file, err = digest(l.Image)
			described.File, described.Size, described.SHA256 = "layer-"+l.Name+".raw", file.Size, file.SHA256
			images[described.File] = l.Image
		}
		if err != nil {
			return err
		}
		m.Layers = append(m.Layers, described)
	}
	for _, name := range m.Files()[2:] {
		path, ok := images[name]
		if !ok {
			path = filepath.Join(p.dir, name)
		}
		p.files = append(p.files, setFile{name, path})
	}
	var err error
	if p.manifest, err = manifest.Encode(m); err != nil {
		return err
	}
	if len(p.manifest) > manifest.MaxSize {
		return fmt.Errorf("cannot describe %d layers in %d bytes: %w", len(m.Layers), manifest.MaxSize, ErrOptions)
	}
	p.signed, err = manifest.Sign(p.manifest, b.Signing.ImageCert, b.Signing.ImageKey)
	return err
}

// systemOf is what the manifest tells of a root with that os-release; nil, when that is
// not known or has words that a manifest cannot have: it is for people.
func systemOf(osRelease []byte, c *config.Config) *manifest.System {
	r, err := osrelease.Parse(osRelease)
	s := manifest.System{ID: r.ID, VersionID: r.VersionID, SysextLevel: r.SysextLevel, LayersAllowed: strings.Join(c.LayersAllowed, " ")}
	if err != nil || len(osRelease) == 0 || !s.Valid() {
		return nil
	}
	return &s
}

// sourceOf is root.source for the manifest, where a root needs no word.
func sourceOf(in SlotInput) string {
	if in.Config.Root.Usr() {
		return in.Config.Root.Source
	}
	return ""
}

// digest reads a file for its size and SHA-256.
func digest(path string) (manifest.Part, error) {
	f, err := os.Open(path)
	if err != nil {
		return manifest.Part{}, fmt.Errorf("cannot read part: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	if err != nil {
		return manifest.Part{}, fmt.Errorf("cannot read part: %w", err)
	}
	return manifest.Part{Size: n, SHA256: [32]byte(sum.Sum(nil))}, nil
}

// warnOfDevelopment tells that an image for developers is as good as any other to
// the TPM of a machine: it knows the key that signs PCR 11, and no builds.
func (b *Builder) warnOfDevelopment(in SlotInput) {
	if policy := in.Config.State.TPM2; in.Config.Build == config.Development && policy.Signed() {
		fmt.Fprintf(b.Log, "warning: development build with policy %s: it opens the state of every machine that is sealed to %s of %s; "+
			"make keys for development in a folder of their own\n", policy.Policy, keys.PCRPublic, b.Signing.Dir)
	}
}

// warnOfDates tells about certificates whose time is over or has not come.
// Nothing refuses them: PID 1 checks no dates, as nothing vouches for its clock.
func (b *Builder) warnOfDates(in initramfs.Input) {
	if problem := keys.DateProblem(b.Signing.ImageCert, b.Now); problem != "" {
		fmt.Fprintf(b.Log, "warning: %s of %s %s\n", keys.ImageCert, b.Signing.Dir, problem)
	}
	for _, f := range in.RootCertificates() {
		certs, err := signature.ParseCertificates(f.Content)
		if err != nil {
			continue // who reads them for use says so
		}
		for _, c := range certs {
			full, err := x509.ParseCertificate(c.Raw)
			if err != nil {
				continue
			}
			problem := keys.DateProblem(full, b.Now)
			if problem != "" && !full.Equal(b.Signing.ImageCert) {
				fmt.Fprintf(b.Log, "warning: the certificate %s of the configuration %s\n", f.Name, problem)
			}
		}
	}
}

// statePartition is what an image mounts as the state partition, as its manifest says it.
func statePartition(s config.State) string {
	switch {
	case s.Create == config.CreateNone:
		return manifest.StateNone
	case s.PartitionFilesystem == "btrfs":
		return manifest.StateBtrfs
	}
	return ""
}
