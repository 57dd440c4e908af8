package predict

import (
	"bytes"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"sealroot/state/tpm/pcrsig"
)

// ErrUKI is returned for what is no unified kernel image, or one whose stub
// measures in a way that is not known here.
var ErrUKI = errors.New("not a known unified kernel image")

// maxSection bounds a section of an image, in bytes.
const maxSection = 256 << 20

// ReadUKI returns the sections of a unified kernel image that its stub measures.
// Errors are ErrUKI.
func ReadUKI(r io.ReaderAt) ([]pcrsig.Section, error) {
	f, err := pe.NewFile(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUKI, err)
	}
	defer f.Close()
	version, err := stubVersion(f)
	if err != nil {
		return nil, err
	}
	known, err := measured(version)
	if err != nil {
		return nil, err
	}
	var list []pcrsig.Section
	for _, s := range f.Sections {
		if !slices.Contains(known, s.Name) {
			continue
		}
		data, err := content(s)
		if err != nil {
			return nil, err
		}
		list = append(list, pcrsig.Section{Name: s.Name, Data: data})
	}
	if !slices.ContainsFunc(list, func(s pcrsig.Section) bool { return s.Name == ".linux" }) {
		return nil, fmt.Errorf("%w: it has no section .linux", ErrUKI)
	}
	return list, nil
}

// content is what the stub measures of a section: its size in memory, of which
// the file may hold more, as padding, or less, as zeros.
func content(s *pe.Section) ([]byte, error) {
	if s.VirtualSize > maxSection || s.Size > maxSection {
		return nil, fmt.Errorf("%w: section %s of %d bytes", ErrUKI, s.Name, max(s.VirtualSize, s.Size))
	}
	held, err := io.ReadAll(io.LimitReader(s.Open(), int64(min(s.VirtualSize, s.Size))))
	if err != nil || len(held) < int(min(s.VirtualSize, s.Size)) {
		return nil, fmt.Errorf("%w: cannot read section %s: %w", ErrUKI, s.Name, errors.Join(err, io.ErrUnexpectedEOF))
	}
	return append(held, make([]byte, int(s.VirtualSize)-len(held))...), nil
}

// stubVersion reads the major version out of section .sdmagic, whose text is
// "#### LoaderInfo: systemd-stub 252.39-1~deb12u1 ####".
func stubVersion(f *pe.File) (int, error) {
	s := f.Section(".sdmagic")
	if s == nil {
		return 0, fmt.Errorf("%w: it has no section .sdmagic", ErrUKI)
	}
	text, err := content(s)
	if err != nil {
		return 0, err
	}
	_, rest, ok := bytes.Cut(text, []byte("systemd-stub "))
	end := bytes.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if !ok || end < 1 {
		return 0, fmt.Errorf("%w: section .sdmagic is %.60q", ErrUKI, text)
	}
	version, err := strconv.Atoi(string(rest[:min(end, 5)]))
	if err != nil {
		return 0, fmt.Errorf("%w: section .sdmagic is %.60q", ErrUKI, text)
	}
	return version, nil
}

// measured lists the sections that a version of the stub measures (man
// systemd-stub); .pcrsig never is. Later versions know more sections, and are
// refused here until somebody has compared what they measure.
func measured(version int) ([]string, error) {
	if version != 252 {
		return nil, fmt.Errorf("%w: what systemd-stub %d measures is not known to this version, only that of 252", ErrUKI, version)
	}
	return []string{".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey"}, nil
}
