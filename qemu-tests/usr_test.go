package qemutests

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// usrEdit makes a configuration of roots one of /usr. root and trust are lines of
// those sections.
func usrEdit(root, trust string) []string {
	return []string{
		"  source: verity\n", "  source: usr-verity\n" + root,
		"  root: [image.crt]\n", trust,
	}
}

// usrTrust has the image's certificate in the role for /usr.
const usrTrust = "  usr: [image.crt]\n"

// UUIDs of partitions that the configuration names.
const (
	uuidData = "3f2b8a60-1c4d-4e5f-8a9b-0c1d2e3f4a5b"
	byUUID   = "  partitions: partuuids\n  partuuids:\n" +
		"    a: {data: " + uuidData + ", hash: 3f2b8a60-1c4d-4e5f-8a9b-0c1d2e3f4a5c, signature: 3f2b8a60-1c4d-4e5f-8a9b-0c1d2e3f4a5d}\n" +
		"    b: {data: 4f2b8a60-1c4d-4e5f-8a9b-0c1d2e3f4a5b, hash: 4f2b8a60-1c4d-4e5f-8a9b-0c1d2e3f4a5c, signature: 4f2b8a60-1c4d-4e5f-8a9b-0c1d2e3f4a5d}\n"
)

// Debian whose slots hold /usr alone, found by the UUIDs of the configuration: the
// root is in memory, /etc and /var begin with what the image's factory has, and
// systemd has nothing to complain of.
func TestUsrDebian(t *testing.T) {
	t.Parallel()
	disk := Image{Root: Debian, Commit: true, Edit: usrEdit(byUUID, usrTrust)}.Build(t)
	if p := disk.Part(t, "usr-a"); !strings.EqualFold(p.UUID, uuidData) || !strings.EqualFold(p.Type, "8484680C-9521-48C6-9C11-B0720656F69E") {
		t.Errorf("usr-a has UUID %s, type %s; want that of the configuration and that of /usr", p.UUID, p.Type)
	}
	vm := NewMachine(t, BIOS, disk).WithTPM().Boot()
	vm.login("a")
	checkSystemd(t, vm)
	r := vm.Report()
	if r.Root.Role != "usr" || r.Slot.Name != "a" || r.State.Unlocked != "created" || len(r.Failures)+len(unexpected(r)) > 0 {
		t.Errorf("root %+v, slot %+v, state %+v, warnings %q, failures %q; want /usr of slot a and a new volume", r.Root, r.Slot, r.State, r.Warnings, failuresText(r))
	}
	for command, want := range map[string]string{
		"findmnt -no FSTYPE /":                                    "tmpfs",
		"findmnt -no FSTYPE /usr; cat /sys/block/dm-0/dm/name":    "squashfs\nsealroot-usr",
		"findmnt -no OPTIONS /usr | cut -d, -f1":                  "ro",
		"findmnt -no FSTYPE /etc":                                 "overlay",
		"findmnt -no FSTYPE /var":                                 "ext4",
		"readlink /bin /sbin /lib /lib64 | tr '\\n' ' '":          "usr/bin usr/sbin usr/lib usr/lib64",
		"stat -c %a /root /tmp / | tr '\\n' ' '":                  "700 1777 755",
		"dpkg -s systemd | grep ^Status":                          "Status: install ok installed", // /var
		"getent passwd root | cut -d: -f1":                        "root",                         // /etc
		"cmp /etc/passwd /usr/share/factory/etc/passwd && echo":   "",
		"grep -c sealroot:usr: /run/log/systemd/tpm2-measure.log": "1",
		"cat /proc/1/comm":                                        "systemd",
		"readlink -f /run/systemd/volatile-root":                  "/dev/dm-0",
	} {
		if got := strings.TrimSpace(vm.Run(command)); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
	if text := vm.Run("sealroot status"); !strings.Contains(text, "/usr") {
		t.Errorf("sealroot status does not say that the image is /usr:\n%s", text)
	}
	vm.Run("sealroot status --pcrs")
	statusSlots(t, vm, disk)
	checkDisk(t, disk)
}

// A certificate for roots vouches for no /usr: the slot is refused and the other one
// runs, as with every image that nobody vouches for. The control is the boot of the
// same slot once its certificate has the right role. The commands know the layout.
func TestUsrRefused(t *testing.T) {
	t.Parallel()
	disk := Image{Edit: usrEdit("", usrTrust), B: &SlotB{Mode: "good"}}.Build(t)
	tar := Image{Edit: append(usrEdit("", usrTrust), "version: 2026.11.1", "version: 2026.12.1"), Keys: "stranger"}.Parts(t)
	for part, name := range map[string]string{"": "usr.squashfs", "-verity": "usr.verity", "-verity-sig": "usr.verity-sig"} {
		disk.Write(t, "usr-b"+part, 0, make([]byte, min(1<<20, disk.Part(t, "usr-b"+part).Bytes)))
		disk.Write(t, "usr-b"+part, 0, []byte(tool(t, "tar", "-xOf", tar, name)))
	}
	tool(t, "cgpt", "add", "-i", "6", "-P", "14", "-T", "0", "-S", "1", disk.Path)
	m := NewMachine(t, DirectKernel, disk).WithTPM().Hold()
	m.LoadSlot("a")

	m.Config.Initrd = otherInitramfs(t, usrEdit("", "  usr: [image.crt, stranger.crt]\n"), "stranger")
	vm := m.Boot()
	vm.UpIn("b")
	vm.PowerOff()

	m.Config.Initrd = otherInitramfs(t, usrEdit("", usrTrust+"  root: [stranger.crt]\n"), "stranger")
	vm = m.Boot()
	r := vm.UpIn("a")
	if text := failuresText(r); !strings.Contains(text, `a certificate of the role "root", which vouches for no usr here`) {
		t.Errorf("the report does not say why slot b does not run:\n%s", text)
	}
	if got := vm.Run("cat /etc/from-image /var/lib/from-image"); got != "etc of the image\nvar of the image" {
		t.Errorf("content of the image in /etc and /var: %q", got)
	}
	vm.Run("sealroot verify a")
	if _, status := vm.TryRun("sealroot verify b"); status != 6 {
		t.Errorf("sealroot verify b ends with %d, want 6: it is not signed for /usr", status)
	}
	vm.Run("sealroot replicate")
	vm.Run("sealroot verify b")
	vm.PowerOff()
	disk.CheckVerity(t, "b")
}

// Layers over a /usr: the /usr of each, in their order, and nothing else of them; the
// factory of one gives /etc its file. What the machine adds comes over them. One whose
// bytes were changed is left out, and later boots can tell, though nobody kept the report.
func TestUsrLayers(t *testing.T) {
	t.Parallel()
	const which = "usr/share/which"
	layers := layerImages(t, []string{"low", "top"}, map[string]string{
		"low/" + which: "low\n", "low/usr/share/factory/etc/low.conf": "low, from the factory of a layer\n", "low/srv/outside": "low\n",
		"top/" + which: "top\n",
	})
	extra, _ := madeLayer(t, "extra", "", "usr/share/extra", "extra\n")
	edit := append(usrEdit("", usrTrust+"  layer: [image.crt]\n"), "etc: overlay\n", "etc: overlay\nlayers_allowed: [extra]\n"+layers)
	disk := Image{Edit: edit, Extra: map[string]string{"usr/share/extra.raw": extra}}.Build(t)
	m := directMachine(t, disk).WithTPM()
	vm := m.Boot()
	r := vm.UpIn("a")
	if layersText(r) != "low 7, top 7" || r.Root.Role != "usr" || len(r.Failures)+len(unexpected(r)) > 0 {
		t.Errorf("layers %s over %+v, warnings %q, failures %q", layersText(r), r.Root, r.Warnings, failuresText(r))
	}
	if got := vm.Run("cat /" + which + " /etc/low.conf /etc/from-image /var/lib/from-image"); got != "top\nlow, from the factory of a layer\netc of the image\nvar of the image" {
		t.Errorf("what the layers hold: %q", got)
	}
	if got := vm.Run("ls /srv"); strings.Contains(got, "outside") {
		t.Errorf("what a layer has outside of its /usr is there: %q", got)
	}
	want := []string{"/ tmpfs rw", "/dev devtmpfs rw", "/dev/pts devpts rw", "/dev/shm tmpfs rw", "/etc overlay rw", "/home ext4 rw", "/proc proc rw", "/run tmpfs rw", "/state ext4 rw", "/state/encrypted ext4 rw", "/sys sysfs rw", "/usr overlay ro", "/var ext4 rw"}
	if got := mounts(vm.Run("cat /proc/1/mountinfo")); !slices.Equal(got, want) {
		t.Errorf("mounts\n%q, want\n%q", got, want)
	}
	if got := vm.Run("sealroot status --pcrs"); strings.Count(got, "sealroot:layer:") < 2 || strings.Contains(got, "DIFFERS") {
		t.Errorf("sealroot status --pcrs:\n%s", got)
	}
	if got := vm.Run("sealroot explain"); !strings.Contains(got, "the /usr of each layer") {
		t.Errorf("sealroot explain:\n%s", got)
	}
	vm.Run("sealroot layer add /usr/share/extra.raw")
	vm.PowerOff()

	disk.damageLayer(t, layers, "low", 0)
	vm = m.Boot()
	r = vm.UpIn("a")
	if got := layersText(r); !strings.HasPrefix(got, "low left out: cannot use layer low: ") || !strings.HasSuffix(got, ", top 7, extra 1") {
		t.Errorf("layers %s, want low left out and extra added", got)
	}
	if got := vm.Run("cat /" + which + " /usr/share/extra"); got != "top\nextra" {
		t.Errorf("without low: %q", got)
	}
	vm.PowerOff()
	if got := tool(t, filepath.Join(buildDir, "sealroot"), "status", "--disk", disk.Path, "--store", "gpt"); !strings.Contains(got, "layer low left out: ") {
		t.Errorf("sealroot status of the disk does not tell of the layer:\n%s", got)
	}
}
