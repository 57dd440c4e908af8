package qemutests

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sealroot/goldentest"
)

// hostileBinds is what the configuration binds on top of what the names say.
const hostileBinds = `etc: overlay

binds:
  unencrypted: [/srv, /srv/pool, /media]
  extra:
    - {from: encrypted/db, to: /var/lib/db}
    - {from: encrypted/data, to: /var/escape/outside}
    - {from: encrypted/good, to: /var/lib/good, options: [noexec, nosuid, nodev]}
    - {from: pool/x, to: /srv/pool}
    - {from: encrypted/seeds, to: /seeded, seed: once}

overlays:
  - {path: /opt, upper: encrypted}
  - {path: /mnt, upper: memory}
  - {path: /usr/local, upper: encrypted}
`

// hostileInside are the commands (see qemu-tests/probe/files.go) by which root of an
// earlier boot prepares the encrypted volume for the next one.
const hostileInside = `
mv db .db
symlink /run db
mv var/escape var/.escape
symlink /run var/escape
mkdir var-escape-sealroot
symlink / opt
symlink ../.. mnt
symlink loop loop
mkdir proc
mkdir run-sealroot
mkdir state-encrypted
mkdir \x2e\x2e
mkdir var-..-..-run
mkdir home-user
mkdir media-secret
symlink loop var/lib/loop
mkdir var-lib-loop
mknod p 0 0 var/fifo
mkdir var-fifo
mknod b 254 0 var/disk
mkdir var-disk
mkdir usrlocal
cp /usr/sbin/init usrlocal/euid
chmod 4755 usrlocal/euid
mkdir usr-local
mkdir usr
mkdir sbin
mknod c 1 3 home/null
cp /usr/sbin/init home/euid
chmod 4755 home/euid
mkdir home/deep
deep 5000 home/deep
mkdir .sealroot/removed-deep
deep 5000 .sealroot/removed-deep
mknod c 0 0 etc/whiteout
mknod c 1 3 etc/null
mkdir etc/opaque
setfattr trusted.overlay.opaque y etc/opaque
mkdir etc/redirected
setfattr trusted.overlay.redirect /secret etc/redirected
mkdir etc/upwards
setfattr trusted.overlay.redirect /../../run etc/upwards
cp /etc/from-image etc/metacopy
setfattr trusted.overlay.metacopy - etc/metacopy
setfattr trusted.overlay.redirect /secret/file etc/metacopy
cp /usr/sbin/init etc/euid
chmod 4755 etc/euid
symlink /run etc/link
mv .sealroot/overlays/usr-local .sealroot/overlays/.usr-local
symlink /run .sealroot/overlays/usr-local
mkdir .sealroot/overlays/opt/upper/redirected
setfattr trusted.overlay.redirect /secret .sealroot/overlays/opt/upper/redirected
`

// hostileOutside does the same to the state partition, for who has the disk.
const hostileOutside = `
mkdir srv
cd srv
write PROBE euid
set_inode_field euid mode 0104755
mknod null c 1 3
symlink link /run
cd ..
rmdir pool/x
rmdir pool
symlink pool /run
mkdir home
mkdir etc
mkdir usr
mkdir srv-..-etc
mkdir srv-pool
mkdir media
symlink var /
symlink loop loop
mknod disk b 254 0
mknod fifo p
`

