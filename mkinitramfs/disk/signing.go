package disk

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"sealroot/mkinitramfs/initramfs"
	"sealroot/mkinitramfs/keys"
	"sealroot/mkinitramfs/uki"
	"sealroot/state/tpm/pcrsig"
)

// Signing is what a builder signs with.
type Signing struct {
	Dir       string // key directory
	ImageKey  crypto.Signer
	ImageCert *x509.Certificate
	PCRKey    crypto.Signer // nil: no signed PCR policy
	PCRPublic []byte        // PEM
	Secure    *uki.SecureBoot
	Command   *keys.Command // signs instead of the private keys, when it is not nil
}

// LoadSigning reads the keys of a key directory, or with a command only their
// public halves. The PCR key may be missing when no policy is signed; the Secure
// Boot key may be missing.
func LoadSigning(ctx context.Context, dir string, secure *uki.SecureBoot, command *keys.Command) (Signing, error) {
	s := Signing{Dir: dir, Secure: secure, Command: command}
	var err error
	if s.ImageCert, err = keys.LoadCertificate(filepath.Join(dir, keys.ImageCert)); errors.Is(err, fs.ErrNotExist) {
		return Signing{}, fmt.Errorf("cannot sign with the keys of %[1]s: %[2]w; sealroot-mkinitramfs keys %[1]s makes them", dir, err)
	} else if err != nil {
		return Signing{}, err
	}
	if command != nil {
		s.ImageKey = command.Signer(ctx, keys.NameImage, s.ImageCert.PublicKey)
	} else if s.ImageKey, err = keys.LoadKey(filepath.Join(dir, keys.ImageKey)); errors.Is(err, fs.ErrNotExist) {
		return Signing{}, fmt.Errorf("cannot sign with the keys of %s: %w; where they are kept elsewhere --sign-command signs", dir, err)
	} else if err != nil {
		return Signing{}, err
	}
	if err := s.loadPCR(ctx, command); err != nil {
		return Signing{}, err
	}
	if s.Secure != nil {
		return s, nil
	}
	db := uki.SecureBoot{Key: filepath.Join(dir, keys.DBKey), Cert: filepath.Join(dir, keys.DBCert), Command: command}
	needed := db.Key
	if command != nil {
		needed = db.Cert
	}
	if _, err := os.Stat(needed); err == nil {
		s.Secure = &db
	}
	return s, nil
}

func (s *Signing) loadPCR(ctx context.Context, command *keys.Command) error {
	private, public := filepath.Join(s.Dir, keys.PCRKey), filepath.Join(s.Dir, keys.PCRPublic)
	var err error
	if command == nil {
		s.PCRKey, err = keys.LoadKey(private)
	} else {
		var key crypto.PublicKey
		if key, err = keys.LoadPublicKey(public); err == nil {
			s.PCRKey = command.Signer(ctx, keys.NamePCR, key)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.PCRPublic, err = os.ReadFile(public); err != nil {
		return fmt.Errorf("cannot read PCR public key: %w", err)
	}
	return nil
}

// errOtherKey goes with what to do about it.
var errOtherKey = errors.New("the private key is not that of the public half")

// policyKeys finds what signs by the PCR policy keys of an initramfs: checks that
// the present one is the one that PID 1 goes by, and returns those before it.
func (s Signing) policyKeys(ctx context.Context, in initramfs.Input) ([]crypto.Signer, error) {
	if in.PCRPublic == nil {
		return nil, nil
	}
	public, err := pcrsig.ParsePublicKey(in.PCRPublic)
	if err != nil {
		return nil, fmt.Errorf("cannot use state.tpm2.public_key: %w", err)
	}
	if !public.Equal(s.PCRKey.Public()) || !pcrsig.SameKey(in.PCRPublic, s.PCRPublic) {
		return nil, fmt.Errorf("cannot sign PCR 11: state.tpm2.public_key, %s and what signs for it (%s) in %s do not belong together: %w",
			keys.PCRPublic, keys.PCRKey, s.Dir, errOtherKey)
	}
	var list []crypto.Signer
	for _, f := range in.PCRPrevious {
		public, err := pcrsig.ParsePublicKey(f.Content)
		if err != nil {
			return nil, fmt.Errorf("cannot use %s: %w", f.Name, err)
		}
		name, err := keys.PreviousName(f.Name)
		if err != nil {
			return nil, err
		}
		if s.Command != nil {
			list = append(list, s.Command.Signer(ctx, name, public))
			continue
		}
		path := filepath.Join(s.Dir, name+".key")
		key, err := keys.LoadKey(path)
		if err != nil {
			return nil, fmt.Errorf("cannot sign for %s of state.tpm2.previous_public_keys: %w", f.Name, err)
		}
		if !public.Equal(key.Public()) {
			return nil, fmt.Errorf("cannot sign for %s of state.tpm2.previous_public_keys with %s: %w", f.Name, path, errOtherKey)
		}
		list = append(list, key)
	}
	return list, nil
}

// fingerprint is that of a PCR policy key, as a manifest and the TPM's tokens have it.
func fingerprint(key *rsa.PublicKey) string { return fmt.Sprintf("%x", pcrsig.Fingerprint(key)) }
