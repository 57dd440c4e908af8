package qemutests

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

// No boot loader: QEMU loads slot a's kernel and initramfs. What the real init
// gets is what the kernel would have given it.
func TestBootDirectKernel(t *testing.T) {
	t.Parallel()
	m := NewMachine(t, DirectKernel, Image{Compress: true}.Build(t)).WithTPM()
	m.LoadSlot("a")
	vm := m.Boot()
	r := vm.UpIn("a")
	if r.Slot.Reason != "committed" || r.Slot.Trial || len(r.Failures) > 0 {
		t.Errorf("slot %+v, failures %q, want a committed slot without failures", r.Slot, failuresText(r))
	}
	var got struct {
		Args, Environment []string
		FDs               map[string]string
		RootType          string `json:"root_type"`
	}
	if err := json.Unmarshal([]byte(vm.Run("start")), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.FDs) != 3 || got.FDs["0"] != "/dev/console" {
		t.Errorf("open files of the real init: %v, want 0, 1 and 2 on /dev/console", got.FDs)
	}
	const squashfsMagic = "0x73717368"
	if got.RootType != squashfsMagic {
		t.Errorf("root file system: %s, want squashfs (%s)", got.RootType, squashfsMagic)
	}
	for _, e := range got.Environment {
		if !strings.HasPrefix(e, "PATH=") && !strings.HasPrefix(e, "TERM=") && !strings.HasPrefix(e, "HOME=") {
			t.Errorf("environment of the real init holds %q", e)
		}
	}
	if got := vm.Run("cat /etc/from-image /var/lib/from-image"); got != "etc of the image\nvar of the image" {
		t.Errorf("content of the image in /etc and /var: %q", got)
	}
	vm.PowerOff()
}

// Debian with systemd under BIOS and GRUB, up to the login.
func TestBootBIOS(t *testing.T) {
	t.Parallel()
	disk := Image{Root: Debian, Commit: true}.Build(t)
	vm := NewMachine(t, BIOS, disk).WithTPM().Boot()
	vm.login("a")
	checkSystemd(t, vm)
	r := vm.Report()
	if r.Slot.Name != "a" || r.BootPath != "unmeasured" {
		t.Errorf("slot %q by boot path %q, want a, unmeasured", r.Slot.Name, r.BootPath)
	}
	checkInitrdTime(t, vm, r)
	vm.systemdOpens()
	if text := vm.Run("sealroot status"); !strings.Contains(text, "accept-theft-by-disk-edit") {
		t.Errorf("sealroot status does not say what the exception of this image means:\n%s", text)
	}
	// With auto_resize off, too, nothing of the volume stays unreserved.
	s := strayResize(t, vm, resize2fs(8), soon)
	if s.AutoResize != "off" || len(s.Decisions) == 0 {
		t.Errorf("after a stray resize2fs: %+v, want a decision", s)
	}
	for _, d := range s.Decisions { // a look may come while resize2fs is still at work
		if d.Action != "reserve" {
			t.Errorf("after a stray resize2fs: decision %+v, want reserve", d)
		}
	}
	if problem := unmended(s.Decisions); problem != "" {
		t.Errorf("after a stray resize2fs: %s: decisions %+v", problem, s.Decisions)
	}
	// It opens no device, and makes it as large as that is: balloons hold what is free of it.
	strayResize(t, vm, "/lib/systemd/systemd-growfs /state/encrypted", atALook)
	vm.checkMounted(disk, vm.recoveryKey())
	statusSlots(t, vm, disk)
	checkDisk(t, disk)
}

// Debian with systemd under UEFI with Secure Boot. Its root is an overlay, whose layers lie
// on the state partition that is mounted in it, and what takes that apart at the end is in
// memory from the start: nothing puts it there later.
func TestBootSecureBoot(t *testing.T) {
	t.Parallel()
	layers := layerImagesFor(t, []string{"ID=debian", "VERSION_ID=12"}, []string{"low", "mid", "top"}, map[string]string{
		"low/usr/share/low": "low\n", "mid/usr/share/mid": "mid\n", "top/usr/share/top": "top\n",
	})
	disk := Image{
		Config: "uki", Root: Debian, Commit: true, SecureBoot: true, Edit: []string{"etc: overlay\n", "etc: overlay\n" + layers},
		Extra: map[string]string{"etc/systemd/system/sealroot-exit.service.d/kept.conf": "[Service]\nExecStart=/usr/bin/sealroot exit-program\nExecStop=\n"},
	}.Build(t)
	vm := NewMachine(t, UEFISecure, disk).WithTPM().Boot()
	vm.login("a")
	checkSystemd(t, vm)
	r := vm.Report()
	if r.Slot.Name != "a" || r.BootPath != "uki-secure-boot" {
		t.Errorf("slot %q by boot path %q, want a, uki-secure-boot", r.Slot.Name, r.BootPath)
	}
	if got := layersText(r) + "; " + vm.Run("findmnt -no FSTYPE /; cat /usr/share/low /usr/share/mid /usr/share/top"); got != "low 7, mid 7, top 7; overlay\nlow\nmid\ntop" {
		t.Errorf("the root's layers: %q", got)
	}
	if got := vm.Run("cmp /run/initramfs/shutdown /usr/bin/sealroot && systemctl show -P ExecStop sealroot-exit"); got != "" {
		t.Errorf("the exit program is kept, and is put there again at the end by %q", got)
	}
	statusSlots(t, vm, disk)
	checkDisk(t, disk)
}

