package recovery

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"sealroot/sealroot/durable"
	"sealroot/state/escrow"
	"sealroot/verity/signature"
)

var (
	// ErrNoEscrow: no escrowed recovery key lies on the state partition.
	ErrNoEscrow = errors.New("no escrowed recovery key is here")
	// ErrOtherEscrow: what lies there is not for any of the image's certificates.
	ErrOtherEscrow = errors.New("encrypted to none of this image's certificates")
)

// Escrowed is a recovery key that only the holders of private keys can read.
type Escrowed struct {
	DER      []byte
	Subjects []string // of the certificates, as far as the image has them
	// Foreign is how many certificates it names that the image does not have.
	Foreign int
}

// ReadEscrow reads the file path, which anybody who writes to the disk may have
// made; certificates are those of this image. Errors: ErrNoEscrow, ErrUnsafe,
// escrow.ErrFormat, and ErrOtherEscrow with the value.
func ReadEscrow(path string, certificates fs.FS) (Escrowed, error) {
	der, err := readPlain(path)
	if err != nil {
		return Escrowed{}, err
	}
	m, err := escrow.Parse(der)
	if err != nil {
		return Escrowed{}, fmt.Errorf("cannot use %s: %w", path, err)
	}
	e := Escrowed{DER: der, Foreign: m.Recipients()}
	certs, err := signature.LoadCertificates(certificates)
	if err != nil {
		return e, fmt.Errorf("cannot tell whom %s is for: %w: %w", path, ErrOtherEscrow, err)
	}
	for _, c := range certs {
		if m.Names(c.Issuer, c.Serial) {
			e.Subjects, e.Foreign = append(e.Subjects, c.Subject), e.Foreign-1
		}
	}
	if len(e.Subjects) == 0 {
		return e, fmt.Errorf("cannot trust %s: %w: somebody exchanged it, or the configuration changed since the volume was made", path, ErrOtherEscrow)
	}
	return e, nil
}

// ForgetEscrow deletes the file path, whose key is about to open nothing; it is no
// error when there is none.
func ForgetEscrow(path string) error {
	if err := durable.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot delete the escrow of the old recovery key: %w", err)
	}
	return nil
}

// readPlain reads a plain file of at most escrow.MaxMessage bytes.
func readPlain(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoEscrow, path)
	}
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("cannot use %s: a symbolic link: %w", path, ErrUnsafe)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the escrow: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("cannot read the escrow: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > escrow.MaxMessage {
		return nil, fmt.Errorf("cannot use %s: kind or size: %w", path, ErrUnsafe)
	}
	der, err := io.ReadAll(io.LimitReader(f, escrow.MaxMessage))
	if err != nil {
		return nil, fmt.Errorf("cannot read the escrow: %w", err)
	}
	return der, nil
}

// PEM is the message as text. What stands before it openssl passes over.
func (e Escrowed) PEM(volume string) []byte {
	text := fmt.Appendf(nil, "Volume: %s\n", volume)
	for _, s := range e.Subjects {
		text = fmt.Appendf(text, "Recipient: %q\n", s)
	}
	if e.Foreign > 0 {
		text = fmt.Appendf(text, "Recipients not known here: %d\n", e.Foreign)
	}
	return append(text, pem.EncodeToMemory(&pem.Block{Type: "CMS", Bytes: e.DER})...)
}
