package qemutests

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/report"
)

// slotFiles are the contents of a slot's three partitions.
type slotFiles struct{ root, tree, sig []byte }

// slotOf takes them out of a set of parts.
func slotOf(t *testing.T, im Image) slotFiles {
	t.Helper()
	tar := im.Parts(t)
	file := func(name string) []byte { return []byte(tool(t, "tar", "-xOf", tar, name)) }
	return slotFiles{file("root.squashfs"), file("root.verity"), file("root.verity-sig")}
}

// hash is the root hash that the signature claims.
func (s slotFiles) hash(t *testing.T) string {
	t.Helper()
	var sig struct{ RootHash string }
	if err := json.Unmarshal(s.sig, &sig); err != nil {
		t.Fatal(err)
	}
	return sig.RootHash
}

// put writes them into slot b, which becomes the first choice, committed.
func (s slotFiles) put(t *testing.T, d *Disk) {
	t.Helper()
	d.Write(t, "root-b", 0, s.root)
	d.Write(t, "root-b-verity", 0, s.tree)
	d.Write(t, "root-b-verity-sig", 0, make([]byte, d.Part(t, "root-b-verity-sig").Bytes))
	d.Write(t, "root-b-verity-sig", 0, s.sig)
	tool(t, "cgpt", "add", "-i", fmt.Sprint(d.Part(t, "root-b").Number), "-P", "14", "-T", "0", "-S", "1", d.Path)
}

// otherInitramfs makes an initramfs with other certificates than the image's:
// edit are pairs of old and new text of its configuration, certs are names of
// key folders whose image.crt is there as <name>.crt.
func otherInitramfs(t *testing.T, edit []string, certs ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range append(certs, "") {
		cert, err := os.ReadFile(filepath.Join(keyFolder(t, name), "image.crt"))
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, orDefault(name, "image")+".crt"), cert, 0o644)
	}
	k, out := kernel(t, "6.1"), filepath.Join(dir, "initrd")
	tool(t, filepath.Join(buildDir, "sealroot-mkinitramfs"), "-o", out, "--kernel-version", k.Release,
		"--modules-dir", k.Dir, "--config", Image{Edit: edit}.whole().config(t), "--keys", dir)
	return out
}

// goldenEnvironment is what the real init gets, whatever the command line says:
// docs/operators.md names it.
var goldenEnvironment = []string{"HOME=/", "TERM=linux"}

// Command lines of somebody at a boot loader's console; the kernel panics above
// 30 words for init, so they are spread over the boots of a test.
const (
	lineInit     = ` init=/bin/sh rdinit=/init "init=/bin/sh -c id" rescue emergency single debug s 1 -- init=/bin/sh -s --shell`
	lineEnv      = ` GODEBUG=inittrace=1,cpu.all=off GOTRACEBACK=crash GOMAXPROCS=1 PATH=/evil HOME=/evil TERM=evil LD_PRELOAD=/evil.so SHELL=/bin/sh X`
	lineSystemd  = ` rd.break rd.shell rd.systemd.verity=0 systemd.verity=0 systemd.verity_root_data=/dev/vdb root=/dev/vdb rootfstype=ext4`
	lineOurs     = ` sealroot.slot=b sealroot.slot=a sealroot.Slot=b sealroot.shell=1 sealroot.disk=/dev/vdb mysealroot.slot=b`
	lineQuotes   = " x=\"1 sealroot.slot=b z=0\" y=a\"b c\"d =z \"\" \tinit=/bin/sh\t \xff\xfe=\x1b[2J \"unbalanced init=/x"
	lineTwoKiB   = 1900 // bytes of one word: the kernel keeps 2047 of a line
	plainCmdline = "console=ttyS0 panic=10"
)

