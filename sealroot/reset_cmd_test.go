package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/state/reset"
)

func TestStateReset(t *testing.T) {
	const uuid = "11111111-2222-4333-8444-aaaaaaaaaaaa"
	open := func(change func(*report.Report)) *report.Report {
		return running(func(r *report.Report) {
			r.State.UUID = uuid
			if change != nil {
				change(r)
			}
		})
	}
	homeAt := func(places ...string) func(*report.Report) {
		return func(r *report.Report) {
			for _, what := range places {
				r.Mounts = append(r.Mounts, report.Mount{What: what, Where: "/home", Type: "bind"})
			}
		}
	}
	for _, tt := range []struct {
		name   string
		args   string
		report *report.Report
		create string
		reset  string
		before string // the request that is there
		code   int
		text   string
		after  string
	}{
		{"yes", "--yes", open(nil), "first-boot", "", "", 0, "destroyed at the next boot", string(reset.Format(uuid, false))},
		{"another_one_is_there", "--yes", open(nil), "first-boot", "", "x", 0, "destroyed at the next boot", string(reset.Format(uuid, false))},
		{"nobody_to_ask", "", open(nil), "first-boot", "", "", 1, "--yes does without", ""},
		{"never", "--yes", open(nil), "first-boot", config.ResetNever, "", 3, "state.reset of this image is never", ""},
		{"no_new_volume", "--yes", open(nil), "never", "", "", 3, "no new volume would be made", ""},
		{"degraded", "--yes", open(func(r *report.Report) { r.Degraded = true }), "first-boot", "", "", 3, "degraded", ""},
		{"no_volume", "--yes", running(nil), "first-boot", "", "", 3, "no encrypted volume", ""},
		{"keep_home", "--keep-home --yes", open(homeAt("/state/encrypted/home")), "first-boot", "", "", 0, "but /home is removed at the next boot", string(reset.Format(uuid, true))},
		{"keep_home_and_volume", "--keep-home --yes", open(nil), "never", "", "", 0, "Its keys stay", string(reset.Format(uuid, true))},
		{"home_is_beside", "--keep-home --yes", open(homeAt("/state/encrypted/home", "/state/home")), "first-boot", "", "", 0, "destroyed at the next boot", string(reset.Format(uuid, false))},
		// Of the homes one is in the volume, and would go with it.
		{"a_home_is_inside", "--keep-home --yes", open(func(r *report.Report) {
			homeAt("/state/home")(r)
			r.Mounts = append(r.Mounts, report.Mount{What: "/state/encrypted/data/kiosk", Where: "/home/kiosk", Type: "bind"})
		}), "first-boot", "", "", 0, "but /home is removed at the next boot", string(reset.Format(uuid, true))},
		{"home_is_beside_no_new_volume", "--keep-home --yes", open(homeAt("/state/home")), "never", "", "", 3, "no new volume would be made", ""},
		{"keep_home_never", "--keep-home --yes", open(nil), "first-boot", config.ResetNever, "", 3, "state.reset of this image is never", ""},
		{"cancel_keep_home", "--cancel --keep-home", open(nil), "first-boot", "", "x", 2, "asks nothing", "x"},
		{"cancel", "--cancel", open(nil), "first-boot", "", string(reset.Format(uuid, false)), 0, "the state stays", ""},
		{"cancel_nothing", "--cancel", open(nil), "first-boot", "", "", 3, "no factory reset was asked for", ""},
		{"cancel_degraded", "--cancel", open(func(r *report.Report) { r.Degraded = true }), "first-boot", "", "x", 0, "the state stays", ""},
		{"cancel_not_open", "--cancel", open(func(r *report.Report) { r.Degraded = true }), "first-boot", "", "", 3, "sealroot state unlock opens the volume", ""},
		{"cancel_never", "--cancel", open(nil), "first-boot", config.ResetNever, "x", 0, "the state stays", ""},
		{"cancel_yes", "--cancel --yes", open(nil), "first-boot", "", "x", 2, "asks nothing", "x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			env := Env{
				Version: "v1", Report: filepath.Join(dir, "boot.json"), State: filepath.Join(dir, "state"), Lock: filepath.Join(dir, "lock"),
				Config: filepath.Join(dir, "config.json"), TTY: func() (*os.File, error) { return nil, errors.New("no terminal") },
			}
			path := filepath.Join(env.volume(), reset.File)
			text, err := tt.report.Encode()
			cfg, err2 := json.Marshal(config.Config{State: config.State{Create: tt.create, Reset: tt.reset}})
			err = errors.Join(err, err2, os.WriteFile(env.Report, text, 0o644), os.WriteFile(env.Config, cfg, 0o644), os.MkdirAll(filepath.Dir(path), 0o700))
			if err == nil && tt.before != "" {
				err = os.WriteFile(path, []byte(tt.before), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			code := Main(t.Context(), append([]string{"state", "reset"}, strings.Fields(tt.args)...), &out, &out, env)
			if code != tt.code || !strings.Contains(out.String(), tt.text) {
				t.Errorf("exit status %d, want %d, with %q:\n%s", code, tt.code, tt.text, out.String())
			}
			if left, _ := os.ReadFile(path); string(left) != tt.after {
				t.Errorf("the request is %q, want %q", left, tt.after)
			}
		})
	}
}
