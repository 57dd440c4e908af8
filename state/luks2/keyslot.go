package luks2

import (
	"crypto/aes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"hash"
	"io"

	"golang.org/x/crypto/pbkdf2"
	"golang.org/x/crypto/xts"
)

// Unlock returns the volume key, which the caller wipes. ErrPassphrase: the
// passphrase is wrong; ErrNoSuchKeyslot: the keyslot is not in use.
func (h *Header) Unlock(keyslot int, passphrase []byte) ([]byte, error) {
	k, ok := h.meta.keyslots[keyslot]
	if !ok {
		return nil, fmt.Errorf("cannot unlock keyslot %d: %w", keyslot, ErrNoSuchKeyslot)
	}
	areaKey, err := k.kdf.derive(passphrase, k.salt, k.areaKeySize)
	if err != nil {
		return nil, fmt.Errorf("cannot unlock keyslot %d: %w", keyslot, err)
	}
	defer clear(areaKey)
	split := make([]byte, k.materialBytes())
	defer clear(split)
	if err := cryptArea(split, h.material[keyslot], areaKey, (*xts.Cipher).Decrypt); err != nil {
		return nil, fmt.Errorf("cannot unlock keyslot %d: %w", keyslot, err)
	}
	newHash, err := hashByName(k.afHash)
	if err != nil {
		return nil, fmt.Errorf("cannot unlock keyslot %d: %w", keyslot, err)
	}
	volumeKey := afMerge(split, k.keySize, newHash())
	if err := h.VerifyVolumeKey(volumeKey); err != nil {
		clear(volumeKey)
		return nil, fmt.Errorf("cannot unlock keyslot %d: %w", keyslot, ErrPassphrase)
	}
	return volumeKey, nil
}

// VerifyVolumeKey says whether volumeKey is the one of this header; otherwise
// ErrVolumeKey.
func (h *Header) VerifyVolumeKey(volumeKey []byte) error {
	d := h.meta.digest
	newHash, err := hashByName(d.hash)
	if err != nil {
		return err
	}
	got := pbkdf2.Key(volumeKey, d.salt, d.iterations, newHash().Size(), newHash)
	if subtle.ConstantTimeCompare(got, d.digest) != 1 {
		return ErrVolumeKey
	}
	return nil
}

// VolumeKeyID is what systemd-cryptsetup measures into PCR 15 for a volume
// that is called name in crypttab: HMAC-SHA256, with the volume key as the
// key, of "cryptsetup:<name>:<uuid>". It identifies the key without telling it.
func VolumeKeyID(volumeKey []byte, name, uuid string) []byte {
	mac := hmac.New(sha256.New, volumeKey)
	io.WriteString(mac, "cryptsetup:"+name+":"+uuid)
	return mac.Sum(nil)
}

// newMaterial splits and encrypts a volume key for the keyslot's area.
func (k keyslot) newMaterial(volumeKey, passphrase []byte, rand io.Reader) ([]byte, error) {
	newHash, err := hashByName(k.afHash)
	if err != nil {
		return nil, err
	}
	split, err := afSplit(volumeKey, newHash(), rand)
	if err != nil {
		return nil, err
	}
	defer clear(split)
	areaKey, err := k.kdf.derive(passphrase, k.salt, k.areaKeySize)
	if err != nil {
		return nil, err
	}
	defer clear(areaKey)
	material := make([]byte, len(split))
	if err := cryptArea(material, split, areaKey, (*xts.Cipher).Encrypt); err != nil {
		return nil, err
	}
	return material, nil
}

// cryptArea runs aes-xts-plain64 over a keyslot area: sectors of 512 bytes,
// numbered from the start of the area.
func cryptArea(dst, src, key []byte, op func(c *xts.Cipher, dst, src []byte, sector uint64)) error {
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		return err
	}
	for off := 0; off < len(src); off += sectorSize {
		op(c, dst[off:off+sectorSize], src[off:off+sectorSize], uint64(off/sectorSize))
	}
	return nil
}

// afSplit is the anti-forensic splitter of LUKS (TKS1, C. Fruhwirth; lib/luks1/af.c):
// the key is spread over all stripes so that losing any of them loses it.
func afSplit(key []byte, h hash.Hash, rand io.Reader) ([]byte, error) {
	split := make([]byte, len(key)*stripes)
	last := split[len(key)*(stripes-1):]
	if _, err := io.ReadFull(rand, split[:len(split)-len(key)]); err != nil {
		clear(split)
		return nil, fmt.Errorf("cannot get random bytes: %w", err)
	}
	afFold(last, split, h)
	subtle.XORBytes(last, last, key)
	return split, nil
}

// afMerge undoes afSplit.
func afMerge(split []byte, keySize int, h hash.Hash) []byte {
	key := make([]byte, keySize)
	afFold(key, split, h)
	subtle.XORBytes(key, key, split[keySize*(stripes-1):])
	return key
}

// afFold sets d to the diffused sum of all stripes but the last.
func afFold(d, split []byte, h hash.Hash) {
	clear(d)
	sum := make([]byte, 0, h.Size())
	var counter [4]byte
	for i := range stripes - 1 {
		subtle.XORBytes(d, d, split[i*len(d):(i+1)*len(d)])
		// Diffuse: each block of the digest's size becomes H(number || block),
		// the last one cut.
		for n, off := uint32(0), 0; off < len(d); n, off = n+1, off+h.Size() {
			block := d[off:min(off+h.Size(), len(d))]
			binary.BigEndian.PutUint32(counter[:], n)
			h.Reset()
			h.Write(counter[:])
			h.Write(block)
			sum = h.Sum(sum[:0])
			copy(block, sum)
		}
	}
	clear(sum[:cap(sum)])
}
