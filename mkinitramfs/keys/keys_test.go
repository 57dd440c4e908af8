package keys

import (
	"crypto"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func TestGenerate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	if err := Generate(dir, "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, f := range Files() {
		info, err := os.Stat(filepath.Join(dir, f.Name))
		if err != nil {
			t.Fatal(err)
		}
		want := os.FileMode(0o644)
		if f.Secret {
			want = 0o600
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", f.Name, got, want)
		}
	}
	for key, cert := range map[string]string{ImageKey: ImageCert, DBKey: DBCert} {
		k, err := LoadKey(filepath.Join(dir, key))
		if err != nil {
			t.Fatal(err)
		}
		c, err := LoadCertificate(filepath.Join(dir, cert))
		if err != nil {
			t.Fatal(err)
		}
		if !k.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(c.PublicKey) {
			t.Errorf("%s does not belong to %s", cert, key)
		}
		// openssl is the judge of the files.
		if out, err := exec.Command("openssl", "x509", "-in", filepath.Join(dir, cert), "-noout", "-checkend", "0").CombinedOutput(); err != nil {
			t.Errorf("openssl x509 %s: %v: %s", cert, err, out)
		}
	}
	if out, err := exec.Command("openssl", "pkey", "-pubin", "-in", filepath.Join(dir, PCRPublic), "-noout").CombinedOutput(); err != nil {
		t.Errorf("openssl pkey: %v: %s", err, out)
	}
}

func TestGenerateNeverOverwrites(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, PCRKey)
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Generate(dir, "test", time.Now()); !errors.Is(err, ErrExists) {
		t.Fatalf("Generate = %v, want ErrExists", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("Generate left %d files (%v), want 1", len(entries), err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "precious" {
		t.Errorf("%s = %q, %v; want it unchanged", PCRKey, got, err)
	}
}

func TestLoadRefusesOtherFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	for _, text := range []string{"", "text", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if k, err := LoadKey(path); !errors.Is(err, ErrFormat) || k != nil {
			t.Errorf("LoadKey(%q) = %v, %v; want ErrFormat", text, k, err)
		}
		if c, err := LoadCertificate(path); !errors.Is(err, ErrFormat) || c != nil {
			t.Errorf("LoadCertificate(%q) = %v, %v; want ErrFormat", text, c, err)
		}
	}
}
