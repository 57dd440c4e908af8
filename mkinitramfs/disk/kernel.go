package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ErrKernel means that a file is not a Linux kernel for x86.
var ErrKernel = errors.New("not an x86 Linux kernel (bzImage)")

// KernelRelease reads the release out of a bzImage, as the kernel's
// Documentation/arch/x86/boot.rst describes it: at 0x202 the magic "HdrS", at
// 0x20e the offset, less 0x200, of the version text, whose first word is the
// release.
func KernelRelease(r io.ReaderAt) (string, error) {
	var header [0x210]byte
	if _, err := r.ReadAt(header[:], 0); err != nil {
		return "", fmt.Errorf("cannot read kernel header: %w: %w", ErrKernel, err)
	}
	offset := binary.LittleEndian.Uint16(header[0x20e:])
	if string(header[0x202:0x206]) != "HdrS" || offset == 0 {
		return "", fmt.Errorf("cannot read kernel header: %w", ErrKernel)
	}
	text := make([]byte, 256)
	n, err := r.ReadAt(text, int64(offset)+0x200)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("cannot read kernel version: %w", err)
	}
	text, _, ok := bytes.Cut(text[:n], []byte{0})
	release, _, _ := strings.Cut(string(text), " ")
	if !ok || !validRelease(release) {
		return "", fmt.Errorf("cannot read kernel version %q: %w", text, ErrKernel)
	}
	return release, nil
}

// validRelease says whether a release can be a directory name.
func validRelease(s string) bool {
	if s == "" || len(s) > 64 || s[0] == '.' {
		return false
	}
	for _, c := range s {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-+_~", c) {
			return false
		}
	}
	return true
}
