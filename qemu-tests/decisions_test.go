package qemutests

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// decision is one of the service that shares space, and what became of it.
type decision struct{ Action, Reason, Error string }

// servedDecisions are the decisions of which the service tells, one in a line (sharing.Sentence).
func servedDecisions(said string) (list []decision) {
	line := regexp.MustCompile(`(?m)^sealroot: (the volume (grow|shrink)s to|\S+( \S+)? of the volume are (reserved))\b[^:]*: (.*?)(?:; failed: (.*))?$`)
	for _, m := range line.FindAllStringSubmatch(said, -1) {
		list = append(list, decision{strings.TrimSuffix(m[2]+m[4], "d"), m[5], m[6]})
	}
	return list
}

// unmended is what is wrong with decisions, "" for nothing. One may fail beside a writer, or
// while somebody else resizes: the service tries again. It may not fail often, and none of
// its kind may have failed last.
func unmended(list []decision) string {
	const most = 3
	last := map[string]decision{}
	failed := 0
	for _, d := range list {
		last[d.Action] = d
		if d.Error != "" {
			failed++
		}
	}
	var problems []string
	if failed > most {
		problems = append(problems, fmt.Sprintf("%d decisions failed, at most %d may", failed, most))
	}
	for action, d := range last {
		if d.Error != "" {
			problems = append(problems, fmt.Sprintf("the last %s failed: %s", action, d.Error))
		}
	}
	slices.Sort(problems)
	return strings.Join(problems, "\n")
}

func TestUnmendedDecisions(t *testing.T) {
	t.Parallel()
	const (
		grow    = "sealroot: the volume grows to 168 MiB: the volume has 20 MiB free and needs 112 MiB\n"
		shrink  = "sealroot: the volume shrinks to 270 MiB: the partition has 156 MiB free and needs 225 MiB\n"
		reserve = "sealroot: 16 MiB of the volume are reserved, or taken out of its use: the volume's file system is 16 MiB larger than what is reserved for it: another program made it larger\n"
		other   = "sealroot: cannot measure the volume\n"
	)
	failed := func(sentence string) string {
		return strings.TrimSuffix(sentence, "\n") + "; failed: cannot resize: no room\n"
	}
	for _, tt := range []struct {
		name, said string
		decisions  int
		good       bool
	}{
		{"none", "", 0, true},
		{"all_went_well", grow + other + shrink + reserve, 3, true},
		{"one_failed_and_was_done", failed(grow) + shrink + grow, 3, true},
		{"one_failed_and_another_was_done", failed(shrink) + grow, 2, false},
		{"one_failed_at_the_end", reserve + failed(reserve), 2, false},
		{"three_failed", strings.Repeat(failed(grow)+grow, 3), 6, true},
		{"four_failed", strings.Repeat(failed(grow)+grow, 4), 8, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			list := servedDecisions(tt.said)
			if problem := unmended(list); len(list) != tt.decisions || (problem == "") != tt.good {
				t.Errorf("%d decisions, %q; want %d, a problem: %v", len(list), problem, tt.decisions, !tt.good)
			}
		})
	}
}
