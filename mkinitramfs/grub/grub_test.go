package grub

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/mkinitramfs/tools"
	"sealroot/state/tpm/predict"
)

func TestConfigIsAcceptedByGRUB(t *testing.T) {
	cfg, err := Config(Settings{Slots: []string{"a", "b"}, Cmdline: "console=ttyS0 quiet", OneBoot: []string{"BOOT_FELL_BACK"}})
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
		"for slot in $wanted $sealroot_default a b; do",
		"for round in $sealroot_once $BOOT_FELL_BACK $measured; do\n  sealroot_once=\n  BOOT_FELL_BACK=\n  save_env --file \"$env\" sealroot_once BOOT_FELL_BACK\n",
		`if test "$slot" = a -o "$slot" = b; then`,
	} {
		if !strings.Contains(string(cfg), want) {
			t.Errorf("grub.cfg lacks %q", want)
		}
	}
}

func TestConfigRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   Settings
	}{
		{"quote", Settings{Slots: []string{"a"}, Cmdline: "a='b'"}},
		{"control_character", Settings{Slots: []string{"a"}, Cmdline: "a\x01"}},
		{"no_slot", Settings{}},
		{"slot_with_path", Settings{Slots: []string{"../x"}}},
		{"variable_with_space", Settings{Slots: []string{"a"}, OneBoot: []string{"a b"}}},
		{"variable_without_name", Settings{Slots: []string{"a"}, OneBoot: []string{""}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if cfg, err := Config(tc.in); !errors.Is(err, ErrInput) || cfg != nil {
				t.Errorf("Config = %q, %v; want ErrInput", cfg, err)
			}
		})
	}
}

// memory is a disk.
type memory []byte

func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

func TestEmbed(t *testing.T) {
	cfg, err := Config(Settings{Slots: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	images, err := BIOS(t.Context(), tools.New(), cfg, t.TempDir())
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

func TestEFI(t *testing.T) {
	cfg, err := Config(Settings{Slots: []string{"a", "b"}, Cmdline: "console=ttyS0", OneBoot: []string{"BOOT_FELL_BACK"}})
	if err != nil {
		t.Fatal(err)
	}
	program, err := EFI(t.Context(), tools.New(), cfg, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f, err := pe.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	const efiApplication = 10 // PE format, subsystems
	if h, ok := f.OptionalHeader.(*pe.OptionalHeader64); !ok || h.Subsystem != efiApplication {
		t.Errorf("GRUB for UEFI is no EFI program: %+v", f.OptionalHeader)
	}
	// What finds it there also knows what it measures.
	if script, err := predict.ReadGRUBScript(bytes.NewReader(program)); err != nil || !bytes.Equal(script, cfg) {
		t.Errorf("GRUB for UEFI does not hold its configuration: %q, %v", script, err)
	}
	for _, slot := range []string{"a", "b"} {
		if v, err := (predict.GRUB{Script: cfg, Disk: "hd0", Partition: 2}).Values(slot, predict.BootFiles{}); err != nil || len(v) != 2 {
			t.Errorf("the PCRs of slot %s: %x, %v", slot, v, err)
		}
	}
	again, err := EFI(t.Context(), tools.New(), cfg, t.TempDir())
	if err != nil || !bytes.Equal(program, again) {
		t.Errorf("GRUB for UEFI from the same inputs differs (%v)", err)
	}
	none := tools.Runner{Root: t.TempDir()}
	if _, err := EFI(t.Context(), none, cfg, t.TempDir()); !errors.Is(err, tools.ErrMissing) {
		t.Errorf("EFI without GRUB's modules = %v, want ErrMissing", err)
	}
}
