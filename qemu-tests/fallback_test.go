package qemutests

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"sealroot/qemu-tests/machine"
)

// loaders are the two ways a machine with slots starts.
var loaders = []struct {
	name     string
	firmware machine.Firmware
	image    Image
	// kernelFile is slot b's kernel on the EFI system partition.
	kernelFile string
}{
	{"bios_grub", BIOS, Image{Config: "bios"}, "/sealroot/b/vmlinuz"},
	{"uefi_uki", UEFISecure, Image{Config: "uki", SecureBoot: true}, "/EFI/Linux/sealroot-b.efi"},
}

// A slot on trial that nobody commits is booted as often as it has tries, then the
// other slot runs and says why.
func TestUncommittedTrialFallsBack(t *testing.T) {
	t.Parallel()
	for _, tc := range loaders {
		if tc.firmware != BIOS && !soaking() {
			continue // TestDeadKernelFallsBack has it arm and give up slot b
		}
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.image.B = &SlotB{}
			tries := 3
			if tc.firmware != BIOS {
				tries = 2 // the second try has to be armed anew, as the third: these boots are slow
				tc.image.Edit = []string{"tries: 3", "tries: 2"}
			}
			disk := tc.image.Build(t)
			vm := NewMachine(t, tc.firmware, disk).WithTPM().Boot()
			for left := tries - 1; left >= 0; left-- {
				r := vm.UpIn("b")
				if r.Slot.TriesBefore != left+1 || r.Slot.TriesAfter != left || !r.Slot.Trial {
					t.Errorf("slot %+v, want a trial with %d tries left", r.Slot, left)
				}
				vm.Reboot()
			}
			r := vm.UpIn("a")
			if r.FellBack == nil || r.FellBack.From != "b" || !strings.Contains(r.FellBack.Reason, "commit") {
				t.Errorf("fell back: %+v, want from b because of no commit", r.FellBack)
			}
			vm.PowerOff()
			disk.CheckTable(t)
			if got := disk.Slot(t, "a"); got.Successful != 1 {
				t.Errorf("slot a is %+v, want successful", got)
			}
		})
	}
}

// An image that was changed, or whose signature is wrong, is never run; the
// other slot is.
func TestBrokenImageFallsBack(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, disk *Disk)
		want  string
	}{
		// The superblock of the squashfs: read by every boot.
		{"flipped_byte", func(t *testing.T, d *Disk) { d.Flip(t, "root-b", 8) }, "image"},
		{"flipped_byte_of_hash_tree", func(t *testing.T, d *Disk) { d.Flip(t, "root-b-verity", 4096+3) }, "image"},
		{"wrong_signature", func(t *testing.T, d *Disk) {
			// One digit of the signed root hash.
			sig := d.Read(t, "root-b-verity-sig", 0, 4096)
			const key = `"rootHash":"`
			at := bytes.Index(sig, []byte(key))
			if at < 0 {
				t.Fatalf("the signature partition has no %s: %.100q", key, sig)
			}
			at += len(key)
			digit := byte('0')
			if sig[at] == '0' {
				digit = '1'
			}
			d.Write(t, "root-b-verity-sig", int64(at), []byte{digit})
		}, "image"},
	} {
		for _, mode := range []string{"trial", "good"} {
			t.Run(tc.name+"_"+mode, func(t *testing.T) {
				t.Parallel()
				disk := Image{B: &SlotB{Mode: mode}}.Build(t)
				if mode == "good" {
					// b is the first choice and committed.
					tool(t, "cgpt", "add", "-i", fmt.Sprint(disk.Part(t, "root-b").Number), "-P", "14", disk.Path)
				}
				tc.spoil(t, disk)
				m := NewMachine(t, BIOS, disk) // which loads slot b's kernel
				if mode == "good" {
					m = directMachine(t, disk)
				}
				vm := m.WithTPM().Boot()
				r := vm.UpIn("a")
				if r.FellBack == nil || r.FellBack.From != "b" || r.FellBack.Class != tc.want {
					t.Errorf("fell back: %+v, want from b, class %s", r.FellBack, tc.want)
				}
				vm.PowerOff()
				a, b := disk.Slot(t, "a"), disk.Slot(t, "b")
				switch {
				case a.Successful != 1:
					t.Errorf("slot a is %+v, want successful", a)
				case mode == "good" && (b.Successful != 1 || b.Priority >= a.Priority):
					t.Errorf("slot b is %+v, a %+v: want b last, and still successful", b, a)
				case mode == "trial" && b != SlotBits{}:
					t.Errorf("slot b is %+v, want it unbootable", b)
				}
			})
		}
	}
}

