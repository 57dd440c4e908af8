package qemutests

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
)

// After the recovery key was typed on another TPM, sealroot state enroll binds that
// one, and the next boot opens by itself. PID 1 has given its lock on the header up,
// or the command would not get it.
func TestStateTPMIsBoundAnew(t *testing.T) {
	t.Parallel()
	disk := Image{Edit: []string{"recovery: later", "recovery: later\n  manage_key: true"}}.Build(t)
	m := directMachine(t, disk).WithTPM()
	vm := m.Boot()
	vm.UpIn("a")
	key := vm.recoveryKey()
	if s := vm.stateStatus(); s.NextBoot != "by-itself" || s.Recovery != "waiting-to-be-shown" || s.ManageKey != "kept" {
		t.Errorf("first boot: %+v", s)
	}
	vm.PowerOff()

	vm = m.WithTPM().Boot()
	vm.Expect(`type the recovery key`, probeTime)
	vm.Send(key + "\r")
	vm.Expect(`bind the TPM of this machine to the state anew`, commandTime)
	vm.Send("no\r")
	vm.UpIn("a")
	if s := vm.stateStatus(); s.NextBoot != "asks" || s.ThisBoot.Unlocked != "recovery-key" {
		t.Errorf("on another TPM: %+v", s)
	}
	vm.Run("write /run/key " + key)
	vm.Run("sealroot state enroll --recovery-key-file /run/key")
	vm.Run("sealroot state rekey") // allowed by the manage key
	if output := vm.Run("unseal /state/encrypted.img"); strings.Contains(output, "unsealed") {
		t.Errorf("the running system unseals what it has enrolled:\n%s", output)
	}
	if s := vm.stateStatus(); s.NextBoot != "by-itself" {
		t.Errorf("enrolled: %+v", s)
	}
	vm.PowerOff()

	vm = m.Boot()
	if r := vm.UpIn("a"); r.State.Unlocked != "tpm2" {
		t.Errorf("after it: state %+v, want unlocked by tpm2", r.State)
	}
	// The key went to the kernel through a keyring: the table has its description.
	table := vm.Run("dmtable sealroot-state")
	if !regexp.MustCompile(`:64:(logon|user):sealroot:[0-9a-f-]{36} `).MatchString(table) || regexp.MustCompile(`[0-9a-f]{64}`).MatchString(table) {
		t.Errorf("the table of the volume: %q, want a description in place of the key", table)
	}
	vm.PowerOff()
	if output, err := opens(t, disk.EncryptedImage(t), key); err != nil {
		t.Errorf("cryptsetup refuses the recovery key: %s", output)
	}
}

// stateStatus is what a program is told; it fits its schema.
func (vm *VM) stateStatus() (s struct {
	NextBoot  string `json:"next_boot"`
	Recovery  string `json:"recovery"`
	ManageKey string `json:"manage_key"`
	ThisBoot  struct {
		Unlocked string `json:"unlocked"`
	} `json:"this_boot"`
}) {
	vm.t.Helper()
	text := vm.Run("sealroot state status --json")
	fits(vm.t, "state", text)
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		vm.t.Fatal(err)
	}
	return s
}
