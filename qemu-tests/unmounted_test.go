package qemutests

import (
	"errors"
	"strings"
	"testing"

	"sealroot/qemu-tests/judge"
	"sealroot/state/luks2"
)

// unmounted judges the file systems of the state partition and of the volume in it as
// they are on the disk, with no journal replayed. The key is the volume's recovery key.
func (d *Disk) unmounted(t *testing.T, key string) error {
	t.Helper()
	return judge.Case{
		State: d.Extract(t, "state"), Dir: t.TempDir(),
		Unlock: func(h *luks2.Header) ([]byte, error) {
			key, _, err := h.Authorize([]byte(key), luks2.NewBudget(nil))
			return key, err
		},
	}.Unmounted()
}

// checkUnmounted is for a disk whose machine ended in order.
func (d *Disk) checkUnmounted(t *testing.T, key string) {
	t.Helper()
	if err := d.unmounted(t, key); err != nil {
		t.Errorf("after a clean end: %v", err)
	}
}

// checkMounted is the control: the power is cut, and neither file system is in order. The
// machine goes on then.
func (vm *VM) checkMounted(disk *Disk, key string) {
	t := vm.t
	t.Helper()
	vm.monitor("stop")
	err := disk.unmounted(t, key)
	vm.monitor("cont")
	if !errors.Is(err, judge.ErrMounted) || !strings.Contains(err.Error(), "the state partition: ") || !strings.Contains(err.Error(), "the volume: ") {
		t.Errorf("control: of a running machine the judge says %v, want that both file systems are mounted", err)
	}
}
