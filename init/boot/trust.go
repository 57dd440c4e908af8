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
	"strings"

	"sealroot/init/cmdline"
	"sealroot/init/config"
	"sealroot/slots"
	"sealroot/state/enrol"
	"sealroot/verity/signature"
)

// Where the root hash of a slot comes from, in the order of trust: the
// configuration, when it names one, is never overruled, nor is the command line
// where it is known to be the builder's (honourCommandLine); else the slot's
// signature partition, as far as a certificate for such images vouches for it. Nothing
// else names one.
const (
	sourceConfiguration = "configuration"
	sourceCommandLine   = "measured command line"
	sourceSignature     = "signature partition"
)

// vouched is a root hash, and by what it is trusted.
type vouched struct {
	hash   []byte
	source string
	signer string // subject of the certificate; "" without a signature
	// confirmed: the slot's signature partition names the same root hash.
	confirmed bool
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

// errForeignLine: the command line is not the builder's, as far as can be told.
var errForeignLine = errors.New("the command line is not honoured")

// lineVouched says whether a command line is the one that the builder put into
// the UKI (nil), else why not. With Secure Boot off anybody's load options stand
// in for it, and only PCR 12 in the state's policy makes that count.
func lineVouched(cfg *config.Config, line string, path bootPath) error {
	policy, _ := enrol.Policy(cfg.State.TPM2, nil)
	switch {
	case cfg.Kernel == nil || cfg.Kernel.Cmdline == "" || strings.TrimSuffix(line, "\n") != cfg.Kernel.Cmdline:
		return fmt.Errorf("%w: it is not that of this image", errForeignLine)
	case path == pathUKISecureBoot, path == pathUKI && slices.Contains(policy.PCRs, enrol.PCRLoadOptions):
		return nil
	}
	return fmt.Errorf("%w: Secure Boot is off, and the state is not sealed to PCR 12", errForeignLine)
}

// honourCommandLine reads the command line once more, as the builder's own, where
// the configuration wants that and nothing speaks against it.
func (b *boot) honourCommandLine() {
	if b.cfg.Trust.Cmdline != config.CmdlineMeasured {
		return
	}
	if err := lineVouched(b.cfg, b.cmdText, b.fw.path(b.grub())); err != nil {
		b.warn("trust.cmdline: %v", err)
	} else {
		b.cmd = cmdline.ParseVouched(b.cmdText, string(b.cfg.Root.ImageRole()))
	}
	b.tellCommandLine()
}

// trustedHash is the root hash of a slot with this signature partition; onLine is
// that of a vouched command line, "" for none. Errors: errOtherRoot, those of
// signature.Parse and signature.Verify.
func trustedHash(cfg *config.Config, onLine string, partition []byte, certificates string) (vouched, error) {
	sig, err := signature.Parse(partition)
	named, source := cfg.Root.Hash, sourceConfiguration
	if named == "" {
		named, source = onLine, sourceCommandLine
	}
	if named != "" {
		want, decodeErr := hex.DecodeString(named)
		if decodeErr != nil {
			return vouched{}, fmt.Errorf("cannot use the root hash of the %s: %w", source, decodeErr)
		}
		// The partition is a hint here: what is really there dm-verity finds out.
		if err == nil && !bytes.Equal(sig.RootHash, want) {
			return vouched{}, fmt.Errorf("%w: the slot's is %.8x…, the %s names %.8x…", errOtherRoot, sig.RootHash, source, want)
		}
		return vouched{hash: want, source: source, confirmed: err == nil}, nil
	}
	if err != nil {
		return vouched{}, err
	}
	certs, err := certificatesOf(certificates, cfg.RootRoles())
	if err != nil {
		return vouched{}, err
	}
	hash, signer, err := signature.Verify(sig, certs)
	if err == nil {
		return vouched{hash, sourceSignature, signer.Subject, true}, nil
	}
	if errors.Is(err, signature.ErrUnknownSigner) {
		err = fmt.Errorf("%w%s", err, otherRole(certificates, cfg.Root.ImageRole(), sig))
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

// otherRole says, behind the words for a signer that is unknown for images of role
// wanted, that it may sign other things here.
func otherRole(dir string, wanted config.Role, sig signature.Signature) string {
	for _, role := range config.Roles() {
		certs, err := certificatesOf(dir, []config.Role{role})
		if err != nil {
			continue
		}
		if _, _, err := signature.Verify(sig, certs); err == nil {
			return fmt.Sprintf(" (a certificate of the role %q, which vouches for no %s here)", role, wanted)
		}
	}
	return ""
}

// notVouched is why a slot is not run whose root nobody here vouches for. Where
// the running initramfs is another slot's, the slot's own one may know better, as
// after a change of keys: then the image is not at fault.
func (b *boot) notVouched(ctx context.Context, slot string, foreign bool, err error) error {
	known := !errors.Is(err, signature.ErrUnknownSigner) && !errors.Is(err, errOtherRoot)
	if !known && b.underForeignInitramfs(ctx, slot, foreign) {
		return environmentError(slots.WrongKernel, "cannot trust slot %s under the initramfs of another: %w", slot, err)
	}
	return imageError(slots.Signature, "cannot trust slot %s: %w", slot, err)
}
