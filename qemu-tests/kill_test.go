package qemutests

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"sealroot/qemu-tests/machine"
	"sealroot/qemu-tests/writes"
)

// A few power cuts with fixed delays; `make soak` does hundreds at random.
func TestKillCycles(t *testing.T) {
	t.Parallel()
	killCycles(t, 4, 3)
}

// killCycles cuts the power of machines of both kinds at random times, so many
// times in all: while they boot, install, commit and roll back. After each cut
// the machine must come up by itself in the old or in the new system, with its
// state.
func killCycles(t *testing.T, times int, seed uint64) {
	t.Helper()
	for i, tc := range loaders {
		if tc.firmware != BIOS && !soaking() {
			continue // these boots are slow
		}
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			k := &killer{t: t, image: tc.image, firmware: tc.firmware,
				random: rand.New(rand.NewPCG(seed, uint64(i))), counts: map[string]int{}}
			for n := range (times + 1 - i) / 2 {
				k.cycle(n + 1)
			}
			// The last cut is followed by a boot too.
			k.up("after the last cut").Kill()
			k.tell()
		})
	}
}

// killer is one machine through its power cuts.
type killer struct {
	t        *testing.T
	image    Image
	firmware machine.Firmware
	random   *rand.Rand
	machine  *Machine
	host     *hostBoots // nil for a loader that the host does not play
	kept     string     // what /var/lib/mine holds, "" for nothing yet
	counts   map[string]int
}

// newMachineEvery is after how many cuts a machine is taken that was never on.
const newMachineEvery = 20

// cycle is one power cut, and the boot before it with its checks.
func (k *killer) cycle(n int) {
	k.t.Helper()
	if (n-1)%newMachineEvery == 0 {
		disk := k.image.Build(k.t)
		place := k.place()
		k.machine = NewMachine(k.t, k.firmware, disk).WithTPM().withParts(k.t, readFile(k.t, k.image.next(k.t).Parts(k.t)))
		k.machine.place = place
		k.kept = ""
		if k.firmware == BIOS {
			k.host = newHostBoots(k.t, disk)
		}
	}
	where := fmt.Sprintf("cut %d", n)
	if k.random.IntN(3) == 0 {
		k.cutBoot(where)
		return
	}
	vm := k.up(where)
	// The state is kept over every cut from here on.
	k.kept = "written before " + where
	vm.Run("write /var/lib/mine " + k.kept)
	command := k.command(vm)
	delay := k.delay(command)
	done := make(chan string, 1)
	go func() {
		output, status, err := vm.guest.Run(command, commandTime)
		done <- fmt.Sprintf("ended with status %d, %v: %s", status, err, lastLine(output))
	}()
	how := "not done"
	select {
	case how = <-done:
	case <-time.After(delay):
	}
	vm.Kill()
	if how == "not done" {
		<-done
	} else if strings.HasPrefix(how, "ended with status 3,") {
		k.counts["refused: "+command]++ // such as a roll back to what was left by hand
	} else if !strings.HasPrefix(how, "ended with status 0, <nil>") {
		k.t.Fatalf("%s: %q %s", where, command, how)
	} else {
		k.counts["cut after: "+command]++
	}
	k.counts["cut: "+command]++
	k.t.Logf("%s: %q cut after %s: %s", where, command, delay, how)
}

// place is held through all cuts.
func (k *killer) place() *os.File {
	k.t.Helper()
	if k.machine != nil {
		return k.machine.place
	}
	place := waitForRoom(k.t)
	k.t.Cleanup(func() { place.Close() })
	return place
}

// cutBoot cuts the power between power on and the running system.
func (k *killer) cutBoot(where string) {
	k.t.Helper()
	vm := k.machine.Boot()
	place, longest := "boot", 25*time.Second
	if k.random.IntN(2) == 0 {
		vm.Expect(`sealroot: \S+ \S+ \(production build\)`, bootTime)
		place, longest = "init", 6*time.Second
	}
	delay := time.Duration(k.random.Int64N(int64(longest))).Round(time.Millisecond)
	_, err := vm.guest.Expect(upIn, delay)
	if err != nil && !errors.Is(err, machine.ErrTimeout) {
		k.t.Fatal(err)
	}
	vm.Kill()
	k.counts["cut: "+place]++
	k.t.Logf("%s: %s cut after %s, up: %t", where, place, delay, err == nil)
}

