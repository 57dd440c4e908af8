package qemutests

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// load writes to a folder on the partition or in the volume and says what both sides
// have free at the very moment when there is no room left.
//
//	load fill RATE DIR…: files of 8 MiB, in turn into each folder, at RATE MiB per second
//	  (never faster: what a stall has kept from being written is not made up for), until
//	  one is full; with rate 0 as fast as it gets, and what is full is tried again
//	  once the service had its time, until that gains nothing three times in a row
//	load small RATE DIR N: N files of 4000 bytes, at RATE per second
const load = `#!/usr/bin/perl
use strict; use Errno qw(ENOSPC);
sub now { open(my $f, "<", "/proc/uptime") or die "uptime: $!"; (split " ", <$f>)[0] }
sub free { my $p = $_[0]; my $b = "\0" x 256; syscall(137, $p, $b) == 0 or die "statfs $p: $!"; my @w = unpack("q8", $b); $w[4] * $w[1] >> 20 }
sub done { printf "%s MiB written, free: partition %d volume %d MiB\n", $_[0], free("/state"), free("/state/encrypted"); exit 0 }
my ($what, $n, @dirs) = @ARGV;
my $block = "sealroot" x (1 << 17);
my ($written, $began, $file, $waits) = (0, now(), 0, 0);
if ($what eq "small") {
	for my $i (1 .. $dirs[1]) {
		open(my $f, ">", "$dirs[0]/$i") or die "file $i: $!\n";
		(syswrite($f, $block, 4000) // 0) == 4000 and close $f or die "file $i: $!\n";
		next if $i % 50;
		my $early = $began + $i / $n - now();
		select(undef, undef, undef, $early) if $early > 0;
		$began -= $early if $early < -0.1;
	}
	done($dirs[1] * 4000 >> 20);
}
while (1) {
	my $dir = $dirs[$file % @dirs];
	open(my $f, ">", "$dir/file$file") or $! == ENOSPC or die "$dir: $!";
	$file++;
	for (1 .. 8) {
		my $got = $f ? syswrite($f, $block) : undef;
		if (defined $got and $got == length $block) {
			($written, $waits) = ($written + 1, 0);
			my $early = $n ? $began + $written / $n - now() : 0;
			select(undef, undef, undef, $early) if $early > 0;
			$began -= $early if $early < -0.1;
			next;
		}
		defined $got or $! == ENOSPC or die "$dir: $!";
		done($written) if $n or ++$waits > 3;
		sleep 4;
		last;
	}
}
`

// space is what the test reads of sealroot state status --json.
type space struct {
	Partition        int64  `json:"partition_bytes"`
	PartitionFree    int64  `json:"partition_free_bytes"`
	KeepFree         int64  `json:"keep_free_bytes"`
	Volume           int64  `json:"volume_bytes"`
	VolumeFree       int64  `json:"volume_free_bytes"`
	Gap              int64  `json:"gap_bytes"`
	Rate             int64  `json:"stated_rate"`
	AutoResize       string `json:"auto_resize"`
	VolumeInodes     int64  `json:"volume_inodes"`
	VolumeInodesFree int64  `json:"volume_inodes_free"`
	Decisions        []decision
}

func spaceOf(t *testing.T, vm *VM) space {
	t.Helper()
	text := vm.Run("sealroot state status --json")
	var d struct{ Space *space }
	if err := json.Unmarshal([]byte(text), &d); err != nil || d.Space == nil {
		t.Fatalf("sealroot state status --json: %v\n%s", err, text)
	}
	fits(t, "state", text)
	return *d.Space
}

// smallFiles is how many files are a quarter more than the volume has inodes for now. They have
// to be in the partition with what both sides keep: without room nothing brings inodes.
func smallFiles(s space, keepInside int64) (int64, error) {
	const each = 4<<10 + 256 // a block, and an entry of the table of inodes
	n := s.VolumeInodesFree + s.VolumeInodesFree/4 + 1
	if room := s.PartitionFree - s.KeepFree + s.VolumeFree - keepInside; s.VolumeInodesFree <= 0 || n*each > room {
		return 0, fmt.Errorf("%d of %d inodes are free in the volume: %d files are to be written, and there is room for %d MiB", s.VolumeInodesFree, s.VolumeInodes, n, room>>20)
	}
	return n, nil
}

