package tpm_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"

	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/tpmtest"
)

// lossy is a TPM whose kernel gives up the commands that lose picks, before the
// TPM has done them or (done) after.
type lossy struct {
	*tpmtest.Machine
	lose func(n int, code tpm2.TPMCC) bool // n counts from 1
	done bool
	sent []tpm2.TPMCC
}

func (l *lossy) Send(ctx context.Context, command []byte) ([]byte, error) {
	code := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))
	l.sent = append(l.sent, code)
	if !l.lose(len(l.sent), code) {
		return l.Machine.Send(ctx, command)
	}
	if l.done {
		if _, err := l.Machine.Send(ctx, command); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: cannot read from /dev/tpmrm0: %w", tpm.ErrFails, unix.ETIME)
}

func (l *lossy) times(code tpm2.TPMCC) (n int) {
	for _, sent := range l.sent {
		if sent == code {
			n++
		}
	}
	return n
}

// story uses all that a boot needs of a TPM but extending PCRs.
func story(t *testing.T, chip *tpm.TPM, policy tpm.Policy, sigs pcrsig.File) {
	t.Helper()
	secret := newSecret(t)
	token, err := chip.Seal(t.Context(), policy, secret, nil)
	if err != nil {
		t.Fatal(err)
	}
	unseal(t, chip, token, sigs, nil, secret, nil)
	if err := chip.RaiseFloor(t.Context(), policy, sigs, floorOf(3)); err != nil {
		t.Fatal(err)
	}
	wantFloor(t, chip, policy, 3, nil)
	mark := tpm.Mark{Volume: [16]byte{1}}
	if err := chip.WriteMark(t.Context(), mark); err != nil {
		t.Fatal(err)
	}
	if got, set, err := chip.ReadMark(t.Context()); got != mark || !set || err != nil {
		t.Fatalf("ReadMark: got %v, %v, %v", got, set, err)
	}
	if err := chip.RemoveMark(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Every command is given up once, whether or not the TPM gets it.
func TestEveryCommandIsGivenUpOnce(t *testing.T) {
	m, _, policy, sigs := floorMachine(t)
	l := &lossy{Machine: m, lose: func(n int, _ tpm2.TPMCC) bool { return n%2 == 1 }}
	story(t, tpm.New(l), policy, sigs)
	if len(l.sent) < 60 {
		t.Errorf("%d commands were sent", len(l.sent))
	}
}

// The TPM has done a command, and its answer is lost: for each command in turn.
func TestEveryAnswerIsLostOnce(t *testing.T) {
	m, _, policy, sigs := floorMachine(t)
	for _, code := range []tpm2.TPMCC{
		tpm2.TPMCCGetCapability, tpm2.TPMCCReadPublic, tpm2.TPMCCCreatePrimary, tpm2.TPMCCEvictControl, tpm2.TPMCCFlushContext,
		tpm2.TPMCCPCRRead, tpm2.TPMCCStartAuthSession, tpm2.TPMCCCreate, tpm2.TPMCCLoad, tpm2.TPMCCUnseal,
		tpm2.TPMCCPolicyPCR, tpm2.TPMCCPolicyGetDigest, tpm2.TPMCCPolicyAuthorize, tpm2.TPMCCLoadExternal, tpm2.TPMCCVerifySignature,
		tpm2.TPMCCNVReadPublic, tpm2.TPMCCNVDefineSpace, tpm2.TPMCCNVWrite, tpm2.TPMCCNVRead, tpm2.TPMCCNVUndefineSpace,
	} {
		t.Run(fmt.Sprintf("%#x", uint32(code)), func(t *testing.T) {
			m.MustRun("", "tpm2_clear") // no SRK, no index
			lost := false
			l := &lossy{Machine: m, done: true, lose: func(_ int, sent tpm2.TPMCC) bool {
				first := sent == code && !lost
				lost = lost || first
				return first
			}}
			story(t, tpm.New(l), policy, sigs)
			if !lost {
				t.Error("the command was never sent")
			}
			// What nobody knows of stays until the device is closed.
			m.MustRun("", "tpm2_flushcontext", "-t")
			m.MustRun("", "tpm2_flushcontext", "-l")
		})
	}
}

// An extend of which nobody knows whether it is done is not done again, or the PCR
// is not what anybody expects; a cap is, until it is done.
func TestExtendIsNotRepeated(t *testing.T) {
	for _, done := range []bool{false, true} {
		m, chip := machine(t)
		before := pcr(t, chip, 13)
		l := &lossy{Machine: m, done: done, lose: func(_ int, code tpm2.TPMCC) bool { return code == tpm2.TPMCCPCRExtend }}
		if err := tpm.New(l).Extend(t.Context(), 13, []byte("x")); !errors.Is(err, tpm.ErrFails) || l.times(tpm2.TPMCCPCRExtend) != 1 {
			t.Errorf("done %v: %v, sent %d times", done, err, l.times(tpm2.TPMCCPCRExtend))
		}
		if changed := !bytes.Equal(before, pcr(t, chip, 13)); changed != done {
			t.Errorf("done %v: the PCR has changed: %v", done, changed)
		}
		before = pcr(t, chip, 11)
		l.lose = func(n int, _ tpm2.TPMCC) bool { return n%2 == 0 }
		var written strings.Builder
		marked := false
		log := &tpm.Log{W: &written, Now: func() time.Duration { return 0 }, Incomplete: func(on bool) error { marked = on; return nil }}
		if got, err := tpm.New(l).Cap(t.Context(), log, 11); err != nil || len(got.PCRs) != 1 || bytes.Equal(before, pcr(t, chip, 11)) {
			t.Errorf("done %v: Cap: %+v, %v", done, got, err)
		}
		if !marked || written.Len() != 0 {
			t.Errorf("done %v: the log says that it is complete: %q", done, written.String())
		}
	}
}

func pcr(t *testing.T, chip *tpm.TPM, n int) []byte {
	t.Helper()
	values, err := chip.ReadPCRs(t.Context(), pcrsig.SHA256, []int{n})
	if err != nil {
		t.Fatal(err)
	}
	return values[n]
}

// A TPM that never does anything: each operation ends by its deadline, and what it
// says is that the TPM fails, or what the TPM itself says.
func TestFailingForGood(t *testing.T) {
	m, chip, policy, sigs := floorMachine(t)
	secret := newSecret(t)
	token := seal(t, chip, policy, secret, nil)
	const limit = 15 * time.Second // long enough for a busy host to begin within it
	var all sync.WaitGroup         // most of them take all of it
	for name, transport := range map[string]func() tpm.Transport{
		"given_up": func() tpm.Transport { return &lossy{Machine: m, lose: func(int, tpm2.TPMCC) bool { return true }} },
		"failure_mode": func() tpm.Transport {
			return &moody{Machine: m, rc: tpm2.TPMRCFailure, times: -1, count: make(map[string]int)}
		},
	} {
		for _, op := range []struct {
			name string
			run  func(context.Context, *tpm.TPM) error
		}{
			{"Unseal", func(ctx context.Context, broken *tpm.TPM) error {
				_, err := broken.Unseal(ctx, token, sigs, nil)
				return err
			}},
			{"Seal", func(ctx context.Context, broken *tpm.TPM) error {
				_, err := broken.Seal(ctx, policy, secret, nil)
				return err
			}},
			{"ActiveBanks", func(ctx context.Context, broken *tpm.TPM) error { _, err := broken.ActiveBanks(ctx); return err }},
			{"ReadMark", func(ctx context.Context, broken *tpm.TPM) error { _, _, err := broken.ReadMark(ctx); return err }},
			{"WriteMark", func(ctx context.Context, broken *tpm.TPM) error { return broken.WriteMark(ctx, tpm.Mark{}) }},
			{"ReadFloor", func(ctx context.Context, broken *tpm.TPM) error { _, err := broken.ReadFloor(ctx, policy); return err }},
			{"GetRandom", func(ctx context.Context, broken *tpm.TPM) error { _, err := broken.GetRandom(ctx, 32); return err }},
			{"Extend", func(ctx context.Context, broken *tpm.TPM) error { return broken.Extend(ctx, 13, nil) }},
			{"Cap", func(ctx context.Context, broken *tpm.TPM) error { _, err := broken.Cap(ctx, nil, 11, 15); return err }},
		} {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				begin := time.Now()
				if err := op.run(ctx, tpm.New(transport())); !errors.Is(err, tpm.ErrFails) {
					t.Errorf("%s: %s: got %v, want ErrFails", name, op.name, err)
				}
				if d := time.Since(begin); d > 10*limit {
					t.Errorf("%s: %s took %v with a deadline of %v", name, op.name, d, limit)
				}
			})
		}
	}
	all.Wait()
}

