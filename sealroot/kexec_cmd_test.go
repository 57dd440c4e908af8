package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	"sealroot/init/config"
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
