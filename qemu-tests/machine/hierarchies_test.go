package machine

import "testing"

func TestSwitchesOff(t *testing.T) {
	// TPM2_HierarchyControl by the platform, with an empty password, of the owner.
	command := func(code, state byte) []byte {
		return []byte{0x80, 0x02, 0, 0, 0, 32, 0, 0, 1, code, 0x40, 0, 0, 0x0c, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0x40, 0, 0, 1, state}
	}
	for _, c := range []struct {
		command []byte
		want    bool
	}{{command(0x21, 0), true}, {command(0x21, 1), false}, {command(0x29, 0), false}, {command(0x21, 0)[:10], false}, {nil, false}} {
		if got := switchesOff(c.command); got != c.want {
			t.Errorf("%x: %v, want %v", c.command, got, c.want)
		}
	}
}
