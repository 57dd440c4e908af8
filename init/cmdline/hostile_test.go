package cmdline

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// Whatever stands beside the words of ours, what decides the boot is the same as
// with the plain line; what was meant to change it is told. The kernel joins and
// cuts lines: words of ours come first, last and between.
func TestNothingOnTheLineChangesTheBoot(t *testing.T) {
	const uuid = "6b1c2f3e-0a0b-4c0d-8e0f-123456789abc"
	const ours = "sealroot.slot=a sealroot.disk=" + uuid
	hash := strings.Repeat("ab", 32)
	plain := decisions(Parse(ours))
	for _, tc := range []struct {
		line    string
		refused []string // all that is told as not honoured
	}{
		{ours + " init=/bin/sh", []string{"init=/bin/sh"}},
		{"init=/bin/sh " + ours, []string{"init=/bin/sh"}},
		{`init="/bin/sh -c 'mount -o rw,remount /'" ` + ours, []string{"init=/bin/sh -c 'mount -o rw,remount /'"}},
		{`"init=/bin/sh" ` + ours, []string{"init=/bin/sh"}},
		{"init=/bin/sh init=/bin/bash " + ours, []string{"init=/bin/sh", "init=/bin/bash"}},
		{ours + " init= init", []string{"init=", "init"}},
		{ours + " rdinit=/bin/sh", []string{"rdinit=/bin/sh"}},
		{ours + " rdinit=/lib/modules/x.ko", []string{"rdinit=/lib/modules/x.ko"}},
		{ours + " roothash=" + hash, []string{"roothash=" + hash}},
		{ours + " roothash=" + hash + " roothash=" + hash, []string{"roothash=" + hash, "roothash=" + hash}},
		{ours + ` roothash="` + hash + `"`, []string{"roothash=" + hash}},
		{ours + "\troothash=" + hash, []string{"roothash=" + hash}},
		{ours + "\vroothash=" + hash + "\f", []string{"roothash=" + hash}},
		{ours + " usrhash=" + hash, []string{"usrhash=" + hash}},
		{ours + " verity.usrhash=" + hash + " verity.usr=PARTUUID=1", []string{"verity.usrhash=" + hash, "verity.usr=PARTUUID=1"}},
		{ours + " systemd.verity=0 rd.systemd.verity=0", []string{"systemd.verity=0", "rd.systemd.verity=0"}},
		{ours + " systemd.verity_root_data=/dev/sdb1 systemd.verity_root_hash=/dev/sdb2", []string{"systemd.verity_root_data=/dev/sdb1", "systemd.verity_root_hash=/dev/sdb2"}},
		{ours + " systemd.verity-root-options=ignore-corruption", []string{"systemd.verity-root-options=ignore-corruption"}},
		{ours + " root=/dev/sdb1 rootfstype=ext4 rw", []string{"root=/dev/sdb1"}},
		{ours + " root=LABEL=root-b rootwait", []string{"root=LABEL=root-b"}},
		{ours + " rootimage=boot2/rootfs.img", []string{"rootimage=boot2/rootfs.img"}},
		{ours + " ostree=/ostree/boot.0/x/0/0 composefs=" + hash, []string{"ostree=/ostree/boot.0/x/0/0", "composefs=" + hash}},
		{ours + " mount.usr=/dev/sdb1 mount.usrflags=rw usr=/dev/sdb", []string{"mount.usr=/dev/sdb1", "mount.usrflags=rw", "usr=/dev/sdb"}},
		{ours + " rd.break rd.shell rd.debug rd.luks=0", []string{"rd.break", "rd.shell", "rd.debug", "rd.luks=0"}},
		{ours + " rd.luks.name=" + uuid + "=x rd.luks.key=/dev/sdb", []string{"rd.luks.name=" + uuid + "=x", "rd.luks.key=/dev/sdb"}},
		{ours + " emergency rescue single s 1 break=premount", []string{"emergency", "rescue", "single", "s", "1", "break=premount"}},
		{ours + " debug debug_shell debug-shell systemd.debug_shell=1 systemd.break=pre-mount", []string{"debug", "debug_shell", "debug-shell", "systemd.debug_shell=1", "systemd.break=pre-mount"}},
		{ours + " systemd.image_policy=root=unprotected systemd.volatile=yes", []string{"systemd.image_policy=root=unprotected", "systemd.volatile=yes"}},
		{ours + " dm-mod.create=x,,,ro,0_1_linear dm_mod.create=y", []string{"dm-mod.create=x,,,ro,0_1_linear", "dm_mod.create=y"}},
		{ours + " sealroot.shell=1 sealroot.trust=none sealroot.hash=" + hash, []string{"sealroot.shell=1", "sealroot.trust=none", "sealroot.hash=" + hash}},
		{ours + " sealroot.Slot=b SEALROOT.SLOT=b", []string{"sealroot.Slot=b"}},
		{ours + " sealroot.slot=a", nil},
		{`"sealroot.slot=a" sealroot.disk="` + uuid + `"`, nil},
		{"sealroot.disk=" + strings.ToUpper(uuid) + " sealroot.slot=a", nil},
		{ours + " GODEBUG=inittrace=1 GOTRACEBACK=crash GOMAXPROCS=1 GOGC=off", nil},
		{ours + " PATH=/evil LD_PRELOAD=/evil.so HOME=/evil TERM=evil SHELL=/bin/sh", nil},
		{ours + " SYSTEMD_LOG_LEVEL=debug SYSTEMD_PROC_CMDLINE=x", nil},
		{ours + " -- init=/bin/sh emergency sealroot.slot=b", nil},
		{ours + " -- --", nil},
		{"-- " + "x" + " y", nil}, // with nothing of ours
		{ours + " x=\xff\xfe \xc3\x28 \xe2\x82", nil},
		{ours + " x=\x1b[2J\x1b]0;title\x07", nil},
		{ours + ` x="unbalanced sealroot.slot=b`, nil},
		{ours + ` "x sealroot.slot=b"`, nil},
		{ours + ` x=a"b sealroot.slot=b"c`, nil},
		{ours + " = == =a \"\" \"=\"", nil},
		{"  \t " + ours + " \t\n", nil},
		{ours + "\x00 init=/bin/sh", nil},
		{ours + " module_blacklist=dm_verity modprobe.blacklist=x efi=noruntime", nil},
		{ours + " " + strings.Repeat("x", 2048), nil},
		{strings.Repeat("y=1 ", 480) + ours, nil},
	} {
		c := Parse(tc.line)
		got, want := decisions(c), plain
		if !strings.Contains(tc.line, "sealroot.") {
			want = decisions(CommandLine{})
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("Parse(%q) decides %+v, want %+v", tc.line, got, want)
		}
		if !slices.Equal(c.Refused, tc.refused) {
			t.Errorf("Parse(%q) refuses %q, want %q", tc.line, c.Refused, tc.refused)
		}
	}
}

