package qemutests

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// statusForm is what the test reads of `sealroot status --json`.
type statusForm struct {
	Slots        []statusSlot
	LastFallback *struct {
		From, Reason string
		BootID       string `json:"boot_id"`
	} `json:"last_fallback"`
	Boots []struct {
		BootID  string `json:"boot_id"`
		Slot    string
		Reason  string
		Running bool
		Number  int
	}
	Problems []string
}

type statusSlot struct {
	Name        string
	State       string
	Version     string
	LastFailure *struct{ Reason, Text, Detail string } `json:"last_failure"`
}

func status(t *testing.T, vm *VM) (s statusForm) {
	t.Helper()
	text := vm.Run("sealroot status --json")
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatalf("sealroot status --json: %v\n%s", err, text)
	}
	fits(t, "status", text)
	return s
}

// slotB is what status tells of slot b: its state, and the last failure in words.
func (s statusForm) slotB() (state, failure string) {
	for _, v := range s.Slots {
		if v.Name == "b" {
			if f := v.LastFailure; f != nil {
				failure = f.Reason + ", " + f.Text + ": " + f.Detail
			}
			return v.State, failure
		}
	}
	return "", ""
}

// boots are the slots of the boots on record, the oldest first.
func (s statusForm) boots() string {
	var names []string
	for _, b := range s.Boots {
		names = append(names, b.Slot+"/"+b.Reason)
	}
	return strings.Join(names, " ")
}

// wantBoots ends the test when other boots are on record.
func (s statusForm) wantBoots(t *testing.T, want string) {
	t.Helper()
	if got := s.boots(); got != want {
		t.Fatalf("boots on record: %s, want %s", got, want)
	}
}

// database is a check that fails in slot b until /var says that it is mended.
const database = `#!/bin/sh
grep -q '"name": "b"' /run/sealroot/boot.json || exit 0
[ -e /var/lib/mended ] || { echo "looking at the database"; echo "table users is missing"; exit 3; }
`

