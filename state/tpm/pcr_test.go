package tpm_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/tpmtest"
)

// toolPCR is the value that tpm2_pcrread prints, in lower case.
func toolPCR(m *tpmtest.Machine, bank tpm.Bank, pcr int) string {
	out := m.MustRun("", "tpm2_pcrread", fmt.Sprintf("%s:%d", bank, pcr))
	_, value, _ := strings.Cut(out, "0x")
	return strings.ToLower(strings.TrimSpace(value))
}

func TestExtendEveryBank(t *testing.T) {
	m := tpmtest.Start(t)
	chip := tpm.New(m)
	before := make(map[tpm.Bank]string)
	for _, bank := range pcrsig.Banks() {
		before[bank] = toolPCR(m, bank, 12)
	}
	if err := chip.Extend(t.Context(), 12, []byte("word")); err != nil {
		t.Fatal(err)
	}
	for _, bank := range pcrsig.Banks() {
		hash, err := bank.Hash()
		if err != nil {
			t.Fatal(err)
		}
		word, err := bank.Digest([]byte("word"))
		if err != nil {
			t.Fatal(err)
		}
		want, err := bank.Digest(append(make([]byte, hash.Size()), word...))
		if err != nil {
			t.Fatal(err)
		}
		if got := toolPCR(m, bank, 12); got != hex.EncodeToString(want) || got == before[bank] {
			t.Errorf("bank %s: tpm2_pcrread says %s, want %x", bank, got, want)
		}
		values, err := chip.ReadPCRs(t.Context(), bank, []int{12})
		if err != nil || !bytes.Equal(values[12], want) {
			t.Errorf("bank %s: ReadPCRs says %x, %v, want %x", bank, values[12], err, want)
		}
	}
}

func TestReadAllPCRs(t *testing.T) {
	m, chip := machine(t)
	all := make([]int, 24)
	for i := range all {
		all[i] = i
	}
	values, err := chip.ReadPCRs(t.Context(), pcrsig.SHA384, all)
	if err != nil {
		t.Fatal(err)
	}
	for _, pcr := range all {
		if got, want := hex.EncodeToString(values[pcr]), toolPCR(m, pcrsig.SHA384, pcr); got != want {
			t.Errorf("PCR %d: got %s, tpm2_pcrread says %s", pcr, got, want)
		}
	}
}

func TestBanks(t *testing.T) {
	m := tpmtest.StartWithBanks(t, "sha1,sha384")
	chip := tpm.New(m)
	got, err := chip.ActiveBanks(t.Context())
	if err != nil || !slices.Equal(got, []tpm.Bank{"sha1", "sha384"}) {
		t.Fatalf("ActiveBanks: got %v, %v", got, err)
	}
	if values, err := chip.ReadPCRs(t.Context(), pcrsig.SHA256, []int{7}); !errors.Is(err, tpm.ErrBank) || values != nil {
		t.Errorf("ReadPCRs of an inactive bank: got %v, %v, want ErrBank", values, err)
	}
	boot(t, chip)
	secret := newSecret(t)
	token := seal(t, chip, tpm.Policy{PCRs: []int{7}}, secret, nil)
	if token.Bank != pcrsig.SHA384 {
		t.Errorf("bank of a new token: got %s, want sha384", token.Bank)
	}
	unseal(t, chip, token, nil, nil, secret, nil)
}

func TestSealNeverTakesSHA1ByItself(t *testing.T) {
	chip := tpm.New(tpmtest.StartWithBanks(t, "sha1"))
	if token, err := chip.Seal(t.Context(), tpm.Policy{PCRs: []int{7}}, newSecret(t), nil); !errors.Is(err, tpm.ErrBank) {
		t.Errorf("got bank %q, %v, want ErrBank", token.Bank, err)
	}
}

func TestCapDoesAll(t *testing.T) {
	m, chip := machine(t)
	before := toolPCR(m, pcrsig.SHA1, 15)
	done, err := chip.Cap(t.Context(), nil, 11, 99, 15)
	if !errors.Is(err, pcrsig.ErrPCR) || !slices.Equal(done.PCRs, []int{11, 15}) || !slices.Equal(done.Banks, pcrsig.Banks()) {
		t.Errorf("got %+v, %v, want PCRs 11 and 15 capped in spite of 99", done, err)
	}
	if toolPCR(m, pcrsig.SHA1, 15) == before {
		t.Errorf("PCR 15 of bank sha1 has its old value")
	}
}

// refusing answers one command code with a failure.
type refusing struct {
	*tpmtest.Machine
	cc tpm2.TPMCC
}

func (r refusing) Send(ctx context.Context, command []byte) ([]byte, error) {
	if tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) == r.cc {
		return binary.BigEndian.AppendUint32([]byte{0x80, 0x01, 0, 0, 0, 10}, uint32(tpm2.TPMRCFailure)), nil
	}
	return r.Machine.Send(ctx, command)
}

