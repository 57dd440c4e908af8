package qemutests

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// An image without a state partition, flashed to a larger medium: the first boot
// adds one that fills it, also when the power goes off in the middle.
func TestStatePartitionIsAdded(t *testing.T) {
	t.Parallel()
	disk := Image{Disk: []string{"--state-size", "0"}}.Build(t)
	before := disk.Partitions(t)
	m := directMachine(t, disk).WithTPM()
	info, err := os.Stat(disk.Path)
	if err != nil {
		t.Fatal(err)
	}
	const more = 2 << 30
	if err := os.Truncate(disk.Path, info.Size()+more); err != nil {
		t.Fatal(err)
	}
	vm := m.Boot()
	vm.Expect(`sealroot: state: added a partition`, probeTime)
	vm.Kill()

	vm = m.Boot()
	if r := vm.UpIn("a"); r.State.Unlocked != "created" || r.State.ReservedBytes < more*4/10 {
		t.Errorf("state %+v, want created, with half of the medium reserved", r.State)
	}
	vm.Run("write /var/lib/mine words that stay")
	vm.PowerOff()
	if problem := tableProblem(t, disk.Path); problem != "" {
		t.Errorf("the judges of the table find: %s", problem)
	}
	if out := tool(t, "sfdisk", "-V", disk.Path); !strings.Contains(out, "No errors detected") || strings.Contains(out, "PMBR") {
		t.Errorf("sfdisk -V: %s", out)
	}
	after := disk.Partitions(t)
	if len(after) != len(before)+1 || after[len(before)].Name != "state" || after[len(before)].Bytes < more*9/10 {
		t.Fatalf("partitions %+v, want those of before and one of almost %d bytes", after, int64(more))
	}
	for i, p := range before {
		if p.Offset != after[i].Offset || p.Bytes != after[i].Bytes || p.Name != after[i].Name {
			t.Errorf("partition %+v became %+v", p, after[i])
		}
	}
	if out, err := runTool("e2fsck", "-fn", disk.Extract(t, "state")); err != nil && !strings.Contains(out, "journal") {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}

	// Its mark "unfinished", set by mistake, and a TPM that knows of no volume.
	number := strconv.Itoa(after[len(before)].Number)
	tool(t, "sfdisk", "--part-attrs", disk.Path, number, "GUID:48")
	own := m.Config.TPM
	vm = m.WithTPM().Boot()
	vm.Expect(`is marked as unfinished .* but holds \.sealroot-provisioned; nothing was changed`, probeTime)
	vm.Kill()
	tool(t, "sfdisk", "--part-attrs", disk.Path, number, "")

	m.Config.TPM = own
	vm = m.Boot()
	if r := vm.UpIn("a"); r.State.Unlocked != "tpm2" {
		t.Errorf("the boot after: state %+v, want unlocked by tpm2", r.State)
	}
	if got := vm.Run("cat /var/lib/mine"); got != "words that stay" {
		t.Errorf("the boot after reads %q", got)
	}
	vm.PowerOff()
}