// TestHealth is the life of an update that is bad in two ways before it is good,
// on one Debian machine: a check fails; nobody commits in time; all is well.
func TestHealth(t *testing.T) {
	t.Parallel()
	disk := Image{Root: Debian, Commit: true, B: &SlotB{}, Edit: []string{"  tries: 3\n", "  tries: 3\n  commit_deadline: 45m\n"}, Extra: map[string]string{
		"usr/lib/sealroot/checks.d/20-database": database,
		"usr/lib/sealroot/checks.d/10-network":  "#!/bin/sh\ntest \"$(cat /proc/sys/kernel/hostname)\" = sealroot\n",
	}}.Build(t)
	other := Image{Config: "uki", B: &SlotB{}}.Build(t)
	m := NewMachine(t, BIOS, disk).WithTPM().WithDisk(other.Path).Hold()
	vm := m.Boot()

	// Slot b comes up on trial; the second check fails, and the machine restarts.
	// (What is waited for are lines of PID 1: the kernel writes each of them as a
	// whole, while it may put its own into the middle of anybody else's.)
	vm.Expect(`slot b: starting /sbin/init`, bootTime)
	vm.Expect(`slot a: starting /sbin/init`, bootTime)
	vm.WaitReady(bootTime)
	checkSystemd(t, vm)
	s := status(t, vm)
	const failed = "health-check, health check failed: 20-database: exit status 3: table users is missing"
	if state, failure := s.slotB(); state != "not bootable" || failure != failed {
		t.Errorf("slot b is %q, %q; want it not bootable, %q", state, failure, failed)
	}
	if f := s.LastFallback; f == nil || f.From != "b" || !strings.Contains(f.Reason, "20-database") {
		t.Errorf("the last fallback: %+v, want from slot b, because of 20-database", f)
	}
	if text := vm.Run("sealroot status"); !strings.Contains(text, "20-database: exit status 3: table users is missing") {
		t.Errorf("sealroot status does not name the check:\n%s", text)
	}
	s.wantBoots(t, "b/trial a/fallback")
	if got := vm.Run("cat /run/sealroot/fell-back"); !strings.Contains(got, "20-database") {
		t.Errorf("/run/sealroot/fell-back: %q, want the check in it", got)
	}

	// Slot b is good now, but hangs before anybody could commit it.
	vm.Run("touch /var/lib/mended && sealroot try b")
	vm.Run("mkdir -p /etc/systemd/system/sealroot-deadline.timer.d && " +
		`printf '[Timer]\nOnBootSec=\nOnBootSec=1s\n' >/etc/systemd/system/sealroot-deadline.timer.d/zz-hurry.conf; sync`)
	vm = vm.offAndOn()
	vm.Expect(`slot b: starting /sbin/init`, bootTime)
	vm.Expect(`slot a: starting /sbin/init`, bootTime)
	vm.WaitReady(bootTime)
	checkSystemd(t, vm)
	s = status(t, vm)
	s.wantBoots(t, "b/trial a/fallback b/trial a/fallback")
	if state, failure := s.slotB(); state != "not bootable" || !strings.HasPrefix(failure, "no-commit, no commit: within 45m") {
		t.Errorf("slot b is %q, %q; want it not bootable, no-commit", state, failure)
	}
	if f := s.LastFallback; f == nil || f.From != "b" || !strings.Contains(f.Reason, "no commit") || f.BootID != s.Boots[3].BootID {
		t.Errorf("the last fallback: %+v, want from slot b in this boot, no commit", f)
	}

	// Slot b is tried without hurry: the checks pass, and it is kept.
	vm.Run("rm /etc/systemd/system/sealroot-deadline.timer.d/zz-hurry.conf && sealroot try b && sync")
	vm = vm.offAndOn()
	vm.Expect(`slot b: starting /sbin/init`, bootTime)
	vm.WaitReady(bootTime)
	checkSystemd(t, vm)
	for unit, want := range map[string]string{"check": "2 checks: all good", "commit": "slot b: committed", "replicate": "nothing is copied"} {
		if text := vm.Run("journalctl -b -o cat --no-pager -u sealroot-" + unit + ".service"); !strings.Contains(text, want) {
			t.Errorf("sealroot-%s.service said %q, want %q in it", unit, text, want)
		}
	}
	s = status(t, vm)
	if state, failure := s.slotB(); state != "committed" || failure != "" {
		t.Errorf("slot b is %q, %q; want it committed without a failure", state, failure)
	}
	s.wantBoots(t, "b/trial a/fallback b/trial a/fallback b/trial")
	if len(s.Problems) > 0 || len(s.Slots) != 2 || s.Boots[4].Number != 5 || s.Slots[0].Name != "a" || s.Slots[0].Version != "2026.11.1" {
		t.Errorf("problems %q, slots %+v, boots %+v; want no problems, the version of slot a, and five boots", s.Problems, s.Slots, s.Boots)
	}
	// The limit counts from the hand-over, as PID 1 left it.
	if got := vm.Run("systemctl cat sealroot-deadline.timer"); !strings.Contains(got, "/run/systemd/system/sealroot-deadline.timer.d/deadline.conf") {
		t.Errorf("the timer's limit is not the one that PID 1 left:\n%s", got)
	}
	if got := vm.Run("systemctl show -p ActiveState --value sealroot-deadline.timer"); got != "active" {
		t.Errorf("the timer is %q on trial, want active", got)
	}
	if text := vm.Run("sealroot deadline"); !strings.Contains(text, "slot b was committed in time") {
		t.Errorf("the time limit after the commit: %q, want nothing done", text)
	}
	// A committed slot whose check fails stays.
	if text, code := vm.TryRun("rm /var/lib/mended; sealroot check"); code != 6 || !strings.Contains(text, "slot b is committed and stays") {
		t.Errorf("a failed check of a committed slot: exit status %d, %q; want 6", code, text)
	}
	if got := vm.Run("ls /state/.sealroot/boots | wc -l"); got != "5" {
		t.Errorf("%s reports are on the state partition, want 5", got)
	}
	offline(t, vm)
	vm.PowerOff()
	// sfdisk's judgement of what was written to the other disk: slot a is
	// committed (bits 48, 56), slot b has no bit of a slot.
	for slot, want := range map[string]string{"a": "GUID:48,56,60", "b": "GUID:60"} {
		if got := other.Part(t, "root-"+slot).AttributeSet; got != want {
			t.Errorf("slot %s of the other disk: attributes %s, want %s", slot, got, want)
		}
	}
}

// configure is a script that has to succeed before the new system is kept.
const configure = "#!/usr/sbin/init\nwrite /var/lib/configured by this script\ncat /var/lib/wanted\n"

