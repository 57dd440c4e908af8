package machine

import "encoding/binary"

// bus is what stands before the TPM. On a host that stands still for a second SeaBIOS takes
// the TPM for broken, and switches the hierarchies of its owner and of endorsement off until
// the next start (tcgbios.c, tpm_set_failure): as if it were another TPM. That is left out.
func (c *Config) bus() Bus {
	if c.Firmware != BIOS && c.Firmware != DirectKernel {
		return c.Bus
	}
	return func(command []byte, ask func([]byte) ([]byte, error)) ([]byte, error) {
		if switchesOff(command) {
			// As after a password session that has worked: tag, length and response code, no
			// parameters, and an empty nonce, attributes and an empty HMAC.
			return []byte{0x80, 0x02, 0, 0, 0, 19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}, nil
		}
		if c.Bus != nil {
			return c.Bus(command, ask)
		}
		return ask(command)
	}
}

// Of the TPM 2.0 library specification, part 2.
const (
	ccHierarchyControl = 0x121
	ccAt               = 6 // after the tag and the length
)

// switchesOff tells whether a command is TPM2_HierarchyControl whose last parameter, the
// state, is NO.
func switchesOff(command []byte) bool {
	return len(command) > ccAt+4 && binary.BigEndian.Uint32(command[ccAt:]) == ccHierarchyControl && command[len(command)-1] == 0
}