// A state whose every name, link, node and attribute lies: the next boot mounts what a
// golden list says, leaves /run as it was, and takes no rights and no content from
// where it should not. The control, an init whose lookups follow links, mounts at a
// place of the attacker's choice.
func TestRootHostilePartition(t *testing.T) {
	t.Parallel()
	im := Image{Edit: []string{"etc: overlay\n", hostileBinds}, Extra: map[string]string{
		"etc/secret/file": "of another name\n", "etc/whiteout": "hidden\n", "etc/opaque/file": "hidden\n",
		"opt/secret/file": "of another name\n", "opt/shared": "first\n", "mnt/shared": "first\n", "seeded/file": "seed\n", "srv/pool/.keep": "", "media/secret/.keep": "", "usr/local/.keep": "", "var/escape/sealroot/.keep": "",
	}}
	disk := im.Build(t)
	planned := explained(t, tool(t, filepath.Join(buildDir, "sealroot"), "explain", "--json", "--disk", disk.Path))
	m := directMachine(t, disk).WithTPM()
	m.Config.Cmdline = plainCmdline
	vm := m.Boot()
	if r := vm.UpIn("a"); len(r.Warnings) > 0 {
		t.Errorf("the first boot warns: %q", r.Warnings)
	}
	writable := []string{"/opt/shared", "/mnt/shared", "/seeded/file"}
	for _, name := range writable {
		vm.Run("write " + name + " changed")
	}
	// All of the plan is there, and nothing else; the unencrypted side is empty as yet.
	delete(planned, "/srv")
	delete(planned, "/media")
	if got := explained(t, vm.Run("sealroot explain --json")); !maps.Equal(got, planned) {
		t.Errorf("sealroot explain tells of\n%q\nand of the image\n%q", got, planned)
	}
	outside := vm.Run("ls /run") + vm.Run("ls /run/sealroot")
	for command := range strings.Lines(strings.TrimSpace(hostileInside)) {
		vm.Run(inVolume(strings.Fields(command)))
	}
	vm.PowerOff()
	disk.editState(t, func(state string) {
		script := filepath.Join(t.TempDir(), "commands")
		text := strings.ReplaceAll(hostileOutside, "PROBE", probe(t)) + strings.Repeat("mkdir deep\ncd deep\n", 5000)
		writeFile(t, script, []byte(text), 0o644)
		if output := tool(t, "debugfs", "-w", "-f", script, state); strings.Count(output, "debugfs: ") != strings.Count(text, "\n") {
			t.Fatalf("debugfs: %s", output)
		}
	})

	vm = m.Boot()
	vm.Expect("slot a: starting", 3*probeTime) // it has much to remove, and does not talk
	r := vm.UpIn("a")
	if r.State.Unlocked != "tpm2" {
		t.Errorf("state %+v, want it unlocked", r.State)
	}
	goldentest.Check(t, "hostile-state.mounts", mountLines(vm.Run("cat /proc/self/mountinfo")))
	goldentest.Check(t, "hostile-state.warnings", strings.Join(r.Warnings, "\n")+"\n")
	if got := vm.Run("ls /run") + vm.Run("ls /run/sealroot"); got != outside {
		t.Errorf("/run holds\n%s\nand before\n%s", got, outside)
	}
	if got := vm.Run("cat " + strings.Join(writable, " ")); got != "changed\nfirst\nchanged" {
		t.Errorf("%q hold %q", writable, got)
	}
	for command, want := range map[string]string{
		"cat /opt/redirected/file":                   "operation not permitted",
		"cat /opt/secret/file":                       "of another name",
		"as 1000 /usr/local/euid":                    "0", // control: a place for programs
		"as 1000 /home/euid":                         "1000",
		"as 1000 /etc/euid":                          "1000",
		"as 1000 /srv/euid":                          "permission denied",
		"cat /home/null":                             "permission denied",
		"cat /etc/null":                              "permission denied",
		"cat /srv/null":                              "permission denied",
		"ls /srv/link":                               "",
		"cat /etc/whiteout":                          "no such file",
		"cat /etc/opaque/file":                       "no such file",
		"cat /etc/redirected/file":                   "operation not permitted",
		"ls /etc/upwards":                            "",
		"cat /etc/metacopy":                          "operation not permitted",
		"cat /etc/secret/file":                       "of another name", // control: the way is there
		"ls /state/encrypted/.sealroot/removed-deep": "",
		"write /usr/bin/x y":                         "read-only file system",
	} {
		if got, _ := vm.TryRun(command); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
	if got := vm.Run("ls /state/encrypted/.sealroot"); strings.Contains(got, "removed-deep") {
		t.Errorf("a folder of 5000 levels was not removed: %s", got)
	}
	const hidden = `PID 1 warned: state: directory "media" is not bound: it would hide /media/secret`
	if got := vm.Run("sealroot explain"); !strings.Contains(got, hidden) {
		t.Errorf("sealroot explain does not say %q:\n%s", hidden, got)
	}
	vm.Run(inVolume(strings.Fields("mv media-secret .media-secret")))
	vm.PowerOff()

	t.Run("control_followed_links", func(t *testing.T) {
		im.Init = taggedInit(t, "followslinks")
		m.Config.Initrd = filepath.Join(t.TempDir(), "initrd")
		writeFile(t, m.Config.Initrd, im.Build(t).GetESP(t, "/sealroot/a/initrd"), 0o644)
		vm := m.Boot()
		vm.UpIn("a")
		if got := mountLines(vm.Run("cat /proc/self/mountinfo")); !strings.Contains(got, "\n/run/outside ") {
			t.Errorf("an init that follows links mounts nothing outside:\n%s", got)
		} else if !strings.Contains(got, "\n/media ") {
			t.Errorf("what hides nothing encrypted is not bound:\n%s", got)
		}
		vm.PowerOff()
	})
}

// explained are the places, types and flags that `sealroot explain --json` tells of.
func explained(t *testing.T, text string) map[string]string {
	t.Helper()
	var e struct {
		Mounts []struct {
			Where, Type string
			Options     []string
		}
	}
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	places := map[string]string{}
	for _, m := range e.Mounts {
		flags := slices.DeleteFunc(m.Options, func(o string) bool { // of the file system
			return !slices.Contains([]string{"ro", "nosuid", "nodev", "noexec", "nosymfollow", "noatime"}, o)
		})
		slices.Sort(flags)
		places[m.Where] = m.Type + " " + strings.Join(flags, ",")
	}
	return places
}

// inVolume puts the volume before the relative paths of a command of hostileInside.
func inVolume(words []string) string {
	first := map[string]int{"mkdir": 1, "mv": 1, "symlink": 2, "mknod": 4, "cp": 2, "chmod": 2, "deep": 2, "setfattr": 3}[words[0]]
	for i := first; i < len(words); i++ {
		words[i] = "/state/encrypted/" + words[i]
	}
	return strings.Join(words, " ")
}

// mountLines are the mounts of mountinfo without what differs from boot to boot: place,
// flags, type, source, and which directory of that.
func mountLines(mountinfo string) string {
	var lines []string
	numbers := regexp.MustCompile(`/dev/dm-\d+`)
	for line := range strings.Lines(mountinfo) {
		before, after, found := strings.Cut(strings.TrimSpace(line), " - ")
		place, fs := strings.Fields(before), strings.Fields(after)
		if !found || len(place) < 6 || len(fs) < 2 {
			lines = append(lines, "? "+line)
			continue
		}
		source := numbers.ReplaceAllString(fs[1], "/dev/dm-N")
		lines = append(lines, fmt.Sprintf("%s %s %s %s %s", place[4], place[5], fs[0], source, place[3]))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}
