package boot

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sealroot/init/config"
	"sealroot/init/console"
	"sealroot/init/report"
	"sealroot/mount/kmod"
	"sealroot/slots"
	"sealroot/state/enrol"
	"sealroot/state/layout"
	"sealroot/state/luks2"
	"sealroot/state/tpm"
)

func TestBootPath(t *testing.T) {
	for _, tt := range []struct {
		name string
		fw   firmware
		grub bool
		want bootPath
	}{
		{"uki_with_secure_boot", firmware{EFI: true, Stub: true, SecureBoot: true}, false, pathUKISecureBoot},
		{"uki_without_secure_boot", firmware{EFI: true, Stub: true}, false, pathUKI},
		{"efi_grub", firmware{EFI: true, SecureBoot: true}, true, pathGRUBEFI},
		{"kernel_from_an_efi_shell", firmware{EFI: true, SecureBoot: true}, false, pathUnmeasured},
		{"bios_grub", firmware{}, true, pathUnmeasured},
		{"stub_variable_without_efi", firmware{Stub: true, SecureBoot: true}, false, pathUnmeasured},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.fw.path(tt.grub); got != tt.want {
				t.Errorf("path() = %s, want %s", got, tt.want)
			}
		})
	}
}

func TestFailureClasses(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want slots.Class
	}{
		{"verity_says_eio", imageError(slots.Mount, "cannot mount: %w", syscall.EIO), slots.ImageFailure},
		{"disk_cannot_be_read", imageError(slots.Verity, "cannot read: %w", &rawReadError{syscall.EIO}), slots.EnvironmentFailure},
		{"no_memory", imageError(slots.Mount, "cannot mount: %w", syscall.ENOMEM), slots.EnvironmentFailure},
		{"disk_went_away", imageError(slots.Verity, "cannot open: %w", syscall.ENXIO), slots.EnvironmentFailure},
		{"volume_stays_locked", stateError(slots.UnlockRefused, "%w", errLocked), slots.StateFailure},
		{"nothing_known", errors.New("?"), slots.EnvironmentFailure},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if class, _ := classOf(fmt.Errorf("root: %w", tt.err)); class != tt.want {
				t.Errorf("class = %s, want %s", class, tt.want)
			}
		})
	}
}

func TestLogLineCannotBeForged(t *testing.T) {
	var out bytes.Buffer
	NewLog(&out).Warn("slot %s", "a\n<0>kernel: all is well\x1b[2J"+strings.Repeat("x", 2000))
	got := out.String()
	if strings.Count(got, "\n") != 1 || strings.ContainsRune(got, 0x1b) || len(got) > 1000 {
		t.Errorf("one record became %q", got)
	}
}

func TestCleanLine(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"plain", "slot a: näh", "slot a: näh"},
		{"control", "a\x1b[2Jb\x7f", "a?[2Jb?"},
		{"c1", "a\u009b2Jb\u0080", "a?2Jb?"},
		{"invalid", "a\x9bb", "a\ufffdb"},
		{"cut_inside_a_letter", strings.Repeat("x", maxKmsg-1) + "ää", strings.Repeat("x", maxKmsg-1) + " …"},
	} {
		if got := clean(tt.text); got != tt.want {
			t.Errorf("%s: clean() = %q, want %q", tt.name, got, tt.want)
		}
	}
}

// person is a console at which somebody types lines.
type person struct {
	lines []string
	ahead []string // typed before lines, and before any question
	saw   strings.Builder
	keys  int

	columns, rows int // of the console; 0: it does not say

	flushed int // how often typed-ahead input was dropped
}

func (p *person) Print(text string)       { p.saw.WriteString(text) }
func (p *person) PrintSecret(text []byte) { p.saw.Write(text) }
func (p *person) PrintSecretIf(columns, rows int, text []byte) {
	if p.columns == 0 || p.columns >= columns && p.rows >= rows {
		p.saw.Write(text)
	}
}
func (p *person) Clear()       {}
func (p *person) Flush()       { p.flushed, p.ahead = p.flushed+1, nil }
func (p *person) Close() error { return nil }
func (p *person) WaitKey(context.Context, time.Duration) error {
	if p.keys == 0 {
		return console.ErrIdle
	}
	p.keys--
	return nil
}
func (p *person) ReadLine(context.Context, time.Duration) ([]byte, error) {
	from := &p.ahead
	if len(p.ahead) == 0 {
		from = &p.lines
	}
	if len(*from) == 0 {
		return nil, console.ErrIdle
	}
	line := (*from)[0]
	*from = (*from)[1:]
	return []byte(line), nil
}

