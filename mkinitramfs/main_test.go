package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// call runs the program.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Main(t.Context(), args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// disked are the arguments of a disk whose configuration is missing, and more.
func disked(more ...string) []string {
	return append([]string{"disk", "--rootfs", "x", "--kernel", "x", "--config", "/nonexistent.yaml", "--keys", "x", "-o", "x"}, more...)
}

func TestUsage(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		code int
		want string // on stderr or stdout
	}{
		{"nothing", nil, 2, "disk --rootfs"},
		{"help", []string{"--help"}, 0, "disk --rootfs"},
		{"unknown_command", []string{"frobnicate"}, 2, "unknown command \"frobnicate\""},
		{"unknown_flag", []string{"--frobnicate"}, 2, "frobnicate"},
		{"output_missing", []string{"--config", "x"}, 2, "missing -o"},
		{"disk_rootfs_missing", []string{"disk"}, 2, "missing -rootfs"},
		{"keys_without_directory", []string{"keys"}, 2, "usage"},
		{"parts_output_missing", []string{"parts", "--rootfs", "x", "--kernel", "x", "--config", "x", "--keys", "x"}, 2, "missing -o"},
		{"parts_has_no_slot_b", []string{"parts", "--slot-b", "good"}, 2, "slot-b"},
		{"disk_help", []string{"disk", "-h"}, 0, "slot-b-rootfs"},
		{"slot_b_state_unknown", disked("--slot-b-rootfs", "y", "--slot-b", "foo"), 2, "choose from good, trial, off"},
		{"slot_b_state_unknown_without_root", disked("--slot-b", "foo"), 2, "choose from good, trial, off"},
		{"slot_b_state_without_root", disked("--slot-b", "good"), 2, "without --slot-b-rootfs"},
		{"slot_b_kernel_without_root", disked("--slot-b-kernel", "y"), 2, "without --slot-b-rootfs"},
		{"slot_b_release_without_kernel", disked("--slot-b-rootfs", "y", "--slot-b-kernel-version", "6.1.0"), 2, "without --slot-b-kernel:"},
		{"slot_b", disked("--slot-b-rootfs", "y", "--slot-b", "off", "--slot-b-kernel", "y", "--slot-b-kernel-version", "6.1.0"), 1, "/nonexistent.yaml"},
		{"two_roots_from_stdin", disked("--rootfs", "-", "--slot-b-rootfs", "-"), 2, "two roots"},
		{"secure_boot_key_alone", disked("--secureboot-key", "y"), 2, "only one of --secureboot-key"},
		{"secure_boot_certificate_alone", append([]string{"parts"}, disked("--secureboot-cert", "y")[1:]...), 2, "only one of --secureboot-key"},
		{"compression_unknown", []string{"-o", "x", "--kernel-version", "1", "--modules-dir", ".", "--config", "/nonexistent.yaml", "--compress", "xz"}, 2, "choose from zstd, none"},
		{"layer_name", []string{"layer", "--name", "X", "--tree", "x", "--keys", "x", "-o", "x"}, 2, "not a name of a layer"},
		{"layer_filesystem", []string{"layer", "--name", "x", "--filesystem", "xfs", "--tree", "x", "--keys", "x", "-o", "x"}, 2, "squashfs"},
		{"stray_argument", []string{"tools", "x"}, 2, "unexpected argument"},
		{"no_size", []string{"disk", "--size", "0"}, 2, "not a size"},
		{"bad_state_size", []string{"disk", "--state-size", "0M"}, 2, "not a size"},
		{"bad_size", []string{"disk", "--size", "4X"}, 2, "not a size"},
		{"config_missing", []string{"-o", "x", "--kernel-version", "1", "--modules-dir", ".", "--config", "/nonexistent.yaml"}, 1, "/nonexistent.yaml"},
		{"tools", []string{"tools"}, 0, "squashfs-tools"},
		{"tools_data", []string{"tools"}, 0, "grub-efi-amd64-bin"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, stdout, stderr := call(t, tc.args...)
			if code != tc.code || !strings.Contains(stdout+stderr, tc.want) {
				t.Errorf("status %d and %q, want %d and %q", code, stdout+stderr, tc.code, tc.want)
			}
		})
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]int64{"512": 512, "4K": 4096, "3M": 3 << 20, "2G": 2 << 30, "": 0, "-1": 0, "1T": 0, "M": 0, "9223372036854775807G": 0} {
		var s size
		err := s.Set(text)
		if int64(s) != want || (err != nil) != (want == 0) {
			t.Errorf("size %q = %d, %v; want %d", text, s, err, want)
		}
	}
}

func TestKeysSaysWhichAreSecret(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	code, stdout, stderr := call(t, "keys", dir)
	if code != 0 {
		t.Fatal(stderr)
	}
	for line := range strings.Lines(stdout) {
		path, _, _ := strings.Cut(line, " ")
		if !strings.HasPrefix(path, dir) {
			continue
		}
		secret := strings.HasSuffix(path, ".key")
		if strings.Contains(line, "SECRET") != secret {
			t.Errorf("%q, secret is %v", line, secret)
		}
		if info, err := os.Stat(path); err != nil || (info.Mode().Perm()&0o077 == 0) != secret {
			t.Errorf("%s: mode of a file that is secret %v: %v, %v", path, secret, info, err)
		}
	}
	if code, _, stderr := call(t, "keys", dir); code != 1 || !strings.Contains(stderr, "exist") {
		t.Errorf("second time: status %d, %q; want 1 and a reason", code, stderr)
	}
}
