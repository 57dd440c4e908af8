package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"
)

// scriptedTransport answers the n-th command, counted from 0.
type scriptedTransport struct {
	answer func(n int) ([]byte, error)
	sent   int
}

func (s *scriptedTransport) Send(context.Context, []byte) ([]byte, error) {
	s.sent++
	return s.answer(s.sent - 1)
}

func (*scriptedTransport) Close() error { return nil }

// A command that is given up is sent again for a while; those after it, until one
// is answered, only once.
func TestGivenUpCommandsAreSentAgain(t *testing.T) {
	broken := true
	s := &scriptedTransport{answer: func(int) ([]byte, error) {
		if broken {
			return nil, fmt.Errorf("%w: %w", ErrFails, unix.EIO)
		}
		return withHeader(tpm2.TPMSTNoSessions, 0, nil), nil
	}}
	var slept time.Duration
	chip := &TPM{t: s, sleep: func(_ context.Context, d time.Duration) error { slept += d; return nil }}
	b := chip.bind(t.Context())
	for i, want := range []int{givenUpTries, 1, 1, 1, givenUpTries} {
		if broken = i != 3; i == 3 {
			want = 1
		}
		s.sent = 0
		err := b.do(command{code: tpm2.TPMCCFlushContext})
		if s.sent != want || (err == nil) == broken || err != nil && (!errors.Is(err, ErrFails) || !errors.Is(err, unix.EIO)) {
			t.Errorf("command %d: sent %d times, %v, want %d times", i, s.sent, err, want)
		}
	}
	if slept < 10*time.Second || slept > 30*time.Second {
		t.Errorf("the two waits took %v together", slept)
	}
	chip.gaveUp, s.sent = false, 0
	if err := b.do(command{code: tpm2.TPMCCPCRExtend, once: true}); !errors.Is(err, ErrFails) || s.sent != 1 || chip.gaveUp {
		t.Errorf("a command not to be repeated: sent %d times, %v", s.sent, err)
	}
}

// "Done already" counts only as the answer to a command that was sent again.
func TestDoneAlready(t *testing.T) {
	gone := withHeader(tpm2.TPMSTNoSessions, tpm2.TPMRCHandle, nil)
	for _, lost := range []bool{false, true} {
		s := &scriptedTransport{answer: func(n int) ([]byte, error) {
			if lost && n == 0 {
				return nil, ErrFails
			}
			return gone, nil
		}}
		chip := &TPM{t: s, sleep: func(context.Context, time.Duration) error { return nil }}
		if err := chip.bind(t.Context()).flush(1); (err == nil) != lost {
			t.Errorf("answer lost %v: %v", lost, err)
		}
	}
}

func TestReadError(t *testing.T) {
	for err, want := range map[error]error{
		unix.ETIME: ErrFails, unix.EIO: ErrFails, unix.EBUSY: ErrFails, unix.EFAULT: ErrFails,
		unix.EPIPE: ErrNoTPM, unix.ENODEV: ErrNoTPM,
	} {
		if got := readError(err); got != want {
			t.Errorf("%v: got %v, want %v", err, got, want)
		}
	}
}

// The answer to a command that nobody waited for is not taken for that to the next.
func TestLateAnswer(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := &device{fd: fds[0], path: "tpm"}
	defer d.Close()
	defer unix.Close(fds[1])
	rsp := func(rc uint32) []byte {
		return binary.BigEndian.AppendUint32([]byte{0x80, 0x01, 0, 0, 0, 10}, rc)
	}
	expired, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	for range 2 {
		if got, err := d.Send(expired, []byte("first")); !errors.Is(err, ErrBusy) || got != nil {
			t.Fatalf("got %x, %v, want ErrBusy", got, err)
		}
	}
	for _, rc := range []uint32{1, 2} {
		if _, err := unix.Write(fds[1], rsp(rc)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := d.Send(t.Context(), []byte("second"))
	if err != nil || string(got) != string(rsp(2)) {
		t.Errorf("got %x, %v, want %x", got, err, rsp(2))
	}
	buf := make([]byte, 100)
	for _, want := range []string{"first", "second"} {
		if n, err := unix.Read(fds[1], buf); err != nil || string(buf[:n]) != want {
			t.Errorf("sent: %q, %v, want %q", buf[:n], err, want)
		}
	}
}
