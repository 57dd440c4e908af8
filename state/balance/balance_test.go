package balance

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestDecide(t *testing.T) {
	now := time.Unix(1e9, 0)
	full := Sizes{Outer: 16 * gib, OuterFree: 100 * mib, Inner: 7 * gib, InnerFree: 6 * gib}
	failed := func(ago time.Duration) History {
		return History{last: failure{action: Shrink, times: 1, at: now.Add(-ago), of: full}}
	}
	for _, c := range []struct {
		name   string
		limits func(*Limits)
		s      Sizes
		h      History
		action Action
		size   int64 // 0: any
		reason string
	}{
		{"even", nil, Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 6 * gib}, History{}, None, 0, "nothing is short"},
		{"volume_short", nil, Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 100 * mib}, History{}, Grow, 7*gib + 7*gib/5/mib*mib, "the volume has 100 MiB free and needs 256 MiB"},
		{"partition_short", nil, Sizes{Outer: 16 * gib, OuterFree: 100 * mib, Inner: 7 * gib, InnerFree: 6 * gib}, History{}, Shrink, 0, "the partition has 100 MiB free and needs 1.0 GiB"},
		{"never_gives_back", func(l *Limits) { l.GiveBack = false }, Sizes{Outer: 16 * gib, OuterFree: 100 * mib, Inner: 7 * gib, InnerFree: 6 * gib}, History{}, None, 0, "never gives back"},
		{"below_half_of_its_share", nil, Sizes{Outer: 64 * gib, OuterFree: 60 * gib, Inner: 4 * gib, InnerFree: 2 * gib}, History{}, Grow, 0, "its share is"},
		{"less_than_5_percent", nil, Sizes{Outer: gib, OuterFree: 150 * mib, Inner: 600 * mib, InnerFree: 100 * mib}, History{}, None, 0, "little is left"},
		{"less_than_5_percent_in_need", nil, Sizes{Outer: gib, OuterFree: 150 * mib, Inner: 600 * mib, InnerFree: 60 * mib}, History{}, Grow, 0, "little is left"},
		{"max", func(l *Limits) { l.Max = 7*gib + 400*mib }, Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 100 * mib}, History{}, Grow, 7*gib + 400*mib, "max is 7.4 GiB"},
		{"at_max", func(l *Limits) { l.Max = 7 * gib }, Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 100 * mib}, History{}, None, 0, "max is 7.0 GiB"},
		{"max_before_the_device", func(l *Limits) { l.Max = 7*gib + 400*mib }, Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 100 * mib, Device: 8 * gib}, History{}, Grow, 7*gib + 400*mib, "max is 7.4 GiB"},
		{"device_before_max", func(l *Limits) { l.Max = 8 * gib }, Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 100 * mib, Device: 7*gib + 400*mib}, History{}, Grow, 7*gib + 400*mib, "until the next boot"},
		{"min", func(l *Limits) { l.Min = 7 * gib }, Sizes{Outer: 16 * gib, OuterFree: 100 * mib, Inner: 7 * gib, InnerFree: 6 * gib}, History{}, None, 0, "min is 7.0 GiB"},
		{"end_of_the_device", nil, Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 100 * mib, Device: 7 * gib}, History{}, None, 0, "until the next boot"},
		{"device_as_large_as_the_partition", nil, Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 100 * mib, Device: 7 * gib, Largest: true}, History{}, None, 0, "with a device as large as the partition it can have no more than 7.0 GiB"},
		{"slack", nil, Sizes{Outer: 16 * gib, OuterFree: 100 * mib, Inner: 7 * gib, InnerFree: gib, Slack: gib}, History{}, None, 0, "little is left"},
		{"whole_units", nil, Sizes{Outer: 512 * mib, OuterFree: 30 * mib, Inner: 300 * mib, InnerFree: 60 * mib, Unit: 4 * mib}, History{}, Shrink, 276 * mib, "little is left"},
		{"any_unit", nil, Sizes{Outer: 512 * mib, OuterFree: 30 * mib, Inner: 300 * mib, InnerFree: 60 * mib}, History{}, Shrink, 279 * mib, "little is left"},
		{"gap_only_short", func(l *Limits) { l.GapOnly = true }, Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 100 * mib}, History{}, None, 0, "auto_resize: off"},
		{"gap_only_gap", func(l *Limits) { l.GapOnly = true }, Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 6 * gib, Gap: 5 * gib}, History{}, Reserve, 5 * gib, "another program"},
		{"gap", nil, Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 6 * gib, Gap: 5 * gib}, History{}, Reserve, 5 * gib, "another program"},
		{"gap_before_what_is_kept", nil, Sizes{Outer: 16 * gib, OuterFree: 512 * mib, Inner: 7 * gib, InnerFree: 0, Gap: 500 * mib}, History{}, Reserve, 500 * mib, "another program"},
		{"gap_without_room", nil, Sizes{Outer: 16 * gib, OuterFree: gib, Inner: 7 * gib, InnerFree: 6 * gib, Gap: 5 * gib}, History{}, Reserve, 5 * gib, "the partition has 1.0 GiB"},
		{"gap_that_cannot_be_reserved", nil, Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 6 * gib, Gap: gib},
			History{last: failure{action: Reserve, times: 1, at: now}}, None, 0, "the next try is in 10s"},
		{"gap_that_is_tried_again", nil, Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 6 * gib, Gap: gib},
			History{last: failure{action: Reserve, times: 9, at: now.Add(-10 * time.Second)}}, Reserve, gib, "another program"},
		{"tried_again_at_once_for_who_is_short", nil, full, failed(2 * time.Second), Shrink, 0, "the partition has"},
		{"not_at_each_look", nil, full, failed(900 * time.Millisecond), None, 0, "the next is in 0s"},
		{"later_for_who_is_not_short", nil, Sizes{Outer: 16 * gib, OuterFree: 9 * gib, Inner: 6 * gib, InnerFree: 300 * mib}, History{last: failure{action: Grow, times: 1, at: now.Add(-2 * time.Second),
			of: Sizes{Outer: 16 * gib, OuterFree: 9 * gib, Inner: 6 * gib, InnerFree: 300 * mib}}}, None, 0, "the next is in 8s"},
		{"copied", nil, Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 100 * mib, Copied: gib}, History{}, None, 0, "snapshot"},
		{"read_only", nil, Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 6 * gib, Gap: gib, ReadOnly: true}, History{}, None, 0, "read-only"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := Defaults()
			if c.limits != nil {
				c.limits(&l)
			}
			d, _ := Decide(l, c.h, c.s, now)
			if d.Action != c.action || c.size != 0 && d.Size != c.size || !strings.Contains(d.Reason, c.reason) {
				t.Errorf("Decide() = %+v, want %s to %d because %q", d, c.action, c.size, c.reason)
			}
		})
	}
}

