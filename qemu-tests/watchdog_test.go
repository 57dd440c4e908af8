package qemutests

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"sealroot/init/report"
)

// hardwareWatchdog is a watchdog that Debian's 6.12 cloud kernel has a driver
// for; what it does when it is not fed is a reset.
var hardwareWatchdog = []string{"-device", "i6300esb", "-action", "watchdog=reset"}

// stoppedInit builds the init that stops itself in every boot on trial, after
// the try is spent.
func stoppedInit(t *testing.T) string { return goBuild(t, "-tags=stopped", "../init") }

// withWatchdog adds it. It remembers over a reset that it has fired.
func (m *Machine) withWatchdog() *Machine {
	m.Config.FreshReset = false
	return m.WithArgs(hardwareWatchdog...)
}

// goesOn is what a machine shows that starts anew, or whose PID 1 runs.
var goesOn = regexp.MustCompile(`SeaBIOS|GRUB|Linux version|sealroot: |probe: |TEST BUILD`)

// PID 1 stops in slot b. The watchdog resets the machine, each time a try
// poorer, until slot a runs; there nobody feeds it, and the machine stays up.
func TestWatchdogResetsStoppedInit(t *testing.T) {
	t.Parallel()
	const seconds = 30 // more than a busy host may keep the guest waiting
	disk := Image{
		Kernel: "6.12", Init: stoppedInit(t), B: &SlotB{},
		Edit: []string{"tries: 3", "tries: 2\n  watchdog: {seconds: 30}"},
	}.Build(t)

	t.Run("with_watchdog", func(t *testing.T) {
		t.Parallel()
		disk := disk.Copy(t)
		m := directMachine(t, disk).WithTPM().withWatchdog()
		vm := m.Boot()
		vm.Expect(`TEST BUILD: stopping in slot b with 1 tries left`, probeTime)
		vm.Expect(`TEST BUILD: stopping in slot b with 0 tries left`, probeTime)
		r := vm.UpIn("a")
		if r.FellBack == nil || r.FellBack.From != "b" || !strings.Contains(r.FellBack.Reason, "commit") {
			t.Errorf("fell back: %+v, want from b because of no commit", r.FellBack)
		}
		if w := r.Watchdog; w == nil || w.Device != "/dev/watchdog0" || w.Seconds != seconds || w.HandedOver || w.NoWayOut || !w.Fired {
			t.Errorf("watchdog %+v, want /dev/watchdog0 with %d s, stopped, and that it fired", w, seconds)
		}
		m.place.Close() // what waits takes nothing from others; this is the last boot
		time.Sleep(3 * seconds / 2 * time.Second)
		if again := vm.Report(); again.BootID != r.BootID {
			t.Error("a committed slot that never feeds the watchdog was reset")
		}
		if got := vm.Run("cat /sys/class/watchdog/watchdog0/state"); got != "inactive" {
			t.Errorf("the watchdog is %s after hand-over, want inactive", got)
		}
		vm.PowerOff()
	})

	// The control: without the device, which is no more than a warning, nothing
	// ends the stopped boot.
	t.Run("without_watchdog", func(t *testing.T) {
		t.Parallel()
		disk := disk.Copy(t)
		m := NewMachine(t, DirectKernel, disk).WithTPM()
		m.LoadSlot("a")
		vm := m.Boot()
		vm.Expect(`nothing watches this boot: .*no watchdog device`, probeTime)
		vm.Expect(`TEST BUILD: stopping in slot b with 1 tries left`, probeTime)
		time.Sleep(2 * time.Second) // what was on its way to the console
		before := len(vm.guest.Console())
		vm.place.Close() // a machine that stands still takes nothing from others
		time.Sleep(2 * seconds * time.Second)
		// The kernel may have something to say; nothing else may.
		if now := vm.guest.Console()[before:]; goesOn.MatchString(now) {
			t.Errorf("the stopped machine goes on:\n%s", now)
		}
		vm.Kill()
		if got := disk.Slot(t, "b"); got.Tries != 1 {
			t.Errorf("slot b is %+v, want 1 try left", got)
		}
	})
}

