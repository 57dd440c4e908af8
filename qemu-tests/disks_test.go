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

// A copy of the boot disk, in either place, is never taken for it, and neither is
// the disk itself: the console says what to do. The medium that the disk was
// flashed from may stay in, for the first boot gave the disk GUIDs of its own;
// that medium is also another disk with slots of the same labels.
func TestTrustClonedDisk(t *testing.T) {
	t.Parallel()
	for _, tc := range loaders {
		if tc.firmware != BIOS && !soaking() {
			continue // the loader has no part in it, and GRUB looks for its disk, too
		}
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			disk := tc.image.Build(t)
			medium := disk.Copy(t)
			m := NewMachine(t, tc.firmware, disk).WithTPM().Hold()

			if tc.firmware == BIOS {
				// The control: before the first boot they cannot be told apart.
				m.Config.MoreDisks = []string{medium.Path}
				m.refuses("/dev/vda and /dev/vdb")
				if !slices.Equal(guids(t, disk), guids(t, medium)) {
					t.Error("a refused boot changed GUIDs")
				}
				m.Config.MoreDisks = nil
			}

			vm := m.Boot()
			first := vm.UpIn("a")
			// The loader knew an older UUID in this boot; the command finds the disk all the same.
			vm.Run("sealroot status")
			vm.PowerOff()
			disk.CheckTable(t)
			own, old := guids(t, disk), guids(t, medium)
			for i := range own {
				if slices.Contains(old, own[i]) {
					t.Errorf("GUID %s is still that of the medium", own[i])
				}
			}
			if !strings.EqualFold(first.Disk.GUID, own[0]) || first.State.Unlocked != "created" {
				t.Errorf("disk %+v, state %+v, want GUID %s and a new state", first.Disk, first.State, own[0])
			}

			m.Config.MoreDisks = []string{medium.Path}
			vm = m.Boot()
			r := vm.UpIn("a")
			if r.Disk.Device != "/dev/vda" || r.Disk.GUID != first.Disk.GUID || r.State.Unlocked != "tpm2" {
				t.Errorf("disk %+v, state %+v, want /dev/vda with the GUID of the first boot, opened by the TPM", r.Disk, r.State)
			}
			vm.PowerOff()

			clone := disk.Copy(t)
			m.Config.Disk, m.Config.MoreDisks = clone.Path, []string{disk.Path}
			m.refuses("/dev/vda and /dev/vdb")
			if tc.firmware == BIOS {
				m.Config.Disk, m.Config.MoreDisks = disk.Path, []string{medium.Path, clone.Path}
				m.refuses("/dev/vda and /dev/vdc")
			}
			tool(t, "cmp", disk.Path, clone.Path)
		})
	}
}

// refuses boots until PID 1 says that it cannot choose between disks.
func (m *Machine) refuses(disks string) {
	m.t.Helper()
	vm := m.Boot()
	vm.Expect("cannot choose between "+disks+": remove the one that is a copy", probeTime)
	vm.Never("probe: up")
	vm.Kill()
}

