package qemutests

import (
	"regexp"
	"strings"
	"testing"
)

// endsInOrder powers a machine with systemd off: the exit program finds nothing that is
// held, nobody complains of a disk, and the file systems of the state partition and of the
// volume are clean. The recovery key has to be in the volume.
func (vm *VM) endsInOrder(disk *Disk) {
	vm.t.Helper()
	key := vm.recoveryKey()
	vm.PowerOff()
	if problems := endProblems(vm.guest.Console()); len(problems) > 0 {
		vm.t.Errorf("at the end of the machine:\n%s\nits last lines:\n%s", strings.Join(problems, "\n"), vm.guest.Tail(60))
	}
	disk.checkUnmounted(vm.t, key)
}

// What a console shows when systemd-shutdown begins, and when it starts the exit program.
const (
	endBegins = "systemd-shutdown[1]: Syncing filesystems"
	endMoves  = "systemd-shutdown[1]: Returning to initrd"
	endDone   = "sealroot: exit: everything is unmounted (poweroff)"
)

var (
	complaint = regexp.MustCompile(`(?i)error|warning|fail|cannot|could not|busy|left behind|does not answer`)
	// bySystemd are lines of systemd's own, which tries what still lies below another thing.
	bySystemd = regexp.MustCompile(`systemd-shutdown\[1\]: |\(sd-[a-z]+\)\[\d+\]: `)
)

// endProblems are what a console shows of the end of a machine that is not as it should be.
func endProblems(console string) (problems []string) {
	_, end, begun := strings.Cut(withoutStalls(console), endBegins)
	before, after, moved := strings.Cut(end, endMoves)
	if !begun || !moved {
		return []string{"systemd-shutdown started no exit program"}
	}
	for line := range strings.Lines(before) {
		if complaint.MatchString(line) && !bySystemd.MatchString(line) {
			problems = append(problems, strings.TrimSpace(line))
		}
	}
	for line := range strings.Lines(after) {
		if complaint.MatchString(line) {
			problems = append(problems, strings.TrimSpace(line))
		}
	}
	if !strings.Contains(after, endDone) {
		problems = append(problems, "the exit program does not say that everything is unmounted")
	}
	return problems
}

// The red control of endsInOrder.
func TestEndProblemsRedControl(t *testing.T) {
	t.Parallel()
	const (
		begins = "[  312.5] " + endBegins + " and block devices.\n"
		busy   = "[  315.1] (sd-umount)[547]: Failed to unmount /state: Device or resource busy\n[  315.2] EXT4-fs (vda10): re-mounted. Quota mode: none.\n"
		moves  = "[  315.5] " + endMoves + "...\n"
		stall  = "[  315.3] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [(sd-umount):547]\n[  315.4] RIP: 0010:error_entry+0x1/0x10\n"
		done   = "[  318.2] " + endDone + "\n[  318.3] reboot: Power down\n"
	)
	for _, tt := range []struct {
		name, console string
		good          bool
	}{
		{"in_order", "[  5.0] EXT4-fs error, long ago\n" + begins + busy + moves + done, true},
		{"on_a_busy_host", begins + busy + stall + moves + stall + done, true},
		{"a_disk_on_a_busy_host", begins + stall + "[  315.1] Buffer I/O error on dev dm-1, logical block 0\n" + moves + done, false},
		{"no_exit_program", begins + busy + "[  315.5] systemd-shutdown[1]: Powering off.\n", false},
		{"left_behind", begins + moves + "[  318.2] sealroot: exit: left behind: mount /oldstate\n[  318.3] reboot: Power down\n", false},
		{"left_behind_as_well", begins + moves + "[  318.2] sealroot: exit: left behind: mount /oldstate\n" + done, false},
		{"a_disk_before", begins + "[  315.1] Buffer I/O error on dev dm-1, logical block 0\n" + moves + done, false},
		{"a_device_after", begins + busy + moves + "[  316.0] device-mapper: ioctl: cannot remove dm-1\n" + done, false},
		{"a_restart", begins + busy + moves + "[  318.2] sealroot: exit: everything is unmounted (reboot)\n", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if problems := endProblems(tt.console); (len(problems) == 0) != tt.good {
				t.Errorf("got %q, want a problem: %v", problems, !tt.good)
			}
		})
	}
}
