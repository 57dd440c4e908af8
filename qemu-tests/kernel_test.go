package qemutests

import (
	"strings"
	"testing"
)

// Slot b has another kernel: the trial runs b's kernel with b's modules, and
// nothing of b's is used to run a.
func TestKernelPerSlot(t *testing.T) {
	t.Parallel()
	for _, tc := range loaders {
		if tc.firmware != BIOS && !soaking() {
			continue // a UKI is the kernel of its slot: TestInstallTrialCommitReplicate tells them apart
		}
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a, b := kernel(t, "6.1"), kernel(t, "6.12")
			tc.image.B = &SlotB{Kernel: "6.12"}
			disk := tc.image.Build(t)
			m := NewMachine(t, tc.firmware, disk).WithTPM()
			vm := m.Boot()
			r := vm.UpIn("b")
			if r.Slot.Loaded != "b" || r.Root.KernelRelease != b.Release {
				t.Errorf("slot %+v with kernel %q, want b's own, %s", r.Slot, r.Root.KernelRelease, b.Release)
			}
			if got := strings.TrimSpace(vm.Run("cat /proc/sys/kernel/osrelease")); got != b.Release {
				t.Errorf("kernel %s runs, want %s", got, b.Release)
			}
			vm.Run("cat /usr/lib/modules/" + b.Release + "/modules.dep")
			vm.PowerOff()

			// When b's image breaks, a's modules do not fit b's kernel: the
			// machine restarts into a's own.
			disk.Flip(t, "root-b", 8)
			vm = m.Boot()
			if r := vm.UpIn("a"); r.Root.KernelRelease != a.Release || r.Slot.Loaded != "a" {
				t.Errorf("slot %+v with kernel %q, want a's own, %s", r.Slot, r.Root.KernelRelease, a.Release)
			}
			vm.PowerOff()
		})
	}
}
