package initramfs

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"

	"sealroot/init/config"
)

// maxArchive bounds an unpacked initramfs, in bytes.
const maxArchive = 1 << 30

// ReadConfig returns the configuration in an initramfs that Write made. Errors
// are ErrInput, or those of the configuration.
func ReadConfig(initrd []byte) (*config.Config, error) {
	archive := initrd
	if bytes.HasPrefix(initrd, []byte{0x28, 0xb5, 0x2f, 0xfd}) { // RFC 8878, 3.1.1
		d, err := zstd.NewReader(bytes.NewReader(initrd), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("cannot unpack initramfs: %w", err)
		}
		defer d.Close()
		if archive, err = io.ReadAll(io.LimitReader(d, maxArchive)); err != nil {
			return nil, fmt.Errorf("cannot unpack initramfs: %w: %w", ErrInput, err)
		}
	}
	r := cpio.Newc.Reader(bytes.NewReader(archive))
	for {
		record, err := r.ReadRecord()
		if err != nil {
			return nil, fmt.Errorf("cannot find %s in the initramfs: %w: %w", config.Path, ErrInput, err)
		}
		if record.Name != strings.TrimPrefix(config.Path, "/") {
			continue
		}
		text := make([]byte, record.FileSize)
		if _, err := io.ReadFull(io.NewSectionReader(record, 0, int64(record.FileSize)), text); err != nil {
			return nil, fmt.Errorf("cannot read %s in the initramfs: %w: %w", config.Path, ErrInput, err)
		}
		return config.Decode(text)
	}
}