func TestSmallFiles(t *testing.T) {
	s := space{PartitionFree: 40 << 20, KeepFree: 32 << 20, VolumeFree: 160 << 20, VolumeInodes: 15360, VolumeInodesFree: 14000}
	if n, err := smallFiles(s, 34<<20); err != nil || n != 17501 {
		t.Errorf("%d, %v", n, err)
	}
	s.VolumeInodesFree = 30000 // 155 MiB
	if n, err := smallFiles(s, 34<<20); err == nil {
		t.Errorf("without the room: %d", n)
	}
	s.VolumeInodesFree = 0
	if n, err := smallFiles(s, 34<<20); err == nil {
		t.Errorf("without a bound: %d", n)
	}
}

// filling is one way to fill folders.
type filling struct {
	name, what, folders string
	before              string // is full before it is tried again
}

// fillBoth fills the one side and the other, or both, and finds that neither has more beside
// it then than is kept.
func fillBoth(t *testing.T, vm *VM, s space) {
	t.Helper()
	const partition, volume = "/state/load", "/state/encrypted/home/load"
	empty := fmt.Sprintf("rm -r %[1]s %[2]s; mkdir %[1]s %[2]s", partition, volume)
	for _, c := range []filling{
		{"volume_at_a_rate", "fill 16", volume, partition},
		{"partition_at_a_rate", "fill 19", partition, volume},
		{"in_turn", "fill 18", partition + " " + volume, partition},
		{"volume", "fill 0", volume, ""},
		{"partition", "fill 0", partition, ""},
		// At three quarters of the stated rate, of which one comes with 16 KiB.
		{"small_files", fmt.Sprintf("small %d", s.Rate/4*3>>14), volume, partition},
	} {
		problem := c.once(t, vm, s.KeepFree>>20)
		// Nothing bounds how late the service is on a host with too much to do. One that is late
		// by itself is so each time, for the other side has all that is free once more.
		for try := 0; try < 2 && problem != ""; try++ {
			t.Logf("%s: again, after: %s", c.name, problem)
			vm.Run(empty)
			if c.before != "" {
				runLoad(vm, "fill 0 "+c.before)
				vm.Run(empty)
			}
			problem = c.once(t, vm, s.KeepFree>>20)
		}
		if problem != "" {
			t.Errorf("%s: %s\n%s", c.name, problem, vm.Run("sealroot state status; journalctl -u sealroot-state --no-pager | tail -n 20"))
		}
		vm.Run(empty)
	}
}

// once fills the folders, and tells what is not as it should be. The partition keeps so
// many MiB.
func (c filling) once(t *testing.T, vm *VM, keep int64) (problem string) {
	t.Helper()
	// What the volume keeps from the partition, and what is too little to be moved.
	const keepInside, small = 34, 5
	had, what, files := spaceOf(t, vm), c.what+" "+c.folders, c.name == "small_files"
	if files {
		n, err := smallFiles(had, keepInside<<20)
		if err != nil {
			return err.Error()
		}
		what += fmt.Sprintf(" %d", n)
	}
	outer, inner, text, ok := runLoad(vm, what)
	now := spaceOf(t, vm)
	switch {
	case !ok:
		return text
	case files && now.VolumeInodes <= had.VolumeInodes:
		return fmt.Sprintf("%d inodes in the volume, of which %d were free, and %d after %q, want more of them", had.VolumeInodes, had.VolumeInodesFree, now.VolumeInodes, what)
	case !files && (outer > keep+small || inner > keepInside+small):
		return fmt.Sprintf("%s is full, and beside it there is more than is kept: %s (kept: %d beside, %d in the volume)", c.folders, text, keep, keepInside)
	}
	return ""
}

