package boot

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"sealroot/init/config"
	"sealroot/slots"
	"sealroot/verity/signature"
)

// Where the root hash of a slot comes from, in the order of trust: the
// configuration, when it names one, is never overruled; else the slot's signature
// partition, as far as a certificate for roots vouches for it. Nothing else names
// one: not the command line, not a superblock.
const (
	sourceConfiguration = "configuration"
	sourceSignature     = "signature partition"
)

// vouched is a root hash, and by what it is trusted.
type vouched struct {
	hash   []byte
	source string
	signer string // subject of the certificate; "" without a signature
}

// by is who vouches, for the console.
func (v vouched) by() string {
	if v.signer == "" {
		return "named by the " + v.source
	}
	return "signed by " + v.signer
}

// errOtherRoot: the initramfs is tied to another root than the slot holds.
var errOtherRoot = errors.New("this initramfs is made for another root")

// trustedHash is the root hash of a slot with this signature partition. Errors:
// errOtherRoot, those of signature.Parse and signature.Verify.
func trustedHash(cfg *config.Config, partition []byte, certificates string) (vouched, error) {
	sig, err := signature.Parse(partition)
	if cfg.Root.Hash != "" {
		want, decodeErr := hex.DecodeString(cfg.Root.Hash)
		if decodeErr != nil {
			return vouched{}, fmt.Errorf("cannot use root.hash of the configuration: %w", decodeErr)
		}
		// The partition is a hint here: what is really there dm-verity finds out.
		if err == nil && !bytes.Equal(sig.RootHash, want) {
			return vouched{}, fmt.Errorf("%w: the slot's is %.16x…, the configuration names %.16x…", errOtherRoot, sig.RootHash[:8], want[:8])
		}
		return vouched{hash: want, source: sourceConfiguration}, nil
	}
	if err != nil {
		return vouched{}, err
	}
	roles := cfg.RootRoles()
	certs, err := certificatesOf(certificates, roles)
	if err != nil {
		return vouched{}, err
	}
	hash, signer, err := signature.Verify(sig, certs)
	if err == nil {
		return vouched{hash, sourceSignature, signer.Subject}, nil
	}
	if errors.Is(err, signature.ErrUnknownSigner) {
		err = fmt.Errorf("%w%s", err, otherRole(certificates, sig, roles))
	}
	return vouched{}, err
}

// certificatesOf reads the certificates of these roles below dir.
func certificatesOf(dir string, roles []config.Role) ([]*signature.Certificate, error) {
	var all []*signature.Certificate
	for _, role := range roles {
		certs, err := signature.LoadCertificates(os.DirFS(filepath.Join(dir, string(role))))
		if err != nil {
			return nil, fmt.Errorf("role %s: %w", role, err)
		}
		all = append(all, certs...)
	}
	return all, nil
}

// otherRole says, behind the words for an unknown signer, that it may sign other
// things here.
func otherRole(dir string, sig signature.Signature, roles []config.Role) string {
	for _, role := range config.Roles() {
		if slices.Contains(roles, role) {
			continue
		}
		certs, err := certificatesOf(dir, []config.Role{role})
		if err != nil {
			continue
		}
		if _, _, err := signature.Verify(sig, certs); err == nil {
			return fmt.Sprintf(" (a certificate of the role %q, which vouches for no root here)", role)
		}
	}
	return ""
}

// notVouched is why a slot is not run whose root nobody here vouches for. Where
// the running initramfs is another slot's, the slot's own one may know better, as
// after a change of keys: then the image is not at fault.
func (b *boot) notVouched(ctx context.Context, slot string, foreign bool, err error) error {
	if errors.Is(err, signature.ErrUnknownSigner) || errors.Is(err, errOtherRoot) {
		b.compareFallback(ctx)
		if loaded := b.slots.observed.Loaded; foreign || loaded != "" && loaded != slot {
			return environmentError(slots.WrongKernel, "cannot trust slot %s under the initramfs of another: %w", slot, err)
		}
	}
	return imageError(slots.Signature, "cannot trust slot %s: %w", slot, err)
}
