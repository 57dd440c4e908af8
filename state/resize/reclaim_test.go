package resize

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/state"
	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/btrfs"
)

// What balloons hold and a boot has reserved all the same comes back to the volume, once
// somebody starts who resizes; until then the sizes tell of it.
func TestReclaimBalloons(t *testing.T) {
	v := newVolume(t, 2<<30, 1<<30)
	sums := map[string][32]byte{"file": put(t, v, "file", 3<<20)}
	first, err := v.Measure()
	if err != nil {
		t.Fatal(err)
	}
	m, err := v.Resize(t.Context(), first.Reserved-700<<20)
	if err != nil || m.InBalloons != m.GivenBack {
		t.Fatalf("Resize = %+v, %v", m, err)
	}
	if err := Reclaim(t.Context(), v); err != nil {
		t.Error(err)
	}
	if s, err := v.Measure(); err != nil || s != m {
		t.Errorf("with nothing to reclaim %+v, %v, before it %+v", s, err, m)
	}
	if err := state.Reserve(v.image, 0, v.begin+m.Spanned); err != nil { // a boot without the record
		t.Fatal(err)
	}
	if s, err := v.Measure(); err != nil || s.GivenBack != 0 || s.InBalloons < 700<<20 {
		t.Errorf("after the boot %+v, %v", s, err)
	}
	if err := Reclaim(t.Context(), v); err != nil {
		t.Error(err)
	}
	if s, err := v.Measure(); err != nil || s.InBalloons != 0 || s.InnerFree < first.InnerFree-1<<20 || len(v.recorded()) != 0 {
		t.Errorf("reclaimed %+v, %v, at first %+v", s, err, first)
	}
	check(t, v, sums)
}

// What a growing that was cut has reserved behind the end comes back, and nothing but that
// while somebody makes the file system larger.
func TestReclaimEnd(t *testing.T) {
	for _, outer := range []state.Filesystem{state.Ext4, state.Btrfs} {
		v := newVolumeOn(t, outer, state.Btrfs, 2<<30, 512<<20)
		sums := map[string][32]byte{"file": put(t, v, "file", 3<<20)}
		first, err := v.Measure()
		if err != nil {
			t.Fatal(err)
		}
		end := v.begin + first.Spanned
		behind := func() int64 {
			list, err := files.Reserved(v.image, end, first.Apparent)
			if err != nil {
				t.Fatal(err)
			}
			return balloon.Total(list)
		}
		if err := state.Reserve(v.image, end, 400<<20); err != nil {
			t.Fatal(err)
		}
		stop := writer(t, v)
		if err := Reclaim(t.Context(), v); err != nil || behind() != 0 {
			t.Errorf("%s outside: %d bytes are reserved behind the end: %v", outer, behind(), err)
		}
		if s, err := v.Measure(); err != nil || s.OuterFree < first.OuterFree-64<<20 {
			t.Errorf("%s outside: %+v, %v, at first %+v", outer, s, err, first)
		}
		for name, sum := range stop() {
			sums[name] = sum
		}
		// Somebody is faster.
		if err := state.Reserve(v.image, end, 400<<20); err != nil {
			t.Fatal(err)
		}
		m, err := v.measure(true)
		if err != nil {
			t.Fatal(err)
		}
		run(t, "btrfs", "filesystem", "resize", "+300M", v.root.Name())
		if err := v.reclaimEnd(m); err != nil || behind() < 400<<20 {
			t.Errorf("%s outside: %d bytes are reserved behind the old end: %v", outer, behind(), err)
		}
		if err := os.WriteFile(filepath.Join(v.root.Name(), "last"), []byte("x"), 0o600); err != nil {
			t.Error(err) // it is thawed
		}
		check(t, v, sums)
	}
}