// The red control of TestBootSecureBoot: firmware with Secure Boot on does not
// start a kernel image that nobody signed.
func TestSecureBootRefusesUnsigned(t *testing.T) {
	t.Parallel()
	vm := NewMachine(t, UEFISecure, Image{Config: "uki"}.Build(t)).WithTPM().Boot()
	vm.Expect(`BdsDxe: failed to load .*(Access Denied|Security Violation)`, bootTime)
	vm.Never(`Linux version`)
	vm.Kill()
}

// checkSystemd waits until systemd has nothing left to do and says that
// nothing failed.
func checkSystemd(t *testing.T, vm *VM) {
	t.Helper()
	if state, _ := vm.TryRun("systemctl is-system-running --wait"); state != "running" {
		failed, _ := vm.TryRun("systemctl --failed --no-legend --plain; journalctl -b -p warning --no-pager | tail -n 30")
		t.Errorf("systemd is %q, want running:\n%s", state, failed)
	}
}

// statusSlots powers the guest off, which is to end in order, and compares what
// `sealroot status` said of the slots with what cgpt reads from the disk.
func statusSlots(t *testing.T, vm *VM, disk *Disk) {
	t.Helper()
	var status struct {
		Slots []struct {
			Name       string `json:"name"`
			Priority   int    `json:"priority"`
			Tries      int    `json:"tries"`
			Successful bool   `json:"successful"`
		} `json:"slots"`
	}
	if err := json.Unmarshal([]byte(vm.Run("sealroot status --json")), &status); err != nil {
		t.Fatalf("sealroot status --json: %v", err)
	}
	vm.endsInOrder(disk)
	if len(status.Slots) != 2 {
		t.Fatalf("sealroot status names %d slots, want 2", len(status.Slots))
	}
	for _, s := range status.Slots {
		got := SlotBits{Priority: s.Priority, Tries: s.Tries}
		if s.Successful {
			got.Successful = 1
		}
		if want := disk.Slot(t, s.Name); got != want {
			t.Errorf("sealroot status says of slot %s %+v, cgpt %+v", s.Name, got, want)
		}
	}
}

// checkDisk has the judges look at a disk after a boot from slot a.
func checkDisk(t *testing.T, disk *Disk) {
	t.Helper()
	disk.CheckTable(t)
	disk.CheckVerity(t, "a")
	header := tool(t, "cryptsetup", "luksDump", disk.EncryptedImage(t))
	for _, want := range []string{"systemd-tpm2", "systemd-recovery", "aes-xts-plain64", "sector: 4096"} {
		if !strings.Contains(header, want) {
			t.Errorf("cryptsetup luksDump does not show %q:\n%s", want, header)
		}
	}
}

// The judges find what is wrong: without this, their silence would mean nothing.
func TestJudgesRedControl(t *testing.T) {
	t.Parallel()
	good := Image{}.Build(t)
	good.CheckTable(t)
	good.CheckVerity(t, "a")

	bad := &Disk{Path: filepath.Join(t.TempDir(), "disk.img")}
	tool(t, "cp", "--sparse=always", good.Path, bad.Path)
	bad.Flip(t, "root-a", 4096*3+5)
	hash := bad.rootHash(t, "a")
	if output, err := runTool("veritysetup", "verify", bad.Extract(t, "root-a"), bad.Extract(t, "root-a-verity"), hash); err == nil {
		t.Errorf("veritysetup accepts a flipped byte: %s", output)
	}
	bad.writeAt(t, sectorSize*2+56, []byte("changed")) // the first name in the table
	if tableProblem(t, bad.Path) == "" {
		t.Error("sfdisk and sgdisk accept a changed table")
	}
}
