package qemutests

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sealroot/init/report"
)

// A full state partition costs nothing as long as the volume has its reservation.
// Without it (a sparse copy was put back) the volume is read-only: the owner's /etc
// stays in force, changes to it are in memory, and no slot pays. With room again
// all is as before.
func TestStatePartitionFull(t *testing.T) {
	t.Parallel()
	disk := Image{}.Build(t)
	m := directMachine(t, disk).WithTPM()
	vm := m.Boot()
	r := vm.UpIn("a")
	vm.Run("write /etc/mine a setting of the owner")
	vm.Run("write /var/lib/mine words that stay")
	vm.PowerOff()
	before, reserved := disk.Slot(t, "a"), r.State.ReservedBytes/4096 // blocks
	if reserved < 20<<8 {
		t.Fatalf("%d blocks are reserved: too few for this test", reserved)
	}
	const full = "the encrypted volume is read-only: cannot reserve"
	for _, tc := range []struct {
		name     string
		edit     func(state string)
		readOnly bool
	}{
		{"full", func(state string) { fill(t, state, "filler") }, false},
		{"full_without_the_reservation", func(state string) {
			// Near the end of the volume's file system, where nothing lies yet.
			debugfs(t, state, fmt.Sprintf("punch /encrypted.img %d %d", reserved-16<<8, reserved-12<<8))
			fill(t, state, "more")
		}, true},
		{"room_again", func(state string) { debugfs(t, state, "rm /filler"); debugfs(t, state, "rm /more") }, false},
	} {
		disk.editState(t, tc.edit)
		vm := m.Boot()
		r := vm.UpIn("a")
		warnings := strings.Join(r.Warnings, "\n")
		if r.State.Unlocked != "tpm2" || r.Degraded || strings.Contains(warnings, full) != tc.readOnly {
			t.Errorf("%s: state %+v, degraded %v, warnings:\n%s", tc.name, r.State, r.Degraded, warnings)
		}
		if got := vm.Run("cat /etc/mine /etc/from-image /var/lib/mine"); got != "a setting of the owner\netc of the image\nwords that stay" {
			t.Errorf("%s: /etc and /var hold %q", tc.name, got)
		}
		if got := slices.Contains(options(r, "/state/encrypted"), "ro"); got != tc.readOnly {
			t.Errorf("%s: boot.json has the volume with options %q", tc.name, options(r, "/state/encrypted"))
		}
		if output, status := vm.TryRun("write /var/lib/more from " + tc.name); (status != 0) != tc.readOnly {
			t.Errorf("%s: writing to /var: exit status %d: %s", tc.name, status, output)
		}
		if tc.readOnly {
			vm.Run("write /etc/volatile in memory")
			for command, says := range map[string]string{"sealroot status": full, "sealroot state status": "cannot reserve"} {
				if text := vm.Run(command); !strings.Contains(text, says) {
					t.Errorf("%s: %s does not say %q:\n%s", tc.name, command, says, text)
				}
			}
		} else if output, status := vm.TryRun("cat /etc/volatile"); status == 0 {
			t.Errorf("%s: what was in memory is there: %s", tc.name, output)
		}
		vm.PowerOff()
	}
	if got := disk.Slot(t, "a"); got != before {
		t.Errorf("slot a is %+v, was %+v", got, before)
	}
}

// options are those that boot.json names for a mount.
func options(r report.Report, where string) []string {
	for _, m := range r.Mounts {
		if m.Where == where {
			return m.Options
		}
	}
	return nil
}

// editState changes a copy of the state partition, with its journal replayed, and
// puts it back.
func (d *Disk) editState(t *testing.T, edit func(path string)) {
	t.Helper()
	state := d.Extract(t, "state")
	check := func() {
		output, err := runTool("e2fsck", "-fy", state)
		if err != nil && !strings.Contains(output, "FILE SYSTEM WAS MODIFIED") && !strings.Contains(output, "recovering journal") {
			t.Fatalf("e2fsck: %v\n%s", err, output)
		}
	}
	check() // or the journal's replay undoes it
	edit(state)
	check()
	d.put(t, "state", state)
}

// debugfs runs a command that writes.
func debugfs(t *testing.T, state, command string) {
	t.Helper()
	tool(t, "debugfs", "-w", "-R", command, state)
}

// fill gives all free blocks of a file system, but a few, to a file.
func fill(t *testing.T, state, name string) {
	t.Helper()
	found := regexp.MustCompile(`Free blocks: +(\d+)`).FindStringSubmatch(tool(t, "dumpe2fs", "-h", state))
	if found == nil {
		t.Fatal("dumpe2fs does not tell the free blocks")
	}
	free, err := strconv.Atoi(found[1])
	if err != nil || free < 100 {
		t.Fatalf("%d free blocks, %v: nothing to fill", free, err)
	}
	debugfs(t, state, "write /dev/null "+name)
	debugfs(t, state, fmt.Sprintf("fallocate %s 0 %d", name, free-32))
}