// Roots that nobody vouches for are refused and the other slot runs, whatever
// stands on the command line; the report says why. Certificates are expired or
// not valid yet by the machine's clock, which changes nothing. The controls: the
// same root boots once its certificate is in the initramfs for its role.
func TestTrustRefused(t *testing.T) {
	t.Parallel()
	disk := Image{B: &SlotB{Mode: "good"}}.Build(t)
	m := NewMachine(t, DirectKernel, disk).WithTPM().Hold()
	m.LoadSlot("a")
	own, hashA := m.Config.Initrd, disk.rootHash(t, "a")

	version := []string{"version: 2026.11.1", "version: 2026.12.1"}
	product := []string{"name: sealroot-demo", "name: another-product"}
	developer := []string{"build: production", "build: development", "root: [image.crt]", "root: [image.crt]\n  dev: [stranger.crt]"}
	second := Image{Edit: version}
	stranger := Image{Edit: version, Keys: "stranger"}
	strangers := slotOf(t, stranger)
	mixed := slotOf(t, second)
	mixed.sig = disk.Read(t, "root-a-verity-sig", 0, 4096)
	unsigned := strangers
	unsigned.sig = nil

	trusting := otherInitramfs(t, []string{"root: [image.crt]", "root: [image.crt, stranger.crt]"}, "stranger")
	layers := otherInitramfs(t, []string{"root: [image.crt]", "root: [image.crt]\n  layer: [stranger.crt]"}, "stranger")
	development := otherInitramfs(t, developer, "stranger")

	for _, tc := range []struct {
		name   string
		slotB  slotFiles
		initrd string
		line   string
		rtc    string
		slot   string // that comes up
		says   string // in the failures, when it is a; on the console, when it is b
	}{
		{"signed_by_another_key", strangers, own, lineInit, "1970-01-01T00:00:00", "a", "signer is not trusted here: \"CN=stranger"},
		{"control_with_its_certificate", strangers, trusting, lineEnv, "2099-12-31T00:00:00", "b", "signed by CN=stranger"},
		{"unsigned_with_its_hash_on_the_line", unsigned, own, " roothash=" + strangers.hash(t) + lineSystemd, "", "a", "the partition is empty"},
		{"signature_of_the_other_slot", mixed, own, lineQuotes, "", "a", "slot b"},
		{"image_for_layers", strangers, layers, " " + strings.Repeat("x", lineTwoKiB), "", "a", `vouches for no root here`},
		{"control_development_image_in_development", strangers, development, "", "", "b", "DEVELOPMENT BUILD"},
		{"another_product", slotOf(t, Image{Edit: product}), own, lineOurs, "", "a", `product "another-product"`},
	} {
		tc.slotB.put(t, disk)
		m.Config.Initrd, m.Config.Cmdline, m.Config.Args = tc.initrd, plainCmdline+tc.line, nil
		if tc.rtc != "" {
			m.WithArgs("-rtc", "base="+tc.rtc)
		}
		vm := m.Boot()
		r := vm.UpIn(tc.slot)
		if tc.slot == "b" {
			if !strings.Contains(vm.guest.Console(), tc.says) || len(r.Failures) > 0 {
				t.Errorf("%s: no %q on the console, or failures: %s", tc.name, tc.says, failuresText(r))
			}
		} else if text := failuresText(r); !strings.Contains(text, tc.says) || r.Root.RootHash != hashA {
			t.Errorf("%s: root hash %.16s, want that of slot a, because of %q: %s", tc.name, r.Root.RootHash, tc.says, text)
		}
		if tc.slot == "b" && r.Root.RootHash != tc.slotB.hash(t) {
			t.Errorf("%s: root hash %s, want that of slot b", tc.name, r.Root.RootHash)
		}
		if want := tc.name == "control_development_image_in_development"; want != (r.Build == "development") {
			t.Errorf("%s: build %q", tc.name, r.Build)
		}
		checkEnvironment(t, tc.name, vm)
		checkRefused(t, tc.name, r, tc.line)
		vm.PowerOff()
	}
}

// checkEnvironment compares what the real init got with what it always gets.
func checkEnvironment(t *testing.T, name string, vm *VM) {
	t.Helper()
	var got struct{ Args, Environment []string }
	if err := json.Unmarshal([]byte(vm.Run("start")), &got); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got.Environment)
	if !slices.Equal(got.Environment, goldenEnvironment) || !slices.Equal(got.Args, []string{"/sbin/init"}) {
		t.Errorf("%s: the real init got arguments %q, environment %q; want /sbin/init, %q", name, got.Args, got.Environment, goldenEnvironment)
	}
}

// checkRefused looks for the words of a line that are refused in the report.
func checkRefused(t *testing.T, name string, r report.Report, line string) {
	t.Helper()
	all := strings.Join(r.Warnings, "\n")
	before, _, _ := strings.Cut(line, " -- ")
	for _, word := range []string{"init=/bin/sh", "rdinit=/init", "emergency", "debug", "roothash=", "systemd.verity=0", "rd.break", "root=/dev/vdb", "sealroot.shell=1"} {
		if strings.Contains(before, " "+word) && !strings.Contains(all, word) {
			t.Errorf("%s: the report does not say that %s is not honoured:\n%s", name, word, all)
		}
	}
}
