package grub

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/mkinitramfs/tools"
)

func TestConfigIsAcceptedByGRUB(t *testing.T) {
	cfg, err := Config("console=ttyS0 quiet", "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	check := func(text string) error {
		path := filepath.Join(t.TempDir(), "grub.cfg")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return exec.Command("grub-script-check", path).Run()
	}
	if err := check(string(cfg)); err != nil {
		t.Errorf("grub-script-check: %v\n%s", err, cfg)
	}
	// The judge must be able to say no.
	if check(strings.Replace(string(cfg), "done", "", 1)) == nil {
		t.Error("grub-script-check accepts a broken script")
	}
	for _, want := range []string{
		"sealroot.slot=$slot sealroot.disk=$espuuid ro gpt panic=10 'console=ttyS0' 'quiet'; then",
		"for slot in $once $default a b; do",
		`default="a"`,
	} {
		if !strings.Contains(string(cfg), want) {
			t.Errorf("grub.cfg lacks %q", want)
		}
	}
}

func TestConfigRefuses(t *testing.T) {
	for _, tc := range []struct {
		name, cmdline string
		slots         []string
	}{
		{"quote", "a='b'", []string{"a"}},
		{"control_character", "a\x01", []string{"a"}},
		{"no_slot", "", nil},
		{"slot_with_path", "", []string{"../x"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if cfg, err := Config(tc.cmdline, tc.slots...); !errors.Is(err, ErrInput) || cfg != nil {
				t.Errorf("Config = %q, %v; want ErrInput", cfg, err)
			}
		})
	}
}

// memory is a disk.
type memory []byte

func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

func TestEmbed(t *testing.T) {
	cfg, err := Config("", "a")
	if err != nil {
		t.Fatal(err)
	}
	images, err := Build(t.Context(), tools.New(), cfg, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	disk := make(memory, 2<<20)
	disk[450] = 0xee // type of the protective partition
	disk[510], disk[511] = 0x55, 0xaa
	if err := images.Embed(disk, 2048, 2048); err != nil {
		t.Fatal(err)
	}
	if disk[450] != 0xee || disk[510] != 0x55 {
		t.Error("Embed overwrote the protective partition table")
	}
	if got := binary.LittleEndian.Uint64(disk[0x5c:]); got != 2048 {
		t.Errorf("boot sector loads sector %d, want 2048", got)
	}
	core := disk[2048*512:]
	if got := binary.LittleEndian.Uint64(core[0x1f4:]); got != 2049 {
		t.Errorf("core image continues at sector %d, want 2049", got)
	}
	if got, want := int(binary.LittleEndian.Uint16(core[0x1fc:])), len(images.Core)/512-1; got != want {
		t.Errorf("core image continues for %d sectors, want %d", got, want)
	}
	if err := images.Embed(disk, 2048, 8); !errors.Is(err, ErrInput) {
		t.Errorf("Embed into 8 sectors = %v, want ErrInput", err)
	}
}