// runLoad runs load, and returns what it says, with the MiB that both sides have free when
// it ends. It is not ok where that is an error.
func runLoad(vm *VM, what string) (outer, inner int64, text string, ok bool) {
	vm.t.Helper()
	began := time.Now()
	text, _ = vm.TryRun("load " + what)
	vm.t.Logf("%s: %s; %.1f s", what, text, time.Since(began).Seconds())
	m := regexp.MustCompile(`^\d+ MiB written, free: partition (\d+) volume (\d+) MiB$`).FindStringSubmatch(text)
	if m == nil {
		return 0, 0, text, false
	}
	outer, _ = strconv.ParseInt(m[1], 10, 64)
	inner, _ = strconv.ParseInt(m[2], 10, 64)
	return outer, inner, text, true
}

// kernelSays are the errors in the kernel's log.
const kernelSays = "dmesg -l emerg,alert,crit,err"

// The service under systemd, with its sandbox, shares a partition of 320 MiB with
// whoever fills one side or the other; stray resize2fs is repaired; all is told; and it
// costs next to nothing while nothing is written.
func TestResizeService(t *testing.T) {
	t.Parallel()
	disk := Image{Root: Debian, Commit: true, Disk: []string{"--state-size", "320M"},
		Edit: []string{"recovery: later", "recovery: later\n  auto_resize: both"}, Extra: map[string]string{"usr/bin/load": load, "usr/bin/looks": looks}}.Build(t)
	vm := directMachine(t, disk).WithTPM().Boot()
	vm.WaitReady(bootTime)
	checkSystemd(t, vm)
	s := spaceOf(t, vm)
	if active, _ := vm.TryRun("systemctl is-active sealroot-state"); active != "active" || s.AutoResize != "both" {
		t.Fatalf("the service is %s, auto_resize %s:\n%s", active, s.AutoResize, vm.Run("journalctl -u sealroot-state --no-pager"))
	}
	vm.Run("mkdir -p /state/load /state/encrypted/home/load; head -c 8M /dev/urandom >/home/kept; sha256sum /home/kept >/run/sum")
	before := vm.Run(kernelSays)

	fillBoth(t, vm, s)

	// Another program makes the file system larger than what is reserved, and then larger
	// than the partition has room for.
	vm.Run("mkdir -p /etc/sealroot; echo keepfree: 1G >/etc/sealroot/state.yaml") // it guards all the same
	strayResize(t, vm, resize2fs(16), soon)
	if status := vm.Run("rm /etc/sealroot/state.yaml; sealroot state status; journalctl -u sealroot-state -o cat"); strings.Count(status, "keepfree: unknown key") != 1 {
		t.Errorf("a wrong file of limits is not told of once:\n%s", status)
	}
	s = strayResize(t, vm, resize2fs(600), atALook) // balloons hold what is free
	var actions []string
	for _, d := range s.Decisions {
		actions = append(actions, d.Action)
	}
	if problem := unmended(s.Decisions); problem != "" {
		t.Errorf("%s: decisions %+v", problem, s.Decisions)
	}
	for _, want := range []string{"reserve", "grow", "shrink", "extend"} {
		if !slices.Contains(actions, want) {
			t.Errorf("decisions %s, want %s among them", strings.Join(actions, " "), want)
		}
	}
	for command, want := range map[string]string{
		"grep -c ' /state.* ro[, ]' /proc/mounts":                 "0",
		"echo 3 >/proc/sys/vm/drop_caches; sha256sum -c /run/sum": "/home/kept: OK",
	} {
		if got, _ := vm.TryRun(command); got != want {
			t.Errorf("%s:\n%s\nwant %q", command, got, want)
		}
	}
	if bad := strings.TrimPrefix(withoutStalls(vm.Run(kernelSays)), withoutStalls(before)); strings.TrimSpace(bad) != "" {
		t.Errorf("the kernel's log:\n%s", bad)
	}
	idle(t, vm)
	backup(t, vm)
	vm.PowerOff()
	if console := vm.guest.Console(); !strings.Contains(console, "sealroot: exit: everything is unmounted (poweroff)") {
		t.Errorf("the exit program does not say that it unmounted everything:\n%s", vm.guest.Tail(20))
	}
	tool(t, "e2fsck", "-fn", disk.Extract(t, "state"))
}

