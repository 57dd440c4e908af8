package resize

import (
	"bytes"
	"crypto/aes"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/crypto/xts"
	"golang.org/x/sys/unix"

	"sealroot/mount/blockdev"
	"sealroot/state"
	"sealroot/state/balloon"
	"sealroot/state/luks2"
)

// kernelDevices are the devices of a volume as the kernel has them.
type kernelDevices struct {
	crypt
	kernel state.KernelDevices
}

func (k kernelDevices) size() (int64, error) {
	d, err := blockdev.Open(k.path, false)
	if err != nil {
		return 0, err
	}
	return d.Size(), d.Close()
}

func (k kernelDevices) recrypt(target luks2.CryptTarget, volumeKey []byte) error {
	return k.kernel.Recrypt(state.DeviceName, target, k.loop, volumeKey)
}

func (k kernelDevices) followFile() error {
	path, err := nodeOf(k.loop)
	if err != nil {
		return err
	}
	return k.kernel.FollowFile(path)
}

// proofAt is the block of the inner file system by which a key is proved: the
// superblock of btrfs, and in ext4 a block that is hardly ever written.
const proofAt = 64 << 10

// prove compares what the key makes of a block of the loop device with what the crypt
// device reads there, past every cache. The header does not tell: whoever has exchanged it
// since the boot has not exchanged what the kernel works with.
func (k kernelDevices) prove(target luks2.CryptTarget, volumeKey []byte) error {
	if target.Encryption != k.encryption || target.SectorSize != k.sectorSize || int64(target.OffsetBytes) != k.begin {
		return fmt.Errorf("the header has %s in sectors of %d from byte %d on, the device %s in sectors of %d from byte %d on: %w",
			target.Encryption, target.SectorSize, target.OffsetBytes, k.encryption, k.sectorSize, k.begin, ErrWrongKey)
	}
	loop, err := nodeOf(k.loop)
	if err != nil {
		return err
	}
	c, err := xts.NewCipher(aes.NewCipher, volumeKey)
	if err != nil {
		return err
	}
	for try := 0; ; try++ {
		hidden, err1 := readBlock(loop, k.begin+proofAt)
		plain, err2 := readBlock(k.path, proofAt)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		c.Decrypt(hidden, hidden, proofAt/512) // plain64 counts in 512 bytes
		if bytes.Equal(hidden, plain) {
			return nil
		}
		if try == superblockTries {
			return ErrWrongKey
		}
		time.Sleep(time.Millisecond) // the kernel may just have written it
	}
}

// readBlock reads a block of a device as it is on the disk.
func readBlock(path string, at int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, balloon.BlockSize)
	_, err = aligned{f}.ReadAt(b, at)
	return b, err
}