// A floor that cannot be read just now is not taken for none, and not lowered.
func TestFloorIsNotLoweredByAFailure(t *testing.T) {
	m, chip, policy, sigs := floorMachine(t)
	if err := chip.RaiseFloor(t.Context(), policy, sigs, floorOf(5)); err != nil {
		t.Fatal(err)
	}
	for _, transport := range []tpm.Transport{
		&lossy{Machine: m, lose: func(_ int, code tpm2.TPMCC) bool { return code == tpm2.TPMCCNVRead }},
		&refuses{Machine: m, code: tpm2.TPMCCNVRead, rc: tpm2.TPMRCRetry},
		&refuses{Machine: m, code: tpm2.TPMCCNVRead, rc: tpm2.TPMRCFailure},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		err := tpm.New(transport).RaiseFloor(ctx, policy, sigs, floorOf(2))
		if !errors.Is(err, tpm.ErrFails) && !errors.Is(err, tpm.ErrBusy) || errors.Is(err, tpm.ErrUnpinned) {
			t.Errorf("%T: RaiseFloor: %v, want ErrFails or ErrBusy", transport, err)
		}
		cancel()
		wantFloor(t, chip, policy, 5, nil)
	}
	// Control: the TPM that says no to the reader is taken for one without a floor.
	no := &refuses{Machine: m, code: tpm2.TPMCCNVRead, rc: tpm2.TPMRCAuthFail}
	if err := tpm.New(no).RaiseFloor(t.Context(), policy, sigs, floorOf(2)); err != nil {
		t.Fatal(err)
	}
	wantFloor(t, chip, policy, 2, nil)
}

