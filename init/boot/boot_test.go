package boot

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

func TestPolicyThatTheBootPathDoesNotBackIsRefused(t *testing.T) {
	exception := config.AcceptTheft
	for _, tt := range []struct {
		name, policy, exception string
		path                    bootPath
		pcrs                    []int
		ok                      bool
	}{
		{"signed_7_with_secure_boot", "signed-pcr11+7", "", pathUKISecureBoot, nil, true},
		{"signed_7_without_secure_boot", "signed-pcr11+7", "", pathUKI, nil, false},
		{"signed_4_without_secure_boot", "signed-pcr11+4", "", pathUKI, nil, true},
		{"signed_4_under_grub", "signed-pcr11+4", "", pathGRUBEFI, nil, false},
		{"pcrs_8_and_9_under_efi_grub", "pcrs", "", pathGRUBEFI, []int{8, 9}, true},
		{"other_pcrs_under_efi_grub", "pcrs", "", pathGRUBEFI, []int{7}, false},
		{"pcr_7_with_secure_boot", "pcrs", "", pathUKISecureBoot, []int{7}, true},
		{"pcr_7_without_secure_boot", "pcrs", "", pathUKI, []int{7}, false},
		{"pcr_4_without_load_options", "pcrs", "", pathUKI, []int{4}, false},
		{"pcr_4_and_7_without_secure_boot", "pcrs", "", pathUKI, []int{4, 7}, false},
		{"pcr_4_until_secure_boot_is_switched_off", "pcrs", "", pathUKISecureBoot, []int{4}, false},
		{"pcr_4_and_12", "pcrs", "", pathUKI, []int{4, 12}, true},
		{"pcr_4_with_the_named_exception", "pcrs", exception, pathUKI, []int{4}, true},
		{"pcrs_under_bios", "pcrs", "", pathUnmeasured, []int{8, 9}, false},
		{"pcrs_under_bios_with_the_named_exception", "pcrs", exception, pathUnmeasured, nil, true},
		{"pcrs_under_bios_with_another_word", "pcrs", "yes", pathUnmeasured, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := backed(config.TPM2{Policy: tt.policy, PCRs: tt.pcrs, WithoutMeasuredBoot: tt.exception}, tt.path)
			if (err == nil) != tt.ok || err != nil && !errors.Is(err, errNotBacked) {
				t.Errorf("backed() = %v, want ok %v", err, tt.ok)
			}
		})
	}
}

// Whatever the configuration says, the policy holds a PCR that init extends.
func TestEveryPolicyIsCapped(t *testing.T) {
	for _, c := range []config.TPM2{
		{Policy: "signed-pcr11+7"}, {Policy: "signed-pcr11+4"}, {Policy: "pcrs"},
		{Policy: "pcrs", PCRs: []int{8, 9}}, {Policy: "pcrs", PCRs: []int{15}},
	} {
		p, err := sealPolicy(c, []byte("key"))
		if err != nil || !p.Capped() {
			t.Errorf("sealPolicy(%+v) = %+v, %v; want a capped policy", c, p, err)
		}
	}
	// Without Secure Boot, load options stand in for the command line of a UKI,
	// and PCR 4 and 11 stay as they were.
	if p, err := sealPolicy(config.TPM2{Policy: "signed-pcr11+4"}, []byte("key")); err != nil || !slices.Equal(p.PCRs, []int{4, 12}) {
		t.Errorf("sealPolicy(signed-pcr11+4) = %+v, %v; want PCRs 4 and 12", p, err)
	}
	if p, err := sealPolicy(config.TPM2{Policy: "signed-pcr11"}, nil); err == nil {
		t.Errorf("sealPolicy(signed-pcr11) = %+v, want an error: PCR 11 alone can be replayed", p)
	}
	p, _ := sealPolicy(config.TPM2{Policy: "pcrs"}, nil)
	if v, ok := p.Values[pcrVolume]; !slices.Equal(p.PCRs, []int{pcrVolume}) || !ok || v != nil {
		t.Errorf("empty list of PCRs gives %+v, want PCR 15 at zero", p)
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
	saw   strings.Builder
	keys  int

	flushed int // how often typed-ahead input was dropped
}

func (p *person) Print(text string)       { p.saw.WriteString(text) }
func (p *person) PrintSecret(text []byte) { p.saw.Write(text) }
func (p *person) Clear()                  {}
func (p *person) Flush()                  { p.flushed++ }
func (p *person) Close() error            { return nil }
func (p *person) WaitKey(context.Context, time.Duration) error {
	if p.keys == 0 {
		return console.ErrIdle
	}
	p.keys--
	return nil
}
func (p *person) ReadLine(context.Context, time.Duration) ([]byte, error) {
	if len(p.lines) == 0 {
		return nil, console.ErrIdle
	}
	line := p.lines[0]
	p.lines = p.lines[1:]
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
		name string
		keys int
		want string
	}{
		{"key_pressed", 1, "enrolled"},
		{"nobody_there", 0, "none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &person{keys: tt.keys}
			b, _ := testBoot(p, config.State{Recovery: "show"})
			got, kept, err := b.enrollRecovery(t.Context(), h, key)
			if err != nil || kept != nil {
				t.Fatalf("enrollRecovery() keeps %d bytes, error %v; want nothing kept", len(kept), err)
			}
			if state := recoveryState(got, t.TempDir()); state != tt.want {
				t.Errorf("recovery is %q, want %q", state, tt.want)
			}
			if len(b.report.Warnings) > 0 && strings.Contains(strings.Join(b.report.Warnings, " "), "-") && tt.keys > 0 {
				t.Errorf("warnings %q", b.report.Warnings)
			}
		})
	}
}

func TestFillVolumeKeepsTheRecoveryKeyForRootOnly(t *testing.T) {
	dir := t.TempDir()
	root, err := openDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := fillVolume(root, []byte("secret")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{layout.Private: 0o700, layout.RecoveryKey: 0o600} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %o", path, info.Mode(), err, want)
		}
	}
}
