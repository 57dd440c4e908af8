package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/recovery"
	"sealroot/sealroot/schematest"
	"sealroot/sealroot/volume"
	"sealroot/state"
	"sealroot/state/enrol"
	"sealroot/state/luks2"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/predict"
	"sealroot/state/tpm/tpmtest"
)

const volumeID = "11111111-2222-4333-8444-555555555555"

// sealed is a machine whose state is sealed to PCR 7 of a TPM.
type sealed struct {
	t        *testing.T
	tpm      *tpmtest.Machine
	env      Env
	report   *report.Report
	config   config.Config
	recovery []byte
	key      []byte // volume key
}

// newSealed makes the volume as PID 1 does; the machine runs then, closed.
func newSealed(t *testing.T) *sealed {
	t.Helper()
	dir := t.TempDir()
	s := &sealed{t: t, tpm: tpmtest.Start(t), key: make([]byte, 64)}
	rand.Read(s.key) // never fails
	s.config = config.Config{State: config.State{
		Create: config.CreateFirstBoot,
		Unlock: []string{config.UnlockTPM2, config.UnlockRecoveryKey, config.UnlockPassphrase},
		TPM2:   config.TPM2{Policy: config.PolicyPCRs, PCRs: []int{7}, WithoutMeasuredBoot: config.AcceptTheft},
	}}
	s.report = running(func(r *report.Report) {
		r.BootPath = string(enrol.Unmeasured)
		r.State.UUID, r.State.Unlocked, r.State.Token = volumeID, "tpm2", 0
	})
	s.env = Env{
		Volume: noVolume,
		Stdin:  strings.NewReader(""), Version: "v1", Report: filepath.Join(dir, "boot.json"), State: filepath.Join(dir, "state"),
		Key: filepath.Join(dir, "state/encrypted/.sealroot/recovery.key"), Lock: filepath.Join(dir, "lock"),
		Config: filepath.Join(dir, "config.json"), PCRKey: filepath.Join(dir, "pcr.pem"), Voucher: filepath.Join(dir, "voucher"), PCRKeys: filepath.Join(dir, "pcr-previous"),
		OpenTPM: func(context.Context) (*tpm.TPM, error) { return tpm.New(s.tpm), nil },
		TTY:     func() (*os.File, error) { return nil, errors.New("no terminal") },
		Open:    func(Where) (Machine, error) { return nil, errors.New("no disk") },
	}
	s.env.Meminfo = filepath.Join(dir, "meminfo") // a small machine, so that passphrases cost little
	if err := os.WriteFile(s.env.Meminfo, []byte("MemTotal: 524288 kB\nMemAvailable: 262144 kB\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(s.env.Key), 0o700); err != nil {
		t.Fatal(err)
	}
	s.boot("A", false)
	h, err := luks2.Format(luks2.FormatParams{UUID: volumeID, VolumeKey: s.key, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	policy, err := enrol.Policy(s.config.State.TPM2, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, pass, err := enrol.Seal(t.Context(), tpm.New(s.tpm), policy, nil, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	token.Keyslots = []int{0}
	text, err := token.Encode()
	if err == nil {
		h, err = enrol.Add(h, 0, s.key, pass, text, rand.Reader)
	}
	if err == nil {
		s.recovery, err = luks2.GenerateRecoveryKey(rand.Reader)
	}
	if err == nil {
		h, err = enrol.Add(h, 1, s.key, s.recovery, luks2.RecoveryToken(1), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(s.image(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_, err = luks2.WriteNew(f, h, rand.Reader)
	if err := errors.Join(err, f.Truncate(64<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	s.close()
	return s
}

func (s *sealed) image() string { return filepath.Join(s.env.State, state.ImageName) }

// boot is a start of the machine as far as PID 1; firmware is what PCR 7 tells.
func (s *sealed) boot(firmware string, other bool) {
	s.t.Helper()
	if other {
		s.tpm = tpmtest.Start(s.t)
	} else {
		s.tpm.Reset()
	}
	for _, pcr := range []int{4, 7} {
		if err := tpm.New(s.tpm).Extend(s.t.Context(), pcr, []byte(firmware)); err != nil {
			s.t.Fatal(err)
		}
	}
}

// close is the hand-over to the system that runs.
func (s *sealed) close() {
	s.t.Helper()
	if _, err := tpm.New(s.tpm).Cap(s.t.Context(), nil, 11, 15); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sealed) header() *luks2.Header {
	s.t.Helper()
	f, err := os.Open(s.image())
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	h, err := luks2.Read(f, 64<<20)
	if err != nil {
		s.t.Fatal(err)
	}
	return h
}

// opensByTPM is what PID 1 does with the tokens.
func (s *sealed) opensByTPM() bool {
	s.t.Helper()
	h := s.header()
	for _, t := range h.Tokens() {
		token, err := tpm.ParseToken(t.JSON)
		if t.Type != tpm.TokenType || err != nil {
			continue
		}
		secret, err := tpm.New(s.tpm).Unseal(s.t.Context(), token, nil, nil)
		if err != nil {
			continue
		}
		if key, err := h.Unlock(t.Keyslots[0], tpm.Passphrase(secret)); err == nil && bytes.Equal(key, s.key) {
			return true
		}
	}
	return false
}

// cryptsetup has it try a passphrase.
func (s *sealed) cryptsetup(passphrase []byte) bool {
	s.t.Helper()
	cmd := exec.Command("cryptsetup", "open", "--test-passphrase", "--key-file=-", s.image())
	cmd.Stdin = bytes.NewReader(passphrase)
	return cmd.Run() == nil
}

// file writes a secret to a file.
func (s *sealed) file(text string) string {
	s.t.Helper()
	f, err := os.CreateTemp(s.t.TempDir(), "secret")
	if err == nil {
		_, err = f.WriteString(text)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		s.t.Fatal(err)
	}
	return f.Name()
}

func (s *sealed) run(args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	text, err := s.report.Encode()
	if err == nil {
		err = os.WriteFile(s.env.Report, text, 0o644)
	}
	var cfg []byte
	if err == nil {
		cfg, err = s.config.Encode()
	}
	if err == nil {
		err = os.WriteFile(s.env.Config, cfg, 0o644)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	var out, errs bytes.Buffer
	code = Main(s.t.Context(), args, &out, &errs, s.env)
	return code, out.String(), errs.String()
}

// ok runs a command that has to succeed.
func (s *sealed) ok(args ...string) string {
	s.t.Helper()
	code, out, errs := s.run(args...)
	if code != 0 {
		s.t.Fatalf("sealroot %q: exit status %d: %s%s", args, code, out, errs)
	}
	return out
}

// status runs state status, whose output has to fit its schema.
func (s *sealed) status() (d volume.Description) {
	s.t.Helper()
	out := s.ok("state", "status", "--json")
	schema, err := os.ReadFile("../docs/state.schema.json")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, p := range schematest.Check(schema, []byte(out)) {
		s.t.Errorf("state status --json: %s", p)
	}
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		s.t.Fatal(err)
	}
	if text := s.ok("state", "status"); !strings.Contains(text, d.UUID) {
		s.t.Errorf("state status: %q", text)
	}
	return d
}

// status looks into the volume where it had no recovery key at its boot.
func TestStatusReadsKeyslots(t *testing.T) {
	s := newSealed(t)
	s.report.State.Recovery = report.RecoveryNone
	const lost = "no recovery key is enrolled"
	if out := s.ok("status"); strings.Contains(out, lost) || !strings.Contains(out, "recovery key    enrolled") {
		t.Errorf("a recovery key was enrolled since: %s", out)
	}
	if err := os.Remove(s.image()); err != nil {
		t.Fatal(err)
	}
	if out := s.ok("status"); !strings.Contains(out, lost) {
		t.Errorf("the volume cannot be read: %s", out)
	}
}

// TestEnroll: after the recovery key was typed because the TPM refused, the TPM is
// bound to what boots now, in place of before, and the next boot opens by itself.
func TestEnroll(t *testing.T) {
	for _, c := range []struct {
		name, firmware, why string
		other               bool
	}{
		{"secure_boot_changed", "B", "PCR 7 of bank sha256 changed", false},
		{"other_tpm", "A", "sealed by another TPM", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSealed(t)
			s.boot("A", false)
			if !s.opensByTPM() {
				t.Fatal("control: the TPM does not open the volume that was sealed to it")
			}
			s.close()
			if d := s.status(); d.NextBoot != "by-itself" || d.Recovery != "enrolled" || len(d.ToDo) != 0 {
				t.Errorf("at first: %+v", d)
			}
			s.boot(c.firmware, c.other)
			if s.opensByTPM() {
				t.Fatal("control: the TPM opens it all the same")
			}
			s.close()
			s.report.State.Unlocked, s.report.State.Token = "recovery-key", -1
			d := s.status()
			if d.NextBoot != "asks" && d.NextBoot != "locked" || d.Tokens[0].NextBoot != volume.No || !strings.Contains(d.Tokens[0].Why, c.why) {
				t.Errorf("the TPM refuses: %+v", d)
			}
			if code, _, errs := s.run("state", "enroll"); code != exitRefused || !strings.Contains(errs, "--recovery-key-file") {
				t.Errorf("without a key: exit status %d, %q", code, errs)
			}
			out := s.ok("state", "enroll", "--recovery-key-file", s.file(strings.ToUpper(string(s.recovery))+"\n"))
			if !strings.Contains(out, c.why) {
				t.Errorf("enroll does not say what changed: %q", out)
			}
			if d := s.status(); d.NextBoot != "by-itself" || len(d.Keyslots) != 2 || len(d.Tokens) != 2 {
				t.Errorf("enrolled: %+v", d)
			}
			if s.opensByTPM() {
				t.Error("the running system can unseal what was enrolled")
			}
			s.boot(c.firmware, false)
			if !s.opensByTPM() {
				t.Error("the next boot does not open by itself")
			}
			if !s.cryptsetup(s.recovery) {
				t.Error("cryptsetup refuses the recovery key after it")
			}
			if !c.other {
				s.boot("A", false)
				if s.opensByTPM() {
					t.Error("what was there before still opens")
				}
			}
		})
	}
}

// TestEnrollSigned: a policy of signed PCR 11 and PCR 7 is enrolled with the key of
// the image, not with one that lies in a token.
func TestEnrollSigned(t *testing.T) {
	s := newSealed(t)
	s.report.BootPath = string(enrol.UKISecureBoot)
	s.config.State.TPM2 = config.TPM2{Policy: config.PolicySignedPCR11And7, PublicKey: "pcr.pub"}
	given := s.file(string(s.recovery))
	if code, _, errs := s.run("state", "enroll", "--recovery-key-file", given); code != exitRefused || !strings.Contains(errs, "left no PCR policy key") {
		t.Errorf("without a key of the image: exit status %d, %q", code, errs)
	}
	dir := t.TempDir()
	for _, args := range [][]string{
		{"genrsa", "-out", filepath.Join(dir, "key"), "2048"},
		{"rsa", "-in", filepath.Join(dir, "key"), "-pubout", "-out", s.env.PCRKey},
	} {
		if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl: %v: %s", err, out)
		}
	}
	s.ok("state", "enroll", "--recovery-key-file", given)
	d := s.status()
	if i := slices.IndexFunc(d.Tokens, func(t volume.Token) bool { return t.Type == tpm.TokenType }); i < 0 ||
		!slices.Equal(d.Tokens[i].SignedPCRs, []int{11}) || !slices.Equal(d.Tokens[i].PCRs, []int{7}) || d.NextBoot != "by-itself" {
		t.Errorf("enrolled: %+v", d)
	}
	// Another image's key: its signatures open nothing here.
	if out, err := exec.Command("openssl", "genrsa", "-out", filepath.Join(dir, "key"), "2048").CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v: %s", err, out)
	}
	if out, err := exec.Command("openssl", "rsa", "-in", filepath.Join(dir, "key"), "-pubout", "-out", s.env.PCRKey).CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v: %s", err, out)
	}
	if d := s.status(); d.NextBoot == "by-itself" {
		t.Errorf("with the key of another image: %+v", d)
	}
}

// TestEnrollFixedKernelPCR: PCR 11 is closed on the running system; what is sealed to
// is what it will be while PID 1 works, or nothing where nobody can tell.
func TestEnrollFixedKernelPCR(t *testing.T) {
	s := newSealed(t)
	s.config.State.TPM2.PCRs = []int{7, 11}
	given := s.file(string(s.recovery))
	s.ok("state", "enroll", "--recovery-key-file", given)
	if d := s.status(); d.NextBoot != "by-itself" {
		t.Errorf("enrolled: %+v", d)
	}
	s.boot("A", false)
	if !s.opensByTPM() {
		t.Error("the next boot does not open by itself")
	}
	s.close()
	s.report.BootPath = string(enrol.UKI)
	if code, _, errs := s.run("state", "enroll", "--recovery-key-file", given); code != exitRefused || !strings.Contains(errs, "PCR 11") {
		t.Errorf("under an image that cannot be read: exit status %d, %q", code, errs)
	}
}

// ukiMachine has this unified kernel image where the slot that runs has its own.
type ukiMachine struct {
	*fake
	sections []pcrsig.Section
}

func (m ukiMachine) Image() (predict.Image, error) {
	return predict.Image{RootHash: make([]byte, 32), RootPCR: 13, Sections: m.sections}, nil
}

// TestEnrollKernelThatRan: PCR 11 is sealed to the file on the ESP only if that is
// what was booted.
func TestEnrollKernelThatRan(t *testing.T) {
	s := newSealed(t)
	s.config.State.TPM2 = config.TPM2{Policy: config.PolicyPCRs, PCRs: []int{7, 11}}
	s.report.BootPath, s.report.State.Unlocked, s.report.State.Token = string(enrol.UKISecureBoot), "recovery-key", -1
	uki := func(linux string) []pcrsig.Section {
		return []pcrsig.Section{{Name: ".linux", Data: []byte(linux)}, {Name: ".initrd", Data: []byte("initrd")}}
	}
	onESP := uki("old")
	s.env.Open = func(Where) (Machine, error) { return ukiMachine{&fake{}, onESP}, nil }
	extend := func(words ...string) {
		for _, w := range words {
			if err := tpm.New(s.tpm).Extend(t.Context(), pcrsig.PCRKernel, []byte(w)); err != nil {
				t.Fatal(err)
			}
		}
	}
	measure := func() {
		s.boot("A", false)
		extend(".linux\x00", "new", ".initrd\x00", "initrd", pcrsig.PhaseEnterInitrd)
	}
	measure()
	extend(pcrsig.PhaseLeaveInitrd)
	s.close()
	extend("sysinit", "ready")
	enroll := []string{"state", "enroll", "--recovery-key-file", s.file(string(s.recovery))}
	if code, _, errs := s.run(enroll...); code != exitRefused || !strings.Contains(errs, "PCR 11") {
		t.Errorf("another image on the ESP than the one that ran: exit status %d, %q", code, errs)
	}
	onESP = uki("new")
	s.ok(enroll...)
	measure()
	if !s.opensByTPM() {
		t.Error("the next boot does not open by itself")
	}
}

// TestKeysAreRefused: what would not open, or is not allowed, changes nothing.
func TestKeysAreRefused(t *testing.T) {
	s := newSealed(t)
	good := s.file(string(s.recovery))
	whole, before := s.report, s.header().SequenceID()
	for _, c := range []struct {
		name   string
		args   string
		change func()
		code   int
		text   string
	}{
		{"degraded", "state enroll", func() { s.report.Degraded, s.report.State.UUID = true, "" }, exitRefused, "degraded"},
		{"no_volume", "state enroll", func() { s.report.State.UUID = "" }, exitRefused, "no encrypted volume"},
		{"another_volume", "state enroll", func() { s.report.State.UUID = "66666666-2222-4333-8444-555555555555" }, exitRefused, "the one that is open"},
		{"boot_path_does_not_back_it", "state enroll", func() { s.config.State.TPM2.WithoutMeasuredBoot = "" }, exitRefused, "not backed by this boot path"},
		{"secure_boot_is_off", "state enroll", func() {
			s.report.BootPath = string(enrol.UKI)
			s.config.State.TPM2 = config.TPM2{Policy: config.PolicySignedPCR11And7}
		}, exitRefused, "Secure Boot is off"},
		{"not_measured", "state enroll", func() { s.config.State.TPM2.PCRs = []int{7, 8} }, exitRefused, "PCR 8"},
		{"changes_while_it_runs", "state enroll", func() { s.config.State.TPM2.PCRs = []int{10} }, exitRefused, "PCR 10"},
		{"no_tpm", "state enroll", func() {
			s.env.OpenTPM = func(context.Context) (*tpm.TPM, error) { return nil, tpm.ErrNoTPM }
		}, exitRefused, "no TPM"},
		{"image_without_tpm", "state enroll", func() { s.config.State.Unlock = []string{config.UnlockPassphrase} }, exitRefused, "lacks tpm2"},
		{"wrong_key", "state enroll --recovery-key-file " + s.file(strings.Repeat("c", 64)), nil, exitRefused, "wrong passphrase"},
		{"no_recovery_key", "state enroll --recovery-key-file " + s.file("hello"), nil, exitRefused, "not a recovery key"},
		{"two_keys", "state enroll --recovery-key-file " + good + " --passphrase-file " + good, nil, exitUsage, "one key is enough"},
		{"no_authority", "state remove tpm2", nil, exitRefused, "state.manage_key"},
		{"nothing_to_remove", "state remove 7", nil, exitRefused, "no such keyslot"},
		{"no_kind", "state remove everything", nil, exitUsage, "neither a keyslot"},
		{"no_passphrases_here", "state passphrase", func() { s.config.State.Unlock = []string{config.UnlockTPM2} }, exitRefused, "lacks passphrase"},
		{"short_passphrase", "state passphrase --recovery-key-file " + good + " --passphrase-file " + s.file("short"), nil, exitRefused, "less than 8 bytes"},
		{"nothing_to_rotate", "state rekey", func() { s.config.State.Unlock = []string{config.UnlockPassphrase} }, exitRefused, "nothing to rotate"},
		{"authority_for_nothing", "state recovery-key --recovery-key-file " + good, nil, exitUsage, "only --new"},
	} {
		t.Run(c.name, func(t *testing.T) {
			env, cfg, copied := s.env, s.config, *whole
			s.report = &copied
			defer func() { s.env, s.config, s.report = env, cfg, whole }()
			if c.change != nil {
				c.change()
			}
			code, out, errs := s.run(strings.Fields(c.args)...)
			if code != c.code || !strings.Contains(errs, c.text) {
				t.Errorf("exit status %d, %q, %q; want %d, %q", code, out, errs, c.code, c.text)
			}
			if s.header().SequenceID() != before {
				t.Error("the header was changed")
			}
		})
	}
	// What somebody extended since the boot is not what the next boot has.
	if err := tpm.New(s.tpm).Extend(t.Context(), 7, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := s.run("state", "enroll", "--recovery-key-file", good); code != exitRefused || !strings.Contains(errs, "would not open the next one") {
		t.Errorf("PCR 7 extended on the running system: exit status %d, %q", code, errs)
	}
}

func TestNewRecoveryKey(t *testing.T) {
	s := newSealed(t)
	given := s.file(string(s.recovery))
	code, out, errs := s.run("state", "recovery-key", "--new", "--show", "--yes", "--recovery-key-file", given)
	fresh := []byte(strings.TrimSpace(out))
	if code != 0 || len(fresh) != luks2.RecoveryKeyBytes {
		t.Fatalf("exit status %d, %q, %q", code, out, errs)
	}
	if !s.cryptsetup(fresh) || s.cryptsetup(s.recovery) {
		t.Error("cryptsetup takes the old key, or not the new one")
	}
	if d := s.status(); d.Recovery != "enrolled" || len(d.Keyslots) != 2 || kept(s.env.Key) {
		t.Errorf("shown: %+v", d)
	}
	// Without anybody who looks it is kept, and status asks for it to be shown.
	s.ok("state", "recovery-key", "--new", "--recovery-key-file", s.file(string(fresh)))
	if d := s.status(); d.Recovery != "waiting-to-be-shown" || len(d.ToDo) == 0 {
		t.Errorf("kept: %+v", d)
	}
	// A power cut between header and file.
	if err := os.Rename(s.env.Key, recovery.Pending(s.env.Key)); err != nil {
		t.Fatal(err)
	}
	if waiting, err := recovery.Waiting(s.env.Key); !waiting || err != nil {
		t.Errorf("after the power cut: Waiting() = %v, %v", waiting, err)
	}
	last := []byte(strings.TrimSpace(s.ok("state", "recovery-key", "--show", "--yes")))
	if !s.cryptsetup(last) || s.cryptsetup(fresh) {
		t.Error("the key that was shown is not the one that opens")
	}
	// One that waits for a header that was never written is not shown.
	if err := os.WriteFile(recovery.Pending(s.env.Key), fresh, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, _ := s.run("state", "recovery-key", "--show"); code != exitRefused || out != "" {
		t.Errorf("a key that opens nothing is shown: %d, %q", code, out)
	}
	if kept(recovery.Pending(s.env.Key)) {
		t.Error("a key that opens nothing is still said to wait")
	}
}

// TestEscrowGoesWithItsKey: nobody is told of an escrow that opens nothing; one whose
// key still opens stays.
func TestEscrowGoesWithItsKey(t *testing.T) {
	for _, tt := range []struct {
		args  string
		stays bool
	}{
		{"state enroll", true},
		{"state remove tpm2", true},
		{"state recovery-key --new", false},
		{"state remove recovery", false},
	} {
		t.Run(tt.args, func(t *testing.T) {
			s := newSealed(t)
			if err := os.WriteFile(s.env.escrow(), []byte("message"), 0o600); err != nil {
				t.Fatal(err)
			}
			if d := s.status(); d.Recovery != "escrowed" {
				t.Fatalf("control: %+v", d)
			}
			s.ok(append(strings.Fields(tt.args), "--recovery-key-file", s.file(string(s.recovery)))...)
			if kept(s.env.escrow()) != tt.stays {
				t.Errorf("the escrow is there: %v, want %v", !tt.stays, tt.stays)
			}
			if d := s.status(); d.Escrow != tt.stays {
				t.Errorf("status: %+v", d)
			}
		})
	}
}

func TestPassphraseCommand(t *testing.T) {
	s := newSealed(t)
	given := s.file(string(s.recovery))
	s.ok("state", "passphrase", "--recovery-key-file", given, "--passphrase-file", s.file("correct horse\n"))
	if !s.cryptsetup([]byte("correct horse")) {
		t.Error("cryptsetup refuses the passphrase")
	}
	d := s.status()
	if i := slices.IndexFunc(d.Keyslots, func(k volume.Keyslot) bool { return k.Kind == volume.Passphrase }); i < 0 || d.Keyslots[i].KDF != luks2.KDFArgon2id {
		t.Errorf("keyslots %+v", d.Keyslots)
	}
	// The next one takes its place, allowed by the old one; --add keeps it.
	s.ok("state", "passphrase", "--old-passphrase-file", s.file("correct horse"), "--passphrase-file", s.file("battery staple"))
	if s.cryptsetup([]byte("correct horse")) || !s.cryptsetup([]byte("battery staple")) {
		t.Error("the passphrase was not replaced")
	}
	s.ok("state", "passphrase", "--add", "--recovery-key-file", given, "--passphrase-file", s.file("a third one"))
	if !s.cryptsetup([]byte("battery staple")) || !s.cryptsetup([]byte("a third one")) {
		t.Error("--add replaced a passphrase")
	}
	if code, _, errs := s.run("state", "passphrase", "--recovery-key-file", given, "--passphrase-file", s.file("a fourth one")); code != exitRefused || !strings.Contains(errs, "which passphrase") {
		t.Errorf("two are there: exit status %d, %q", code, errs)
	}
}

func TestRemoveKeyslot(t *testing.T) {
	s := newSealed(t)
	given := s.file(string(s.recovery))
	if err := os.WriteFile(s.env.Key, s.recovery, 0o600); err != nil {
		t.Fatal(err)
	}
	s.config.State.ManageKey = true
	s.ok("state", "rekey", "--recovery-key-file", given)
	out := s.ok("state", "remove", "recovery") // by the manage key
	if s.cryptsetup(s.recovery) || kept(s.env.Key) || !strings.Contains(out, "WARNING") == (len(volume.Left(s.header(), volume.Ways{})) == 1) {
		t.Errorf("the recovery key is still there, or kept: %q", out)
	}
	// The manage key lies inside: alone it opens nothing.
	if code, _, errs := s.run("state", "remove", "tpm2"); code != exitRefused || !strings.Contains(errs, "no keyslot would be left") {
		t.Errorf("the last way in: exit status %d, %q", code, errs)
	}
	if out := s.ok("state", "remove", "manage"); kept(s.env.manageKey()) || !strings.Contains(out, "WARNING") {
		t.Errorf("the manage key is still kept, or no warning: %q", out)
	}
	if d := s.status(); len(d.Keyslots) != 1 || d.NextBoot != "by-itself" {
		t.Errorf("left: %+v", d)
	}
}

// TestRemoveLeavesAWayIn: a token that the TPM will not open is none.
func TestRemoveLeavesAWayIn(t *testing.T) {
	s := newSealed(t)
	remove := []string{"state", "remove", "recovery", "--recovery-key-file", s.file(string(s.recovery))}
	s.boot("B", false)
	s.close()
	if code, _, errs := s.run(remove...); code != exitRefused || !strings.Contains(errs, "nothing that is known would open") || !s.cryptsetup(s.recovery) {
		t.Errorf("PCR 7 changed: exit status %d, %q", code, errs)
	}
	s.boot("A", false)
	s.close()
	unlock := s.config.State.Unlock
	s.config.State.Unlock = []string{config.UnlockPassphrase}
	if code, _, errs := s.run(remove...); code != exitRefused || !s.cryptsetup(s.recovery) {
		t.Errorf("the image does not use the TPM: exit status %d, %q", code, errs)
	}
	s.config.State.Unlock = unlock
	s.ok(remove...)
}

// TestPINIsOfTheConfiguration: status tells what PID 1 does with tokens of the other
// kind, with a PIN and without one.
func TestPINIsOfTheConfiguration(t *testing.T) {
	s := newSealed(t)
	token := func() volume.Token {
		tokens := s.status().Tokens
		return tokens[slices.IndexFunc(tokens, func(t volume.Token) bool { return t.Type == tpm.TokenType })]
	}
	s.report.State.Unlocked, s.report.State.Token = "recovery-key", -1
	s.config.Boot.Loader = config.LoaderGRUB // where a PIN stands in for a measured boot
	s.config.State.TPM2.WithoutMeasuredBoot, s.config.State.TPM2.PIN = "", true
	if one := token(); one.NextBoot != volume.No || !strings.Contains(one.Why, "without a PIN") {
		t.Errorf("the image wants a PIN, the token has none: %+v", one)
	}
	s.ok("state", "enroll", "--recovery-key-file", s.file(string(s.recovery)), "--pin-file", s.file("4711"))
	if one := token(); one.NextBoot != volume.NeedsPerson || s.status().NextBoot != "asks" || len(s.status().ToDo) != 0 {
		t.Errorf("enrolled with a PIN: %+v", s.status())
	}
	// As systemd 253 and older make it: PID 1 does not ask for its PIN.
	old := tpm.Token{PIN: true, PCRs: []int{7, 15}, Bank: "sha256"}
	if next, why := (volume.Look{PIN: true}).Examine(t.Context(), old); next != volume.No || !strings.Contains(why, "names no storage key") {
		t.Errorf("a token with a PIN and without a storage key: %v, %q", next, why)
	}
	s.config.State.TPM2.WithoutMeasuredBoot, s.config.State.TPM2.PIN = config.AcceptTheft, false
	if one := token(); one.NextBoot != volume.No || !strings.Contains(one.Why, "has a PIN") {
		t.Errorf("the image wants no PIN, the token has one: %+v", one)
	}
}

// askedPerson does something when it is asked, and answers then.
type askedPerson struct {
	meanwhile func()
	answer    io.Reader
}

func (p *askedPerson) Read(b []byte) (int, error) {
	if p.meanwhile != nil {
		do := p.meanwhile
		p.meanwhile = nil
		do()
	}
	return p.answer.Read(b)
}

// TestNobodyIsKeptOutByAPrompt: other commands run while a person is asked; what they
// changed is not overwritten.
func TestNobodyIsKeptOutByAPrompt(t *testing.T) {
	for _, tt := range []struct{ name, args, answer string }{
		{"key", "state enroll --recovery-key-file -", "key"},
		{"new_secret", "state passphrase --passphrase-file - --recovery-key-file ", "correct horse"},
		{"removal", "state remove tpm2 --recovery-key-file -", "key"},
		{"new_key", "state recovery-key --new --recovery-key-file -", "key"},
		{"degraded", "state unlock --recovery-key-file -", "key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSealed(t)
			given := s.file(string(s.recovery))
			if tt.answer == "key" {
				tt.answer = string(s.recovery)
			} else {
				tt.args += given
			}
			changes := func() {
				s.ok("state", "passphrase", "--add", "--recovery-key-file", given, "--passphrase-file", s.file("battery staple"))
			}
			if tt.name == "degraded" {
				var devices *filesDevices
				s, devices, _ = degraded(t)
				s.close()
				tt.answer, given, changes = string(s.recovery), s.file(string(s.recovery)), func() {
					s.ok("state", "unlock", "--recovery-key-file", given)
					devices.key = nil
				}
				defer func() {
					if devices.key != nil {
						t.Error("the volume is opened with a header that was changed")
					}
				}()
			}
			asked := false
			s.env.Stdin = &askedPerson{func() {
				asked = true
				ctx, cancel := context.WithTimeout(t.Context(), 10*lockPoll)
				defer cancel()
				release, err := lock(ctx, s.env.Lock)
				if err != nil {
					t.Errorf("a prompt keeps others out: %v", err)
					return
				}
				release()
				changes()
			}, strings.NewReader(tt.answer)}
			if code, out, errs := s.run(strings.Fields(tt.args)...); code != exitRefused || !strings.Contains(errs, errChanged.Error()) || !asked {
				t.Errorf("exit status %d, %q, %q; asked %v", code, out, errs, asked)
			}
		})
	}
}

// TestRekey: the manage key allows changes without anybody, and is rotated with the
// TPM's secret.
func TestRekey(t *testing.T) {
	s := newSealed(t)
	s.config.State.ManageKey = true
	s.ok("state", "rekey", "--recovery-key-file", s.file(string(s.recovery)))
	first, err := os.ReadFile(s.env.manageKey())
	if err != nil || len(first) != enrol.ManageKeyBytes || !s.cryptsetup(first) {
		t.Fatalf("a manage key of %d bytes, %v", len(first), err)
	}
	if info, err := os.Stat(s.env.manageKey()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	s.ok("state", "rekey")
	second, err := os.ReadFile(s.env.manageKey())
	if err != nil || !s.cryptsetup(second) || s.cryptsetup(first) {
		t.Errorf("the manage key was not rotated: %v", err)
	}
	if d := s.status(); d.ManageKey != "kept" || len(d.Keyslots) != 3 || len(d.Tokens) != 3 {
		t.Errorf("rotated: %+v", d)
	}
	// A power cut between header and file: the new one is found.
	if err := errors.Join(os.Rename(s.env.manageKey(), recovery.Pending(s.env.manageKey())), os.WriteFile(s.env.manageKey(), first, 0o600)); err != nil {
		t.Fatal(err)
	}
	s.ok("state", "enroll")
	if now, err := os.ReadFile(s.env.manageKey()); err != nil || !bytes.Equal(now, second) {
		t.Errorf("the manage key is not the one that opens: %v", err)
	}
	s.boot("A", false)
	if !s.opensByTPM() {
		t.Error("the TPM does not open the volume any more")
	}
	if err := os.Remove(s.env.manageKey()); err != nil {
		t.Fatal(err)
	}
	s.close()
	if d := s.status(); d.ManageKey != "lost" {
		t.Errorf("without its file: %+v", d)
	}
}

// What made the volume read-only at the boot stands until it is known to be writable.
func TestStateStatusOfAReadOnlyVolume(t *testing.T) {
	s := newSealed(t)
	s.report.State.ReadOnly = "no room; free space"
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(s.env.volume(), 0o755))
	if d := s.status(); d.Volume != "open" || d.ReadOnly != "" {
		t.Errorf("it can be written: %+v", d)
	}
	must(os.RemoveAll(s.env.volume()))
	must(os.Symlink(filepath.Base(s.env.volume()), s.env.volume())) // a loop: it cannot be asked
	d := s.status()
	if d.ReadOnly != "no room; free space" || !slices.ContainsFunc(d.Problems, func(p string) bool {
		return strings.HasPrefix(p, "the volume was read-only at the boot, and it is not known whether it still is: ")
	}) {
		t.Errorf("it cannot be asked: %+v", d)
	}
}

// TestStateStatusWithoutVolume: a degraded boot still reads the header.
func TestStateStatusWithoutVolume(t *testing.T) {
	s := newSealed(t)
	s.report.Degraded, s.report.State = true, report.State{Unlocked: "degraded", Token: -1, Attempts: []string{"tpm2: no"}}
	if d := s.status(); d.Volume != "locked" || d.UUID != volumeID || len(d.Keyslots) != 2 {
		t.Errorf("degraded: %+v", d)
	}
	if err := os.Remove(s.image()); err != nil {
		t.Fatal(err)
	}
	var d volume.Description
	if err := json.Unmarshal([]byte(s.ok("state", "status", "--json")), &d); err != nil || d.Volume != "unusable" || len(d.Problems) == 0 {
		t.Errorf("without a file: %+v, %v", d, err)
	}
}
