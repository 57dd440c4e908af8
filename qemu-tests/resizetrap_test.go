package qemutests

import (
	"fmt"
	"strings"
)

// strayResizeAtBoot has a boot find a volume that spans far more than the state partition
// has, and nobody who holds any of it, as after a resize by a rescue system: balloons
// take what is free of it, and the machine is as before.
func (r *resizing) strayResizeAtBoot() {
	t, vm := r.t, r.vm
	t.Helper()
	before := r.sizes()
	vm.Run("resizewrong unlink-first")
	if s := r.sizes(); s.OverCommitted < 8<<30 || s.OuterFree > s.OverCommitted/2 {
		t.Fatalf("without its balloons %+v, before it %+v", s, before)
	}
	got := r.again()
	vm = r.vm
	if got.State.Unlocked != "tpm2" || got.Degraded || strings.Contains(strings.Join(got.Warnings, "\n"), "volume") {
		t.Errorf("a volume that was never reserved: state %+v, degraded %v, warnings %q", got.State, got.Degraded, got.Warnings)
	}
	s := r.sizes()
	if s.OverCommitted != 0 || s.ReadOnly || s.GivenBack < 8<<30 || s.OuterFree < before.OuterFree/2 {
		t.Errorf("a volume that was never reserved: %+v, before it %+v", s, before)
	}
	vm.Run(fmt.Sprintf("write %s after the boot that held it", withinVolume(".written")))
	vm.Run("sealroot state repair")
	if now := r.sizes(); now.OverCommitted != 0 || now.GivenBack < 8<<30 {
		t.Errorf("repaired: %+v, before it %+v", now, s)
	}
	r.whole("a volume that was never reserved")
	r.judge("a volume that was never reserved")
}
