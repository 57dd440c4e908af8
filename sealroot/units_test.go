package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// systemUnits are systemd's own.
const systemUnits = "/lib/systemd/system"

// verifyUnits installs the unit, changed, beside systemd's own and lets
// systemd-analyze load multi-user.target with all that it starts.
func verifyUnits(t *testing.T, old, changed string) (output string, err error) {
	t.Helper()
	root := t.TempDir()
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	run("units/install", root, "/bin/true")
	system := filepath.Join(root, "usr/lib/systemd/system")
	run("cp", "-a", systemUnits+"/.", system)
	unit := filepath.Join(system, "sealroot-commit.service")
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), old) {
		t.Fatalf("the unit has no %q", old)
	}
	if err := os.WriteFile(unit, []byte(strings.Replace(string(text), old, changed, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "verify", "--root="+root, "--man=no", "multi-user.target", "sealroot-commit.service").CombinedOutput()
	return string(out), err
}

func TestCommitUnit(t *testing.T) {
	if got, err := verifyUnits(t, "[Unit]\n", "[Unit]\n"); err != nil || strings.Contains(got, "sealroot") {
		t.Errorf("systemd-analyze: %v\n%s\nwant nothing about sealroot-commit.service", err, got)
	}
}

// TestCommitUnitCycle is the control: systemd-analyze does see a cycle.
func TestCommitUnitCycle(t *testing.T) {
	got, err := verifyUnits(t, "[Unit]\n", "[Unit]\nBefore=multi-user.target\n")
	if err == nil || !strings.Contains(got, "ordering cycle on sealroot-commit.service") {
		t.Errorf("systemd-analyze: %v\n%s\nwant an ordering cycle", err, got)
	}
}
