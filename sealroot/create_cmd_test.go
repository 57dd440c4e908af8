package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sealroot/init/config"
	"sealroot/sealroot/bootset"
	"sealroot/state"
	"sealroot/state/luks2"
	"sealroot/verity/signature/signaturetest"
)

// stateDisk is an image with a partition and room for a state of 300 MiB.
func stateDisk(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "disk.img")
	f, err := os.Create(path)
	if err == nil {
		err = f.Truncate(306 << 20)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if out, err := exec.Command("sgdisk", "-n", "1:2048:+1M", "-c", "1:root-a", path).CombinedOutput(); err != nil {
		t.Fatalf("sgdisk: %v: %s", err, out)
	}
	return path
}

func TestStateCreate(t *testing.T) {
	dir := t.TempDir()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	crt, private, recovery := filepath.Join(dir, "escrow.crt"), filepath.Join(dir, "escrow.key"), filepath.Join(dir, "recovery.key")
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	for path, b := range map[string][]byte{crt: signaturetest.Of(t, key, 7, time.Now().Add(time.Hour)).PEM(), private: text, filepath.Join(dir, "there"): []byte("x")} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := Env{Version: "v1", UID: 1000}
	create := func(t *testing.T, args ...string) (code int, stdout, stderr string) {
		t.Helper()
		var out, errs bytes.Buffer
		code = Main(t.Context(), append([]string{"state", "create"}, args...), &out, &errs, env)
		return code, out.String(), errs.String()
	}
	disk := stateDisk(t, dir)
	for _, tt := range []struct {
		name string
		args []string
		code int
		errs string
	}{
		{"no_disk", nil, exitUsage, "--disk says which"},
		{"both", []string{"--disk", disk, "--escrow", crt, "--recovery-key-file", recovery}, exitUsage, "not both"},
		{"negative", []string{"--disk", disk, "--reserve", "-1"}, exitUsage, "in MiB"},
		{"key_file_is_there", []string{"--disk", disk, "--recovery-key-file", filepath.Join(dir, "there")}, exitFailed, "file exists"},
		{"no_certificate", []string{"--disk", disk, "--escrow", private}, exitFailed, "cannot escrow"},
		{"no_image", []string{"--disk", dir}, exitRefused, "not a disk image"},
		{"no_room", []string{"--disk", disk, "--reserve", "400", "--recovery-key-file", recovery}, exitRefused, "not enough room"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if code, _, errs := create(t, tt.args...); code != tt.code || !strings.Contains(errs, tt.errs) {
				t.Errorf("exit %d, %q; want %d, %q", code, errs, tt.code, tt.errs)
			}
		})
	}
	if _, err := os.Stat(recovery); err == nil {
		t.Error("the key of a volume that was not made is left")
	}

	// The last one has added the partition, unfinished, and nothing else.
	if code, stdout, errs := create(t, "--disk", disk, "--recovery-key-file", recovery); code != exitOK || !strings.Contains(stdout, "is made") {
		t.Fatalf("exit %d, %q, %q", code, stdout, errs)
	}
	kept, err := os.ReadFile(recovery)
	if info, failed := os.Stat(recovery); err != nil || failed != nil || info.Mode() != fs.FileMode(0o600) {
		t.Errorf("the key file: %v, %v", info, failed)
	}
	opensWith(t, disk, kept)

	other := filepath.Join(dir, "other")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	disk = stateDisk(t, other)
	if code, stdout, errs := create(t, "--disk", disk, "--escrow", crt, "--json"); code != exitOK || !strings.Contains(stdout, `"partition_added": true`) {
		t.Fatalf("exit %d, %q, %q", code, stdout, errs)
	}
	message := filepath.Join(dir, "message")
	catState(t, disk, state.EscrowName, message)
	out, err := exec.Command("openssl", "cms", "-decrypt", "-in", message, "-inform", "DER", "-recip", crt, "-inkey", private).Output()
	if err != nil {
		t.Fatalf("openssl: %v", err)
	}
	opensWith(t, disk, out)
}

// An image whose machines would not take the volume gets none.
func TestStateCreateRefusesImages(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(s *config.State)
		want   string
	}{
		"first_boot": {func(*config.State) {}, ""},
		"btrfs":      {func(s *config.State) { s.PartitionFilesystem = "btrfs" }, "state.partition_filesystem: btrfs; btrfs cannot be written to"},
		"never":      {func(s *config.State) { s.Create = "never" }, "state.create: never"},
		"plain":      {func(s *config.State) { s.Unlock = []string{config.UnlockPlain} }, "unencrypted"},
	} {
		cfg := &config.Config{State: config.State{Create: config.CreateFirstBoot}}
		tt.change(&cfg.State)
		err := takesPrebuilt(cfg)
		if (err == nil) != (tt.want == "") || err != nil && (!errors.Is(err, bootset.ErrRefused) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

// catState copies the beginning of a file on the state partition of stateDisk.
func catState(t *testing.T, disk, name, to string) {
	t.Helper()
	const script = `debugfs -R "cat $1" "$0?offset=2097152" 2>/dev/null | head -c 33554432 >"$2"`
	if out, err := exec.Command("sh", "-c", script, disk, name, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// opensWith: the volume on the disk opens by that key.
func opensWith(t *testing.T, disk string, key []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "volume")
	catState(t, disk, state.ImageName, path)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h, err := luks2.Read(f, 32<<20)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.Authorize(key, luks2.NewBudget(nil)); err != nil {
		t.Errorf("the key does not open the volume: %v", err)
	}
}