// guids are the GUIDs of the disk and of its partitions, as sfdisk reads them.
func guids(t *testing.T, d *Disk) []string {
	t.Helper()
	var dump struct {
		PartitionTable struct {
			ID         string      `json:"id"`
			Partitions []Partition `json:"partitions"`
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal([]byte(tool(t, "sfdisk", "--json", d.Path)), &dump); err != nil {
		t.Fatalf("sfdisk --json: %v", err)
	}
	all := []string{dump.PartitionTable.ID}
	for _, p := range dump.PartitionTable.Partitions {
		all = append(all, p.UUID)
	}
	return all
}

// unexpected is the warnings but for the one of the word that every machine here
// has on its command line (see hang_test.go).
func unexpected(r report.Report) []string {
	return slices.DeleteFunc(slices.Clone(r.Warnings), func(w string) bool { return strings.Contains(w, `"sysrq_always_enabled"`) })
}

// A disk that Debian's systemd-repart made boots as it is: the version of the
// kernel image first, and the other when that one is damaged.
func TestTrustRepart(t *testing.T) {
	t.Parallel()
	disk := repartDisk(t)
	m := NewMachine(t, UEFI, disk)
	vm := m.Boot()
	r := vm.UpIn("a")
	if r.Root.RootHash != disk.repartHash(t, 2) || r.State.Unlocked != "none" || len(r.Failures)+len(unexpected(r)) > 0 || r.Degraded {
		t.Errorf("root %+v, state %+v, warnings %q, failures %q; want the second set of partitions and nothing to say",
			r.Root, r.State, r.Warnings, failuresText(r))
	}
	if got := vm.Run("cat /etc/from-image /var/lib/from-image"); got != "etc of the image\nvar of the image" {
		t.Errorf("content of the image in /etc and /var: %q", got)
	}
	for _, verb := range []string{"status", "verify", "commit", "record"} {
		vm.Run("sealroot " + verb) // there is no boot log
	}
	vm.PowerOff()

	disk.Flip(t, repartLabel(2), 8)
	vm = m.Boot()
	r = vm.UpIn("b")
	if r.Root.RootHash != disk.repartHash(t, 1) || len(unexpected(r)) > 0 || !strings.Contains(failuresText(r), "does not match the hash tree") {
		t.Errorf("root %+v, warnings %q, failures %q; want the first set in place of the damaged one", r.Root, r.Warnings, failuresText(r))
	}
	vm.PowerOff()
}

// repartLabel is the label of a root on repartDisk, as systemd-sysupdate names
// versions. The second is the version of the image.
func repartLabel(set int) string {
	return "sealroot-demo_" + []string{"2026.10.1", "2026.11.1"}[set-1]
}

// repartHash is the root hash of a set: the halves are the UUIDs of two partitions.
func (d *Disk) repartHash(t *testing.T, set int) string {
	t.Helper()
	root := d.Part(t, repartLabel(set))
	for _, p := range d.Partitions(t) {
		if p.Number == root.Number+1 {
			return strings.ToLower(strings.ReplaceAll(root.UUID+p.UUID, "-", ""))
		}
	}
	t.Fatalf("%s has no partition behind %d", d.Path, root.Number)
	return ""
}

// repartDisk has systemd-repart make a disk with an ESP and twice the same root,
// each with a hash tree and a signature; a salt of its own makes it another root
// hash. Nothing of it but the kernel image is by our builder.
func repartDisk(t *testing.T) *Disk {
	t.Helper()
	config := Image{Config: "uki", Store: "fixed", Edit: []string{
		"  source: verity\n", "  source: verity\n  partitions: discoverable\n",
		stateOfUKI, "  create: none\n",
	}}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	tool(t, "tar", "-x", "-C", dir, "-f", config.Parts(t))
	part := func(name, kind, text string) {
		writeFile(t, at("repart.d/"+name+".conf"), []byte("[Partition]\nType="+kind+"\n"+text), 0o644)
	}
	part("0", "esp", "Format=vfat\nSizeMinBytes=128M\nSizeMaxBytes=128M\n")
	for set := 1; set <= 2; set++ {
		match := fmt.Sprintf("VerityMatchKey=%d\n", set)
		part(fmt.Sprint(set, "0"), "root-x86-64", match+"Verity=data\nSizeMaxBytes=32M\nCopyBlocks="+at("root.squashfs")+"\nLabel="+repartLabel(set)+"\n")
		part(fmt.Sprint(set, "1"), "root-x86-64-verity", match+"Verity=hash\nSizeMaxBytes=10M\n")
		part(fmt.Sprint(set, "2"), "root-x86-64-verity-sig", match+"Verity=signature\n")
	}
	disk := &Disk{Path: at("disk.img")}
	tool(t, "systemd-repart", "--definitions="+at("repart.d"), "--empty=create", "--size=auto", "--dry-run=no",
		"--private-key="+filepath.Join(keysDir(t), "image.key"), "--certificate="+filepath.Join(keysDir(t), "image.crt"), disk.Path)
	image, err := os.ReadFile(at("sealroot.efi"))
	if err != nil {
		t.Fatal(err)
	}
	tool(t, "mmd", "-i", disk.espImage(t), "::EFI", "::EFI/BOOT")
	disk.PutESP(t, "/EFI/BOOT/BOOTX64.EFI", image)
	return disk
}

// stateOfUKI is what uki.yaml says of the state.
const stateOfUKI = `  create: first-boot
  unlock: [tpm2, recovery-key]
  tpm2:
    policy: signed-pcr11+7
    public_key: pcr.pub
  recovery: later
  on_failure: [prompt, degraded]
`
