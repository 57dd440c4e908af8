package predict

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"

	"sealroot/state/tpm/pcrsig"
)

func fromHex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func digest(t *testing.T, text string) (d [32]byte) {
	t.Helper()
	copy(d[:], fromHex(t, text))
	return d
}

// golden is what a machine in QEMU had: OVMF, GRUB 2.06 of Debian 12, swtpm.
func golden(t *testing.T) (g GRUB, files BootFiles, present pcrsig.Values) {
	t.Helper()
	script, err := os.ReadFile("testdata/grub.cfg")
	if err != nil {
		t.Fatal(err)
	}
	g = GRUB{Script: script, Partition: 2, PartUUID: "5a5ac8d0-2c31-4d41-bc91-2f81879df58c"}
	files = BootFiles{
		Kernel: digest(t, "3d616aa853fe11b1c0ea99a1cdb4fb6ddc9010ba7c4562de700ad94264989654"),
		Initrd: digest(t, "31fa8e3d2f9f0f9cd47a992e1ac2e1959b6c4ae815ac0e2ccad7b586ee650138"),
	}
	return g, files, pcrsig.Values{
		8: fromHex(t, "41aafbd9abafab71e410d27a8c95c33f7e8003b00264696ec8d80793409ca2ee"),
		9: fromHex(t, "8542a5a4f7e3063ca5045ceef1b8b317c9d5be808e36997a27916fba54475c53"),
	}
}

func TestGRUBGivesThePCRsOfTheMachine(t *testing.T) {
	g, files, present := golden(t)
	found, err := LocateGRUB(g, "a", files, present)
	if err != nil || found.Disk != "hd0" || found.CmdPath != "(hd0,gpt2)/EFI/BOOT" {
		t.Fatalf("LocateGRUB = %q, %q, %v", found.Disk, found.CmdPath, err)
	}
	other, err := found.Values("b", files)
	if err != nil || bytes.Equal(other[8], present[8]) || !bytes.Equal(other[9], present[9]) {
		t.Errorf("the same files in slot b: %x, %v; want another PCR 8 and the same PCR 9", other, err)
	}
	files.Initrd[0] ^= 1
	other, err = found.Values("a", files)
	if err != nil || !bytes.Equal(other[8], present[8]) || bytes.Equal(other[9], present[9]) {
		t.Errorf("another initramfs in slot a: %x, %v; want the same PCR 8 and another PCR 9", other, err)
	}
}

// What is not understood, or does not give the present PCRs, is never predicted.
func TestGRUBRefuses(t *testing.T) {
	replace := func(old, replacement string) func(*GRUB, pcrsig.Values) {
		return func(g *GRUB, _ pcrsig.Values) {
			text := strings.Replace(string(g.Script), old, replacement, 1)
			if text == string(g.Script) {
				t.Fatalf("grub.cfg has no %q", old)
			}
			g.Script = []byte(text)
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*GRUB, pcrsig.Values)
		want   string
	}{
		{"longer_command_line", replace("panic=10", "panic=10 quiet"), "PCR 8"},
		{"other_kernel", func(_ *GRUB, v pcrsig.Values) { v[9][0] ^= 1 }, "PCR 9"},
		{"other_partition", func(g *GRUB, _ pcrsig.Values) { g.PartUUID = "f" + g.PartUUID }, "PCR 8"},
		{"unknown_command", replace("terminal_output console", "insmod ext2"), `line 9 of grub.cfg: a command that is not understood: "insmod"`},
		{"unknown_word", replace("terminal_output console", "while true; do"), `line 9 of grub.cfg: "while" is not understood`},
		{"elif", replace("else\n", "elif true; then\n"), "not understood"},
		{"other_file", replace("initrd /sealroot/$slot/initrd", "initrd /other"), "loads"},
		{"measured_environment", replace("load_env --skip-sig", "load_env"), "not understood"},
		{"trial_is_measured", replace("for wanted in $sealroot_once", "echo $sealroot_once\nfor wanted in $sealroot_once"), "on trial"},
		{"never_boots", replace("        boot\n", ""), `"reboot"`},
		{"open_if", func(g *GRUB, _ pcrsig.Values) { g.Script = []byte("if test a = a; then\n") }, "without fi"},
		{"empty", func(g *GRUB, _ pcrsig.Values) { g.Script = nil }, "loads"},
		{"probe_without_words", func(g *GRUB, _ pcrsig.Values) { g.Script = []byte("probe") }, "not understood"},
		{"deep", func(g *GRUB, _ pcrsig.Values) { g.Script = []byte(strings.Repeat("if test a = a; then\n", 1000)) }, "nesting"},
		{"words_that_double", func(g *GRUB, _ pcrsig.Values) {
			g.Script = []byte("x=ab\n" + strings.Repeat("x=$x$x\n", 22))
		}, "grow beyond"},
		{"lists_that_double", func(g *GRUB, _ pcrsig.Values) {
			g.Script = []byte("x=ab\n" + strings.Repeat("for x in $x$x; do\nsleep 1\ndone\n", 22))
		}, "grow beyond"},
		{"many_long_words", func(g *GRUB, _ pcrsig.Values) {
			g.Script = []byte("x=ab\n" + strings.Repeat("x=$x$x\n", 12) + "echo" + strings.Repeat(" $x", 1000) + "\n")
		}, "grow beyond"},
		{"endless", func(g *GRUB, _ pcrsig.Values) {
			g.Script = []byte(strings.Repeat("for x in 1 2 3 4 5 6 7 8 9; do\n", 8) + "sleep 1\n" + strings.Repeat("done\n", 8))
		}, "does not end"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, files, present := golden(t)
			tt.change(&g, present)
			found, err := LocateGRUB(g, "a", files, present)
			if !errors.Is(err, ErrGRUB) || !strings.Contains(err.Error(), tt.want) || found.Script != nil {
				t.Errorf("LocateGRUB = %v, want %q", err, tt.want)
			}
		})
	}
}

