package disk

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"sealroot/mkinitramfs/keys"
	"sealroot/mkinitramfs/uki"
)

// Signing is what a builder signs with.
type Signing struct {
	Dir       string // key directory
	ImageKey  crypto.Signer
	ImageCert *x509.Certificate
	PCRKey    crypto.Signer // nil: no signed PCR policy
	PCRPublic []byte        // PEM
	Secure    *uki.SecureBoot
}

// LoadSigning reads the keys of a key directory, or with a command only their
// public halves. The PCR key may be missing when no policy is signed; the Secure
// Boot key may be missing.
func LoadSigning(ctx context.Context, dir string, secure *uki.SecureBoot, command *keys.Command) (Signing, error) {
	s := Signing{Dir: dir, Secure: secure}
	var err error
	if s.ImageCert, err = keys.LoadCertificate(filepath.Join(dir, keys.ImageCert)); err != nil {
		return Signing{}, err
	}
	if command != nil {
		s.ImageKey = command.Signer(ctx, keys.NameImage, s.ImageCert.PublicKey)
	} else if s.ImageKey, err = keys.LoadKey(filepath.Join(dir, keys.ImageKey)); err != nil {
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
