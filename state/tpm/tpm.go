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
	// when ctx ended first. The response belongs to the caller.
	Send(ctx context.Context, command []byte) ([]byte, error)
	Close() error
}

// TPM is a connection to a TPM 2.0. Its methods can be called from several
// goroutines; each takes a context whose end is the deadline of the operation.
type TPM struct {
	mu    sync.Mutex // one command at a time
	t     Transport
	sleep func(context.Context, time.Duration) error
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

// Response codes by which the TPM asks for the same command once more.
const (
	rcRetry   = uint32(tpm2.TPMRCRetry)
	rcYielded = uint32(tpm2.TPMRCYielded)
	rcTesting = uint32(tpm2.TPMRCTesting)
)

// send repeats the command while the TPM asks for that, until the context ends.
func (b bound) send(command []byte) ([]byte, error) {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	for delay := 5 * time.Millisecond; ; delay = min(2*delay, 200*time.Millisecond) {
		rsp, err := b.t.t.Send(b.ctx, command)
		if err != nil {
			return nil, err
		}
		if len(rsp) < 10 {
			return nil, fmt.Errorf("%w: response of %d bytes", ErrNoTPM, len(rsp))
		}
		rc := binary.BigEndian.Uint32(rsp[6:])
		if rc != rcRetry && rc != rcYielded && rc != rcTesting {
			return rsp, nil
		}
		if err := b.t.sleep(b.ctx, delay); err != nil {
			return nil, fmt.Errorf("%w: it asks to repeat a command (%v): %w", ErrBusy, tpm2.TPMRC(rc), err)
		}
	}
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
	if err := b.t.bind(ctx).do(command{code: tpm2.TPMCCFlushContext, handles: []tpm2.NamedHandle{byHandle(handle)}}); err != nil {
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