// A kernel that cannot be loaded, and one that dies before init: the machine
// comes back by itself and says so.
func TestDeadKernelFallsBack(t *testing.T) {
	t.Parallel()
	for _, tc := range loaders {
		if tc.firmware == BIOS && !soaking() {
			continue // GRUB comes back from the one that panics, below
		}
		t.Run(tc.name+"_zeros", func(t *testing.T) {
			t.Parallel()
			tc.image.B, tc.image.Edit = &SlotB{}, oneTry
			disk := tc.image.Build(t)
			disk.PutESP(t, tc.kernelFile, make([]byte, 1<<20))
			deadKernel(t, NewMachine(t, tc.firmware, disk).WithTPM().Boot())
		})
	}
	t.Run("bios_grub_panics", func(t *testing.T) {
		t.Parallel()
		disk := Image{B: &SlotB{}, Edit: oneTry}.Build(t)
		// Nothing to run: the kernel panics, and would restart by panic=10.
		disk.PutESP(t, "/sealroot/b/initrd", make([]byte, 4096))
		vm := NewMachine(t, BIOS, disk).WithTPM().Boot()
		vm.Expect(`Kernel panic - not syncing`, bootTime)
		vm.Expect(`Rebooting in 10 seconds`, commandTime)
		vm.Reset() // those seconds are minutes of silence under emulation
		deadKernel(t, vm)
	})
}

// oneTry makes a trial short; TestUncommittedTrialFallsBack has three tries.
var oneTry = []string{"tries: 3", "tries: 1"}

// deadKernel reboots until slot b is given up.
func deadKernel(t *testing.T, vm *VM) {
	t.Helper()
	for range 4 {
		vm.UpIn("a")
		if strings.Contains(vm.Run("sealroot status"), "kernel never reached init") {
			break
		}
		vm.Reboot()
	}
	if text := vm.Run("sealroot status"); !strings.Contains(text, "kernel never reached init") {
		t.Errorf("sealroot status does not say why slot b does not run:\n%s", text)
	}
	// It is not tried for ever.
	vm.Reboot()
	vm.UpIn("a")
	vm.PowerOff()
	disk := &Disk{Path: vm.machine.Config.Disk}
	if b := disk.Slot(t, "b"); b.Tries != 0 || b.Successful != 0 {
		t.Errorf("slot b is %+v, want given up", b)
	}
	if a := disk.Slot(t, "a"); a.Successful != 1 {
		t.Errorf("slot a is %+v, want successful", a)
	}
}

// After an update to another file system, the old image cannot be mounted by the
// new initramfs. When the new image goes bad, the old one is not bad for that: it
// runs under its own initramfs.
func TestFallBackToAnotherFilesystem(t *testing.T) {
	t.Parallel()
	image := Image{}
	disk := image.Build(t)
	next := image.next(t)
	next.Edit = append(next.Edit, "filesystem: squashfs", "filesystem: erofs")
	m := NewMachine(t, BIOS, disk).WithTPM().withParts(t, readFile(t, next.Parts(t)))
	vm := m.Boot()
	vm.UpIn("a")
	vm.Run("sealroot install /dev/vdb")
	vm.Reboot()
	vm.UpIn("b")
	vm.Run("sealroot commit")
	vm.PowerOff()
	disk.Flip(t, "root-b", 1030) // the superblock of the erofs
	for range 2 {
		vm = m.Boot()
		r := vm.UpIn("a")
		if r.Root.Filesystem != "squashfs" || r.Slot.Loaded != "a" {
			t.Errorf("root %+v, slot %+v: want a's squashfs, by its own kernel", r.Root, r.Slot)
		}
		vm.PowerOff()
	}
	if a, b := disk.Slot(t, "a"), disk.Slot(t, "b"); a.Successful != 1 || b.Successful != 1 || b.Priority >= a.Priority {
		t.Errorf("slot a is %+v, b %+v: want both successful, and b last", a, b)
	}
}