// resize2fs makes the volume's file system so many MiB larger.
func resize2fs(mib int) string {
	return fmt.Sprintf(`device=/dev/$(basename $(readlink /sys/dev/block/$(mountpoint -d /state/encrypted)))
now=$(dumpe2fs -h $device 2>/dev/null | sed -n 's/^Block count: *//p'); resize2fs $device $((now + %d * 256))`, mib)
}

const (
	// soon is within what the service has reserved what resize2fs took: a second or two,
	// and what a host with too much to do keeps the guest waiting, whose clock goes on. So
	// it tells a service that reserves from one that does not; that the device wakes it
	// without delay is for sealroot/sharing to show, whose tests take no machine.
	soon = 45 * time.Second
	// atALook is the same where nothing wakes it for 10 s, or holding takes its time.
	atALook = 2 * time.Minute
)

// strayResize has another program make the volume's file system larger, and waits until
// all of it is reserved, for at most so long by the guest's clock.
func strayResize(t *testing.T, vm *VM, command string, most time.Duration) space {
	t.Helper()
	out := vm.Run(fmt.Sprintf(`set -e; now() { cut -d ' ' -f 1 /proc/uptime; }
made() { journalctl -u sealroot-state -o cat | grep -c 'reserved, or taken out' || true; }
before=$(made); { %s
} >/run/stray 2>&1; began=$(now)
until [ $(made) -gt $before ] && sealroot state status --json | grep -q '"gap_bytes": *0,'; do
	sleep 0.2; [ ${began%%.*} -gt $(($(cut -d . -f 1 /proc/uptime) - 180)) ] || break
done
echo $began $(now)`, command))
	var began, ended float64
	if _, err := fmt.Sscan(out, &began, &ended); err != nil {
		t.Fatalf("%s: %s: %v", command, out, err)
	}
	took := time.Duration((ended - began) * float64(time.Second)).Round(10 * time.Millisecond)
	t.Logf("%.40s…: reserved after %v", command, took)
	s := spaceOf(t, vm)
	if s.Gap != 0 || took > most {
		t.Errorf("%s: %d bytes of the volume are not reserved after %v, want none after %v:\n%s", command, s.Gap, took, most, vm.Run("cat /run/stray; journalctl -u sealroot-state --no-pager | tail -n 20"))
	}
	return s
}

// backup takes the one that the documentation advises, with its holes, of a volume that is
// frozen: it is small, and restored it is the file. dump(8) is told to leave that out.
func backup(t *testing.T, vm *VM) {
	t.Helper()
	if flags := strings.Fields(vm.Run("lsattr /state/encrypted.img"))[0]; !strings.Contains(flags, "d") {
		t.Errorf("encrypted.img has the attributes %s, want d", flags)
	}
	// What was ever written lies in twice as many bytes as the partition has.
	out := vm.Run(`cd /state; mkdir /dev/shm/copy; fsfreeze -f encrypted
tar -S -cf - encrypted.img | tar -S -xf - -C /dev/shm/copy; cmp -n 671088640 encrypted.img /dev/shm/copy/encrypted.img; same=$?
fsfreeze -u encrypted; for f in encrypted.img /dev/shm/copy/encrypted.img; do stat -c '%s %b' $f; done; echo $same; rm -r /dev/shm/copy`)
	var apparent, held, copied, written int64
	var same int
	if _, err := fmt.Sscan(out, &apparent, &held, &copied, &written, &same); err != nil || same != 0 || apparent < 16<<30 || copied != apparent || written > held || written < 8<<20/512 {
		t.Errorf("tar -S of a frozen volume: %s, %v: want a copy of the same size and content that holds no more", out, err)
	}
}

