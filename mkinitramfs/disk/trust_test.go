package disk

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/mkinitramfs/initramfs"
)

func TestTied(t *testing.T) {
	hash := []byte{0xab, 0xcd}
	for _, tc := range []struct {
		name, configured, want string
		err                    error
	}{
		{"not_asked_for", "", "", nil},
		{"embed", config.HashEmbed, "abcd", nil},
		{"the_same", "abcd", "abcd", nil},
		{"another", "ef01", "", initramfs.ErrInput},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := config.Config{Root: config.Root{Hash: tc.configured}}
			got, err := tied(&c, hash)
			if !errors.Is(err, tc.err) {
				t.Fatalf("tied = %v, want %v", err, tc.err)
			}
			if err == nil && got.Root.Hash != tc.want {
				t.Errorf("root.hash = %q, want %q", got.Root.Hash, tc.want)
			}
			if c.Root.Hash != tc.configured {
				t.Error("the configuration of the other slot was changed too")
			}
		})
	}
}

func TestWithCmdline(t *testing.T) {
	measured := config.Config{Trust: config.Trust{Cmdline: config.CmdlineMeasured}}
	got, err := withCmdline(&measured, "ro roothash="+strings.Repeat("ab", 32), bytes.Repeat([]byte{0xab}, 32))
	if err != nil || got.Kernel == nil || !strings.HasPrefix(got.Kernel.Cmdline, "ro roothash=abab") || measured.Kernel != nil {
		t.Errorf("withCmdline = %+v, %v", got, err)
	}
	if _, err := withCmdline(&measured, "ro roothash="+strings.Repeat("cd", 32), bytes.Repeat([]byte{0xab}, 32)); !errors.Is(err, initramfs.ErrInput) {
		t.Errorf("another root on the line: %v, want ErrInput", err)
	}
	if got, err := withCmdline(&config.Config{}, "ro", nil); err != nil || got.Kernel != nil {
		t.Errorf("ignored: %+v, %v", got, err)
	}
}

// The initramfs of a set is tied to the set's own root.
func TestRootHashIsEmbedded(t *testing.T) {
	b, in := builder(t)
	in.Config.Root.Hash = config.HashEmbed
	p, err := b.buildParts(t.Context(), in, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run(t, "sh", "-c", `zstd -dc "$1" | (cd "$2" && bsdcpio -i --quiet -m)`, "sh", writeTemp(t, p.initrd), dir)
	text := run(t, "cat", filepath.Join(dir, "etc/sealroot/config.json"))
	if want := hex.EncodeToString(p.rootHash); !strings.Contains(text, `"hash": "`+want+`"`) {
		t.Errorf("the configuration does not name root hash %s:\n%s", want, text)
	}
}

// A development build may sign with a certificate of the role dev, a production
// build never.
func TestDevelopmentCertificate(t *testing.T) {
	b, in := builder(t)
	in.Config.Trust = config.Trust{Dev: []string{"image.crt"}, Cmdline: "ignore"}
	in.Config.Build = config.Development
	if _, err := b.buildParts(t.Context(), in, t.TempDir()); err != nil {
		t.Errorf("development: %v", err)
	}
	in.Config.Build = config.Production
	if _, err := b.buildParts(t.Context(), in, t.TempDir()); !errors.Is(err, initramfs.ErrInput) {
		t.Errorf("production: %v, want ErrInput", err)
	}
}

// The TPM cannot tell a development build from another one.
func TestWarnsOfDevelopmentUnderTheKeyOfProduction(t *testing.T) {
	for _, tt := range []struct {
		name, policy string
		build        config.Build
		warns        bool
	}{
		{"development", "signed-pcr11+7", config.Development, true},
		{"production", "signed-pcr11+7", config.Production, false},
		{"no_signed_policy", "pcrs", config.Development, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, in := builder(t)
			var log bytes.Buffer
			b.Log = &log
			in.Config.Build, in.Config.State.TPM2.Policy = tt.build, tt.policy
			if _, err := b.buildParts(t.Context(), in, t.TempDir()); err != nil {
				t.Fatal(err)
			}
			if got := strings.Contains(log.String(), "warning: development build with policy signed-pcr11+7: it opens the state of every machine"); got != tt.warns {
				t.Errorf("warns: %v\n%s", got, log.String())
			}
		})
	}
}

// writeTemp writes a file for a judge to read.
func writeTemp(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
