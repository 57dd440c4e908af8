package machine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// Bus stands between the machine and its TPM: it gets every command and returns the
// answer. ask has the TPM answer.
type Bus func(command []byte, ask func(command []byte) ([]byte, error)) ([]byte, error)

// bus serves QEMU at a socket of its own with the TPM behind another one. QEMU's
// first message on the control channel brings the socket on which commands go
// (swtpm_ioctls(3), CMD_SET_DATAFD): that one is exchanged, the rest passed on.
type bus struct {
	listener *net.UnixListener
	socket   string // the TPM's
	between  Bus
}

// startBus serves at path. It ends with its listener.
func startBus(path, socket string, between Bus) (*bus, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("cannot put something before the TPM: %w", err)
	}
	b := &bus{l, socket, between}
	go func() {
		qemu, err := l.AcceptUnix()
		if err != nil {
			return // closed
		}
		defer qemu.Close()
		// Whatever fails here is a TPM that does not answer: the guest's to deal with.
		_ = b.serve(qemu)
	}()
	return b, nil
}

// serve passes the control channel on until either end closes it. The TPM's channel
// for commands ends with it, whoever holds an answer back: while one is open, swtpm
// does not end.
func (b *bus) serve(qemu *net.UnixConn) error {
	tpm, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: b.socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer tpm.Close()
	go func() {
		_, _ = io.Copy(qemu, tpm)
		qemu.Close()
	}()
	var commands *os.File
	defer func() {
		if commands != nil {
			commands.Close()
		}
	}()
	message, rights := make([]byte, 64<<10), make([]byte, syscall.CmsgSpace(4))
	for {
		n, oobn, _, _, err := qemu.ReadMsgUnix(message, rights)
		if err != nil || n == 0 {
			return err
		}
		if oobn == 0 {
			_, err = tpm.Write(message[:n])
		} else if ours, end, exchangeErr := b.exchange(rights[:oobn]); exchangeErr != nil {
			return exchangeErr
		} else {
			commands = end
			_, _, err = tpm.WriteMsgUnix(message[:n], syscall.UnixRights(int(ours.Fd())), nil)
			ours.Close()
		}
		if err != nil {
			return err
		}
	}
}

// exchange takes QEMU's socket for commands and returns the TPM's end of ours, and our end.
func (b *bus) exchange(rights []byte) (theirs, ours *os.File, err error) {
	list, err := syscall.ParseSocketControlMessage(rights)
	if err != nil || len(list) != 1 {
		return nil, nil, errors.Join(errors.New("no descriptor"), err)
	}
	fds, err := syscall.ParseUnixRights(&list[0])
	if err != nil || len(fds) != 1 {
		return nil, nil, errors.Join(errors.New("no descriptor"), err)
	}
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	// Blocking descriptors: their reads end when the other end is closed.
	qemu, tpm := os.NewFile(uintptr(fds[0]), "qemu"), os.NewFile(uintptr(pair[0]), "tpm")
	go func() {
		defer qemu.Close()
		defer tpm.Close()
		_ = b.relay(qemu, tpm)
	}()
	return os.NewFile(uintptr(pair[1]), "commands"), tpm, nil
}

// relay has each command of QEMU answered.
func (b *bus) relay(qemu, tpm io.ReadWriter) error {
	ask := func(command []byte) ([]byte, error) {
		if _, err := tpm.Write(command); err != nil {
			return nil, err
		}
		return packet(tpm)
	}
	for {
		command, err := packet(qemu)
		if err != nil {
			return err
		}
		answer, err := b.between(command, ask)
		if err != nil {
			return err
		}
		if _, err := qemu.Write(answer); err != nil {
			return err
		}
	}
}

// packet reads one command or answer of a TPM: a tag, the length of all, the rest.
func packet(r io.Reader) ([]byte, error) {
	const header, most = 10, 8 << 10
	head := make([]byte, header)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[2:])
	if n < header || n > most {
		return nil, fmt.Errorf("a packet of %d bytes", n)
	}
	all := append(head, make([]byte, n-header)...)
	_, err := io.ReadFull(r, all[header:])
	return all, err
}
