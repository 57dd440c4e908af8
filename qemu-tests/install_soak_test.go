//go:build soak

package qemutests

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// The power is cut while an image is installed: the old system comes up each
// time, and the next install just works.
func TestKillDuringInstall(t *testing.T) {
	t.Parallel()
	for i, tc := range installs {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(3, uint64(i)))
			tc.image.B = &SlotB{Mode: "good"}
			disk := tc.image.Build(t)
			m := NewMachine(t, tc.firmware, disk).WithTPM().withParts(t, readFile(t, tc.image.next(t).Parts(t)))
			vm := m.Boot()
			vm.UpIn("a")
			running := "a"
			for range 3 {
				delay := time.Duration(random.Int64N(int64(6 * time.Second)))
				_, _, err := vm.guest.Run("sealroot install /dev/vdb", delay)
				vm.Kill()
				vm = m.Boot()
				got := vm.Expect(upIn.String(), probeTime)
				vm.WaitReady(commandTime)
				t.Logf("cut %s after install began, it had ended: %t; slot %s came up", delay.Round(time.Millisecond), err == nil, got[1])
				if got[1] == running {
					continue
				}
				// The cut came behind the last write.
				if r := vm.Report(); r.Root.ImageVersion != "2.next" {
					t.Fatalf("slot %s came up with version %s", got[1], r.Root.ImageVersion)
				}
				vm.Run("sealroot commit")
				running = got[1]
			}
			vm.Run("sealroot install /dev/vdb")
			vm.Reboot()
			if r := vm.UpIn(map[string]string{"a": "b", "b": "a"}[running]); r.Root.ImageVersion != "2.next" {
				t.Errorf("version %s, want 2.next", r.Root.ImageVersion)
			}
			vm.PowerOff()
			disk.CheckTable(t)
			disk.CheckVerity(t, "a")
			disk.CheckVerity(t, "b")
		})
	}
}

// A disk of one slot, which nothing counts: it boots, and cannot be put on trial.
func TestLoadersFixed(t *testing.T) {
	t.Parallel()
	disk := Image{Store: "fixed"}.Build(t)
	vm := NewMachine(t, BIOS, disk).WithTPM().Boot()
	for range 2 {
		if r := vm.UpIn("a"); r.Slot.Reason != "committed" || len(r.Failures) > 0 {
			t.Errorf("slot %+v, failures %q: want a committed, without failures", r.Slot, failuresText(r))
		}
		if text := vm.Run("sealroot status"); !strings.Contains(text, "fixed") {
			t.Errorf("sealroot status does not name the store:\n%s", text)
		}
		if out, status := vm.TryRun("sealroot try b"); status == 0 {
			t.Errorf("a slot that is not there goes on trial: %s", out)
		}
		vm.Reboot()
	}
	vm.UpIn("a")
	vm.PowerOff()
}
