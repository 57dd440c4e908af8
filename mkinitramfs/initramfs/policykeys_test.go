package initramfs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"sealroot/init/config"
	"sealroot/mkinitramfs/keys"
	"sealroot/mkinitramfs/keys/keystest"
)

// A previous PCR policy key lies in the initramfs where its configuration names it.
func TestPreviousPolicyKeys(t *testing.T) {
	s := sources(t)
	other := t.TempDir()
	keystest.WriteOther(t, other)
	want, err := os.ReadFile(filepath.Join(other, keys.PCRPublic))
	if err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(s.ConfigDir, "old")
	if err := os.Mkdir(old, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(old, "pcr-previous.pub"), want, 0o644); err != nil {
		t.Fatal(err)
	}
	s.Config.State.TPM2.PreviousKeys = []string{"old/pcr-previous.pub"}
	dir := unpack(t, build(t, s, None))
	text, err := os.ReadFile(filepath.Join(dir, config.Path))
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse(text)
	if err != nil || len(c.State.TPM2.PreviousKeys) != 1 {
		t.Fatalf("the configuration inside: %+v, %v", c, err)
	}
	got, err := os.ReadFile(filepath.Join(dir, config.PreviousKeysDir, c.State.TPM2.PreviousKeys[0]))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%q, %v, want the key", got, err)
	}
	if present, err := os.ReadFile(filepath.Join(dir, config.PublicKeyPath)); err != nil || bytes.Equal(present, want) {
		t.Errorf("present key: %q, %v", present, err)
	}
}
