//go:build soak

package qemutests

import (
	"testing"
	"time"
)

// The soak: power cuts at random times, and every disk that one update's writes
// can leave. `make soak TIMES=300 SEED=1` runs it; the build tag keeps it out of
// `make test`, which has samples of both.
func TestSoak(t *testing.T) {
	times := number(t, "SEALROOT_SOAK", 300)
	seed := number(t, "SEALROOT_SOAK_SEED", int(time.Now().UnixNano()%1e6)+1)
	t.Logf("%d cuts, seed %d: make soak TIMES=%d SEED=%d repeats the times", times, seed, times, seed)
	t.Run("writes", func(t *testing.T) {
		t.Parallel()
		cutWrites(t, cuts{torn: 200, boots: 12, seed: uint64(seed)})
	})
	killCycles(t, times, uint64(seed))
}
