// Package volume is the encrypted volume of the running machine as the command
// `sealroot state` has it: the LUKS2 header in encrypted.img, its keyslots and
// tokens, and what the TPM makes of them. The volume key is not to be had from the
// kernel, so every change is made with a key that opens a keyslot.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/state"
	"sealroot/state/luks2"
)

// lockTime is how long another program may hold the header.
const lockTime = 30 * time.Second

// Image is the opened encrypted.img, locked against other programs.
type Image struct {
	Header *luks2.Header
	// Bytes are the file's size and what is reserved for it on the partition.
	Bytes, Reserved int64

	file *os.File
}

// Open opens encrypted.img in the directory where the state partition is mounted,
// and reads its header; write keeps all others out. Errors: state.ErrNoImage,
// ErrNotImage and ErrInUse, and those of luks2.Read.
func Open(ctx context.Context, dir string, write bool) (*Image, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open the state partition: %w", err)
	}
	defer d.Close()
	ctx, cancel := context.WithTimeout(ctx, lockTime)
	defer cancel()
	f, err := state.OpenHeader(ctx, d, write)
	if err != nil {
		return nil, err
	}
	im := &Image{file: f}
	if err := im.read(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return im, nil
}

func (im *Image) read() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(im.file.Fd()), &st); err != nil {
		return fmt.Errorf("cannot inspect %s: %w", state.ImageName, err)
	}
	im.Bytes, im.Reserved = st.Size, st.Blocks*512
	h, err := luks2.Read(im.file, st.Size)
	if err != nil {
		return fmt.Errorf("cannot use %s: %w", state.ImageName, err)
	}
	im.Header = h
	return nil
}

// Apply makes a header that was made from Header the one on the disk, with all of
// its changes or none, whenever the power goes: luks2.Update.
func (im *Image) Apply(changed *luks2.Header, rand io.Reader) error {
	h, err := luks2.Apply(im.file, im.Bytes, im.Header, changed, rand)
	if err != nil {
		return err
	}
	im.Header = h
	return nil
}

// Close gives the lock up.
func (im *Image) Close() error { return im.file.Close() }

// Budget is what one entry may cost on this machine, whose memory the file meminfo
// tells of (proc(5)).
func Budget(meminfo string) *luks2.Budget {
	text, err := os.ReadFile(meminfo)
	if err != nil {
		text = nil // then nothing that needs memory is tried
	}
	return luks2.NewBudget(text)
}
