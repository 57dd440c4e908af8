package qemutests

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"sealroot/init/report"
)

// checkInitrdTime compares what systemd-analyze says the initramfs took with the clock of
// PID 1.
func checkInitrdTime(t *testing.T, vm *VM, r report.Report) {
	t.Helper()
	stages := time.Duration(r.Stages[len(r.Stages)-1].End) * time.Microsecond
	analyzed := vm.Run("systemd-analyze")
	if problem := initrdProblem(analyzed, vm.Run("dmesg"), stages); problem != "" {
		t.Error(problem)
	}
	t.Logf("the initramfs: %s by the report; %s", stages, analyzed)
}

// initrdProblem returns what is wrong with the initramfs's time, "" for nothing. It is that
// of the stages in the report, and that of the hand-over, for which the kernel log has both
// ends. (The clocks of that and of the others are not one.)
func initrdProblem(analyzed, log string, stages time.Duration) string {
	const slack = 3 * time.Second // a stall between the one clock and the other
	got, err := initrdTime(analyzed)
	if err != nil {
		return err.Error()
	}
	left, err := logTime(log, `sealroot: slot \S+: starting /sbin/init`)
	if err != nil {
		return err.Error()
	}
	came, err := logTime(log, `systemd\[1\]: systemd \S+ running in system mode`)
	if err != nil {
		return err.Error()
	}
	if handOver := came - left; got < stages || got > stages+handOver+slack {
		return fmt.Sprintf("systemd-analyze says %s of the initramfs; by PID 1 it took %s up to the report, and the kernel log has %s for the hand-over", got, stages, handOver)
	}
	return ""
}

// initrdTime reads the initramfs's part of what systemd-analyze prints.
func initrdTime(analyzed string) (time.Duration, error) {
	got := regexp.MustCompile(`([^+=]+) \(initrd\)`).FindStringSubmatch(analyzed)
	if got == nil {
		return 0, fmt.Errorf("systemd-analyze knows no initrd: %s", analyzed)
	}
	return time.ParseDuration(strings.NewReplacer("min", "m", " ", "").Replace(got[1]))
}

// logTime is the time of the first line of a kernel log that matches.
func logTime(log, pattern string) (time.Duration, error) {
	got := regexp.MustCompile(`(?m)^\[ *(\d+\.\d+)\] ` + pattern).FindStringSubmatch(log)
	if got == nil {
		return 0, fmt.Errorf("the kernel log has no line %q:\n%s", pattern, log)
	}
	return time.ParseDuration(got[1] + "s")
}

// The red control of checkInitrdTime.
func TestInitrdTimeRedControl(t *testing.T) {
	t.Parallel()
	const log = "[    8.774254] sealroot: sealroot-demo 2026.11.1 (production build)\n" +
		"[   61.586395] sealroot: slot a: starting /sbin/init\n" +
		"[   63.488684] systemd[1]: systemd 252.39-1~deb12u2 running in system mode (+PAM -APPARMOR)\n"
	for _, tt := range []struct {
		name, took string
		good       bool
	}{
		{"as_it_was", "54.5s (initrd) + ", true},
		{"in_minutes", "0min 54.500s (initrd) + ", true},
		{"none", "", false},
		{"of_the_hand_over_alone", "1.9s (initrd) + ", false},
		{"since_the_kernel_began", "1min 3.3s (initrd) + ", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			analyzed := "Startup finished in 8.7s (kernel) + " + tt.took + "1min 2.5s (userspace) = 2min 5.7s\ngraphical.target reached after 1min in userspace.\n"
			if problem := initrdProblem(analyzed, log, 52*time.Second+800*time.Millisecond); (problem == "") != tt.good {
				t.Errorf("got %q, want a problem: %v", problem, !tt.good)
			}
		})
	}
}
