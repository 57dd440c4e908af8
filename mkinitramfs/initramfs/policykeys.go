package initramfs

import (
	"crypto/rsa"
	"fmt"
	"os"
	"path/filepath"

	"sealroot/mkinitramfs/keys"
	"sealroot/state/tpm/pcrsig"
)

// pcrPublic reads the public key of a signed PCR policy, nil when the
// configuration has no such policy.
func (s Sources) pcrPublic() ([]byte, error) {
	tpm := s.Config.State.TPM2
	if !tpm.Signed() {
		return nil, nil
	}
	name := tpm.PublicKey
	if name == "" {
		name = keys.PCRPublic
	}
	path, err := s.find(name)
	if err != nil {
		return nil, fmt.Errorf("cannot find state.tpm2.public_key: %w", err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read state.tpm2.public_key: %w", err)
	}
	return content, nil
}

// pcrPrevious reads the public keys before it that still count. The name says which
// private key signs: see keys.PreviousName.
func (s Sources) pcrPrevious(present []byte) ([]File, error) {
	names := s.Config.State.TPM2.PreviousKeys
	if len(names) == 0 {
		return nil, nil
	}
	key, err := pcrsig.ParsePublicKey(present)
	if err != nil {
		return nil, fmt.Errorf("cannot use state.tpm2.public_key: %w", err)
	}
	seen := []*rsa.PublicKey{key}
	var files []File
	for _, name := range names {
		path, err := s.find(name)
		if err != nil {
			return nil, fmt.Errorf("cannot find key of state.tpm2.previous_public_keys: %w", err)
		}
		if _, err := keys.PreviousName(name); err != nil {
			return nil, fmt.Errorf("cannot use %s of state.tpm2.previous_public_keys: %w", name, err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("cannot read key of state.tpm2.previous_public_keys: %w", err)
		}
		key, err := pcrsig.ParsePublicKey(content)
		if err != nil {
			return nil, fmt.Errorf("cannot use %s of state.tpm2.previous_public_keys: %w", path, err)
		}
		for _, other := range seen {
			if key.Equal(other) {
				return nil, fmt.Errorf("cannot use %s of state.tpm2.previous_public_keys: the same key is named before, there or by state.tpm2.public_key: %w", path, ErrInput)
			}
		}
		seen = append(seen, key)
		files = append(files, File{filepath.Base(name), content})
	}
	return files, nil
}
