package machine

import (
	"encoding/binary"
	"fmt"
	"time"
)

// startsAnew is how often a machine begins anew because its firmware gave up its TPM.
const startsAnew = 3

// bus is what stands before the TPM. On a host that stands still for a second SeaBIOS takes
// the TPM for broken: it measures nothing more, and switches the hierarchies off until the
// next start (tcgbios.c, tpm_set_failure), as if it were another TPM. The commands are left
// out, and givenUp is called, long before any system is loaded.
func (c *Config) bus(givenUp func()) Bus {
	if c.Firmware != BIOS && c.Firmware != DirectKernel {
		return c.Bus
	}
	between := c.Bus
	if between == nil {
		between = func(command []byte, ask func([]byte) ([]byte, error)) ([]byte, error) { return ask(command) }
	}
	var f firmware
	return func(command []byte, ask func([]byte) ([]byte, error)) ([]byte, error) {
		hierarchy := switchedOff(command)
		if hierarchy == endorsement { // the first of them
			givenUp()
		}
		if hierarchy != 0 {
			// As after a password session that has worked: tag, length and response code, no
			// parameters, and an empty nonce, attributes and an empty HMAC.
			return []byte{0x80, 0x02, 0, 0, 0, 19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}, nil
		}
		waits, began := f.waits(command), time.Now()
		answer, err := between(command, ask)
		if waits && time.Since(began) > firmwareTime {
			givenUp() // and while the TPM is at it, the commands do not even come here
		}
		return answer, err
	}
}

// firmwareTime is less than what SeaBIOS allows for any answer (tcgbios.c,
// TIS2_DEFAULT_DURATION_SHORT: 750 ms).
const firmwareTime = 500 * time.Millisecond

// firmware is SeaBIOS at work with a TPM: from its start on until each of its PCRs has a
// separator, which is the last that it does.
type firmware struct {
	starts bool
	left   int // separators
}

// waits tells of the next command whether it is SeaBIOS who waits for its answer.
func (f *firmware) waits(command []byte) bool {
	switch commandCode(command) {
	case ccStartup:
		*f = firmware{starts: true}
	case ccHierarchyChangeAuth:
		*f = firmware{left: firmwarePCRs}
		return true
	case ccPCRExtend:
		if f.left > 0 {
			f.left--
			return true
		}
	}
	return f.starts || f.left > 0
}

// anew presses the reset button of a machine whose firmware gave up its TPM.
func (g *Guest) anew() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.anews == startsAnew || g.killed {
		return
	}
	g.anews++
	g.goesOn = true
	if g.config.Log != nil {
		fmt.Fprintln(g.config.Log, "(the firmware gave up the TPM: the machine begins anew)")
	}
	// An error is that the machine has ended.
	go func(e *emulator) { _, _ = e.query("system_reset", nil) }(g.now)
}

// Of the TPM 2.0 library specification, part 2.
const (
	ccHierarchyControl    = 0x121
	ccHierarchyChangeAuth = 0x129
	ccStartup             = 0x144
	ccPCRExtend           = 0x182
	ccAt                  = 6 // after the tag and the length
	endorsement           = 0x4000000b
)

// firmwarePCRs are those that the firmware measures into.
const firmwarePCRs = 8

func commandCode(command []byte) uint32 {
	if len(command) < ccAt+4 {
		return 0
	}
	return binary.BigEndian.Uint32(command[ccAt:])
}

// switchedOff is the hierarchy, the last parameter but one, that a command which is
// TPM2_HierarchyControl with the state NO switches off; 0 for other commands.
func switchedOff(command []byte) (hierarchy uint32) {
	n := len(command)
	if n < ccAt+4+5 || commandCode(command) != ccHierarchyControl || command[n-1] != 0 {
		return 0
	}
	return binary.BigEndian.Uint32(command[n-5:])
}
