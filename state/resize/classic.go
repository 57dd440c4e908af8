package resize

import (
	"errors"
	"fmt"
	"math"

	"sealroot/state"
	"sealroot/state/balloon"
	"sealroot/state/luks2"
)

// With state.Classic the file, the loop device and the crypt device end where the inner
// file system ends. To grow is: reserve, file, sync, loop device, crypt device, file
// system. To shrink: file system, sync, its superblock, crypt device, file, loop device,
// sync. A cut in between leaves devices that are larger than the file system, never
// smaller, and the next boot makes them from file and superblock.

// Key finds the volume key of encrypted.img, which has this header now. The caller wipes
// what it returns.
type Key func(h *luks2.Header) ([]byte, error)

// devices are those between the image and the inner file system, which are in use.
type devices interface {
	// size is that of the decrypted device now.
	size() (int64, error)
	// prove is ErrWrongKey where the volume key is not that of the crypt device, or target
	// has anything else than that but its length.
	prove(target luks2.CryptTarget, volumeKey []byte) error
	// recrypt lets the crypt device have another length.
	recrypt(target luks2.CryptTarget, volumeKey []byte) error
	// followFile lets the loop device end where the image ends.
	followFile() error
}

// withKey runs use with the volume key and what the crypt device is to be for it to end at
// byte end of the image, if both belong to the device that is open: under anything else the
// kernel would write what nobody can read. No key vouches for what a header says of sectors
// and length. Errors: ErrNoKey, ErrWrongKey.
func (v *Volume) withKey(end int64, use func(target luks2.CryptTarget, key []byte) error) error {
	if v.key == nil {
		return fmt.Errorf("cannot resize the volume: %w", ErrNoKey)
	}
	info, err := v.image.Stat()
	if err != nil {
		return fmt.Errorf("cannot inspect %s: %w", state.ImageName, err)
	}
	h, err := luks2.Read(v.image, info.Size())
	if err == nil && (h.UUID() != v.uuid || int64(h.DataOffset()) != v.begin) {
		err = ErrWrongKey
	}
	var target luks2.CryptTarget
	if err == nil {
		target, err = h.CryptTarget(end)
	}
	if err == nil && int64(target.LengthBytes) != end-v.begin {
		err = fmt.Errorf("its header wants %d bytes, not %d: %w", target.LengthBytes, end-v.begin, ErrWrongKey)
	}
	if err != nil {
		return fmt.Errorf("cannot use %s: %w", state.ImageName, err)
	}
	key, err := v.key(h)
	if err != nil {
		return fmt.Errorf("cannot resize the volume: %w: %w", ErrNoKey, err)
	}
	defer clear(key)
	err = h.VerifyVolumeKey(key)
	if err != nil {
		err = errors.Join(ErrWrongKey, err)
	} else {
		err = v.devices.prove(target, key)
	}
	if err != nil {
		return fmt.Errorf("cannot resize the volume: %w", err)
	}
	return use(target, key)
}

// recrypt lets the crypt device end at byte end of the image.
func (v *Volume) recrypt(end int64) error {
	return v.withKey(end, v.devices.recrypt)
}

// lengthen lets file and devices end at byte end, up to which all is reserved, where they
// end before it.
func (v *Volume) lengthen(end int64) error {
	info, err := v.image.Stat()
	if err != nil {
		return fmt.Errorf("cannot inspect %s: %w", state.ImageName, err)
	}
	if info.Size() < end {
		if err := v.image.Truncate(end); err != nil {
			return fmt.Errorf("cannot make %s longer: %w", state.ImageName, err)
		}
		// A file system that is larger than its file could not be opened.
		if err := v.image.Sync(); err != nil {
			return fmt.Errorf("cannot sync %s: %w", state.ImageName, err)
		}
		// crash point: the file is longer than the file system; the next boot cuts it
		if err := v.devices.followFile(); err != nil {
			return err
		}
	}
	size, err := v.devices.size()
	if err != nil || v.begin+size >= end {
		return err
	}
	return v.recrypt(end)
}

// fit lets file and devices end where the inner file system ends on stable storage.
// Errors: ErrBusy when another program makes it larger just then.
func (v *Volume) fit() error {
	spanned, err := v.in.spanned(true)
	if err != nil {
		return err
	}
	size, err := v.devices.size()
	if err != nil {
		return err
	}
	end := v.begin + spanned
	if size > spanned {
		if err := v.recrypt(end); err != nil {
			return err
		}
		// From here on nobody can make it larger. Who has done so since it was asked for:
		now, err := v.in.spanned(true)
		if err == nil && now > spanned {
			err = fmt.Errorf("cannot cut what another program has made larger: %w", ErrBusy)
		}
		if err != nil {
			return errors.Join(err, v.recrypt(v.begin+size))
		}
	}
	// crash point: the file is longer than the file system; the next boot cuts it
	if err := v.cut(end); err != nil {
		return err
	}
	if err := v.devices.followFile(); err != nil {
		return err
	}
	if err := v.image.Sync(); err != nil {
		return fmt.Errorf("cannot sync %s: %w", state.ImageName, err)
	}
	return nil
}

// cut lets the file end at byte end, if it does not end before. To set the length is all
// that gives back what is reserved behind it, also where it stays: ext4 makes no hole there.
func (v *Volume) cut(end int64) error {
	info, err := v.image.Stat()
	if err == nil {
		err = v.image.Truncate(min(end, info.Size()))
	}
	if err != nil {
		return fmt.Errorf("cannot cut %s: %w", state.ImageName, err)
	}
	return nil
}

// giveBack gives back ranges that were reserved for the inner file system to grow into,
// which has not.
func (v *Volume) giveBack(list ...balloon.Range) (err error) {
	for _, r := range list {
		err = errors.Join(err, noRoom(state.Release(v.image, r.Start, r.End)))
	}
	if v.classic {
		err = errors.Join(err, v.cut(math.MaxInt64))
	}
	return err
}

// fitIfAllowed is fit where there is a key: without one the next boot does it.
func (v *Volume) fitIfAllowed() (done bool, err error) {
	if v.key == nil {
		return false, nil
	}
	if err = v.fit(); errors.Is(err, ErrNoKey) {
		return false, nil
	}
	return err == nil, err
}
