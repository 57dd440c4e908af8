package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/init/report"
	"sealroot/sealroot/install"
	"sealroot/sealroot/rollbackfloor"
	"sealroot/slots"
	"sealroot/state/floor"
	"sealroot/state/tpm/predict"
)

// Level is what the other slot of the tests holds.
func (f *fake) Level(s slots.Slot, r install.Running, trust string) (rollbackfloor.Level, error) {
	l := f.level
	f.trust = trust
	l.Slot = s.Name
	return l, f.err
}

// Image is that of the running slot.
func (f *fake) Image() (predict.Image, error) {
	return predict.Image{RootHash: make([]byte, 32), RootPCR: 13}, nil
}

func TestCommitRaisesTheFloor(t *testing.T) {
	withFloor := func(value, version int) *report.Report {
		return running(func(r *report.Report) {
			r.Root.SecurityVersion, r.Floor = version, &report.Floor{Value: value, Known: true}
		})
	}
	old := rollbackfloor.Level{Version: 1, Known: true}
	for _, c := range []struct {
		name   string
		report *report.Report
		loaded string
		level  rollbackfloor.Level
		asked  string // before
		args   string
		code   int
		text   string
		want   string // asked afterwards
	}{
		{"every_slot_has_it", withFloor(1, 2), "", rollbackfloor.Level{Version: 2, Known: true}, "", "commit", 0, "becomes 2 at the next boot", "2\n"},
		{"held_back", withFloor(1, 2), "", old, "", "commit", 0, "slot a has security version 1; sealroot replicate frees it", ""},
		{"burned", withFloor(1, 2), "", old, "", "commit --burn", 0, "slot a: has security version 1, it will not boot any more", "2\n"},
		{"asked_before", withFloor(1, 2), "", old, "2\n", "commit", 0, "committed", "2\n"},
		{"next_version", withFloor(1, 3), "", rollbackfloor.Level{Version: 3, Known: true}, "2\n", "commit", 0, "becomes 3", "3\n"},
		{"its_own_kernel", withFloor(1, 2), "b", rollbackfloor.Level{Empty: true}, "", "commit", 0, "becomes 2", "2\n"},
		{"kernel_of_the_other_slot", withFloor(1, 2), "a", rollbackfloor.Level{Empty: true}, "", "commit", 0, "stays at 1: the kernel that runs is not that of slot b", ""},
		{"burned_under_the_kernel_of_the_other_slot", withFloor(1, 2), "a", old, "", "commit --burn", 3, "the kernel that runs is not that of slot b", ""},
		{"nothing_to_raise_under_the_kernel_of_the_other_slot", withFloor(2, 2), "a", old, "", "commit --burn", 0, "committed", ""},
		{"by_the_checks", withFloor(1, 2), "", rollbackfloor.Level{Empty: true}, "", "check --commit", 0, "becomes 2", "2\n"},
		{"damaged_request", withFloor(1, 2), "", old, "x", "commit", 1, "not a rollback floor", "x"},
		{"without_a_floor", running(nil), "", old, "", "commit", 0, "committed", ""},
		{"burn_without_a_floor", running(nil), "", old, "", "commit --burn", 3, "trust.rollback_floor", ""},
		{"burn_of_another_disk", running(nil), "", old, "", "commit --burn --disk x.img a", 2, "--burn", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := world{report: c.report, list: pair(), level: c.level, loaded: c.loaded}
			var path string
			w.before = func(e Env) {
				path = filepath.Join(e.volume(), floor.File)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if c.asked != "" {
					if err := os.WriteFile(path, []byte(c.asked), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			code, stdout, stderr, f := w.run(t, strings.Fields(c.args)...)
			if code != c.code || !strings.Contains(stdout+stderr, c.text) {
				t.Errorf("%s: exit status %d, want %d, with %q:\n%s%s", c.args, code, c.code, c.text, stdout, stderr)
			}
			if got, _ := os.ReadFile(path); string(got) != c.want {
				t.Errorf("%q is asked for, want %q", got, c.want)
			}
			if f.trust != "" && f.trust != report.RootCertificates {
				t.Errorf("the slots were judged by the certificates in %s, want %s", f.trust, report.RootCertificates)
			}
			if code <= 1 && !f.list[1].Successful {
				t.Errorf("slots %+v, want b committed", f.list)
			}
		})
	}
}

// The PCRs are read where the kernel shows them; without a TPM status says so.
func TestStatusPCRs(t *testing.T) {
	w := world{report: running(nil), list: pair()}
	if code, stdout, _, _ := w.run(t, "status", "--pcrs"); code != 0 || !strings.Contains(stdout, "cannot read the PCRs: there is no TPM") {
		t.Errorf("without a TPM: %d\n%s", code, stdout)
	}
	w.before = func(e Env) {
		dir := filepath.Join(e.TPM, "pcr-sha256")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "13"), []byte(strings.Repeat("AB", 32)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	code, stdout, _, _ := w.run(t, "status", "--pcrs")
	if code != 0 || strings.Contains(stdout, "cannot read the PCRs") || !strings.Contains(stdout, "DIFFERS") || !strings.Contains(stdout, strings.Repeat("ab", 32)) {
		t.Errorf("with a TPM: %d\n%s", code, stdout)
	}
	if code, _, stderr, _ := w.run(t, "status", "--pcrs", "--disk", "x.img"); code != 2 {
		t.Errorf("of another disk: %d, %s, want 2", code, stderr)
	}
}

// The floor goes by the certificates that the command goes by (--trust).
func TestFloorGoesByTheCommandsCertificates(t *testing.T) {
	c := command{env: Env{State: t.TempDir()}, stdout: io.Discard}
	if err := os.MkdirAll(filepath.Dir(filepath.Join(c.env.volume(), floor.File)), 0o700); err != nil {
		t.Fatal(err)
	}
	m := &fake{level: rollbackfloor.Level{Version: 2, Known: true}}
	r := running(func(r *report.Report) {
		r.Root.SecurityVersion, r.Floor = 2, &report.Floor{Value: 1, Known: true}
	})
	if err := c.raiseFloor(m, *r, pair(), "/elsewhere", false); err != nil || m.trust != "/elsewhere" {
		t.Errorf("%v; the slots were judged by the certificates in %q", err, m.trust)
	}
}
