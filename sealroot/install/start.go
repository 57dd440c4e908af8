package install

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"sealroot/sealroot/bootset"
	"sealroot/slots/manifest"
	"sealroot/verity/signature"
)

// maxBootFile bounds a file that is read into memory, in bytes.
const maxBootFile = 1 << 30

// StartFiles reads what the loader of this machine starts a slot from, and compares it
// with the signed manifest of the slot's signed root hash. What it returns are the bytes
// that were compared. Errors: ErrBad; bootset.ErrRefused where nobody vouches for the
// files, or no loader starts this machine from them.
func (m Machine) StartFiles(slot string) (mf manifest.Manifest, files map[BootFile][]byte, err error) {
	defer func() {
		if err != nil {
			mf, files, err = manifest.Manifest{}, nil, fmt.Errorf("slot %s: %w", slot, err)
		}
	}()
	if len(m.ESP.Needs()) == 0 {
		return mf, nil, fmt.Errorf("no boot loader starts this machine from its disk: %w", bootset.ErrRefused)
	}
	hash, err := m.signedHash(slot)
	if err != nil {
		return mf, nil, err
	}
	mf, err = m.Manifest(slot)
	if errors.Is(err, errNoManifest) {
		return mf, nil, fmt.Errorf("%w: %w", err, bootset.ErrRefused)
	}
	if err != nil {
		return mf, nil, err
	}
	if !bytes.Equal(mf.RootHash, hash) {
		return mf, nil, fmt.Errorf("its signed manifest is that of another image, root hash %x: %w", mf.RootHash, bootset.ErrRefused)
	}
	files = map[BootFile][]byte{}
	err = m.ESP.With(false, func(dir Folder) error {
		for _, f := range m.ESP.Needs() {
			if files[f], err = readPart(dir, slot, f, mf); err != nil {
				return err
			}
		}
		return nil
	})
	return mf, files, err
}

// signedHash is the root hash that a slot's signature partition vouches for.
func (m Machine) signedHash(slot string) ([]byte, error) {
	p, err := m.Disk.OpenPart(slot, manifest.Signature, false)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	sig, err := signature.Read(p)
	var hash []byte
	if err == nil {
		hash, _, err = signature.Verify(sig, m.Certs)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: its signature partition: %w", ErrBad, err)
	}
	return hash, nil
}

// readPart reads a boot file of which the manifest vouches for every byte.
func readPart(dir Folder, slot string, f BootFile, mf manifest.Manifest) ([]byte, error) {
	part, ok := mf.Part(manifest.Name(f))
	if !ok || part.Size > maxBootFile {
		return nil, fmt.Errorf("its signed manifest names no usable %s: %w", f, ErrBad)
	}
	r, err := dir.Open(slot, f)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("its %s is missing: %w", f, ErrBad)
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, part.Size+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read its %s: %w", f, err)
	}
	if !matches(data, part) {
		return nil, fmt.Errorf("its %s is not that of the signed manifest: %w", f, ErrBad)
	}
	return data, nil
}
