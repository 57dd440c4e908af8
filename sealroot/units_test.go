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

// installed puts the command and its units into a new root, beside systemd's own.
func installed(t *testing.T, program string) (root string) {
	t.Helper()
	root = t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
	}
	run("units/install", root, program)
	run("cp", "-a", systemUnits+"/.", filepath.Join(root, "usr/lib/systemd/system"))
	return root
}

// units are all that units/install installs.
func units(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob("units/sealroot-*.*")
	if err != nil || len(all) < 6 {
		t.Fatalf("units: %v, %v", all, err)
	}
	for i := range all {
		all[i] = strings.Replace(filepath.Base(all[i]), "@.", "@x.", 1)
	}
	return all
}

// verifyUnits changes a unit and lets systemd-analyze load all of them with
// what starts them.
func verifyUnits(t *testing.T, unit, old, changed string) (output string, err error) {
	t.Helper()
	root := installed(t, "/bin/true")
	path := filepath.Join(root, "usr/lib/systemd/system", unit)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), old) {
		t.Fatalf("%s has no %q", unit, old)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), old, changed, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"verify", "--root=" + root, "--man=no", "multi-user.target", "sysinit.target", "boot-complete.target"}, units(t)...)
	out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
	return string(out), err
}

func TestUnits(t *testing.T) {
	if got, err := verifyUnits(t, "sealroot-commit.service", "[Unit]\n", "[Unit]\n"); err != nil || strings.Contains(got, "sealroot") {
		t.Errorf("systemd-analyze: %v\n%s\nwant nothing about our units", err, got)
	}
}

// TestUnitsThatAreWrong is the control: systemd-analyze does see what it is
// asked for.
func TestUnitsThatAreWrong(t *testing.T) {
	for _, c := range []struct{ name, unit, old, changed, want string }{
		{"cycle_of_the_commit", "sealroot-commit.service", "[Unit]\n", "[Unit]\nBefore=multi-user.target\n", "ordering cycle"},
		{"cycle_of_the_checks", "sealroot-check.service", "Before=boot-complete.target", "After=sealroot-commit.service\nBefore=boot-complete.target", "ordering cycle"},
		{"cycle_of_the_copy", "sealroot-replicate.service", "After=multi-user.target ", "After=", "ordering cycle"},
		{"unknown_key", "sealroot-deadline.timer", "AccuracySec=", "AccuracySex=", "AccuracySex"},
		{"no_such_program", "sealroot-record.service", "/usr/bin/sealroot", "/usr/bin/seelroot", "seelroot"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, err := verifyUnits(t, c.unit, c.old, c.changed); !strings.Contains(got, c.want) {
				t.Errorf("systemd-analyze: %v\n%s\nwant %q in it", err, got, c.want)
			}
		})
	}
}

// TestUnitsAreEnabled asks systemctl, which reads [Install], for the links that
// enable the units: units/install has made the same.
func TestUnitsAreEnabled(t *testing.T) {
	root := installed(t, "/bin/true")
	args := []string{"--root=" + root, "enable",
		"sealroot-commit.service", "sealroot-check.service", "sealroot-record.service", "sealroot-deadline.timer", "sealroot-replicate.service", "sealroot-exit.service", "sealroot-state.service", "sealroot-post-rollback.service",
		"sealroot-degraded.target"}
	if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
		t.Fatalf("systemctl enable: %v\n%s", err, out)
	}
	links := func(dir string) string {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(root, dir, "*.*", "sealroot-*"))
		if err != nil {
			t.Fatal(err)
		}
		for i := range found {
			found[i] = strings.TrimPrefix(found[i], filepath.Join(root, dir))
		}
		return strings.Join(found, "\n")
	}
	want, got := links("etc/systemd/system"), links("usr/lib/systemd/system")
	if strings.Count(want, "\n") != 8 || got != want {
		t.Errorf("units/install enables\n%s\nwant\n%s", got, want)
	}
}

// TestUnitsCallWhatIsThere: each command line of a unit is one of this program.
func TestUnitsCallWhatIsThere(t *testing.T) {
	files, err := filepath.Glob("units/*.service")
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range strings.Split(string(text), "\n") {
			call, ok := strings.CutPrefix(l, "ExecStart=/usr/bin/sealroot ")
			if !ok {
				continue
			}
			lines++
			// not root: it ends after the arguments were read
			code, _, stderr, _ := world{uid: 1000}.run(t, strings.Fields(call)...)
			if code != exitNotRoot {
				t.Errorf("%s: sealroot %s: exit status %d, %s", path, call, code, stderr)
			}
		}
	}
	if lines < 5 {
		t.Errorf("%d command lines were looked at, want at least 5", lines)
	}
}
