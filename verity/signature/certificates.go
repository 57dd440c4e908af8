package signature

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"io/fs"
	"slices"
)

// maxCertificateFile bounds one certificate file in bytes.
const maxCertificateFile = 64 << 10

// LoadCertificates reads the certificates of a role: each file *.crt directly in
// dir holds one or more certificates as PEM. One bad file is an error
// (ErrCertificate, ErrWeak), and so is a folder without a certificate; a
// certificate that stands there twice counts once.
func LoadCertificates(dir fs.FS) ([]*Certificate, error) {
	files, err := fs.Glob(dir, "*.crt")
	if err != nil {
		return nil, fmt.Errorf("cannot list certificates: %w", err)
	}
	var certs []*Certificate
	for _, file := range files {
		info, err := fs.Stat(dir, file)
		if err == nil && info.Size() > maxCertificateFile {
			err = fmt.Errorf("%w: %d bytes", ErrCertificate, info.Size())
		}
		var text []byte
		if err == nil {
			text, err = fs.ReadFile(dir, file)
		}
		var found []*Certificate
		if err == nil {
			found, err = ParseCertificates(text)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot load certificate %s: %w", file, err)
		}
		for _, cert := range found {
			if !slices.ContainsFunc(certs, cert.Equal) {
				certs = append(certs, cert)
			}
		}
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%w: no file *.crt", ErrCertificate)
	}
	return certs, nil
}

// ParseCertificates reads PEM text with one certificate or more. A private key
// beside them is refused: the file goes into an initramfs that anybody can read.
// Errors: ErrCertificate, ErrWeak.
func ParseCertificates(text []byte) ([]*Certificate, error) {
	var certs []*Certificate
	for len(bytes.TrimSpace(text)) > 0 {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil, fmt.Errorf("%w: text that is not PEM", ErrCertificate)
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%w: the file holds a %.40q", ErrCertificate, block.Type)
		}
		cert, err := ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
		text = rest
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%w: the file is empty", ErrCertificate)
	}
	return certs, nil
}