// Without systemd one command at the end of the start does it all: a configure
// script that fails leaves the slot on trial, with its name as the reason, and one
// that succeeds has the slot committed.
func TestHealthConfigureScript(t *testing.T) {
	t.Parallel()
	disk := Image{B: &SlotB{}, Extra: map[string]string{"usr/lib/sealroot/checks.d/90-configure": configure}}.Build(t)
	vm := directMachine(t, disk).WithTPM().Boot()
	if r := vm.UpIn("b"); !r.Slot.Trial {
		t.Errorf("slot %+v, want a trial", r.Slot)
	}
	vm.post("sealroot check --commit")
	r := vm.UpIn("a") // the command restarts the machine
	if r.FellBack == nil || r.FellBack.From != "b" || !strings.Contains(r.FellBack.Reason, "90-configure: exit status 1") {
		t.Errorf("fell back %+v, want from b, because of 90-configure", r.FellBack)
	}
	const failed = "health-check, health check failed: 90-configure: exit status 1: open /var/lib/wanted: no such file or directory"
	if state, failure := status(t, vm).slotB(); state != "not bootable" || failure != failed {
		t.Errorf("slot b is %q, %q; want it not bootable, %q", state, failure, failed)
	}
	vm.Run("write /var/lib/wanted this") // and the script will succeed
	vm.Run("sealroot try b")
	vm.Reboot()
	vm.UpIn("b")
	if text := vm.Run("sealroot check --commit"); !strings.Contains(text, "1 check: all good") || !strings.Contains(text, "slot b: committed") {
		t.Errorf("sealroot check --commit said %q", text)
	}
	if got := vm.Run("cat /var/lib/configured"); got != "by this script" {
		t.Errorf("the script has written %q", got)
	}
	vm.Reboot()
	if r := vm.UpIn("b"); r.Slot.Reason != "committed" {
		t.Errorf("slot %+v, want committed", r.Slot)
	}
	vm.PowerOff()
}

// offline works on a disk that this machine does not run from, and finds that
// its own is refused.
func offline(t *testing.T, vm *VM) {
	t.Helper()
	if text, code := vm.TryRun("sealroot status --disk /dev/vda"); code != 3 || !strings.Contains(text, "the disk is in use") {
		t.Errorf("this machine's own disk: exit status %d, %q; want 3, the disk is in use", code, text)
	}
	if text, code := vm.TryRun("sealroot status --disk /dev/vdb1"); code != 3 || !strings.Contains(text, "it is a partition") {
		t.Errorf("a partition: exit status %d, %q; want 3, it is a partition", code, text)
	}
	text := vm.Run("sealroot status --disk /dev/vdb")
	for _, want := range []string{"slots kept in gpt, started by uki", "a     committed", "b     on trial", "2026.11.1"} {
		if !strings.Contains(text, want) {
			t.Errorf("status of the other disk has no %q:\n%s", want, text)
		}
	}
	vm.Run("sealroot rollback --disk /dev/vdb")
	vm.Run("sealroot try b --disk /dev/vdb")
	vm.Run("sealroot commit b --disk /dev/vdb")
	vm.Run("sealroot commit a --disk /dev/vdb")
	vm.Run("sealroot try b --tries 2 --disk /dev/vdb")
	vm.Run("sealroot mark-bad b --reason 'by hand' --disk /dev/vdb")
	if text := vm.Run("sealroot status --disk /dev/vdb"); !strings.Contains(text, "b     not bootable") || !strings.Contains(text, "marked bad by hand: by hand") {
		t.Errorf("the other disk after mark-bad:\n%s", text)
	}
	// While a partition of it is mounted, it is not touched.
	vm.Run("mkdir -p /run/other && mount -o ro $(lsblk -lno PATH,PARTLABEL /dev/vdb | grep -w esp | cut -d' ' -f1) /run/other")
	if text, code := vm.TryRun("sealroot mark-bad a --force --disk /dev/vdb"); code != 3 || !strings.Contains(text, "the disk is in use") {
		t.Errorf("a mounted disk: exit status %d, %q; want 3, the disk is in use", code, text)
	}
	vm.Run("umount /run/other")
	// udev may have a device open still; what is left for good stays.
	vm.Run("udevadm settle --timeout=120 || true")
	var left string
	for range 60 {
		left = vm.Run("losetup -a; ls /run | grep sealroot-esp || true")
		if !strings.Contains(left, "vdb") && !strings.Contains(left, "sealroot-esp") {
			return
		}
		time.Sleep(time.Second)
	}
	t.Errorf("left behind: %q", left)
}
