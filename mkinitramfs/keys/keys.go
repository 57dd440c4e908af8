// Package keys makes the keys that an image builder needs: for root hashes,
// for PCR policies and for Secure Boot.
package keys

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"
)

var (
	// ErrExists means that keys would have been overwritten: what they signed
	// would be lost with them.
	ErrExists = errors.New("keys exist already")
	// ErrFormat means that a file does not hold the key or certificate expected.
	ErrFormat = errors.New("not a usable PEM key or certificate")
)

// File describes one file of a key directory.
type File struct {
	Name    string
	Secret  bool
	Purpose string
}

// Names of the files.
const (
	ImageKey  = "image.key"
	ImageCert = "image.crt"
	PCRKey    = "pcr.key"
	PCRPublic = "pcr.pub"
	DBKey     = "db.key"
	DBCert    = "db.crt"
)

// Files lists the files of a key directory.
func Files() []File {
	return []File{
		{ImageKey, true, "signs the root hash of every image"},
		{ImageCert, false, "goes into the initramfs: images signed with image.key boot"},
		{PCRKey, true, "signs the PCR 11 value of every unified kernel image"},
		{PCRPublic, false, "goes into the initramfs: the state is sealed to what pcr.key signs"},
		{DBKey, true, "signs unified kernel images for Secure Boot"},
		{DBCert, false, "to be enrolled in the firmware's Secure Boot database (db)"},
	}
}

// ErrName means that a file's name does not say which key signs.
var ErrName = errors.New("not a name like pcr-previous.pub")

// PreviousName returns the name of a PCR policy key of before: that of the file of its
// public half without folder and ".pub". With ".key" it is that of the private one in
// the key directory, and a Command gets it as its first argument. Errors: ErrName.
func PreviousName(public string) (string, error) {
	base := filepath.Base(public)
	name, ok := strings.CutSuffix(base, ".pub")
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	if !ok || name == "" || name[0] == '-' || name[0] == '.' || strings.Trim(name, letters) != "" {
		return "", fmt.Errorf("%.80q: %w", base, ErrName)
	}
	if name == NameImage || name == NamePCR || name == NameDB {
		return "", fmt.Errorf("%.80q is the name of a key in use: %w", base, ErrName)
	}
	return name, nil
}

// Validity of certificates. Dates are not checked at boot, because the clock
// of a machine that boots is not to be trusted; revocation is leaving the
// certificate out of the next initramfs.
const validity = 30 * 365 * 24 * time.Hour

// Generate makes every key of Files in dir, which is created when missing. It
// writes nothing when one of them exists.
func Generate(dir, name string, now time.Time) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make key directory: %w", err)
	}
	for _, f := range Files() {
		_, err := os.Lstat(filepath.Join(dir, f.Name))
		if err == nil {
			return fmt.Errorf("cannot make keys in %s: %s: %w", dir, f.Name, ErrExists)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot make keys: %w", err)
		}
	}
	// RSA, because systemd 252 and firmware take nothing else everywhere.
	if err := certified(dir, ImageKey, ImageCert, 3072, name+" image signing", now); err != nil {
		return err
	}
	// UEFI requires firmware to verify RSA-2048; longer keys are optional.
	if err := certified(dir, DBKey, DBCert, 2048, name+" secure boot", now); err != nil {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048) // the size that every TPM loads
	if err != nil {
		return fmt.Errorf("cannot make key: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("cannot encode public key: %w", err)
	}
	if err := writeKey(filepath.Join(dir, PCRKey), key); err != nil {
		return err
	}
	return writePEM(filepath.Join(dir, PCRPublic), "PUBLIC KEY", public, 0o644)
}

// certified writes a key and a self-signed certificate of it.
func certified(dir, keyName, certName string, bits int, subject string, now time.Time) error {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return fmt.Errorf("cannot make key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return fmt.Errorf("cannot make serial number: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: subject},
		NotBefore:             now.Add(-24 * time.Hour), // clocks of builders differ
		NotAfter:              now.Add(validity),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fmt.Errorf("cannot make certificate: %w", err)
	}
	if err := writeKey(filepath.Join(dir, keyName), key); err != nil {
		return err
	}
	return writePEM(filepath.Join(dir, certName), "CERTIFICATE", der, 0o644)
}

// writeKey writes a private key as PKCS#8 and wipes the encoded copy.
func writeKey(path string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("cannot encode private key: %w", err)
	}
	defer clear(der)
	return writePEM(path, "PRIVATE KEY", der, 0o600)
}

// writePEM creates the file and never follows or replaces one that is there.
func writePEM(path, kind string, der []byte, mode fs.FileMode) error {
	text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	defer clear(text)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("cannot write key: %w", err)
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("cannot write key %s: %w", path, err)
	}
	return nil
}

// LoadKey reads a private key (PEM; PKCS#8 or PKCS#1).
func LoadKey(path string) (crypto.Signer, error) {
	block, err := readPEM(path)
	if err != nil {
		return nil, err
	}
	defer clear(block.Bytes)
	if block.Type == "RSA PRIVATE KEY" {
		key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("cannot read private key %s: %w", path, ErrFormat)
		}
		return key, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("cannot read private key %s: %w", path, ErrFormat)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("cannot sign with key %s: %w", path, ErrFormat)
	}
	return signer, nil
}

// LoadCertificate reads a certificate (PEM).
func LoadCertificate(path string) (*x509.Certificate, error) {
	block, err := readPEM(path)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("cannot read certificate %s: %w", path, ErrFormat)
	}
	return cert, nil
}

// DateProblem says what is wrong with a certificate's dates at the time now, as
// the end of a sentence about it; "" when nothing is.
func DateProblem(c *x509.Certificate, now time.Time) string {
	switch {
	case now.After(c.NotAfter):
		return "expired on " + c.NotAfter.UTC().Format(time.DateOnly)
	case now.Before(c.NotBefore):
		return "is not valid before " + c.NotBefore.UTC().Format(time.DateOnly)
	}
	return ""
}

func readPEM(path string) (*pem.Block, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read key file: %w", err)
	}
	defer clear(text)
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("cannot read key file %s: %w", path, ErrFormat)
	}
	return block, nil
}
