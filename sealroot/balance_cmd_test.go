package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sealroot/init/report"
	"sealroot/sealroot/sharing"
	"sealroot/state"
	"sealroot/state/balance"
	"sealroot/state/resize"
)

// noVolume is Env.Volume of a boot without one.
func noVolume(state.DeviceSize, resize.Key) (Resizer, error) { return nil, resize.ErrNotOpen }

// shortVolume is one whose file system is short of free space.
type shortVolume struct {
	resize.Resizer // what no test calls
	sizes          resize.Sizes
	asked          []int64
	raced          int64 // somebody else reserves so much after it was measured
	repaired       int
	synced         int // after so many resizes
	busy           error
	closed         bool
}

func (r *shortVolume) Measure() (resize.Sizes, error) { return r.sizes, r.busy }
func (r *shortVolume) Resize(_ context.Context, reserved int64) (resize.Sizes, error) {
	r.asked = append(r.asked, reserved)
	after := r.sizes
	after.Reserved = reserved
	return after, nil
}
func (r *shortVolume) ResizeTo(ctx context.Context, want func(resize.Sizes) int64) (resize.Sizes, error) {
	r.sizes.Reserved += r.raced
	return r.Resize(ctx, want(r.sizes))
}

func (r *shortVolume) Extend(_ context.Context, n int64) (resize.Sizes, error) {
	return r.Resize(context.Background(), r.sizes.Reserved+n)
}
func (r *shortVolume) Repair(context.Context) (resize.Sizes, error) {
	r.repaired++
	return r.sizes, nil
}
func (r *shortVolume) Sync() error  { r.synced = len(r.asked); return nil }
func (r *shortVolume) Close() error { r.closed = true; return nil }

func shortOfSpace() *shortVolume {
	const gib = 1 << 30
	return &shortVolume{sizes: resize.Sizes{
		Apparent: 16 * gib, Device: 16 * gib, DataOffset: 16 << 20, Spanned: 4 * gib, Reserved: 4*gib + 16<<20, InnerFree: 100 << 20, InnerUsed: 3 * gib,
		OuterFree: 10 * gib, OuterTotal: 15 * gib, MinReserved: 4 * gib, MaxReserved: 13 * gib,
	}}
}

