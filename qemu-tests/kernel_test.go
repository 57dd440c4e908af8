package qemutests

import (
	"strings"
	"testing"
)

// Slot b has another kernel: the trial runs b's kernel with b's modules.
func TestKernelPerSlot(t *testing.T) {
	for _, tc := range loaders {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a, b := kernel(t, "6.1"), kernel(t, "6.12")
			tc.image.B = &SlotB{Kernel: "6.12"}
			vm := NewMachine(t, tc.firmware, tc.image.Build(t)).WithTPM().Boot()
			r := vm.UpIn("b")
			if r.Slot.Loaded != "b" || r.Root.KernelRelease != b.Release {
				t.Errorf("slot %+v with kernel %q, want b's own, %s", r.Slot, r.Root.KernelRelease, b.Release)
			}
			if got := strings.TrimSpace(vm.Run("cat /proc/sys/kernel/osrelease")); got != b.Release {
				t.Errorf("kernel %s runs, want %s", got, b.Release)
			}
			vm.Run("cat /usr/lib/modules/" + b.Release + "/modules.dep")
			// Not committed: three tries, then a with its own kernel.
			vm.Reboot()
			vm.UpIn("b")
			vm.Reboot()
			vm.UpIn("b")
			vm.Reboot()
			if r := vm.UpIn("a"); r.Root.KernelRelease != a.Release {
				t.Errorf("slot a runs with kernel %q, want %s", r.Root.KernelRelease, a.Release)
			}
			vm.PowerOff()
		})
	}
}
