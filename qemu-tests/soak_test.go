//go:build soak

package qemutests

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"sealroot/qemu-tests/machine"
)

// The soak: whole boots of one machine whose power is cut at random times, from
// the firmware to the running system. After each cut the machine must come up
// by itself with its state. `make soak TIMES=20 SEED=1` runs it; the build tag
// keeps it out of `make test`.
func TestSoak(t *testing.T) {
	times := number(t, "SEALROOT_SOAK", 20)
	seed := number(t, "SEALROOT_SOAK_SEED", int(time.Now().UnixNano()%1e6))
	t.Logf("%d cuts, seed %d: make soak TIMES=%d SEED=%d repeats the times", times, seed, times, seed)
	for i, tc := range loaders {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := &soak{t: t, random: rand.New(rand.NewPCG(uint64(seed), uint64(i))), counts: map[string]int{}}
			tc.image.B = &SlotB{}
			// The two ways to start share the cuts.
			for n := range (times + 1 - i) / 2 {
				// Every third cut finds a machine that was never on: its first
				// boot makes the volume, with slot b on trial.
				if n%3 == 0 {
					s.machine = NewMachine(t, tc.firmware, tc.image.Build(t)).WithTPM()
					s.kept = ""
				}
				s.cut(n + 1)
			}
			t.Logf("%s: %v", tc.name, s.counts)
		})
	}
}

// soak is one machine through its power cuts.
type soak struct {
	t       *testing.T
	random  *rand.Rand
	machine *Machine
	kept    string // what /var/lib/mine holds, "" for nothing yet
	counts  map[string]int
}

// upIn is the probe's line; firmware and boot loaders write much before it.
var upIn = regexp.MustCompile(`probe: up: slot "(.*)", kernel (.*)\n`)

// cut boots, cuts the power at a random time, and has the machine come up.
func (s *soak) cut(n int) {
	t := s.t
	t.Helper()
	vm := s.machine.Boot()
	// Half of the cuts hit what init does: it takes three to ten seconds here,
	// the way from power on to the probe 15 to 30.
	place, longest := "after power on", 30*time.Second
	if s.random.IntN(2) == 0 {
		vm.Expect(`sealroot: \S+ \S+ \(production build\)`, bootTime)
		place, longest = "after init began", 8*time.Second
	}
	delay := time.Duration(s.random.Int64N(int64(longest))).Round(time.Millisecond)
	_, err := vm.guest.Expect(upIn, delay)
	up := err == nil
	if err != nil && !errors.Is(err, machine.ErrTimeout) {
		t.Fatal(err)
	}
	vm.Kill()
	s.counts["cut "+place]++
	if up {
		s.counts["cut when it was up"]++
	}
	t.Logf("cut %d %s %s, up: %t", n, delay, place, up)
	s.comesUp(n)
}

// comesUp boots the machine, which must end in a slot with the state open. A
// slot on trial may use up its tries meanwhile; then it is slot a.
func (s *soak) comesUp(n int) {
	t := s.t
	t.Helper()
	vm := s.machine.Boot()
	got := vm.Expect(upIn.String(), bootTime)
	vm.WaitReady(commandTime)
	r := vm.Report()
	s.counts["came up in slot "+got[1]]++
	s.counts["state "+r.State.Unlocked]++
	switch {
	case r.State.Unlocked != "tpm2" && r.State.Unlocked != "created":
		t.Fatalf("cut %d: the state is %+v, want created or unlocked by tpm2; failures: %s", n, r.State, failuresText(r))
	case r.State.Unlocked == "created" && s.kept != "":
		t.Fatalf("cut %d: the state was made anew: what it held is lost", n)
	case got[1] != "a" && got[1] != "b":
		t.Fatalf("cut %d: slot %q runs", n, got[1])
	}
	if s.kept != "" {
		if have := vm.Run("cat /var/lib/mine"); have != s.kept {
			t.Fatalf("cut %d: /var/lib/mine holds %q, want %q", n, have, s.kept)
		}
	}
	s.kept = fmt.Sprintf("written after cut %d", n)
	vm.Run("write /var/lib/mine " + s.kept)
	vm.PowerOff()
	disk := &Disk{Path: s.machine.Config.Disk}
	disk.CheckTable(t)
	if a := disk.Slot(t, "a"); a.Successful != 1 {
		t.Fatalf("cut %d: slot a is %+v, want successful", n, a)
	}
}

// number reads a number from the environment.
func number(t *testing.T, name string, byDefault int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return byDefault
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q is not a number from 1", name, text)
	}
	return n
}