// looks has how often the kernel has switched to the threads of two programs, with the
// moment: each half a second, for 30 s, and longer where that is less than 50 times.
const looks = `#!/usr/bin/perl
use strict;
sub now { open(my $f, "<", "/proc/uptime") or die "uptime: $!"; (split " ", <$f>)[0] }
sub switches {
	my $n = 0;
	for (glob "/proc/$_[0]/task/*/status") {
		open(my $f, "<", $_) or next;
		/ctxt_switches:\s+(\d+)/ and $n += $1 while <$f>;
	}
	$n;
}
$| = 1;
my ($began, $n) = (now(), 0);
while (now() < $began + 30 or $n < 50 and now() < $began + 300) {
	print join(" ", "at", now(), switches($ARGV[0]), switches($ARGV[1])), "\n";
	$n++;
	select(undef, undef, undef, 0.5);
}
`

// idle holds the service to what it may cost while nothing is written: one time of work in
// 10 s, in which any of its threads runs, and 12 MiB. Beside it the control works every 2 s.
// A host with too much to do cuts a time of work, and has the system write later: one that
// works more by itself does so each time.
func idle(t *testing.T, vm *VM) {
	t.Helper()
	problem := idleOnce(t, vm)
	for try := 0; try < 2 && problem != ""; try++ {
		t.Logf("idle: again, after: %s", problem)
		problem = idleOnce(t, vm)
	}
	if problem != "" {
		t.Errorf("idle: %s", problem)
	}
}

func idleOnce(t *testing.T, vm *VM) (problem string) {
	t.Helper()
	const most = 12 << 10
	out := vm.Run(`pid=$(systemctl show -p MainPID --value sealroot-state)
rm -f /run/never; mkfifo /run/never; (bash -c 'exec 3<>/run/never; while :; do read -t 2 -u 3; done' >/dev/null 2>&1 & echo $! >/run/control)
sync; sleep 12
looks $pid $(cat /run/control)
kill $(cat /run/control); rm /run/control /run/never
echo has $(awk '/^VmRSS/ { print $2 }' /proc/$pid/status) $(systemctl show -p MainPID --value sealroot-state | grep -c "^$pid$")
grep -E 'Rss|Threads' /proc/$pid/status; grep AnonHuge /proc/$pid/smaps_rollup`)
	var at []float64
	var service, control []int
	var kib, same int
	for line := range strings.Lines(out) {
		var when float64
		var s, c int
		if _, err := fmt.Sscanf(line, "at %f %d %d", &when, &s, &c); err == nil {
			at, service, control = append(at, when), append(service, s), append(control, c)
		}
		_, _ = fmt.Sscanf(line, "has %d %d", &kib, &same)
	}
	if len(at) < 20 || same != 1 {
		return fmt.Sprintf("%d looks, want 20 at least, of one program:\n%s", len(at), out)
	}
	works, busy := workedTimes(at, service)
	controlled, _ := workedTimes(at, control)
	seconds := at[len(at)-1] - at[0]
	t.Logf("idle: worked %d times in %.0f s, in %d of %d pieces of them, %d KiB; the control %d times", works, seconds, busy, len(at)-1, kib, controlled)
	// Two more than one in 10 s: what began before, and a write of the system that wakes it.
	may := int(seconds/10) + 2
	if kib > most || works > may || busy > 3*may {
		return fmt.Sprintf("worked %d times in %.0f s, in %d of %d pieces, %d KiB, want at most once in 10 s and %d KiB:\n%s", works, seconds, busy, len(at)-1, kib, most, out)
	}
	if controlled <= may {
		return fmt.Sprintf("the control works every 2 s, %d times in %.0f s: it would pass:\n%s", controlled, seconds, out)
	}
	return ""
}

// workedTimes counts the times of work of a program, of which at moments, in seconds, the
// kernel has counted switches, and the pieces between them in which it worked. What is less
// than a second apart is one: a busy host cuts it.
func workedTimes(at []float64, switches []int) (works, busy int) {
	last := -math.MaxFloat64
	for i := 1; i < len(at); i++ {
		if switches[i] == switches[i-1] {
			continue
		}
		if busy++; at[i-1]-last >= 1 {
			works++
		}
		last = at[i]
	}
	return works, busy
}