// refuses is a TPM that answers one command with a response code.
type refuses struct {
	*tpmtest.Machine
	code tpm2.TPMCC
	rc   tpm2.TPMRC
}

func (r *refuses) Send(ctx context.Context, command []byte) ([]byte, error) {
	if tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) == r.code {
		return binary.BigEndian.AppendUint32([]byte{0x80, 0x01, 0, 0, 0, 10}, uint32(r.rc)), nil
	}
	return r.Machine.Send(ctx, command)
}

// restless is a TPM in which someone extends a PCR just before each Unseal.
type restless struct {
	*tpmtest.Machine
	t     *testing.T
	times int
	seen  int
}

func (r *restless) Send(ctx context.Context, command []byte) ([]byte, error) {
	if tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) == tpm2.TPMCCUnseal {
		if r.seen++; r.seen <= r.times {
			if err := tpm.New(r.Machine).Extend(r.t.Context(), 8, nil); err != nil {
				r.t.Fatal(err)
			}
		}
	}
	return r.Machine.Send(ctx, command)
}

func TestPCRsChangeMeanwhile(t *testing.T) {
	m, chip, policy, sigs := floorMachine(t)
	secret := newSecret(t)
	token := seal(t, chip, policy, secret, nil)
	r := &restless{Machine: m, t: t, times: 29}
	unseal(t, tpm.New(r), token, sigs, nil, secret, nil)
	if r.seen != 30 {
		t.Errorf("%d tries, want 30", r.seen)
	}
	r = &restless{Machine: m, t: t, times: 1 << 30}
	unseal(t, tpm.New(r), token, sigs, nil, nil, tpm.ErrBusy)
	if r.seen != 30 {
		t.Errorf("%d tries for ever, want 30", r.seen)
	}
}

// Wrong PINs lock the TPM; that is said, also to the right PIN, and a lost answer
// never makes one wrong PIN two.
func TestPINLockout(t *testing.T) {
	m, chip := machine(t)
	secret, pin := newSecret(t), []byte("1234")
	token := seal(t, chip, tpm.Policy{PCRs: []int{7}, PIN: true}, secret, pin)
	plain := seal(t, chip, tpm.Policy{PCRs: []int{7}}, secret, nil)
	m.MustRun("", "tpm2_dictionarylockout", "-s", "-n", "3", "-t", "1000", "-l", "1000")
	unseal(t, chip, token, nil, pin, secret, nil)

	l := &lossy{Machine: m, done: true, lose: func(_ int, code tpm2.TPMCC) bool { return code == tpm2.TPMCCUnseal }}
	unseal(t, tpm.New(l), token, nil, []byte("wrong"), nil, tpm.ErrFails)
	if n := l.times(tpm2.TPMCCUnseal); n != 1 {
		t.Errorf("a PIN was sent %d times", n)
	}
	for range 2 {
		unseal(t, chip, token, nil, []byte("wrong"), nil, tpm.ErrPIN)
	}
	for _, try := range [][]byte{[]byte("wrong"), pin} {
		_, err := chip.Unseal(t.Context(), token, nil, try)
		if !errors.Is(err, tpm.ErrLockedOut) || errors.Is(err, tpm.ErrPIN) {
			t.Errorf("after three wrong PINs: got %v, want ErrLockedOut", err)
		}
	}
	unseal(t, chip, plain, nil, nil, secret, nil) // without a PIN it opens as ever
	m.MustRun("", "tpm2_dictionarylockout", "-c")
	unseal(t, chip, token, nil, pin, secret, nil)
}

// Where one PCR that was at zero makes the difference, it is named.
func TestChangedPCRIsNamed(t *testing.T) {
	for _, tc := range []struct {
		change []int
		want   string
	}{
		{[]int{15}, "PCR 15 of bank sha256"},
		{[]int{12}, "PCR 12 of bank sha256"},
		{[]int{4}, "one of the PCRs 4, 12, 15 of bank sha256"},
		{[]int{12, 15}, "one of the PCRs 4, 12, 15 of bank sha256"},
	} {
		_, chip := machine(t)
		policy := tpm.Policy{PCRs: []int{15, 12, 4}, PIN: true}
		token := seal(t, chip, policy, newSecret(t), []byte("1"))
		for _, n := range tc.change {
			if err := chip.Extend(t.Context(), n, []byte("change")); err != nil {
				t.Fatal(err)
			}
		}
		_, err := chip.Unseal(t.Context(), token, nil, []byte("1"))
		var changed *tpm.PCRsChangedError
		if !errors.As(err, &changed) || !strings.HasPrefix(changed.Error(), tc.want) {
			t.Errorf("%v changed: got %v, want %s", tc.change, err, tc.want)
		}
	}
}
