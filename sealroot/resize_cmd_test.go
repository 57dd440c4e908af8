package main

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/state"
	"sealroot/state/luks2"
	"sealroot/state/resize"
)

func TestWantedSize(t *testing.T) {
	s := resize.Sizes{Reserved: 8 << 30, OuterTotal: 40 << 30, MinReserved: 1 << 30, MaxReserved: 30 << 30}
	for text, want := range map[string]int64{
		"max": resize.Largest, "min": resize.Smallest, "20": 20, "20G": 20 << 30, "500M": 500 << 20, "+2G": 10 << 30, "-1G": 7 << 30, "50%": 20 << 30,
		"1.5G": 3 << 29, "1048576": 1 << 20, "1T": 1 << 40, "4096K": 4 << 20, "-100G": -92 << 30,
	} {
		if got, err := wantedSize(text, s); err != nil || got != want {
			t.Errorf("wantedSize(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "G", "+", "-", "0", "0G", "101%", "+5%", "-0%", "NaN", "Inf", "1e9", "20GB", "--1G", "+-1G", "0x10", "9999999T", "%", "maximum", "1_000"} {
		if got, err := wantedSize(text, s); !errors.Is(err, errUsage) || got != 0 {
			t.Errorf("wantedSize(%q) = %d, %v, want %v", text, got, err, errUsage)
		}
	}
}

func TestSizesText(t *testing.T) {
	before := resize.Sizes{Reserved: 8 << 30, InnerFree: 1 << 30, OuterFree: 20 << 30}
	after := resize.Sizes{Reserved: 16 << 30, InnerFree: 9 << 30, OuterFree: 12 << 30, GivenBack: 3 << 20, InBalloons: 4 << 20, OverCommitted: 5 << 20, ReadOnly: true}
	const want = "the volume has 16.0 GiB, it had 8.0 GiB; free in it 9.0 GiB, beside it 12.0 GiB; 4 MiB in balloons, of which 3 MiB are given back, count as used in df; 5 MiB that it spans are NOT reserved; it is read-only"
	if got := sizesText(before, after); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for _, err := range []error{resize.ErrNoRoom, resize.ErrTooSmall, resize.ErrNotOpen, resize.ErrBusy, resize.ErrFragmented, resize.ErrNoKey, resize.ErrWrongKey} {
		if code := exitCode(refusedResize(err)); code != exitRefused {
			t.Errorf("%v: exit status %d, want %d", err, code, exitRefused)
		}
	}
	if code := exitCode(refusedResize(resize.ErrOverCommitted)); code != exitFailed {
		t.Errorf("over-committed: exit status %d, want %d", code, exitFailed)
	}
}

// In a degraded boot each of them says how to get the volume.
func TestResizeInADegradedBoot(t *testing.T) {
	s := newSealed(t)
	s.env.Volume = func(state.DeviceSize, resize.Key) (Resizer, error) { return nil, resize.ErrNotOpen }
	for _, degraded := range []bool{true, false} {
		s.report.Degraded = degraded
		for _, args := range [][]string{{"state", "resize", "max"}, {"state", "repair"}, {"state", "balance"}} {
			code, _, errs := s.run(args...)
			if code != exitRefused || !strings.Contains(errs, "no encrypted volume is open") || strings.Contains(errs, "sealroot state unlock opens it") != degraded {
				t.Errorf("%q, degraded %v: exit status %d, %s", args, degraded, code, errs)
			}
		}
	}
}

// What the service will undo is said with what prevents that.
func TestHowLongASizeLasts(t *testing.T) {
	s := newSealed(t)
	s.env.Limits = "/etc/sealroot/state.yaml"
	v := shortOfSpace()
	s.env.Volume = func(state.DeviceSize, resize.Key) (Resizer, error) { return v, nil }
	for _, tt := range []struct {
		auto, size string
		want       string // "": nothing is said
	}{
		{config.AutoResizeOff, "-1G", ""}, {config.AutoResizeOff, "+1G", ""},
		{config.AutoResizeGrow, "-1G", "larger again"}, {config.AutoResizeGrow, "+1G", ""},
		{config.AutoResizeBoth, "-1G", "larger again"}, {config.AutoResizeBoth, "+1G", "takes space back"}, {config.AutoResizeBoth, "4112M", ""},
	} {
		s.config.State.AutoResize, v.asked = tt.auto, nil
		v.synced = 0
		_, out, errs := s.run("state", "resize", tt.size)
		if v.synced != 1 {
			t.Errorf("%s: synced after %d resizes, want it on stable storage", tt.size, v.synced)
		}
		said := strings.Contains(out, "sealroot-state.service (state.auto_resize: "+tt.auto+")") && strings.Contains(out, s.env.Limits)
		if said != (tt.want != "") || !strings.Contains(out, tt.want) {
			t.Errorf("%s, %s: %s%s, want %q", tt.auto, tt.size, out, errs, tt.want)
		}
	}
}

// What is asked for by + is from what the volume has when nobody else resizes it.
func TestRelativeSizeBesideAResize(t *testing.T) {
	s := newSealed(t)
	v := shortOfSpace()
	v.raced = 1 << 30
	had := v.sizes.Reserved
	s.env.Volume = func(state.DeviceSize, resize.Key) (Resizer, error) { return v, nil }
	code, out, errs := s.run("state", "resize", "+2G")
	if want := []int64{had + 3<<30}; code != exitOK || !slices.Equal(v.asked, want) || !strings.Contains(out, "it had 5.0 GiB") {
		t.Errorf("exit status %d, %s%s, asked for %v, want %v", code, out, errs, v.asked, want)
	}
}

// askingVolume is one that asks for its key where it needs one.
type askingVolume struct {
	shortVolume
	t    *testing.T
	h    *luks2.Header
	key  resize.Key
	want []byte
}

func (v *askingVolume) ResizeTo(ctx context.Context, want func(resize.Sizes) int64) (resize.Sizes, error) {
	return v.Resize(ctx, want(v.sizes))
}

func (v *askingVolume) Resize(ctx context.Context, reserved int64) (resize.Sizes, error) {
	if v.sizes.NeedsKey(reserved) || v.key != nil {
		if v.key == nil {
			return v.sizes, resize.ErrNoKey
		}
		if key, err := v.key(v.h); err != nil || !bytes.Equal(key, v.want) {
			v.t.Errorf("the key is %x, %v", key, err)
		}
	}
	return v.shortVolume.Resize(ctx, reserved)
}

// With state.device classic the command asks for a key where the devices change, by the
// rules of those that change keyslots, and for none elsewhere.
func TestResizeWithAKey(t *testing.T) {
	s := newSealed(t)
	s.config.State.Device = config.DeviceClassic
	s.boot("A", false)
	v := &askingVolume{shortVolume: *shortOfSpace(), t: t, h: s.header(), want: s.key}
	v.sizes.Classic, v.sizes.Filesystem = true, "ext4"
	given := false
	s.env.Volume = func(device state.DeviceSize, key resize.Key) (Resizer, error) {
		if device != state.Classic {
			t.Errorf("opened as %q", device)
		}
		v.key, given = key, key != nil
		return v, nil
	}
	recovery, other := s.file(string(s.recovery)), s.file("cccccccc-cccccccc-cccccccc-cccccccc-cccccccc-cccccccc-cccccccc-cccccccc")
	for _, tt := range []struct {
		args []string
		code int
		text string // in what it says
		key  bool
	}{
		{[]string{"max"}, exitRefused, "takes its key: this needs a key that opens the volume: --recovery-key-file", false},
		{[]string{"--recovery-key-file", other, "max"}, exitRefused, "", false},
		{[]string{"--recovery-key-file", recovery, "max"}, exitOK, "", true},
		{[]string{"min"}, exitOK, "", false},
		{[]string{"--recovery-key-file", recovery, "min"}, exitOK, "", true},
	} {
		v.asked, given = nil, false
		code, out, errs := s.run(append([]string{"state", "resize"}, tt.args...)...)
		if code != tt.code || given != tt.key || (len(v.asked) == 1) != (code == exitOK) || !strings.Contains(errs, tt.text) {
			t.Errorf("%q: exit status %d, a key %v, asked for %v: %s%s", tt.args, code, given, v.asked, out, errs)
		}
	}
	// The manage key is taken without being named.
	s.config.State.ManageKey = true
	s.ok("state", "rekey", "--recovery-key-file", recovery)
	v.h, v.asked = s.header(), nil
	if code, _, errs := s.run("state", "resize", "max"); code != exitOK || len(v.asked) != 1 || !given {
		t.Errorf("with a manage key: exit status %d, %s, asked for %v", code, errs, v.asked)
	}
}