// TestShrinksLate: for the shares alone the volume shrinks after ten minutes.
func TestShrinksLate(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := Sizes{Outer: 100 * gib, OuterFree: 6 * gib, Inner: 90 * gib, InnerFree: 80 * gib}
	d, h := Decide(Defaults(), History{}, s, now)
	if d.Action != None {
		t.Fatalf("at first: %+v, want none", d)
	}
	if d, _ = Decide(Defaults(), h, s, now.Add(9*time.Minute)); d.Action != None {
		t.Errorf("after 9 minutes: %+v, want none", d)
	}
	if d, _ = Decide(Defaults(), h, s, now.Add(11*time.Minute)); d.Action != Shrink {
		t.Errorf("after 11 minutes: %+v, want that it shrinks", d)
	}
	even := s
	even.OuterFree, even.Inner, even.InnerFree = 20*gib, 76*gib, 66*gib
	_, h = Decide(Defaults(), h, even, now.Add(5*time.Minute))
	if d, _ = Decide(Defaults(), h, s, now.Add(11*time.Minute)); d.Action != None {
		t.Errorf("even after 5 minutes, uneven after 11: %+v, want none", d)
	}
}

func TestCheck(t *testing.T) {
	if err := Defaults().Check(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	for name, change := range map[string]func(*Limits){
		"negative":     func(l *Limits) { l.KeepFree = -1 },
		"min_over_max": func(l *Limits) { l.Min, l.Max = 2*gib, gib },
		"no_weights":   func(l *Limits) { l.InnerWeight, l.OuterWeight = 0, 0 },
		"weight":       func(l *Limits) { l.InnerWeight = 10001 },
		"rate":         func(l *Limits) { l.Rate = 0 },
		"interval":     func(l *Limits) { l.Interval = time.Minute },
	} {
		l := Defaults()
		change(&l)
		if err := l.Check(); !errors.Is(err, ErrLimits) {
			t.Errorf("%s: %v, want ErrLimits", name, err)
		}
	}
}

// TestHurries: where a writer fills a side in the time of two looks and steps, as they take
// at present, it looks sooner.
func TestHurries(t *testing.T) {
	l := Defaults()
	s := Sizes{Outer: 64 * gib, OuterFree: 8 * gib, Inner: 50 * gib, InnerFree: 600 * mib}
	for slow, want := range map[time.Duration]time.Duration{0: l.Interval, 3 * time.Second: l.Interval / 4} {
		for _, d := range []Decision{none(""), {Action: Shrink}} {
			if next, idleFor := l.pace(History{innerRate: 128 * mib, slow: slow}, s, d); next < want || next > want*3/2 || idleFor != 0 {
				t.Errorf("steps of %v, %+v: looks in %v, or %v, want %v", slow, d, next, idleFor, want)
			}
		}
	}
}