// decisions are the fields of a command line that decide anything.
func decisions(c CommandLine) CommandLine {
	c.Ignored, c.Refused = nil, nil
	return c
}

// Our own words contradicting themselves, or an endless line, are as good as
// none: the machine then looks for itself.
func TestUselessLines(t *testing.T) {
	for _, line := range []string{
		"sealroot.slot=a sealroot.slot=b", "sealroot.slot=b,a", "sealroot.slot=", "sealroot.slot", "sealroot.slot=d",
		`sealroot.slot="a b"`, "sealroot.slot=a\xa0sealroot.slot=b", "sealroot_slot=a",
		"sealroot.slot=a " + strings.Repeat("z ", maxLength/2),
	} {
		c := Parse(line)
		if got := decisions(c); !reflect.DeepEqual(got, CommandLine{}) {
			t.Errorf("Parse(%.80q) decides %+v, want nothing", line, got)
		}
		if len(c.Refused) == 0 && line != "sealroot_slot=a" {
			t.Errorf("Parse(%.80q) does not say why", line)
		}
	}
}

// The builder's own line may name root and init; all else is as in any line.
func TestParseVouched(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	for _, tc := range []struct {
		line string
		want CommandLine
	}{
		{"ro roothash=" + hash + " init=/usr/bin/x", CommandLine{RootHash: hash, Init: "/usr/bin/x", Ignored: []string{"ro"}}},
		{"usrhash=" + hash, CommandLine{Refused: []string{"usrhash=" + hash}}},
		{"systemd.verity_usr_data=PARTLABEL=x systemd.verity=0", CommandLine{Refused: []string{"systemd.verity=0"}}},
		{"usrhash=0", CommandLine{Refused: []string{"usrhash=0"}}},
		{"roothash=" + strings.ToUpper(hash), CommandLine{Refused: []string{"roothash=" + strings.ToUpper(hash)}}},
		{"roothash=" + hash + " roothash=" + strings.Repeat("cd", 32), CommandLine{Refused: []string{"roothash=" + hash, "roothash=" + strings.Repeat("cd", 32)}}},
		{"init=sh", CommandLine{Refused: []string{"init=sh"}}},
		{"init=/../bin/sh init", CommandLine{Refused: []string{"init=/../bin/sh", "init="}}},
		{"init=/", CommandLine{Refused: []string{"init=/"}}},
		{"rdinit=/x rd.break usr=" + hash, CommandLine{Refused: []string{"rdinit=/x", "rd.break", "usr=" + hash}}},
		{"-- init=/usr/bin/x", CommandLine{Ignored: []string{"init=/usr/bin/x"}}},
	} {
		if got := ParseVouched(tc.line, "root"); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("ParseVouched(%q) = %+v, want %+v", tc.line, got, tc.want)
		}
	}
	// For a /usr the other word counts, and only that.
	line, want := "roothash="+hash+" usrhash="+hash, CommandLine{RootHash: hash, Refused: []string{"roothash=" + hash}}
	if got := ParseVouched(line, "usr"); !reflect.DeepEqual(got, want) {
		t.Errorf("for a /usr: %+v, want %+v", got, want)
	}
}
