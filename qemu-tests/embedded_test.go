package qemutests

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// Under Secure Boot each slot's unified kernel image names its own root hash
// (root.hash: embed) and its own real init (trust.cmdline: measured). A root with
// a good signature is not enough then: that of slot b in the place of slot a's is
// refused by slot a's kernel, which does not run slot b either but restarts into
// slot b's own. There the same bytes run: the control.
func TestTrustEmbeddedRoot(t *testing.T) {
	t.Parallel()
	const realInit = "/usr/sbin/init" // beside /sbin/init, which is the same program
	disk := Image{
		Config: "uki", SecureBoot: true, Cmdline: "init=" + realInit,
		Edit: append(rootEdit("  hash: embed\n"), "root: [image.crt]", "root: [image.crt]\n  cmdline: measured"),
		B:    &SlotB{Mode: "good", Edit: []string{"version: 2026.11.1", "version: 2026.12.1"}},
	}.Build(t)
	hashA, hashB := disk.rootHash(t, "a"), disk.rootHash(t, "b")
	if hashA == hashB {
		t.Fatal("both slots hold the same root: nothing is shown")
	}
	for _, part := range []string{"", "-verity", "-verity-sig"} {
		disk.Write(t, "root-a"+part, 0, disk.Read(t, "root-b"+part, 0, disk.Part(t, "root-b"+part).Bytes))
	}
	m := NewMachine(t, UEFISecure, disk).WithTPM().Hold().oneBank()

	vm := m.Boot()
	vm.Expect(`cannot trust slot a: this initramfs is made for another root: the slot's is `+hashB[:16]+`…, the configuration names `+hashA[:16], probeTime)
	vm.Expect(`slot b needs its own kernel: rebooting into it`, commandTime)
	vm.Expect(`slot b: starting `+realInit, probeTime)
	r := vm.UpIn("b")
	if r.Root.HashSource != "configuration" || r.Root.RootHash != hashB || r.Root.Certificate != "" {
		t.Errorf("root %+v, want %s, named by the configuration alone", r.Root, hashB)
	}
	if r.Slot.Loaded != "b" || r.BootPath != "uki-secure-boot" || r.State.Unlocked != "created" {
		t.Errorf("slot %+v, boot path %s, state %+v, want b's own kernel by uki-secure-boot, with a new volume", r.Slot, r.BootPath, r.State)
	}
	if text := failuresText(r); !strings.Contains(text, "a image signature refused") {
		t.Errorf("the report does not say why slot a does not run:\n%s", text)
	}
	// The line came through the stub and the kernel as it was built: else its
	// init= would not be honoured, with a warning.
	var got struct{ Args []string }
	if err := json.Unmarshal([]byte(vm.Run("start")), &got); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Args, []string{realInit}) || len(unexpected(r)) > 0 {
		t.Errorf("the real init is %q, warnings %q; want %s and none", got.Args, r.Warnings, realInit)
	}
	vm.PowerOff()
}
