package keys

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// script writes a sign command.
func script(t *testing.T, text string) *Command {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sign")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return &Command{Argv: []string{path}, Stderr: io.Discard}
}

// imageKey is a folder with keys, and the certificate of the image's.
func imageKey(t *testing.T) (dir string, cert *x509.Certificate) {
	t.Helper()
	dir = t.TempDir()
	if err := Generate(dir, "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	cert, err := LoadCertificate(filepath.Join(dir, ImageCert))
	if err != nil {
		t.Fatal(err)
	}
	return dir, cert
}

// What an HSM's program does, openssl does here; and openssl is the judge of what
// comes of it.
func TestCommandSigns(t *testing.T) {
	dir, cert := imageKey(t)
	digest := sha256.Sum256([]byte("what is signed"))
	good := `[ "$1 $2" = "image sha256" ] || exit 9
exec openssl pkeyutl -sign -inkey ` + dir + `/image.key -pkeyopt digest:sha256 -pkeyopt rsa_padding_mode:pkcs1
`
	for _, tc := range []struct {
		name, text string
		ok         bool
	}{
		{"openssl", good, true},
		{"another_key", strings.Replace(good, "image.key", "pcr.key", 1), false},
		{"says_more", "echo signing\n" + good, false},
		{"prints_nothing", "cat >/dev/null\n", false},
		{"fails", "exit 1\n", false},
		{"prints_for_ever", "exec yes\n", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			key := script(t, tc.text).Signer(t.Context(), NameImage, cert.PublicKey)
			signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
			if !tc.ok {
				if !errors.Is(err, ErrCommand) || signature != nil {
					t.Errorf("Sign = %x, %v, want ErrCommand", signature, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "signature")
			if err := os.WriteFile(file, signature, 0o600); err != nil {
				t.Fatal(err)
			}
			judge := exec.Command("openssl", "pkeyutl", "-verify", "-certin", "-inkey", filepath.Join(dir, ImageCert),
				"-sigfile", file, "-pkeyopt", "digest:sha256", "-pkeyopt", "rsa_padding_mode:pkcs1")
			judge.Stdin = bytes.NewReader(digest[:])
			if out, err := judge.CombinedOutput(); err != nil {
				t.Errorf("openssl: %v: %s", err, out)
			}
		})
	}
	missing := &Command{Argv: []string{"/nonexistent/sign"}, Stderr: io.Discard}
	if _, err := missing.Signer(t.Context(), NameImage, cert.PublicKey).Sign(rand.Reader, digest[:], crypto.SHA256); !errors.Is(err, ErrCommand) {
		t.Errorf("a program that is not there: %v, want ErrCommand", err)
	}
	if _, err := script(t, good).Signer(t.Context(), NameImage, cert.PublicKey).Sign(rand.Reader, make([]byte, 20), crypto.SHA1); !errors.Is(err, ErrCommand) {
		t.Errorf("SHA-1: %v, want ErrCommand", err)
	}
}

// What a sign command has started may hold its standard output for longer than it lives,
// or than its time.
func TestCommandThatIsOutlived(t *testing.T) {
	dir, cert := imageKey(t)
	digest := sha256.Sum256([]byte("what is signed"))
	for _, tc := range []struct {
		name, text string
		limit      time.Duration
		want       string // of the error
	}{
		{"out_of_time", "sleep 20\nexit 0\n", 100 * time.Millisecond, "not done within 100ms"},
		{"leaves_a_daemon", `sleep 20 &
exec openssl pkeyutl -sign -inkey ` + dir + `/image.key -pkeyopt digest:sha256 -pkeyopt rsa_padding_mode:pkcs1
`, time.Minute, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, begin := script(t, tc.text), time.Now()
			c.limit = tc.limit
			_, err := c.Signer(t.Context(), NameImage, cert.PublicKey).Sign(rand.Reader, digest[:], crypto.SHA256)
			if took := time.Since(begin); took > 15*time.Second {
				t.Errorf("Sign took %s", took)
			}
			if (err != nil) != (tc.want != "") || err != nil && (!errors.Is(err, ErrCommand) || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("Sign: %v, want %q", err, tc.want)
			}
		})
	}
}

func TestParseCommand(t *testing.T) {
	c := ParseCommand(" hsm-sign  --slot 3 ", nil)
	if c == nil || c.line(NameDB, "in", "out") != "hsm-sign --slot 3 db in out" {
		t.Errorf("ParseCommand = %+v", c)
	}
	if c := ParseCommand(" ", nil); c != nil {
		t.Errorf("ParseCommand of nothing = %+v, want nil", c)
	}
}
