package main

import (
	"errors"
	"testing"

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
	after := resize.Sizes{Reserved: 16 << 30, InnerFree: 9 << 30, OuterFree: 12 << 30, GivenBack: 3 << 20, OverCommitted: 5 << 20, ReadOnly: true}
	const want = "the volume has 16.0 GiB, it had 8.0 GiB; free in it 9.0 GiB, beside it 12.0 GiB; 3 MiB that it gave back count as used in df; 5 MiB that it spans are NOT reserved; it is read-only"
	if got := sizesText(before, after); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for _, err := range []error{resize.ErrNoRoom, resize.ErrTooSmall, resize.ErrNotOpen, resize.ErrBusy, resize.ErrFragmented} {
		if code := exitCode(refusedResize(err)); code != exitRefused {
			t.Errorf("%v: exit status %d, want %d", err, code, exitRefused)
		}
	}
	if code := exitCode(refusedResize(resize.ErrOverCommitted)); code != exitFailed {
		t.Errorf("over-committed: exit status %d, want %d", code, exitFailed)
	}
}
