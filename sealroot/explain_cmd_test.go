package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/explain"
)

// The command goes by what PID 1 has left; without that, and for what is no image, it
// says so.
func TestExplainCommand(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, text []byte, err error) string {
		path := filepath.Join(dir, name)
		if err == nil {
			err = os.WriteFile(path, text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	r := running(func(r *report.Report) {
		r.Mounts = []report.Mount{{What: "overlay", Where: "/etc", Type: "overlay"}}
	})
	text, err := r.Encode()
	boot := write("boot.json", text, err)
	text, err = (&config.Config{Name: "kiosk", Etc: config.EtcVolatile}).Encode()
	cfg := write("config.json", text, err)
	notImage := write("not-an-image", make([]byte, 4096), nil)
	for _, tt := range []struct {
		name string
		env  Env
		args []string
		code int
		says string
	}{
		{"text", Env{Report: boot, Config: cfg}, nil, exitOK, "etc is volatile"},
		{"json", Env{Report: boot, Config: cfg}, []string{"--json"}, exitOK, `"why": "etc is volatile`},
		{"not_root", Env{Report: boot, Config: cfg, UID: 1000}, nil, exitNotRoot, "only root"},
		{"not_booted", Env{Report: filepath.Join(dir, "missing"), Config: cfg}, nil, exitNotBooted, "not booted by sealroot"},
		{"no_configuration", Env{Report: boot, Config: filepath.Join(dir, "missing")}, nil, exitFailed, "configuration of this boot"},
		{"slot_of_no_disk", Env{Report: boot, Config: cfg}, []string{"--slot", "b"}, exitUsage, "--slot is for --disk"},
		{"no_image_for_anyone", Env{UID: 1000}, []string{"--disk", notImage}, exitFailed, "neither a disk, nor a tar of parts"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := Main(context.Background(), append([]string{"explain"}, tt.args...), &stdout, &stderr, tt.env)
			if all := stdout.String() + stderr.String(); code != tt.code || !strings.Contains(all, tt.says) {
				t.Errorf("status %d, want %d; no %q in %s", code, tt.code, tt.says, all)
			}
			if tt.name == "json" {
				var e explain.Explanation
				if err := json.Unmarshal(stdout.Bytes(), &e); err != nil || e.Schema != explain.Schema || e.Plan || len(e.Mounts) != 1 {
					t.Errorf("got %+v, %v", e, err)
				}
			}
		})
	}
}