// Where extending or listing banks fails, Cap leaves the same values behind.
func TestCapFallsBack(t *testing.T) {
	want := tpmtest.Start(t)
	if _, err := tpm.New(want).Cap(t.Context(), nil, 11, 15); err != nil {
		t.Fatal(err)
	}
	for _, cc := range []tpm2.TPMCC{tpm2.TPMCCPCRExtend, tpm2.TPMCCGetCapability} {
		m := tpmtest.Start(t)
		done, err := tpm.New(refusing{Machine: m, cc: cc}).Cap(t.Context(), nil, 11, 15)
		if err != nil || !slices.Equal(done.PCRs, []int{11, 15}) {
			t.Errorf("command %#x fails: got %+v, %v", uint32(cc), done, err)
		}
		for _, bank := range pcrsig.Banks() {
			for _, pcr := range []int{11, 15} {
				if got, want := toolPCR(m, bank, pcr), toolPCR(want, bank, pcr); got != want {
					t.Errorf("command %#x fails: PCR %d of bank %s: got %s, want %s", uint32(cc), pcr, bank, got, want)
				}
			}
		}
	}
	m := tpmtest.Start(t)
	if err := tpm.New(refusing{Machine: m, cc: tpm2.TPMCCGetCapability}).Extend(t.Context(), 11, []byte("x")); err == nil {
		t.Errorf("Extend without a list of banks: got no error")
	}
}

func TestSanity(t *testing.T) {
	chip := tpm.New(tpmtest.Start(t))
	if err := chip.Sanity(t.Context(), "", 7, 11); !errors.Is(err, tpm.ErrSanity) || !strings.Contains(err.Error(), "UKI stub") {
		t.Errorf("before boot: got %v, want ErrSanity that names the stub", err)
	}
	if err := chip.Sanity(t.Context(), "", 20); !errors.Is(err, tpm.ErrSanity) {
		t.Errorf("PCR 20, all FF: got %v, want ErrSanity", err)
	}
	boot(t, chip)
	if err := chip.Sanity(t.Context(), "", 7, 11); err != nil {
		t.Errorf("after boot: got %v", err)
	}
	if err := chip.Sanity(t.Context(), "", 7, 8); !errors.Is(err, tpm.ErrSanity) || !strings.Contains(err.Error(), "PCR 8 ") {
		t.Errorf("PCR 8: got %v, want ErrSanity that names it", err)
	}
}

// The log is a JSON text sequence (jq --seq reads it) in systemd's form, and its
// digests are those with which the PCRs can be recomputed.
func TestMeasureLog(t *testing.T) {
	m := tpmtest.Start(t)
	chip := tpm.New(m)
	var buf bytes.Buffer
	log := &tpm.Log{W: &buf, BootID: strings.Repeat("ab", 16), Now: func() time.Duration { return 3 * time.Second }}
	for _, e := range []tpm.Event{
		{PCR: 13, Data: []byte("root"), Text: "root hash of slot a", Type: "root"},
		{PCR: 13, Data: []byte(pcrsig.PhaseEnterInitrd), Text: pcrsig.PhaseEnterInitrd, Type: "phase"},
	} {
		if err := chip.Measure(t.Context(), e, log); err != nil {
			t.Fatal(err)
		}
	}
	if first, _, _ := strings.Cut(buf.String(), `"digests"`); first != "\x1e"+`{"pcr":13,` {
		t.Errorf("a record begins with %q", first)
	}
	cmd := exec.Command("jq", "--seq", "-c", "[.pcr, .content_type, .content, (.digests|map({key:.hashAlg,value:.digest})|from_entries)]")
	cmd.Stdin = &buf
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("jq: %v", err)
	}
	pcr := make([]byte, 32)
	for i, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		var digests map[string]string
		fields := []any{new(int), new(string), new(map[string]any), &digests}
		if err := json.Unmarshal([]byte(strings.TrimPrefix(line, "\x1e")), &fields); err != nil {
			t.Fatal(err)
		}
		content := *fields[2].(*map[string]any)
		if len(digests) != 4 || content["bootId"] != log.BootID || content["timestamp"] != 3e6 {
			t.Errorf("record %d: got %s", i, line)
		}
		d, err := hex.DecodeString(digests["sha256"])
		if err != nil {
			t.Fatal(err)
		}
		if pcr, err = pcrsig.SHA256.Digest(append(pcr, d...)); err != nil {
			t.Fatal(err)
		}
	}
	if got := toolPCR(m, pcrsig.SHA256, 13); got != hex.EncodeToString(pcr) {
		t.Errorf("PCR 13 by the log: %x, tpm2_pcrread says %s", pcr, got)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestMeasureWithoutLog(t *testing.T) {
	chip := tpm.New(tpmtest.Start(t))
	log := &tpm.Log{W: brokenWriter{}, Now: func() time.Duration { return 0 }}
	if err := chip.Measure(t.Context(), tpm.Event{PCR: 13, Data: []byte("x")}, log); !errors.Is(err, tpm.ErrLog) {
		t.Errorf("got %v, want ErrLog", err)
	}
	if err := chip.Sanity(t.Context(), "", 13); err != nil {
		t.Errorf("the PCR was not extended: %v", err)
	}
}