// pausesForEver is a program (ELF, x86-64) that waits for a signal, again and again:
// mov $34, %eax; syscall (pause); jmp to the first.
const pausesForEver = "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x02\x00\x3e\x00\x01\x00\x00\x00\x78\x00\x40\x00\x00\x00\x00\x00" +
	"\x40\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x00\x00\x40\x00\x38\x00\x01\x00\x00\x00\x00\x00\x00\x00" +
	"\x01\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x40\x00\x00\x00\x00\x00\x00\x00\x40\x00\x00\x00\x00\x00" +
	"\x81\x00\x00\x00\x00\x00\x00\x00\x81\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x10\x00\x00\x00\x00\x00\x00" + "\xb8\x22\x00\x00\x00\x0f\x05\xeb\xf7"

// A watchdog that is handed over runs on: a root that feeds it stays up, and one
// that stops feeding is reset. So is a boot in which a layer that was added hangs: the
// next one leaves it out, and the committed slot stays as it was.
func TestWatchdogHandedOver(t *testing.T) {
	t.Parallel()
	const seconds = 120 // more than a busy host may keep a command of the guest waiting
	hangs, _ := madeLayer(t, "extra-hangs", "", "usr/sbin/init", pausesForEver)
	disk := Image{
		Kernel: "6.12",
		Edit: []string{"tries: 3", "tries: 3\n  watchdog: {seconds: 120, handover: true}",
			"root: [image.crt]\n", "root: [image.crt]\n  layer: [image.crt]\n", "etc: overlay\n", "etc: overlay\nlayers_allowed: [extra-*]\n"},
		Extra: map[string]string{
			// mkinitramfs believes this; in truth the probe feeds, when it is told to.
			"usr/lib/systemd/system.conf.d/watchdog.conf": "[Manager]\nRuntimeWatchdogSec=120s\n",
			"usr/share/layers/hangs.raw":                  hangs,
		},
	}.Build(t)
	before := disk.Slot(t, "a")
	m := directMachine(t, disk).WithTPM().withWatchdog()
	vm := m.Boot()
	// The machine lives for as long as it is fed.
	feed := func() { vm.Run("write /dev/watchdog0 fed") }
	up := func() report.Report {
		vm.Expect(`probe: up: slot "a"`, probeTime)
		vm.WaitReady(commandTime)
		feed()
		return vm.Report()
	}
	r := up()
	if w := r.Watchdog; w == nil || !w.HandedOver || w.Seconds != seconds || w.Fired {
		t.Errorf("watchdog %+v, want one with %d s that was handed over", w, seconds)
	}
	// What waits takes nothing from others. That lasts for the two boots after it, too,
	// of which the first one hangs at once: somebody would have to feed the watchdog for
	// as long as there is no place.
	m.place.Close()
	for end := time.Now().Add(5 * seconds / 4 * time.Second); time.Now().Before(end); time.Sleep(3 * time.Second) {
		feed()
	}
	if again := vm.Report(); again.BootID != r.BootID {
		t.Fatal("the machine was reset although somebody fed the watchdog")
	}
	feed()
	vm.Run("sealroot layer add /usr/share/layers/hangs.raw")
	feed()
	// The control: it was the feeding. Nobody restarts the machine from here on.
	vm.Expect(`Linux version`, probeTime)
	if between := vm.Expect(`(?s)slot a: starting /sbin/init.*?Linux version`, probeTime)[0]; strings.Contains(between, "probe: up") {
		t.Errorf("the layer's init did not hang:\n%s", between)
	}
	again := up()
	if again.BootID == r.BootID || again.Watchdog == nil || !again.Watchdog.Fired {
		t.Errorf("watchdog %+v in the next boot, want that it fired", again.Watchdog)
	}
	if len(again.Layers) > 0 || again.LayerTrial || again.FellBack != nil || again.Slot.Reason != "committed" || len(again.Failures) > 0 {
		t.Errorf("after a layer that hangs: layers %s, slot %+v, fell back %+v, failures %q", layersText(again), again.Slot, again.FellBack, failuresText(again))
	}
	if after := disk.Slot(t, "a"); after != before {
		t.Errorf("slot a is %+v, was %+v", after, before)
	}
	for command, says := range map[string]string{"sealroot layer list": "dropped", "sealroot status": "did not come up"} {
		feed()
		if said := vm.Run(command); !strings.Contains(said, says) {
			t.Errorf("%s does not say %q:\n%s", command, says, said)
		}
	}
}
