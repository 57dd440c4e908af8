// Package tpm seals the secret of the encrypted state volume to a TPM 2.0 and
// gets it back, and measures what boot does. Tokens, policies and sealed objects
// are those of systemd-cryptenroll(1) (reference: systemd src/shared/tpm2-util.c),
// so that systemd's tools work on the same volume.
//
// Names and quantities: a policy is sealed to PCR values of one bank; every
// extend goes to all active banks, because a policy can be met through any bank
// that is left as it was.
//
// The TPM is reached over a bus that an attacker may read (never change: an
// active interposer is out of reach of this package as long as the SRK's Name
// comes from an untrusted token). Secrets therefore travel only in sessions that
// are salted with a key of the TPM and encrypt parameters.
package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"

	"sealroot/state/tpm/pcrsig"
)

// Bank is a PCR bank, named as systemd names it: "sha256".
type Bank = pcrsig.Bank

// ErrBank is returned for a PCR bank this program cannot compute.
var ErrBank = pcrsig.ErrBank

// Transport carries one TPM command to a TPM and brings its response: the device
// of Open, or tpmtest's software TPM.
type Transport interface {
	// Send returns the response to one command, or an error that wraps ErrBusy
	// when ctx ended first, ErrFails when the command was given up: it may be done
	// or not, and may be sent again. The response belongs to the caller.
	Send(ctx context.Context, command []byte) ([]byte, error)
	Close() error
}

// TPM is a connection to a TPM 2.0. Its methods can be called from several
// goroutines; each takes a context whose end is the deadline of the operation.
type TPM struct {
	mu      sync.Mutex // one command at a time
	t       Transport
	sleep   func(context.Context, time.Duration) error
	repeats int  // commands sent again that the TPM may have done already
	gaveUp  bool // the last command was repeated for nothing
}

// New makes a TPM of a transport, which Close closes.
func New(t Transport) *TPM { return &TPM{t: t, sleep: sleepContext} }

// Close closes the transport.
func (t *TPM) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.t.Close()
}

// bound is the TPM for the time of one operation.
type bound struct {
	t   *TPM
	ctx context.Context
}

func (t *TPM) bind(ctx context.Context) bound { return bound{t: t, ctx: ctx} }

// givenUpTries is how often a command is sent that is given up each time: for about
// ten seconds, beside what the kernel itself waits. Only the first command waits as
// long, or a boot would stand for minutes before a TPM that is broken.
const givenUpTries = 50

// send sends a command, until the context ends: again while the TPM asks for that,
// and where it was given up, unless it must not be done twice. repeated tells that
// the TPM may have done it before.
func (b bound) send(command []byte, once bool) (rsp []byte, repeated bool, err error) {
	t := b.t
	t.mu.Lock()
	defer t.mu.Unlock()
	givenUp := 0
	for delay := 5 * time.Millisecond; ; delay = min(2*delay, 200*time.Millisecond) {
		if err := b.ctx.Err(); err != nil {
			kind := ErrBusy
			if t.gaveUp {
				kind = ErrFails
			}
			return nil, repeated, fmt.Errorf("%w: no time is left: %w", kind, err)
		}
		rsp, err := t.t.Send(b.ctx, command)
		switch {
		case err == nil && len(rsp) < headerSize:
			return nil, repeated, fmt.Errorf("%w: %w: %d bytes", ErrNoTPM, errResponse, len(rsp))
		case err == nil:
			t.gaveUp = false
			rc := tpm2.TPMRC(binary.BigEndian.Uint32(rsp[6:]))
			if rc != tpm2.TPMRCRetry && rc != tpm2.TPMRCYielded && rc != tpm2.TPMRCTesting {
				return rsp, repeated, nil
			}
			err = fmt.Errorf("%w: it asks to repeat a command: %w", ErrBusy, rc)
		case !errors.Is(err, ErrFails):
			return nil, repeated, err
		case once:
			return nil, repeated, err
		default:
			if givenUp++; t.gaveUp || givenUp == givenUpTries {
				t.gaveUp = true
				return nil, repeated, err
			}
			repeated = true
			t.repeats++
		}
		if sleepErr := t.sleep(b.ctx, delay); sleepErr != nil {
			t.gaveUp = errors.Is(err, ErrFails)
			return nil, repeated, fmt.Errorf("%w: %w", err, sleepErr)
		}
	}
}

// sessionTries bounds the repeats of what is done in one session (systemd uses the
// same number).
const sessionTries = 30

// retrying repeats f, which works in a session of its own, while someone else
// extends PCRs in between, and where it failed after a command that the TPM may
// have done twice: that extends a policy once more, and leaves behind the nonces
// of a session. A PIN that the TPM refused is not tried again.
func (b bound) retrying(pin bool, f func() error) (err error) {
	for range sessionTries {
		before := b.repeats()
		err = f()
		switch {
		case errors.Is(err, tpm2.TPMRCPCRChanged):
		case err == nil, b.repeats() == before, b.ctx.Err() != nil,
			errors.Is(err, ErrFails), errors.Is(err, ErrLockedOut), pin && errors.Is(err, ErrPIN):
			return err
		}
	}
	return err
}

func (b bound) repeats() int {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	return b.t.repeats
}

func sleepContext(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// flush frees a transient object or session. It works after the operation's
// context has ended too: a handle that stays is lost to everyone after us.
func (b bound) flush(handle tpm2.TPMHandle) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), 5*time.Second)
	defer cancel()
	err := b.t.bind(ctx).do(command{
		code: tpm2.TPMCCFlushContext, handles: []tpm2.NamedHandle{byHandle(handle)}, already: tpm2.TPMRCHandle,
	})
	if err != nil {
		return fmt.Errorf("cannot flush TPM handle %#x: %w", uint32(handle), err)
	}
	return nil
}

// GetRandom returns n random bytes from the TPM, to be mixed with the kernel's,
// never used alone: on the bus they can be read.
func (t *TPM) GetRandom(ctx context.Context, n int) ([]byte, error) {
	if n < 0 || n > 4096 {
		return nil, fmt.Errorf("cannot get %d random bytes from TPM: out of range", n)
	}
	b := t.bind(ctx)
	out := make([]byte, 0, n)
	for len(out) < n {
		rsp, err := b.run(command{
			code: tpm2.TPMCCGetRandom, params: binary.BigEndian.AppendUint16(nil, uint16(min(n-len(out), 32))),
		})
		if err != nil {
			return nil, fmt.Errorf("cannot get random bytes from TPM: %w", classify(err))
		}
		random := rsp.sized()
		if err := rsp.end(); err != nil || len(random) == 0 {
			return nil, fmt.Errorf("cannot get random bytes from TPM: %w", errResponse)
		}
		out = append(out, random...)
	}
	return out[:n], nil
}