// balanced runs state balance where the configuration has this auto_resize.
func balanced(t *testing.T, auto, limits string, v *shortVolume, args ...string) (code int, stdout, stderr string, env Env) {
	t.Helper()
	w := world{report: running(func(r *report.Report) { r.State.Unlocked = "tpm2" })}
	w.adapt = func(env *Env) {
		dir := filepath.Dir(env.Report)
		env.Config, env.Limits, env.Decisions = filepath.Join(dir, "config.json"), filepath.Join(dir, "state.yaml"), filepath.Join(dir, "balance.json")
		env.Volume = noVolume
		if v != nil {
			env.Volume = func(state.DeviceSize, resize.Key) (Resizer, error) { return v, nil }
		}
		for path, text := range map[string]string{env.Config: `{"state":{"auto_resize":"` + auto + `"}}`, env.Limits: limits} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	code, stdout, stderr, o := w.outcome(t, append([]string{"state", "balance"}, args...)...)
	return code, stdout, stderr, o.env
}

func TestBalance(t *testing.T) {
	v := shortOfSpace()
	code, out, errs, env := balanced(t, "both", "", v)
	if code != 0 || !strings.Contains(out, "the volume grows to") || len(v.asked) != 1 || v.asked[0] <= v.sizes.Reserved || !v.closed {
		t.Errorf("exit status %d, %s%s, asked for %v, closed %v", code, out, errs, v.asked, v.closed)
	}
	if text, err := os.ReadFile(env.Decisions); err != nil || !strings.Contains(string(text), `"action":"grow"`) {
		t.Errorf("kept %q, %v", text, err)
	}
	v = shortOfSpace()
	code, out, errs, _ = balanced(t, "both", "max: 2G\n", v, "--json")
	var r struct {
		Data struct{ Action, Reason string }
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 || r.Data.Action != "none" || !strings.Contains(r.Data.Reason, "max is 2.0 GiB") || len(v.asked) != 0 {
		t.Errorf("with max: exit status %d, %s%s, %v", code, out, errs, err)
	}
}

// TestGuard: with auto_resize off the service closes a gap and does nothing else, whatever
// its limits say.
func TestGuard(t *testing.T) {
	v := shortOfSpace()
	code, out, errs, _ := balanced(t, "off", "keepfree: 2G\n", v, "--configured")
	if code != 0 || len(v.asked) > 0 || v.repaired > 0 || !strings.Contains(out, "auto_resize: off") {
		t.Errorf("no gap: exit status %d, %s%s, %d repairs", code, out, errs, v.repaired)
	}
	v.sizes.OverCommitted = 1 << 20
	if code, out, errs, _ = balanced(t, "off", "", v, "--configured"); code != 0 || len(v.asked) > 0 || v.repaired != 1 {
		t.Errorf("a gap: exit status %d, %s%s, %d repairs", code, out, errs, v.repaired)
	}
}

func TestBalanceRefuses(t *testing.T) {
	v := shortOfSpace()
	if code, _, errs, _ := balanced(t, "both", "keepfree: 2G\n", v); code != exitFailed || !strings.Contains(errs, "state.yaml: line 1: keepfree: unknown key; keys are keep_free") || len(v.asked) > 0 {
		t.Errorf("wrong limits: exit status %d, %s", code, errs)
	}
	if code, _, errs, _ := balanced(t, "both", "", nil); code != exitRefused || !strings.Contains(errs, "no encrypted volume is open") {
		t.Errorf("no volume: exit status %d, %s", code, errs)
	}
}

func TestUTF8Locale(t *testing.T) {
	for want, env := range map[bool]map[string]string{
		true:  {"LC_CTYPE": "en_US.utf8", "LANG": "C"},
		false: {"LC_ALL": "C", "LANG": "de_DE.UTF-8"},
	} {
		if got := utf8Locale(func(name string) string { return env[name] }); got != want {
			t.Errorf("utf8Locale(%v) = %v", env, got)
		}
	}
	if utf8Locale(func(string) string { return "" }) {
		t.Error("no locale is taken for UTF-8")
	}
}

// TestStatusOfSpace: state status has what both sides have, for a person and for a
// program.
func TestStatusOfSpace(t *testing.T) {
	s := newSealed(t)
	s.boot("A", false)
	s.env.Decisions = filepath.Join(t.TempDir(), "balance.json")
	s.env.Volume = func(state.DeviceSize, resize.Key) (Resizer, error) { return shortOfSpace(), nil }
	sharing.OpenDecisions(s.env.Decisions).Add(balance.Decision{Action: balance.Grow, Size: 3 << 30, Reason: "why"}, nil, time.Unix(1e9, 0))
	d := s.status() // which holds it to the schema
	if d.Space == nil || d.Space.Reserved != 4<<30+16<<20 || len(d.Space.Decisions) != 1 || !strings.Contains(d.Space.Now, "the volume grows to") {
		t.Errorf("space: %+v", d.Space)
	}
	if out := s.ok("state", "status"); !strings.Contains(out, "grow 3.0 GiB: why") || !strings.Contains(out, "used and") {
		t.Errorf("state status: %s", out)
	}
	s.env.Limits = filepath.Join(t.TempDir(), "state.yaml")
	if err := os.WriteFile(s.env.Limits, []byte("keepfree: 1G\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if d := s.status(); d.Space == nil || !strings.Contains(d.Space.LimitsProblem, "line 1: keepfree: unknown key") || d.Space.KeepFree == 0 || !strings.Contains(d.Space.Now, "nothing is resized") {
		t.Errorf("space with wrong limits: %+v", d.Space)
	}
	busy := shortOfSpace()
	busy.busy = resize.ErrBusy
	s.env.Volume = func(state.DeviceSize, resize.Key) (Resizer, error) { return busy, nil }
	if d := s.status(); d.Space == nil || d.Space.Reserved != 4<<30+16<<20 || !strings.Contains(d.Space.Now, "another program") || !slices.Contains(d.Problems, resize.ErrBusy.Error()) {
		t.Errorf("space during a repair: %+v, %q", d.Space, d.Problems)
	}
	s.env.Volume = noVolume
	if d := s.status(); d.Space != nil {
		t.Errorf("without a volume: %+v", d.Space)
	}
}
