package machine

import (
	"encoding/binary"
	"testing"
)

func TestSwitchedOff(t *testing.T) {
	// TPM2_HierarchyControl by the platform, with an empty password.
	command := func(code, hierarchy, state byte) []byte {
		return []byte{0x80, 0x02, 0, 0, 0, 32, 0, 0, 1, code, 0x40, 0, 0, 0x0c, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0x40, 0, 0, hierarchy, state}
	}
	for _, c := range []struct {
		command []byte
		want    uint32
	}{
		{command(0x21, 1, 0), 0x40000001},
		{command(0x21, 0x0b, 0), endorsement},
		{command(0x21, 1, 1), 0},
		{command(0x29, 1, 0), 0},
		{command(0x21, 1, 0)[:10], 0},
		{nil, 0},
	} {
		if got := switchedOff(c.command); got != c.want {
			t.Errorf("%x: %#x, want %#x", c.command, got, c.want)
		}
	}
}

func TestFirmwareWaits(t *testing.T) {
	var f firmware
	for i, c := range []struct {
		code uint32
		want bool
	}{
		{0x17a, false}, // of QEMU itself, TPM2_GetCapability
		{ccStartup, true}, {0x143, true}, {ccPCRExtend, true},
		{ccHierarchyChangeAuth, true},
		{ccPCRExtend, true}, {ccPCRExtend, true}, {ccPCRExtend, true}, {ccPCRExtend, true},
		{ccPCRExtend, true}, {ccPCRExtend, true}, {ccPCRExtend, true}, {ccPCRExtend, true},
		{0x17a, false}, {ccPCRExtend, false}, // of a kernel
		{ccStartup, true}, {0x143, true},
	} {
		command := binary.BigEndian.AppendUint32([]byte{0x80, 0x01, 0, 0, 0, 10}, c.code)
		if got := f.waits(command); got != c.want {
			t.Errorf("command %d, %#x: %v, want %v", i, c.code, got, c.want)
		}
	}
	if f.waits(nil) != true || commandCode(nil) != 0 {
		t.Error("what is no command changes something")
	}
}
