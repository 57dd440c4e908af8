package sharing

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"sealroot/state/balance"
)

func sides() Sides {
	return Sides{
		Partition: 16 * gib, PartitionFree: 4 * gib, KeepFree: gib, Reserved: 8 * gib, Volume: 7 * gib, VolumeFree: 4 * gib,
		GivenBack: gib / 2, InBalloons: gib/2 + 9<<20, Spare: 3 * gib, AutoResize: "both", StatedRate: 128 << 20, Now: "nothing to do: nothing is short",
		Decisions: []Past{{Time: time.Unix(1e9, 0).UTC(), Action: balance.Grow, Bytes: 7 * gib, Reason: "the volume has 1 MiB free\x1b[2J", Error: "busy"}},
	}
}

func TestBar(t *testing.T) {
	for _, c := range []struct {
		s     Sides
		width int
		want  string
	}{
		{sides(), 16, "####----====...."},
		{sides(), 4, "#-=."},
		{Sides{Partition: gib, PartitionFree: gib}, 5, "....."},
		{Sides{}, 5, ""},
	} {
		if got := c.s.Bar(c.width, true); got != c.want {
			t.Errorf("Bar(%d) = %q, want %q", c.width, got, c.want)
		}
	}
	for width := range 120 {
		if got := sides().Bar(width, false); utf8.RuneCountInString(got) != width {
			t.Errorf("Bar(%d) has %d characters", width, utf8.RuneCountInString(got))
		}
	}
}

func TestWrite(t *testing.T) {
	var b strings.Builder
	if err := sides().Write(&b, 18, true); err != nil {
		t.Fatal(err)
	}
	const want = `
space of the state partition, 16.0 GiB
[#####-----=====.....]
# used and - free in the volume, = used and . free beside it
volume     7.0 GiB, 4.0 GiB free, 8.0 GiB reserved for it
beside it  4.0 GiB free, of which the volume leaves 1.0 GiB
balloons   521 MiB, of which 512 MiB are given back; df counts them as used in the volume, nothing is there
could give 3.0 GiB
automatic  both, for writers up to 128 MiB/s; now: nothing to do: nothing is short
2001-09-09 01:46:40  grow 7.0 GiB: the volume has 1 MiB free?[2J; failed: busy
`
	if got := b.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	s := sides()
	s.AutoResize, s.Gap = "off", gib
	b.Reset()
	if err := s.Write(&b, 80, false); err != nil || !strings.Contains(b.String(), "off (state.auto_resize") || !strings.Contains(b.String(), "NOT RESERVED 1.0 GiB") {
		t.Errorf("%v, got\n%s", err, b.String())
	}
	for _, few := range []bool{false, true} {
		b.Reset()
		s.VolumeInodes, s.VolumeInodesFree, s.few = 1000, 99, few
		if err := s.Write(&b, 80, false); err != nil || strings.Contains(b.String(), "FEW INODES 99 of 1000 in the volume, any number beside it") != few {
			t.Errorf("few inodes: %v: %v, got\n%s", few, err, b.String())
		}
	}
	s.LimitsProblem = "state.yaml: line 1: \x1b"
	b.Reset()
	if err := s.Write(&b, 80, false); err != nil || !strings.Contains(b.String(), "the service only reserves what the volume spans, until this is right: state.yaml: line 1: ?\n") {
		t.Errorf("%v, got\n%s", err, b.String())
	}
	s.LimitsProblem = ""
	for free, fails := range map[int64]bool{2 * gib: false, gib / 2: true} {
		b.Reset()
		s.Moving, s.PartitionFree = gib, free
		if err := s.Write(&b, 80, false); err != nil || !strings.Contains(b.String(), "may need 1.0 GiB beside it") || strings.Contains(b.String(), "WRITES FAIL") != fails {
			t.Errorf("%d free during a scrub: %v, got\n%s", free, err, b.String())
		}
	}
	s.Device, s.Spanned, s.DeviceBytes = "classic", 7*gib, 7*gib
	for more, want := range map[int64]string{0: "devices    as large as the volume's", gib: "devices    1.0 GiB larger"} {
		b.Reset()
		s.DeviceBytes += more
		if err := s.Write(&b, 80, false); err != nil || !strings.Contains(b.String(), want) {
			t.Errorf("%v, want %q, got\n%s", err, want, b.String())
		}
		s.DeviceBytes -= more
	}
}
