package modules

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxModule bounds one module; the biggest of Debian's has about 10 MiB.
const maxModule = 256 << 20

// decompress returns the content of a module file, by its extension as
// depmod and modprobe do.
func decompress(r io.Reader, name string) (io.Reader, error) {
	r = bufio.NewReaderSize(r, 1<<16)
	switch {
	case strings.HasSuffix(name, ".ko"):
		return r, nil
	case strings.HasSuffix(name, ".ko.xz"):
		return xz.NewReader(r)
	case strings.HasSuffix(name, ".ko.zst"):
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case strings.HasSuffix(name, ".ko.gz"):
		return gzip.NewReader(r)
	}
	return nil, fmt.Errorf("unknown extension: %w", ErrFormat)
}