// What a step has not given back, although the file system is smaller, the next one does.
func TestReclaimAfterAFailedRelease(t *testing.T) {
	v := newVolumeOf(t, state.Btrfs, 3<<30, 2<<30)
	first, err := v.Measure()
	must(t, first, err)
	writable := v.image
	readOnly, err := os.Open(filepath.Join(v.dir.Name(), state.ImageName))
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Close()
	v.image = readOnly // the kernel refuses
	s, err := v.Resize(t.Context(), first.Reserved-300<<20)
	if v.image = writable; err == nil || s.Reserved >= first.Reserved || s.OuterFree > first.OuterFree {
		t.Fatalf("Resize = %+v, %v, was %+v", s, err, first)
	}
	again, err := v.Resize(t.Context(), s.Reserved)
	if err != nil || again.Reserved != s.Reserved || again.OuterFree < first.OuterFree+(first.Reserved-s.Reserved)-1<<20 {
		t.Errorf("Resize to what it has = %+v, %v, was %+v", again, err, s)
	}
	if list, err := files.Reserved(v.image, v.begin+again.Spanned, again.Apparent); err != nil || len(list) > 0 {
		t.Errorf("%v are reserved behind the end: %v", list, err)
	}
}

// Whoever writes for hours in one call is not waited for, and nobody else has to.
func TestReclaimEndBesideAScrub(t *testing.T) {
	v := newVolumeOf(t, state.Btrfs, 2<<30, 512<<20)
	sums := map[string][32]byte{"file": put(t, v, "file", 64<<20)}
	first, err := v.Measure()
	must(t, first, err)
	end := v.begin + first.Spanned
	if err := state.Reserve(v.image, end, 300<<20); err != nil {
		t.Fatal(err)
	}
	behind := func() int64 {
		list, err := files.Reserved(v.image, end, first.Apparent)
		if err != nil {
			t.Fatal(err)
		}
		return balloon.Total(list)
	}
	b := v.in.(*btrfsFS)
	i, err := b.look()
	if err != nil {
		t.Fatal(err)
	}
	// 64 MiB take two minutes: far more than a resize, on any host.
	if err := os.WriteFile(filepath.Join(sysfs(i), "devinfo/1/scrub_speed_max"), []byte("256k"), 0o600); err != nil {
		t.Fatal(err)
	}
	scrub := start(t, "btrfs", "scrub", "start", "-B", v.root.Name())
	moves := func() bool {
		now, err := btrfs.Moves(int(v.root.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	for !moves() {
		select {
		case err := <-scrub:
			t.Fatalf("the scrub has ended before it was seen: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	if s, err := v.Resize(t.Context(), Smallest); err != nil || s.Reserved > first.Reserved-16<<20 {
		t.Errorf("Resize = %+v, %v", s, err)
	}
	if err := os.WriteFile(filepath.Join(v.root.Name(), "small"), []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
	if !moves() {
		t.Error("the scrub was waited for")
	}
	_ = exec.Command("btrfs", "scrub", "cancel", v.root.Name()).Run()
	<-scrub // was canceled
	if behind() < 300<<20 {
		t.Error("frozen during a scrub")
	}
	// What cannot be told may be one.
	b.moves = func(int) (bool, error) { return false, unix.EIO }
	if err := Reclaim(t.Context(), v); err != nil || behind() < 300<<20 {
		t.Errorf("%d bytes are reserved behind the end, %v", behind(), err)
	}
	// Moves tells of none that pauses; it may go on at any moment.
	b.moves = btrfs.Moves
	paused := false
	for try := 0; try < 200 && !paused; try++ { // it may be over before
		balance := start(t, "btrfs", "balance", "start", "--full-balance", v.root.Name())
		for ended := false; !ended; {
			select {
			case <-balance:
				ended = true
			default:
				_ = exec.Command("btrfs", "balance", "pause", v.root.Name()).Run() // good also where it has ended meanwhile
			}
		}
		status, _ := exec.Command("btrfs", "balance", "status", v.root.Name()).Output()
		paused = strings.Contains(string(status), "is paused")
	}
	if !paused {
		t.Fatal("no balance was paused")
	}
	if err := Reclaim(t.Context(), v); err != nil || behind() < 300<<20 {
		t.Errorf("during a balance %d bytes are reserved behind the end, %v", behind(), err)
	}
	run(t, "btrfs", "balance", "cancel", v.root.Name())
	if err := Reclaim(t.Context(), v); err != nil || behind() != 0 {
		t.Errorf("after them %d bytes are reserved behind the end, %v", behind(), err)
	}
	check(t, v, sums)
}

// start has a program go on, and tells once how it ended.
func start(t *testing.T, name string, args ...string) <-chan error {
	t.Helper()
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return ended
}
