package qemutests

import (
	"regexp"
	"strings"
	"testing"
)

var (
	// stalled are lines in which the kernel tells that nobody ran for a while: a busy host
	// keeps a guest waiting, whose clock goes on.
	stalled = regexp.MustCompile(`rcu: .*(stall|kthread)|soft lockup|blocked for more than|clocksource|hrtimer: interrupt`)
	// traced are lines of what may follow such a line.
	traced = regexp.MustCompile(`^(\s|rcu: |task:|Call Trace:|</?[A-Z]+>|NMI backtrace|Sending NMI|"echo 0 >|\((t=|detected by)|` +
		`(CPU|RIP|Code|RSP|R[A-Z0-9]{2}|[CDEF]S|CR\d|DR\d|PKRU|Hardware name|Modules linked in|Workqueue): )`)
	// otherReport begins what is no stall and has a trace as well.
	otherReport = regexp.MustCompile(`BUG: |WARNING: |Oops|INFO: |general protection|Kernel panic`)
	// printk is what the kernel has before each line: its level where it was asked for, its
	// time, and perhaps who said it.
	printk = regexp.MustCompile(`^(<\d+>)?\[ *\d+\.\d+\](\[ *[CT]\d+\])? `)
	// kernelLine is a whole line of the kernel on a console, which may lie within a line of
	// somebody else.
	kernelLine = regexp.MustCompile(`\[ *\d+\.\d{6}\] [^\n]*\n`)
)

// withoutStalls is a log of the kernel, or a console with its lines, without what it says of
// a busy host. What is no such line stays, also amid a trace, and so does all of any other
// report.
func withoutStalls(log string) string {
	var rest strings.Builder
	within := false
	for line := range strings.Lines(log) {
		text := line[len(printk.FindString(line)):]
		switch {
		case stalled.MatchString(text):
			within = true
			continue
		case otherReport.MatchString(text):
			within = false
		case within && traced.MatchString(text):
			continue
		}
		rest.WriteString(line)
	}
	return rest.String()
}

// withoutKernel is a console without the kernel's lines, by which it may break in two what
// PID 1 writes for a person.
func withoutKernel(console string) string { return kernelLine.ReplaceAllString(console, "") }

func TestWithoutStalls(t *testing.T) {
	t.Parallel()
	const (
		rcu = "<3>[  201.100000] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\n" +
			"<3>[  201.100001] rcu: \t0-...!: (0 ticks this GP) idle=e2ac/1/0x4000000000000000 softirq=2190/2190 fqs=0\n" +
			"<4>[  201.100002] \t(detected by 0, t=5252 jiffies, g=1789, q=40 ncpus=1)\n" +
			"<6>[  201.100003] Sending NMI from CPU 0 to CPUs 0:\n" +
			"<3>[  201.100004] rcu: rcu_preempt kthread starved for 5252 jiffies! g1789 f0x0 RCU_GP_WAIT_FQS(5) ->state=0x0 ->cpu=0\n" +
			"<3>[  201.100005] rcu: \tUnless rcu_preempt kthread gets sufficient CPU time, OOM is now expected behavior.\n" +
			"<6>[  201.100006] task:rcu_preempt     state:R  running task     stack:0     pid:15    ppid:2      flags:0x00004000\n" +
			"<6>[  201.100007] Call Trace:\n<6>[  201.100008]  <TASK>\n<6>[  201.100009]  ext4_abort+0x0/0x10\n<6>[  201.100010]  </TASK>\n"
		hung = "[  240.000001] INFO: task jbd2/dm-1-8:412 blocked for more than 120 seconds.\n" +
			"[  240.000002]       Not tainted 6.1.0-44-cloud-amd64 #1 Debian 6.1.159-1\n" +
			"[  240.000003] \"echo 0 > /proc/sys/kernel/hung_task_timeout_secs\" disables this message.\n"
		lockup = "[  300.000001][    C0] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [load:991]\n" +
			"[  300.000002][    C0] Modules linked in: dm_crypt\n[  300.000003][    C0] RIP: 0010:error_entry+0x1/0x10\n[  300.000004][    C0] RAX: 0000000000000000\n"
		clocks = "<4>[  400.000001] clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable because the skew is too large:\n" +
			"<4>[  400.000002] hrtimer: interrupt took 13190417 ns\n"
		bad  = "<3>[  201.200000] EXT4-fs error (device dm-1): ext4_find_entry:1663: inode #2: comm load: reading directory lblock 0\n"
		oops = "<1>[  500.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000\n<4>[  500.000001] RIP: 0010:ext4_abort+0x0/0x10\n"
	)
	for _, tt := range []struct{ name, log, want string }{
		{"nothing", "", ""},
		{"stalls", rcu + hung + lockup + clocks, ""},
		{"an_error_before_one", bad + rcu, bad},
		{"an_error_amid_one", strings.Replace(rcu, "<6>[  201.100007]", bad+"<6>[  201.100007]", 1), bad},
		{"another_report_after_one", rcu + oops, oops},
		{"a_trace_of_nothing", "[    9.000000] Call Trace:\n[    9.000001]  error_entry\n", "[    9.000000] Call Trace:\n[    9.000001]  error_entry\n"},
		{"lines_of_others", "probe: up\n" + hung + "(sd-umount)[547]: Failed to unmount /state\n", "probe: up\n(sd-umount)[547]: Failed to unmount /state\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := withoutStalls(tt.log); got != tt.want {
				t.Errorf("left is\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
	if got, want := kernelErrors("<6>[    1.000000] before\n", "<6>[    1.000000] before\n"+rcu+bad), bad; got != want {
		t.Errorf("errors\n%s\nwant\n%s", got, want)
	}
}

func TestWithoutKernel(t *testing.T) {
	t.Parallel()
	const shown = "recovery key: abcdef[  12.345678] random: crng init done\ngh-ijkl[    1.5] is no line of the kernel\n[   13.000000] vda: vda1\nend"
	if got, want := withoutKernel(shown), "recovery key: abcdefgh-ijkl[    1.5] is no line of the kernel\nend"; got != want {
		t.Errorf("left is %q, want %q", got, want)
	}
}
