package machine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"
)

// Whoever stands before the TPM may hold an answer back when the power goes off: the
// TPM ends all the same.
func TestBusHoldsNoTPM(t *testing.T) {
	held, off := make(chan struct{}), make(chan struct{})
	defer close(off)
	chip, err := startTPM(t.TempDir(), func([]byte, func([]byte) ([]byte, error)) ([]byte, error) {
		close(held)
		<-off
		return nil, errors.New("the power is off")
	})
	if err != nil {
		t.Fatal(err)
	}
	defer chip.remove()
	defer chip.process.kill()
	control, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: chip.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	// As QEMU does (swtpm_ioctls(3)): the socket for commands, then the start.
	const setDataFD, start = 0x10, 0x2
	for _, m := range []struct {
		words  []uint32
		rights []byte
	}{{[]uint32{setDataFD}, syscall.UnixRights(pair[1])}, {[]uint32{start, 0}, nil}} {
		var message []byte
		for _, w := range m.words {
			message = binary.BigEndian.AppendUint32(message, w)
		}
		if _, _, err := control.WriteMsgUnix(message, m.rights, nil); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 4)
		if _, err := control.Read(answer); err != nil || !bytes.Equal(answer, make([]byte, 4)) {
			t.Fatalf("swtpm answers %x, %v", answer, err)
		}
	}
	syscall.Close(pair[1])
	startup := []byte{0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x44, 0, 0}
	if _, err := syscall.Write(pair[0], startup); err != nil {
		t.Fatal(err)
	}
	<-held
	syscall.Close(pair[0])
	control.Close()
	if err := chip.process.wait(30 * time.Second); errors.Is(err, ErrStillRunning) {
		t.Errorf("the TPM runs on beside an answer that is held back: %v", err)
	}
}
