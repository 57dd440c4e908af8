package cmdline

import (
	"reflect"
	"strings"
	"testing"

	"sealroot/verity"
)

func TestParse(t *testing.T) {
	const uuid = "6b1c2f3e-0a0b-4c0d-8e0f-123456789abc"
	for _, test := range []struct {
		name, line string
		want       CommandLine
	}{
		{"empty", "", CommandLine{}},
		{"spaces", " \t\n\v\f\r\xa0", CommandLine{}},
		{"as_grub_writes_it", "BOOT_IMAGE=/sealroot/a/vmlinuz sealroot.slot=a sealroot.disk=" + uuid + " panic=10 console=tty0 console=ttyS0,115200n8 quiet\n",
			CommandLine{Slot: "a", DiskUUID: uuid, Quiet: true, Consoles: []string{"tty0", "ttyS0"},
				Ignored: []string{"BOOT_IMAGE=/sealroot/a/vmlinuz"}}},
		{"as_a_uki_has_it", "sealroot.slot=b console=ttyS0\x00", CommandLine{Slot: "b", Consoles: []string{"ttyS0"}}},
		{"nothing_behind_nul", "quiet\x00sealroot.slot=a", CommandLine{Quiet: true}},
		{"uuid_in_upper_case", "sealroot.disk=" + strings.ToUpper(uuid), CommandLine{DiskUUID: uuid}},
		{"value_in_quotes", `sealroot.slot="c"`, CommandLine{Slot: "c"}},
		{"word_in_quotes", `"sealroot.slot=a"`, CommandLine{Slot: "a"}},
		{"space_in_quotes", `x="1 sealroot.slot=a" quiet`, CommandLine{Quiet: true, Ignored: []string{`x=1 sealroot.slot=a`}}},
		{"quote_without_end", `x="1 sealroot.slot=a quiet`, CommandLine{Ignored: []string{`x=1 sealroot.slot=a quiet`}}},
		{"quote_in_the_middle", `x=a"b c"d`, CommandLine{Ignored: []string{`x=a\"b c\"d`}}},
		{"empty_quotes", `""`, CommandLine{Ignored: []string{""}}},
		{"equals_first", "=a", CommandLine{Ignored: []string{"=a"}}},
		{"same_slot_twice", "sealroot.slot=a sealroot.slot=a", CommandLine{Slot: "a"}},
		{"two_slots", "sealroot.slot=a sealroot.slot=b", CommandLine{Refused: []string{"sealroot.slot=a", "sealroot.slot=b"}}},
		{"good_and_bad_slot", "sealroot.slot=a sealroot.slot=z", CommandLine{Refused: []string{"sealroot.slot=a", "sealroot.slot=z"}}},
		{"slot_without_value", "sealroot.slot", CommandLine{Refused: []string{"sealroot.slot="}}},
		{"slot_in_upper_case", "sealroot.slot=A", CommandLine{Refused: []string{"sealroot.slot=A"}}},
		{"slot_as_path", "sealroot.slot=../a", CommandLine{Refused: []string{"sealroot.slot=../a"}}},
		{"disk_as_device", "sealroot.disk=/dev/sda1", CommandLine{Refused: []string{"sealroot.disk=/dev/sda1"}}},
		{"disk_with_misplaced_dash", "sealroot.disk=" + strings.Replace(uuid, "-0a0b-", "0-a0b-", 1),
			CommandLine{Refused: []string{"sealroot.disk=6b1c2f3e0-a0b-4c0d-8e0f-123456789abc"}}},
		{"unknown_word_of_ours", "sealroot.shell=1 sealroot.Slot=a", CommandLine{Refused: []string{"sealroot.shell=1", "sealroot.Slot=a"}}},
		{"reset", "sealroot.reset", CommandLine{Reset: true}},
		{"reset_with_a_value", "sealroot.reset=1 sealroot.reset= -- sealroot.reset", CommandLine{Refused: []string{"sealroot.reset=1", "sealroot.reset="}, Ignored: []string{"sealroot.reset"}}},
		{"no_substring_match", "mysealroot.slot=a notquiet emergency_x", CommandLine{Ignored: []string{"mysealroot.slot=a", "notquiet", "emergency_x"}}},
		{"behind_dashes", "quiet -- sealroot.slot=a emergency --", CommandLine{Quiet: true, Ignored: []string{"sealroot.slot=a", "emergency", "--"}}},
		{"console_path", "console=../kmsg console= console", CommandLine{Refused: []string{"console=../kmsg", "console=", "console"}}},
		{"console_again_is_last", "console=ttyS0 console=tty0 console=ttyS0", CommandLine{Consoles: []string{"tty0", "ttyS0"}}},
		{"escape_sequence", "x=\x1b[2J\xff", CommandLine{Ignored: []string{`x=\x1b[2J\xff`}}},
		{"dangerous", `init=/bin/sh rdinit=/x roothash=00 usrhash=00 systemd.verity=0 systemd.verity_root_data=/dev/sdb rd.break rd.shell emergency rescue debug-shell debug_shell rd.systemd.verity=no`,
			CommandLine{Refused: []string{"init=/bin/sh", "rdinit=/x", "roothash=00", "usrhash=00", "systemd.verity=0",
				"systemd.verity_root_data=/dev/sdb", "rd.break", "rd.shell", "emergency", "rescue", "debug-shell", "debug_shell", "rd.systemd.verity=no"}}},
		{"obeyed_by_the_kernel", "sysrq_always_enabled sysrq-always-enabled=1 kgdboc=ttyS0 kgdboc.kgdboc=kbd kgdbwait initcall_blacklist=tpm_init resume=/dev/sda2 resumed",
			CommandLine{Refused: []string{"sysrq_always_enabled", "sysrq-always-enabled=1", "kgdboc=ttyS0", "kgdboc.kgdboc=kbd", "kgdbwait",
				"initcall_blacklist=tpm_init", "resume=/dev/sda2"}, Ignored: []string{"resumed"}}},
		{"longest", strings.Repeat("a", maxLength), CommandLine{Ignored: []string{strings.Repeat("a", 80) + "..."}}},
		{"too_long", "sealroot.slot=a " + strings.Repeat("a", maxLength), CommandLine{Refused: []string{"command line of 4112 bytes"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := Parse(test.line); !reflect.DeepEqual(got, test.want) {
				t.Errorf("Parse(%q) =\n%+v; want\n%+v", test.line, got, test.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`quiet sealroot.slot=a sealroot.disk=6b1c2f3e-0a0b-4c0d-8e0f-123456789abc console=ttyS0,115200 init="/bin/sh -c x" -- y`)
	f.Add("\"a=\"b\" c\x00")
	f.Add(`"" = == "=" sealroot.slot=a sealroot.slot=b`)
	f.Fuzz(func(t *testing.T, line string) {
		c := Parse(line)
		if c.Slot != "" && !isSlot(c.Slot) || c.DiskUUID != "" && !isUUID(c.DiskUUID) {
			t.Fatalf("Parse = %+v", c)
		}
		if v := ParseVouched(line, "root"); v.RootHash != "" && !verity.IsRootHash(v.RootHash) || v.Init != "" && v.Init[0] != '/' || c.RootHash+c.Init != "" {
			t.Fatalf("Parse = %+v, ParseVouched = %+v", c, v)
		}
		for _, console := range c.Consoles {
			if strings.ContainsAny(console, "/.\x00") || console == "" {
				t.Fatalf("console %q", console)
			}
		}
		for _, w := range append(c.Ignored, c.Refused...) {
			for i := range len(w) {
				if w[i] < ' ' || w[i] > '~' {
					t.Fatalf("%q is not printable", w)
				}
			}
		}
	})
}