type fakePower struct{ slept time.Duration }

func (f *fakePower) Reboot() error         { return nil }
func (f *fakePower) Halt() error           { return nil }
func (f *fakePower) Sleep(d time.Duration) { f.slept += d }

func testBoot(p *person, state config.State) (*boot, *fakePower) {
	power := &fakePower{}
	return &boot{
		sys: &System{
			Log: NewLog(&bytes.Buffer{}), Power: power, Rand: rand.Reader,
			OpenConsole: func() (Console, error) { return p, nil },
		},
		cfg:    &config.Config{State: state},
		report: &report.Report{},
		tpm:    measurer{broken: tpm.ErrNoTPM},
		loader: kmod.NewLoader(kmod.List{}, "/nonexistent", nil),
	}, power
}

// volume is a header with a recovery key and a passphrase.
func volume(t *testing.T) (h *luks2.Header, key, recovery []byte) {
	t.Helper()
	key = bytes.Repeat([]byte{7, 9}, 32)
	h, err := luks2.Format(luks2.FormatParams{UUID: "6b5d1e3c-4a55-4f0e-9d7c-2f8f1d0a9b11", VolumeKey: key, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	if recovery, err = luks2.GenerateRecoveryKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	for id, pass := range [][]byte{recovery, []byte("open sesame")} {
		if h, err = h.AddKeyslot(id, key, pass, luks2.RandomSecretKDF(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	return h, key, recovery
}

func TestPrompt(t *testing.T) {
	h, key, recovery := volume(t)
	both := []string{"tpm2", "recovery-key", "passphrase"}
	for _, tt := range []struct {
		name   string
		unlock []string
		lines  []string
		method string // "" when it stays locked
	}{
		{"recovery_key", both, []string{string(recovery)}, "recovery-key"},
		{"recovery_key_without_dashes_in_upper_case", both, []string{strings.ToUpper(strings.ReplaceAll(string(recovery), "-", ""))}, "recovery-key"},
		{"passphrase_after_a_wrong_one", both, []string{"", "wrong", "open sesame"}, "passphrase"},
		{"passphrase_is_not_a_configured_method", []string{"tpm2", "recovery-key"}, []string{"open sesame"}, ""},
		{"recovery_key_is_not_a_configured_method", []string{"passphrase"}, []string{strings.ReplaceAll(string(recovery), "-", "")}, ""},
		{"nobody_there", both, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &person{lines: tt.lines}
			b, power := testBoot(p, config.State{Unlock: tt.unlock, OnFailure: []string{"prompt"}})
			got, err := b.unlock(t.Context(), h)
			if tt.method == "" {
				if !errors.Is(err, errLocked) || got != nil {
					t.Fatalf("unlock() = %v, want errLocked", err)
				}
				return
			}
			if err != nil || !bytes.Equal(got, key) || b.report.State.Unlocked != tt.method {
				t.Errorf("unlock() = %v, by %q; want the volume key by %s", err, b.report.State.Unlocked, tt.method)
			}
			if wrong := len(tt.lines) - 1; power.slept < time.Duration(wrong)*promptDelay || p.flushed != wrong {
				t.Errorf("%d wrong entries cost only %s, and what was typed ahead is dropped %d times", wrong, power.slept, p.flushed)
			}
			if strings.Contains(p.saw.String(), string(recovery)) {
				t.Error("the console shows what was typed")
			}
		})
	}
}

// On trial nobody is asked, as the committed slot opens by itself; but for an image
// that no TPM could know before its first boot. There the tokens stay what they are.
func TestPromptOnTrial(t *testing.T) {
	h, key, recovery := volume(t)
	list := []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 2}}
	signed4 := config.TPM2{Policy: config.PolicySignedPCR11And4}
	for _, tt := range []struct {
		name   string
		loader config.Loader
		tpm    config.TPM2
		alone  bool // no committed slot is there
		wait   time.Duration
	}{
		{"signed_pcr_11_and_7", config.LoaderUKI, config.TPM2{Policy: config.PolicySignedPCR11And7}, false, 0},
		{"signed_pcr_11_and_4", config.LoaderUKI, signed4, false, trialWait},
		{"signed_pcr_11_and_4_alone", config.LoaderUKI, signed4, true, keyLimit},
		{"literal_pcr_4", config.LoaderUKI, config.TPM2{Policy: config.PolicyPCRs, PCRs: []int{4, 12}}, false, trialWait},
		{"literal_pcr_7", config.LoaderUKI, config.TPM2{Policy: config.PolicyPCRs, PCRs: []int{7}}, false, 0},
		{"literal_pcr_9_under_grub", config.LoaderGRUB, config.TPM2{Policy: config.PolicyPCRs, PCRs: []int{9}}, false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &person{lines: []string{string(recovery)}}
			b, _ := testBoot(p, config.State{Unlock: []string{"tpm2", "recovery-key"}, TPM2: tt.tpm, OnFailure: []string{"prompt"}})
			b.cfg.Boot.Loader = tt.loader
			b.slots.observed.Slots = list
			if tt.alone {
				b.slots.observed.Slots = list[1:]
			}
			b.report.Slot.Name, b.report.Slot.Trial = "b", true
			if got := b.promptWait(); got != tt.wait {
				t.Errorf("promptWait() = %s, want %s", got, tt.wait)
			}
			got, err := b.unlock(t.Context(), h)
			if asked := tt.wait > 0; (err == nil) != asked || bytes.Equal(got, key) != asked || (p.saw.Len() > 0) != asked {
				t.Errorf("unlock() = %x, %v, the console shows %q; want that somebody is asked: %v", got, err, p.saw.String(), asked)
			}
		})
	}
}

func TestPromptEndsAfterManyWrongEntries(t *testing.T) {
	h, _, _ := volume(t)
	p := &person{lines: slices.Repeat([]string{"wrong"}, promptTries+5)}
	b, _ := testBoot(p, config.State{Unlock: []string{"recovery-key", "passphrase"}})
	if _, err := b.unlock(t.Context(), h); !errors.Is(err, errLocked) || len(p.lines) != 5 {
		t.Errorf("unlock() = %v with %d entries left, want errLocked with 5", err, len(p.lines))
	}
}

// Without prompt in on_failure an unattended machine never waits for a key.
func TestNoPromptUnlessConfigured(t *testing.T) {
	h, _, recovery := volume(t)
	p := &person{lines: []string{string(recovery)}}
	b, _ := testBoot(p, config.State{Unlock: []string{"tpm2", "recovery-key"}, OnFailure: []string{"degraded"}})
	if _, err := b.unlock(t.Context(), h); !errors.Is(err, errLocked) || p.saw.Len() > 0 {
		t.Errorf("unlock() = %v and the console shows %q, want silence", err, p.saw.String())
	}
}

// A recovery key that nobody confirmed is not enrolled; a volume that would then
// have no key at all is not made.
func TestRecoveryKeyIsShownBeforeItIsEnrolled(t *testing.T) {
	h, key, _ := volume(t)
	h, err := h.RemoveKeyslot(recoveryKeyslot)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name          string
		keys          int
		columns, rows int // of the console
		want          string
		code          bool // it is shown as QR code, too
	}{
		{"key_pressed", 1, 80, 25, "enrolled", true},
		{"serial_line", 1, 0, 0, "enrolled", true},
		{"small_screen", 1, 80, 24, "enrolled", false},
		{"narrow_screen", 1, 40, 50, "enrolled", false},
		{"nobody_there", 0, 80, 25, "none", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &person{keys: tt.keys, columns: tt.columns, rows: tt.rows}
			b, _ := testBoot(p, config.State{Recovery: "show"})
			got, kept, err := b.enrollRecovery(t.Context(), h, key)
			if err != nil || kept != nil {
				t.Fatalf("enrollRecovery() keeps %d bytes, error %v; want nothing kept", len(kept), err)
			}
			if state := recoveryState(got, t.TempDir()); state != tt.want {
				t.Errorf("recovery is %q, want %q", state, tt.want)
			}
			screen := p.saw.String()
			if code := strings.Contains(screen, "█"); code != tt.code || !regexp.MustCompile(`\n    [a-z]{8}(-[a-z]{8}){7}\n`).MatchString(screen) {
				t.Errorf("a code is shown: %v, want %v, and the key below it in\n%s", code, tt.code, screen)
			}
			if lines := strings.Count(screen, "\n"); tt.rows > 0 && lines >= tt.rows {
				t.Errorf("%d lines on a screen of %d", lines+1, tt.rows)
			}
			if len(b.report.Warnings) > 0 && strings.Contains(strings.Join(b.report.Warnings, " "), "-") && tt.keys > 0 {
				t.Errorf("warnings %q", b.report.Warnings)
			}
		})
	}
}

