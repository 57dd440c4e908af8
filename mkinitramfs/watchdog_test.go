package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An initramfs that hands a running watchdog over is made only for a root that
// feeds it.
func TestInitramfsWantsRootThatFeedsWatchdog(t *testing.T) {
	text, err := os.ReadFile("yamlconfig/testdata/uki.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cfg := filepath.Join(dir, "config.yaml")
	text = []byte(strings.Replace(string(text), "  tries: 3", "  watchdog: {seconds: 30, handover: true}", 1))
	if err := os.WriteFile(cfg, text, 0o644); err != nil {
		t.Fatal(err)
	}
	feeding := t.TempDir()
	if err := os.MkdirAll(filepath.Join(feeding, "etc/systemd"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(feeding, "etc/systemd/system.conf"), []byte("[Manager]\nRuntimeWatchdogSec=1min\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, rootfs, want string
	}{
		{"no_root_named", "", "--rootfs"},
		{"root_that_feeds_nothing", t.TempDir(), "RuntimeWatchdogSec="},
		// It comes as far as the modules, which are not there.
		{"root_that_feeds", feeding, "no kernel modules"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			program := filepath.Join(dir, "init")
			if err := os.WriteFile(program, []byte("init"), 0o755); err != nil {
				t.Fatal(err)
			}
			keys := filepath.Join(t.TempDir(), "keys")
			if code, _, stderr := call(t, "keys", keys); code != 0 {
				t.Fatal(stderr)
			}
			args := []string{"-o", filepath.Join(dir, "initrd"), "--kernel-version", "1.2.3", "--modules-dir", dir, "--config", cfg, "--keys", keys, "--init", program}
			if tt.rootfs != "" {
				args = append(args, "--rootfs", tt.rootfs)
			}
			if code, _, stderr := call(t, args...); code == 0 || !strings.Contains(stderr, tt.want) {
				t.Errorf("exit code %d: %s; want %q", code, stderr, tt.want)
			}
		})
	}
}
