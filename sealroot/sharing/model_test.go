package sharing

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"sealroot/state/balance"
	"sealroot/state/resize"
)

// model is a volume with the bounds that state/resize has: keep stays free outside, and
// what is given back comes in whole units.
type model struct {
	outer, outerUsed, spanned, used int64
	keep, unit                      int64
	asked, resized                  int
}

const modelOffset = 16 << 20

func (m *model) Measure() (resize.Sizes, error) {
	s := resize.Sizes{
		Apparent: 1 << 40, Device: 1 << 40, DataOffset: modelOffset, Spanned: m.spanned, Reserved: m.spanned + modelOffset, KeptOutside: m.keep, Unit: m.unit,
		InnerFree: m.spanned - m.used, InnerUsed: m.used, OuterTotal: m.outer, OuterFree: m.outer - m.outerUsed - m.spanned - modelOffset,
	}
	slack := int64(32<<20) + m.used/64
	s.MinReserved = min(s.Reserved, max(s.DataOffset, s.Reserved-max(0, s.InnerFree-slack)))
	s.MaxReserved = max(s.Reserved, min(s.Reserved+s.OuterFree-m.keep, s.Apparent))
	return s, nil
}

func (m *model) ResizeTo(_ context.Context, want func(resize.Sizes) int64) (resize.Sizes, error) {
	m.asked++
	now, _ := m.Measure()
	change := want(now) - m.spanned - modelOffset
	if change < 0 && m.unit > 0 {
		change = change / m.unit * m.unit
	}
	if change != 0 {
		m.resized++
	}
	m.spanned += change
	return m.Measure()
}

func (m *model) Extend(context.Context, int64) (resize.Sizes, error) {
	panic("it has any number of inodes")
}

func (m *model) Repair(context.Context) (resize.Sizes, error) { return m.Measure() }

// TestComesToRest: where both sides are nearly full and nothing is written, the service
// does not do what changes nothing, whatever the library leaves free outside.
func TestComesToRest(t *testing.T) {
	const mib = 1 << 20
	// full is a partition with little on either side; keep is what state/resize leaves of
	// one with btrfs around the volume.
	full := func(outer, free, inside int64) *model {
		m := &model{outer: outer, spanned: outer / 2, used: outer/2 - inside, keep: max(64*mib, outer/64, min(gib, outer/10)), unit: 4 * mib}
		m.outerUsed = outer - m.spanned - modelOffset - free
		return m
	}
	for name, c := range map[string]struct {
		m        *model
		keepFree int64
	}{
		"512_mib":      {full(512*mib, 60*mib, 4*mib), 0},
		"560_mib":      {full(560*mib, 60*mib, 4*mib), 0},
		"600_mib":      {full(600*mib, 60*mib, 4*mib), 0},
		"20_gib":       {full(20*gib, 808*mib, 100*mib), 512 * mib},
		"100_gib":      {full(100*gib, 1600*mib, 100*mib), gib},
		"gives_back":   {&model{outer: 512 * mib, outerUsed: 466*mib - 300*mib, spanned: 300 * mib, used: 240 * mib, keep: 64 * mib, unit: 4 * mib}, 0},
		"ext4_outside": {&model{outer: 20 * gib, outerUsed: 9 * gib, spanned: 10*gib + 200*mib, used: 10*gib + 100*mib, keep: 16 * mib}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1e9, 0)
			told, looks := 0, 0
			s := &Service{
				Volume: Resized{c.m}, Limits: balance.Defaults(), Keep: OpenDecisions(filepath.Join(t.TempDir(), "decisions")),
				Tell: func(string) { told++ }, Now: func() time.Time { return now },
			}
			s.Limits.KeepFree = c.keepFree
			for end := now.Add(10 * time.Minute); now.Before(end); looks++ {
				d, err := s.Pass(context.Background())
				if err != nil {
					t.Error(err)
				}
				now = now.Add(max(d.Idle, d.Next))
			}
			if looks > 80 || told > 3 || c.m.asked > c.m.resized || c.m.resized > 3 {
				t.Errorf("%d looks in 10 minutes, %d lines, %d resizes of which %d did anything", looks, told, c.m.asked, c.m.resized)
			}
		})
	}
}