// command is what the machine does next, given what it did so far.
func (k *killer) command(vm *VM) string {
	k.t.Helper()
	r := vm.Report()
	committed := r.Slot.Reason == "committed" || r.Slot.Reason == "fallback"
	var status struct {
		Slots []struct{ Successful bool }
	}
	if err := json.Unmarshal([]byte(vm.Run("sealroot status --json")), &status); err != nil {
		k.t.Fatalf("sealroot status --json: %v", err)
	}
	good := 0
	for _, s := range status.Slots {
		if s.Successful {
			good++
		}
	}
	var choices []string
	switch {
	case r.Slot.Trial:
		choices = []string{"sealroot commit", "sealroot commit", "reboot"}
	case committed && good > 1:
		choices = []string{"sealroot install --force /dev/vdb", "sealroot rollback"}
	default:
		choices = []string{"sealroot install --force /dev/vdb"}
	}
	return choices[k.random.IntN(len(choices))]
}

// delay is when a command is cut: somewhere in the time that it takes here, or
// a little later.
func (k *killer) delay(command string) time.Duration {
	longest := time.Second
	if strings.Contains(command, "install") {
		longest = 8 * time.Second
	}
	return time.Duration(k.random.Int64N(int64(longest))).Round(time.Millisecond)
}

// up boots and checks what came up.
func (k *killer) up(where string) *VM {
	t := k.t
	t.Helper()
	wanted := k.onHost(where)
	vm := k.machine.Boot()
	got := vm.Expect(upIn.String(), bootTime)
	vm.WaitReady(commandTime)
	r := vm.Report()
	k.counts["came up in slot "+got[1]+" "+r.Root.ImageVersion]++
	k.counts["state "+r.State.Unlocked]++
	switch {
	case wanted != "" && got[1] != wanted:
		t.Fatalf("%s: slot %q runs, on the host it is slot %q; failures: %s", where, got[1], wanted, failuresText(r))
	case got[1] != "a" && got[1] != "b":
		t.Fatalf("%s: slot %q runs", where, got[1])
	case !slices.Contains([]string{"2026.11.1", "2.next"}, r.Root.ImageVersion):
		t.Fatalf("%s: version %q runs", where, r.Root.ImageVersion)
	case r.State.Unlocked != "tpm2" && r.State.Unlocked != "created":
		t.Fatalf("%s: the state is %+v, want created or unlocked by tpm2; failures: %s", where, r.State, failuresText(r))
	case r.State.Unlocked == "created" && k.kept != "":
		t.Fatalf("%s: the state was made anew: what it held is lost", where)
	}
	if k.kept != "" {
		if have := vm.Run("cat /var/lib/mine"); have != k.kept {
			t.Fatalf("%s: /var/lib/mine holds %q, want %q", where, have, k.kept)
		}
	}
	return vm
}

// onHost has the host's play of the same boots choose a slot, whose content
// veritysetup judges. It says "" for a loader that it does not play.
func (k *killer) onHost(where string) string {
	k.t.Helper()
	if k.host == nil {
		return ""
	}
	f, err := os.Open(k.machine.Config.Disk)
	if err != nil {
		k.t.Fatal(err)
	}
	defer f.Close()
	k.host.judged = map[[32]byte]error{} // the base below has changed
	slot, _, err := k.host.boot(writes.NewDisk(f))
	if err != nil {
		k.t.Fatalf("%s: on the host: %v", where, err)
	}
	return slot
}

// tell prints how often what happened.
func (k *killer) tell() {
	k.t.Helper()
	var lines []string
	for what, n := range k.counts {
		lines = append(lines, fmt.Sprintf("%4d %s", n, what))
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[5:], b[5:]) })
	k.t.Logf("power cuts:\n%s", strings.Join(lines, "\n"))
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}
