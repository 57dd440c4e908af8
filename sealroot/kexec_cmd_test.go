package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/install"
	"sealroot/slots/manifest"
)

func TestKexecCommand(t *testing.T) {
	trust := certificates(t)
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no_loader", []string{"kexec", "--trust", trust}, exitRefused, "cannot start slot a by kexec: slot a: no boot loader"},
		{"second_slot", []string{"kexec", "b", "--trust", trust}, exitRefused, "slot a comes first"},
		{"no_such_slot", []string{"kexec", "c", "--trust", trust}, exitUsage, "no such slot"},
		{"no_certificates", []string{"kexec", "--trust", "/nonexistent"}, exitFailed, "cannot read the certificates"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, _, stderr := onBlank(t, context.Background(), nil, c.args...)
			if code != c.code || !strings.Contains(stderr, c.want) {
				t.Errorf("exit status %d, %q; want %d with %q", code, stderr, c.code, c.want)
			}
			_, stdout, _ := onBlank(t, context.Background(), nil, append(c.args, "--json")...)
			fitsResult(t, stdout)
		})
	}
}

func TestStartable(t *testing.T) {
	mf := manifest.Manifest{Name: "kiosk", SecurityVersion: 2}
	r := install.Running{Name: "kiosk", Floor: 2}
	measured := &config.Config{Trust: config.Trust{Cmdline: config.CmdlineMeasured}}
	for name, c := range map[string]struct {
		cfg  *config.Config
		r    install.Running
		says string
	}{
		"as_it_runs":          {&config.Config{}, r, ""},
		"another_product":     {&config.Config{}, install.Running{Name: "other"}, `this machine is "other"`},
		"below_the_floor":     {&config.Config{}, install.Running{Name: "kiosk", Floor: 3}, "rollback floor"},
		"goes_by_its_line":    {measured, r, "trust.cmdline"},
		"nothing_is_measured": {&config.Config{Trust: config.Trust{Cmdline: "ignore"}}, r, ""},
	} {
		err := startable(mf, c.cfg, c.r)
		if (err == nil) != (c.says == "") || err != nil && (!strings.Contains(err.Error(), c.says) || !errors.Is(err, bootset.ErrRefused)) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

// loadedKernel is a machine on which a kernel may be loaded for kexec; calls are those to
// unload it, with how often the slots were written before.
type loadedKernel struct {
	err   error // of unloading it
	calls []int
}

func (k *loadedKernel) on(t *testing.T, w world, text string) world {
	path := filepath.Join(t.TempDir(), "kexec_loaded")
	if err := os.WriteFile(path, []byte(text), 0o444); err != nil {
		t.Fatal(err)
	}
	w.adapt = func(env *Env) {
		open := env.Open
		var f *fake
		env.Open = func(where Where) (Machine, error) {
			m, err := open(where)
			f, _ = m.(*fake)
			return m, err
		}
		env.KexecLoaded = path
		env.UnloadKexec = func() error {
			saves := 0
			if f != nil {
				saves = f.saves
			}
			k.calls = append(k.calls, saves)
			if k.err == nil {
				return os.WriteFile(path, []byte("0\n"), 0o444)
			}
			return k.err
		}
	}
	return w
}

// A kernel that is loaded is unloaded before slots change, and by nothing that is refused.
func TestLoadedKernelIsUnloaded(t *testing.T) {
	onB := world{report: running(nil), list: pair()}
	onA := onB
	onA.report = running(func(r *report.Report) { r.Slot.Name, r.Slot.Trial = "a", false })
	late := onB
	late.trial = true
	for _, c := range []struct {
		world   world
		args    string
		unloads bool
		goesOn  bool // although it cannot be unloaded
		code    int
	}{
		{onB, "commit", true, false, exitOK},
		{onA, "try b", true, false, exitOK},
		{onB, "mark-bad", true, false, exitOK},
		{onB, "rollback --reboot", true, false, exitOK},
		// The restart does not start it either way, and the trial must end.
		{late, "deadline", true, true, exitOK},
		{onB, "try b", false, true, exitRefused},
		{onB, "rollback --disk x", false, true, exitOK},
		{onB, "status", false, true, exitOK},
		{onB, "record", false, true, exitOK},
	} {
		t.Run(c.args, func(t *testing.T) {
			var k loadedKernel
			code, stdout, stderr, f := k.on(t, c.world, "1\n").run(t, strings.Fields(c.args)...)
			if code != c.code || (len(k.calls) == 1) != c.unloads || len(k.calls) > 1 || c.unloads && (k.calls[0] != 0 || f.saves == 0 || !strings.Contains(stdout, "is unloaded")) {
				t.Errorf("exit status %d, %q, %q, unloaded after %d writes", code, stdout, stderr, k.calls)
			}
			k = loadedKernel{err: errors.New("kexec_load_disabled")}
			code, stdout, stderr, f = k.on(t, c.world, "1\n").run(t, strings.Fields(c.args)...)
			if c.goesOn {
				if code != c.code || c.unloads && f.saves == 0 {
					t.Errorf("a kernel that stays: exit status %d, %d writes, %q, %q", code, f.saves, stdout, stderr)
				}
			} else if code != exitRefused || f.saves != 0 || len(f.log.Failures) > 0 || !strings.Contains(stderr, "kexec_load_disabled") || !strings.Contains(stderr, "SYSTEMCTL_SKIP_AUTO_KEXEC=1") {
				t.Errorf("a kernel that stays: exit status %d, %d writes, %q; want it refused, with what to do", code, f.saves, stderr)
			}
			k = loadedKernel{}
			if code, _, stderr, _ := k.on(t, c.world, "0\n").run(t, strings.Fields(c.args)...); code != c.code || len(k.calls) > 0 {
				t.Errorf("no kernel is loaded: exit status %d, %q, unloaded %d times", code, stderr, len(k.calls))
			}
		})
	}
}

// The same before slots are written as a whole.
func TestLoadedKernelIsUnloadedBeforeInstall(t *testing.T) {
	k := loadedKernel{err: errors.New("busy")}
	env := Env{Open: func(Where) (Machine, error) { return blank{&fake{}, ""}, nil }}
	k.on(t, world{}, "1\n").adapt(&env)
	j, err := newCommand(verb{}, io.Discard, io.Discard, env).openJob(report.Report{}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.machine.BeginChange(); !errors.Is(err, bootset.ErrRefused) || len(k.calls) != 1 {
		t.Errorf("BeginChange() = %v, unloaded %d times", err, len(k.calls))
	}
}

func TestKexecUnload(t *testing.T) {
	w := world{report: running(nil), list: pair()}
	for _, c := range []struct {
		text, args string
		err        error
		code       int
		says       string
	}{
		{"1\n", "kexec --unload", nil, exitOK, "is unloaded"},
		{"0\n", "kexec --unload", nil, exitOK, "no kernel is loaded"},
		{"1\n", "kexec --unload", errors.New("busy"), exitRefused, "busy"},
		{"1\n", "kexec --unload --start", nil, exitUsage, "--unload"},
		{"1\n", "kexec --unload b", nil, exitUsage, "--unload"},
	} {
		k := loadedKernel{err: c.err}
		code, stdout, stderr, _ := k.on(t, w, c.text).run(t, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(stdout+stderr, c.says) || (len(k.calls) == 1) != (c.text == "1\n" && c.code != exitUsage) {
			t.Errorf("%s of %q: exit status %d, %q, %q, unloaded %d times", c.args, c.text, code, stdout, stderr, len(k.calls))
		}
	}
}

// What the TPM opens at a restart it does not open after a kexec.
func TestOpensAlone(t *testing.T) {
	for _, c := range []struct {
		unlock []string
		opens  bool
	}{
		{[]string{config.UnlockTPM2, config.UnlockRecoveryKey}, false},
		{[]string{config.UnlockTPM2}, false},
		{[]string{config.UnlockTPM2, config.UnlockKeyFile, config.UnlockRecoveryKey}, true},
		{[]string{config.UnlockKeyFile}, true},
		{[]string{config.UnlockPlain}, true},
		{nil, true}, // no state
		// a restart asks too
		{[]string{config.UnlockPassphrase}, true},
	} {
		err := opensAlone(config.State{Unlock: c.unlock})
		if (err == nil) != c.opens || err != nil && (!errors.Is(err, bootset.ErrRefused) || !strings.Contains(err.Error(), "--force")) {
			t.Errorf("%q: %v", c.unlock, err)
		}
	}
}
