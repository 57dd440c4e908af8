package disk

import (
	"bytes"
	"debug/pe"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/mkinitramfs/initramfs"
	"sealroot/mkinitramfs/keys"
	"sealroot/mkinitramfs/keys/keystest"
	"sealroot/slots/manifest"
	"sealroot/state/tpm/pcrsig"
)

// roll gives a key folder a new PCR policy key; the one of before is pcr-previous.
func roll(t *testing.T, b *Builder) {
	t.Helper()
	dir, fresh := b.Signing.Dir, t.TempDir()
	keystest.WriteOther(t, fresh)
	for _, ext := range []string{".key", ".pub"} {
		if err := os.Rename(filepath.Join(dir, "pcr"+ext), filepath.Join(dir, "pcr-previous"+ext)); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(fresh, "pcr"+ext), filepath.Join(dir, "pcr"+ext)); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if b.Signing, err = LoadSigning(t.Context(), dir, nil, nil); err != nil {
		t.Fatal(err)
	}
}

// A set under two PCR policy keys carries both signatures, by key files and by a
// command alike, and its manifest names both.
func TestPreviousPolicyKey(t *testing.T) {
	b, in := builder(t)
	roll(t, b)
	dir := b.Signing.Dir
	in.Config.State.TPM2.PreviousKeys = []string{"pcr-previous.pub"}
	files, err := b.buildParts(t.Context(), in, filepath.Join(t.TempDir(), "1"))
	if err != nil {
		t.Fatal(err)
	}
	command := hsm(t, b)
	if err := os.Rename(filepath.Join(dir, "pcr-previous.key"), filepath.Join(filepath.Dir(command.Argv[0]), "pcr-previous.key")); err != nil {
		t.Fatal(err)
	}
	if b.Signing, err = LoadSigning(t.Context(), dir, nil, command); err != nil {
		t.Fatal(err)
	}
	commanded, err := b.buildParts(t.Context(), in, filepath.Join(t.TempDir(), "2"))
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]parts{"key_files": files, "command": commanded} {
		t.Run(name, func(t *testing.T) {
			m, err := manifest.Parse(p.manifest)
			if err != nil {
				t.Fatal(err)
			}
			section := func(name string) []byte {
				f, err := pe.Open(p.path(manifest.UKI))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				s := f.Section(name)
				if s == nil {
					t.Fatalf("no section %s", name)
				}
				text, err := s.Data()
				if err != nil {
					t.Fatal(err)
				}
				return text[:s.VirtualSize]
			}
			sigs, err := pcrsig.Parse(section(".pcrsig"))
			if err != nil {
				t.Fatal(err)
			}
			words := strings.Fields(m.Sealed)
			if len(words) != 3 {
				t.Fatalf("x-sealed %q, want the policy and two keys", m.Sealed)
			}
			for i, public := range []string{"pcr.pub", "pcr-previous.pub"} {
				text, err := os.ReadFile(filepath.Join(dir, public))
				if err != nil {
					t.Fatal(err)
				}
				key, err := pcrsig.ParsePublicKey(text)
				if err != nil {
					t.Fatal(err)
				}
				if !sigs.Has(pcrsig.SHA256, []int{11}, key) {
					t.Errorf(".pcrsig holds nothing by %s", public)
				}
				if want := fingerprint(key); words[1+i] != want {
					t.Errorf("x-sealed %q, want %s of %s at %d", m.Sealed, want, public, i)
				}
				if i == 0 && !bytes.Equal(section(".pcrpkey"), text) {
					t.Errorf(".pcrpkey is not %s", public)
				}
			}
		})
	}
}

func TestPolicyKeysThatDoNotFit(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(dir string, in *SlotInput) error
		want   error
	}{
		{"private_half_missing", func(dir string, in *SlotInput) error { return os.Remove(filepath.Join(dir, "pcr-previous.key")) }, fs.ErrNotExist},
		{"public_half_missing", func(dir string, in *SlotInput) error { return os.Remove(filepath.Join(dir, "pcr-previous.pub")) }, fs.ErrNotExist},
		{"private_half_of_another", func(dir string, in *SlotInput) error {
			return os.Rename(filepath.Join(dir, "image.key"), filepath.Join(dir, "pcr-previous.key"))
		}, errOtherKey},
		{"present_key_is_still_the_one_of_before", func(dir string, in *SlotInput) error {
			in.Config.State.TPM2.PublicKey, in.Config.State.TPM2.PreviousKeys = "pcr-previous.pub", nil
			return nil
		}, errOtherKey},
		{"present_key_twice", func(dir string, in *SlotInput) error {
			in.Config.State.TPM2.PreviousKeys = []string{"again.pub"}
			return os.Link(filepath.Join(dir, "pcr.pub"), filepath.Join(dir, "again.pub"))
		}, initramfs.ErrInput},
		{"not_a_public_key", func(dir string, in *SlotInput) error {
			return os.WriteFile(filepath.Join(dir, "pcr-previous.pub"), []byte("no key"), 0o600)
		}, pcrsig.ErrKey},
		{"another_ending", func(dir string, in *SlotInput) error {
			in.Config.State.TPM2.PreviousKeys = []string{"pcr-previous.pem"}
			return os.Rename(filepath.Join(dir, "pcr-previous.pub"), filepath.Join(dir, "pcr-previous.pem"))
		}, keys.ErrName},
		{"name_of_another_key", func(dir string, in *SlotInput) error {
			in.Config.State.TPM2.PreviousKeys = []string{"db.pub"}
			return os.Rename(filepath.Join(dir, "pcr-previous.pub"), filepath.Join(dir, "db.pub"))
		}, keys.ErrName},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, in := builder(t)
			roll(t, b)
			in.Config.State.TPM2.PreviousKeys = []string{"pcr-previous.pub"}
			if err := tt.change(b.Signing.Dir, &in); err != nil {
				t.Fatal(err)
			}
			if _, err := b.buildParts(t.Context(), in, t.TempDir()); !errors.Is(err, tt.want) {
				t.Errorf("buildParts = %v, want %v", err, tt.want)
			}
		})
	}
}
