package qemutests

import "testing"

func TestWorkedTimes(t *testing.T) {
	var at []float64
	for i := range 60 {
		at = append(at, 100+float64(i)/2)
	}
	for _, c := range []struct {
		every, cut  float64 // seconds; what a busy host cuts it into
		works, busy int
	}{{10, 0, 3, 3}, {10, 0.6, 3, 6}, {5, 0, 6, 6}, {2, 0, 15, 15}, {60, 0, 0, 0}} {
		var switches []int
		for _, now := range at {
			n := 0
			for w := 100.2; w < now; w += c.every {
				if n++; c.cut > 0 && w+c.cut < now {
					n++
				}
			}
			if c.every == 60 {
				n = 0
			}
			switches = append(switches, n)
		}
		if works, busy := workedTimes(at, switches); works != c.works || busy != c.busy {
			t.Errorf("every %v s: worked %d times in %d pieces, want %d in %d", c.every, works, busy, c.works, c.busy)
		}
	}
}