// The PCRs of a boot vouch for the commands of its own slot. What grub.cfg does for
// another one is believed where it is the same, but for the slot's name.
func TestGRUBOfAnotherSlot(t *testing.T) {
	const options = " sealroot.disk=$espuuid ro gpt panic=10 'console=ttyS0' 'sysrq_always_enabled'\n"
	for _, tt := range []struct{ name, commands, want string }{
		{"another_command_line", "    echo \"sealroot: loading slot $slot\"\n    linux /sealroot/$slot/vmlinuz sealroot.slot=$slot rdinit=/bin/sh\n", "rdinit=/bin/sh"},
		{"one_word_more", "    echo \"sealroot: loading slot $slot\"\n    linux /sealroot/$slot/vmlinuz sealroot.slot=$slot quiet" + options, "quiet"},
		{"slot_of_the_other", "    echo \"sealroot: loading slot $slot\"\n    linux /sealroot/$slot/vmlinuz sealroot.slot=a" + options, "sealroot.slot=a"},
		{"one_command_less", "    linux /sealroot/$slot/vmlinuz sealroot.slot=$slot" + options, "commands for slot b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, files, present := golden(t)
			// For slot a it says the same to the TPM, and slot b gets the rest.
			text := strings.Replace(string(g.Script), `if test "$slot" = a -o "$slot" = b; then`, `if test "$slot" = a -o a = b; then`, 1)
			const end = "    echo \"sealroot: cannot load slot $slot\"\n"
			g.Script = []byte(strings.Replace(text, end, end+"  else\n"+tt.commands+"    initrd /sealroot/$slot/initrd\n    boot\n", 1))
			found, err := LocateGRUB(g, "a", files, present)
			if err != nil {
				t.Fatal(err)
			}
			if values, err := found.Values("b", files); !errors.Is(err, ErrGRUB) || !strings.Contains(err.Error(), tt.want) || values != nil {
				t.Errorf("Values = %x, %v, want %q", values, err, tt.want)
			}
			// The control: it is the comparison that refuses.
			found.loaded = ""
			if _, err := found.Values("b", files); err != nil {
				t.Errorf("control: %v", err)
			}
		})
	}
}

func FuzzGRUBScript(f *testing.F) {
	text, err := os.ReadFile("testdata/grub.cfg")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("for x in a; do\nif test \"$x\" = a; then\nbreak\nfi\ndone"))
	f.Fuzz(func(t *testing.T, data []byte) {
		values, err := GRUB{Script: data, Disk: "hd0", Partition: 2}.Values("a", BootFiles{})
		if err != nil && (values != nil || !errors.Is(err, ErrGRUB)) {
			t.Errorf("%v beside %v", values, err)
		}
	})
}

func FuzzReadGRUBScript(f *testing.F) {
	f.Add([]byte("MZ"))
	f.Fuzz(func(t *testing.T, data []byte) {
		text, err := ReadGRUBScript(bytes.NewReader(data))
		if err != nil && (text != nil || !errors.Is(err, ErrGRUB)) {
			t.Errorf("%q beside %v", text, err)
		}
		grubModule(data, grubMemdisk)
	})
}
