package boot

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/mount/mounttest"
	"sealroot/slots"
)

// The steps of on_failure are taken in their order, the prompt first and only where
// it is named, and none of them touches a committed slot.
func TestOnFailure(t *testing.T) {
	committed := []slots.Slot{{Name: "a", Priority: 2, Successful: true}, {Name: "b", Priority: 1, Successful: true}}
	for _, tt := range []struct {
		name  string
		steps []string
		asks  bool
		end   string // degraded, halt, restart
	}{
		{"degraded", []string{config.FailureDegraded}, false, "degraded"},
		{"halt", []string{config.FailureHalt}, false, "halt"},
		{"reboot", []string{config.FailureReboot}, false, "restart"},
		{"prompt_degraded", []string{config.FailurePrompt, config.FailureDegraded}, true, "degraded"},
		{"prompt_halt", []string{config.FailurePrompt, config.FailureHalt}, true, "halt"},
		{"prompt_reboot", []string{config.FailurePrompt, config.FailureReboot}, true, "restart"},
		{"prompt_alone", []string{config.FailurePrompt}, true, "restart"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &person{lines: []string{"not the key"}} // and then nobody
			b, power := testBoot(p, config.State{Unlock: []string{config.UnlockTPM2, config.UnlockPassphrase}, OnFailure: tt.steps})
			recorder, store := &mounttest.Recorder{}, &fakeStore{list: slices.Clone(committed)}
			b.sys.Mounter, b.sys.Devices = recorder, &fakeDevices{t: t}
			b.slots.store, b.slots.log = store, store
			b.slots.observed = slots.Observed{Slots: committed, LogReadable: true}
			b.report.Slot.Name = "a"
			b.volume.outer = outerWithVolume(t)
			err := b.openVolume(t.Context())
			if !errors.Is(err, errLocked) {
				t.Fatal(err)
			}
			err = b.stateFailed(err)
			if asked := strings.Contains(p.saw.String(), "type the recovery key"); asked != tt.asks || (power.slept > 0) != tt.asks {
				t.Errorf("asks: %v, want %v", asked, tt.asks)
			}
			volatile := slices.ContainsFunc(recorder.Steps(), func(s string) bool { return strings.HasPrefix(s, "mount -t tmpfs") })
			switch tt.end {
			case "degraded": // the tmpfs is not real: it ends there
				if !volatile || !b.report.Degraded || !strings.Contains(b.degraded, errLocked.Error()) || b.report.State.Unlocked != "degraded" {
					t.Errorf("stateFailed() = %v, degraded %v (%q), steps %q", err, b.report.Degraded, b.degraded, recorder.Steps())
				}
			default:
				var failed *failedBoot
				ended := b.ended(t.Context(), "state", err)
				if volatile || b.report.Degraded || errors.Is(ended, errHalt) != (tt.end == "halt") || errors.As(ended, &failed) != (tt.end == "restart") {
					t.Errorf("ended() = %v, degraded %v, steps %q, want %s", ended, b.report.Degraded, recorder.Steps(), tt.end)
				}
			}
			if store.saves > 0 || !slices.Equal(store.list, committed) {
				t.Errorf("slots are written %d times, and are %+v", store.saves, store.list)
			}
		})
	}
}