// A power cut may have left the key that opens under its other name.
func TestRecoveryKeyWaits(t *testing.T) {
	h, key, _ := volume(t)
	h, err := h.RemoveKeyslot(recoveryKeyslot)
	if err == nil {
		h, err = enrol.Add(h, recoveryKeyslot, key, []byte("pass"), luks2.RecoveryToken(recoveryKeyslot), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"recovery.key": "waiting-to-be-shown", "recovery.key.new": "waiting-to-be-shown", "manage.key": "enrolled"} {
		dir := t.TempDir()
		path := filepath.Join(dir, layout.Private, name)
		if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("key"), 0o600)); err != nil {
			t.Fatal(err)
		}
		if got := recoveryState(h, dir); got != want {
			t.Errorf("with %s: %q, want %q", name, got, want)
		}
	}
}

// A manage key is made only where the configuration asks for it, and opens a
// keyslot of its own.
func TestManageKeyIsEnrolledWhenAsked(t *testing.T) {
	h, key, _ := volume(t)
	b, _ := testBoot(&person{}, config.State{})
	if got, manage, err := b.enrollManage(t.Context(), h, key); got != h || manage != nil || err != nil {
		t.Errorf("unasked: a key of %d bytes, %v", len(manage), err)
	}
	b, _ = testBoot(&person{}, config.State{ManageKey: true})
	got, manage, err := b.enrollManage(t.Context(), h, key)
	if err != nil {
		t.Fatal(err)
	}
	tokens := got.TokensOfType(enrol.ManageTokenType)
	if len(tokens) != 1 || len(manage) != enrol.ManageKeyBytes {
		t.Fatalf("tokens %v, a key of %d bytes", tokens, len(manage))
	}
	opened, keyslot, err := got.Authorize(manage, &luks2.Budget{Work: 1 << 20})
	if err != nil || !bytes.Equal(opened, key) {
		t.Errorf("the manage key opens keyslot %d: %v", keyslot, err)
	}
	if _, err := h.Unlock(keyslot, manage); err == nil {
		t.Error("it opened the volume before it was enrolled")
	}
}

func TestFillVolumeKeepsTheRecoveryKeyForRootOnly(t *testing.T) {
	dir := t.TempDir()
	root, err := openDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := fillVolume(root, []byte("secret"), []byte("other")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{layout.Private: 0o700, layout.RecoveryKey: 0o600, layout.ManageKey: 0o600} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %o", path, info.Mode(), err, want)
		}
	}
}

// A warning is one line for whoever reads the report, whatever a disk put into it.
func TestWarningsAreOneLineEach(t *testing.T) {
	b, _ := testBoot(&person{}, config.State{})
	b.warn("bound anew; before: %v", errors.Join(errors.New("one\x1b[2J"), errors.New("two")))
	if want := []string{"bound anew; before: one?[2J two"}; !slices.Equal(b.report.Warnings, want) {
		t.Errorf("warnings %q, want %q", b.report.Warnings, want)
	}
}
