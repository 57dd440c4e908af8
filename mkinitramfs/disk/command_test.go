package disk

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/mkinitramfs/keys"
	"sealroot/mkinitramfs/keys/keystest"
	"sealroot/slots/manifest"
	"sealroot/verity/signature"
)

// hsm moves the secret keys of a builder away, to where only a command finds
// them, and returns that command.
func hsm(t *testing.T, b *Builder) *keys.Command {
	t.Helper()
	safe := t.TempDir()
	for _, f := range keys.Files() {
		if f.Secret {
			if err := os.Rename(filepath.Join(b.Signing.Dir, f.Name), filepath.Join(safe, f.Name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	path := filepath.Join(safe, "sign")
	text := `#!/bin/sh
cd "` + safe + `" || exit 1
case $1 in
db) exec sbsign --key db.key --cert "` + b.Signing.Dir + `/db.crt" --output "$3" "$2" ;;
*) exec openssl pkeyutl -sign -inkey "$1.key" -pkeyopt "digest:$2" -pkeyopt rsa_padding_mode:pkcs1 ;;
esac
`
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return &keys.Command{Argv: []string{path}, Stderr: io.Discard}
}

// A set that a command has signed is the same as one signed with key files,
// everything but the Secure Boot signature, which holds its time.
func TestSignCommand(t *testing.T) {
	b, in := builder(t)
	first, err := b.buildParts(t.Context(), in, filepath.Join(t.TempDir(), "1"))
	if err != nil {
		t.Fatal(err)
	}
	dir := b.Signing.Dir
	command := hsm(t, b)
	if _, err := LoadSigning(t.Context(), dir, nil, nil); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "--sign-command") {
		t.Fatalf("the secret keys are still there: %v", err)
	}
	if _, err := LoadSigning(t.Context(), dir+"/none", nil, command); !errors.Is(err, os.ErrNotExist) || !strings.HasSuffix(err.Error(), "; sealroot-mkinitramfs keys "+dir+"/none makes them") {
		t.Errorf("without a key folder: %v", err)
	}
	if b.Signing, err = LoadSigning(t.Context(), dir, nil, command); err != nil {
		t.Fatal(err)
	}
	second, err := b.buildParts(t.Context(), in, filepath.Join(t.TempDir(), "2"))
	if err != nil {
		t.Fatal(err)
	}
	if string(first.signature) != string(second.signature) {
		t.Errorf("signature partitions differ: %s and %s", first.signature, second.signature)
	}
	section := func(p parts, name string) string {
		out := filepath.Join(t.TempDir(), "section")
		run(t, "objcopy", "-O", "binary", "--only-section="+name, "--set-section-flags", name+"=alloc", p.path(manifest.UKI), out)
		text, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if one, two := section(first, ".pcrsig"), section(second, ".pcrsig"); one != two || !strings.Contains(one, "pkfp") {
		t.Errorf("signed PCR values differ: %q and %q", one, two)
	}
	run(t, "sbverify", "--cert", filepath.Join(dir, keys.DBCert), second.path(manifest.UKI))
	certs, err := signature.LoadCertificates(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := manifest.Verify(second.manifest, second.signed, certs); err != nil {
		t.Error(err)
	}
}

// A command that signs a UKI with another key than db.crt's is found out.
func TestSignCommandWithAnotherDBKey(t *testing.T) {
	b, in := builder(t)
	dir := b.Signing.Dir
	var err error
	if b.Signing, err = LoadSigning(t.Context(), dir, nil, hsm(t, b)); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	keystest.WriteOther(t, other)
	b.Signing.Secure.Cert = filepath.Join(other, keys.DBCert)
	if _, err := b.buildParts(t.Context(), in, t.TempDir()); err == nil || !strings.Contains(err.Error(), "sbverify") {
		t.Errorf("buildParts = %v, want the refusal of sbverify", err)
	}
}
