package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckRoot(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"etc", "home", "var", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile("yamlconfig/testdata/bios.yaml")
	if err != nil {
		t.Fatal(err)
	}
	layered := filepath.Join(t.TempDir(), "layered.yaml")
	if err := os.WriteFile(layered, append(text, "\nlayers: [{name: tools, image: tools.raw}]\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		code int
		want string // on stderr or stdout
	}{
		{"errors", []string{root}, 1, "error: /sbin/init (init)"},
		{"warnings_alone", []string{"--ignore", "init", root}, 0, "0 errors, "},
		{"rules_by_name", []string{"--ignore", "init,units", "--ignore", "modules", root}, 0, "0 errors, "},
		{"other_init", []string{"--init", "/usr/bin", root}, 1, "a directory"},
		{"kernel", []string{"--ignore", "init", "--kernel", "6.1.0-x", root}, 1, "no modules for kernel 6.1.0-x"},
		{"configuration", []string{"--config", "yamlconfig/testdata/bios.yaml", root}, 1, "error: /sbin/init"},
		{"layer_that_is_not_made_yet", []string{"--ignore", "init", "--config", layered, root}, 0, "layer tools, " + filepath.Dir(layered) + "/tools.raw, cannot be judged"},
		{"layers_left_out", []string{"--ignore", "init,modules,layers", "--config", layered, root}, 0, "0 errors, "},
		{"no_configuration", []string{"--config", "/nonexistent.yaml", root}, 1, "/nonexistent.yaml"},
		{"no_root", []string{root + "/missing"}, 1, "no such file"},
		{"unknown_rule", []string{"--ignore", "inits", root}, 2, `no rule "inits"`},
		{"nothing", nil, 2, "usage"},
		{"help", []string{"-h"}, 0, "0 nothing or warnings only, 1 errors"},
		{"help_lists_rules", []string{"-h"}, 0, "ssh-host-keys"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := call(t, append([]string{"check-root"}, tt.args...)...)
			if code != tt.code || !strings.Contains(stdout+stderr, tt.want) {
				t.Errorf("status %d and %q, want %d and %q", code, stdout+stderr, tt.code, tt.want)
			}
		})
	}
}

func TestCheckRootJSON(t *testing.T) {
	root := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(root, "etc"), 0o755), os.WriteFile(filepath.Join(root, "etc/machine-id"), []byte("0123\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := call(t, "check-root", "--json", root)
	var got judgement
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatalf("%v in %q", err, stdout)
	}
	if code != 1 || !strings.Contains(stderr, "3 errors") || got.Schema != 1 || got.Root != root || got.Errors != 3 || got.Errors+got.Warnings != len(got.Findings) {
		t.Errorf("status %d, %q, %+v", code, stderr, got)
	}
	for _, f := range got.Findings {
		if f.Path == "/etc/machine-id" && f.Rule == "machine-id" && f.Severity == "warning" {
			return
		}
	}
	t.Errorf("no finding about the machine-id in %+v", got.Findings)
}
