package sharing

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sealroot/init/config"
	"sealroot/state/balance"
)

func TestLimits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.yaml")
	if l, err := LoadLimits(path); err != nil || l != balance.Defaults() {
		t.Errorf("no file: %+v, %v, want the defaults", l, err)
	}
	for _, c := range []struct {
		text string
		want func(*balance.Limits)
	}{
		{"# nothing\n", nil},
		{"keep_free: 2G\nmin: 512M\nmax: 1T\n", func(l *balance.Limits) { l.KeepFree, l.Min, l.Max = 2<<30, 512<<20, 1<<40 }},
		{"weights: {partition: 1, volume: 3}\n", func(l *balance.Limits) { l.OuterWeight, l.InnerWeight = 1, 3 }},
		{"weights:\n  partition: 0\n", func(l *balance.Limits) { l.OuterWeight = 0 }},
		{"rate: 20M # per second\ninterval: 500ms\n", func(l *balance.Limits) { l.Rate, l.Interval = 20<<20, 500*time.Millisecond }},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		want := balance.Defaults()
		if c.want != nil {
			c.want(&want)
		}
		if l, err := LoadLimits(path); err != nil || l != want {
			t.Errorf("%q: %+v, %v, want %+v", c.text, l, err, want)
		}
	}
}

func TestLimitsThatAreWrong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.yaml")
	for _, c := range []struct {
		text string
		want []string
	}{
		{"keepfree: 2G\n", []string{"line 1", "keepfree", "unknown key", "keep_free, min, max"}},
		{"min: 1G\nweights: {inner: 1}\n", []string{"line 2", "weights.inner", "unknown key"}},
		{"weights: 3\n", []string{"line 1", "weights", "mapping"}},
		{"max: 20\n", []string{"max", "20", "512M or 20G"}},
		{"max: -1G\n", []string{"is not a size"}},
		{"max: 99999999T\n", []string{"is not a size"}},
		{"max: [1G]\n", []string{"a single value"}},
		{"max:\n", []string{"a single value", "leave the key out"}},
		{"max: 1G\nmax: 2G\n", []string{"line 2", "given twice"}},
		{"min: 2G\nmax: 1G\n", []string{"min is 2.0 GiB"}},
		{"interval: 1 second\n", []string{"1s or 500ms"}},
		{"interval: 5m\n", []string{"interval is 5m0s"}},
		{"weights: {partition: 0, volume: 0}\n", []string{"both weights"}},
		{"- a\n", []string{"mapping of keys"}},
		{"a: [\n", []string{"not YAML"}},
		{"min: 1G\n---\nmax: 2G\n", []string{"behind the end"}},
		{"min: 1G #" + strings.Repeat("x", maxLimits), []string{"more than"}},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		l, err := LoadLimits(path)
		if !errors.Is(err, config.ErrInvalid) || l != (balance.Limits{}) {
			t.Errorf("%.40q: %+v, %v, want a problem", c.text, l, err)
			continue
		}
		for _, want := range append(c.want, path) {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%.40q: %v, want %q in it", c.text, err, want)
			}
		}
	}
}

// A file that changes counts at once; one that is wrong is told of once, resizes nothing,
// and counts again once it is right.
func TestLimitsThatChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.yaml")
	f := &LimitsIn{Path: path, GiveBack: true}
	guard := balance.Defaults()
	guard.GapOnly = true
	larger := balance.Defaults()
	larger.KeepFree = 3 << 30
	for i, c := range []struct {
		text    string // "": no file
		want    balance.Limits
		changed bool
		problem bool
	}{
		{"", balance.Defaults(), true, false},
		{"", balance.Limits{}, false, false},
		{"keep_free: 3G\n", larger, true, false},
		{"keep_free: 3G\n", balance.Limits{}, false, false},
		{"keepfree: 3G\n", guard, true, true},
		{"keepfree: 3G\n", guard, false, true},
		{"keep_fre: 3G\n", guard, true, true},
		{"keep_free: 3G\n", larger, true, false},
		{"keep_free: 3G\n", balance.Limits{}, false, false},
		{"", balance.Defaults(), true, false},
	} {
		var err error
		if now, _ := os.ReadFile(path); c.text == "" {
			os.Remove(path)
		} else if string(now) != c.text { // as editors do it
			err = errors.Join(os.WriteFile(path+".new", []byte(c.text), 0o644), os.Rename(path+".new", path))
		}
		if err != nil {
			t.Fatal(err)
		}
		l, changed, problem := f.Reread()
		if changed != c.changed || (problem != nil) != c.problem || c.changed && l != c.want {
			t.Errorf("step %d, %q: %+v, %v, %v", i, c.text, l, changed, problem)
		}
	}
}

// TestWatchWrongLimits: a service with a file that is wrong reserves a gap, resizes nothing,
// tells what is wrong once, and goes on once it is right.
func TestWatchWrongLimits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.yaml")
	if err := os.WriteFile(path, []byte("keepfree: 2G\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	f := &fake{sizes: balance.Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 100 << 20, Gap: gib}}
	s, told, _ := service(t, f, 20)
	s.Reread = (&LimitsIn{Path: path, GiveBack: true}).Reread
	waits, wait := 0, s.Wait
	s.Wait = func(ctx context.Context, next, idle time.Duration) (bool, error) {
		if waits++; waits == 10 {
			if f.reserved != 1 || len(f.resized) > 0 || len(*told) != 2 || !strings.Contains((*told)[0], "line 1: keepfree: unknown key") || !strings.Contains((*told)[0], "the service only reserves") {
				t.Errorf("reserved %d times, resized to %v, told %q", f.reserved, f.resized, *told)
			}
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
		return wait(ctx, next, idle)
	}
	if err := s.Watch(context.Background()); err != nil || len(f.resized) == 0 {
		t.Errorf("%v, resized to %v once the file was gone", err, f.resized)
	}
}

func FuzzParseLimits(f *testing.F) {
	f.Add([]byte("keep_free: 2G\nweights: {partition: 1}\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := ParseLimits(text)
		if err != nil && l != (balance.Limits{}) {
			t.Errorf("%v, and limits %+v", err, l)
		}
		if err == nil && l.Check() != nil {
			t.Errorf("limits %+v: %v", l, l.Check())
		}
	})
}
