package etc

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Random histories of boots, trials, commits and power cuts: what was changed under a
// committed image is in /etc of every image that is committed, and what was changed on
// trial in that trial alone, until its commit.
func TestHistories(t *testing.T) {
	errCut := errors.New("no power")
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 23))
		w := withLists(t)
		w.files(v3, map[string]string{"a": "a3\n"})
		ids := []string{v1, v1x, v2, v2x, v3}
		w.booted(v1)                          // of a new volume there is nothing to put back
		committed, tried := "", []string(nil) // what there may be; tried nil: no trial
		last, log := v1, ""
		for i := range 60 {
			id, trial, cut := ids[random.IntN(len(ids))], random.IntN(2) == 0, -1
			if random.IntN(3) == 0 {
				id = last // as boots are, mostly
			}
			if random.IntN(3) == 0 {
				cut = random.IntN(30)
			}
			log += fmt.Sprintf("%s%s trial=%v cut=%d\n", id[:1], id[60:], trial, cut)
			step := 0
			_, err := w.boot(id, Options{Trial: trial, Step: func(string) error {
				if step++; step > cut && cut >= 0 {
					return errCut
				}
				return nil
			}})
			if errors.Is(err, errCut) {
				if tried != nil {
					tried = append(tried, committed) // it may be over
				}
				continue
			}
			must(t, err)
			trials, err := filepath.Glob(filepath.Join(w.volume, ".sealroot/etc", id, "merge-*", trialFile))
			must(t, err)
			var now string
			w.inEtc(id, func(etc string) {
				text, err := os.ReadFile(filepath.Join(etc, "n"))
				if err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
				now = string(text)
			})
			allowed := []string{committed}
			if len(trials) > 0 && tried != nil {
				allowed = append(allowed, tried...)
			}
			if !slices.Contains(allowed, now) {
				t.Fatalf("seed %d: n is %q, want one of %q, after\n%s", seed, now, allowed, log)
			}
			w.shell(id, fmt.Sprintf("echo %d >n", i))
			now, last = fmt.Sprintf("%d\n", i), id
			if !trial || random.IntN(3) == 0 { // the record of a boot that is none, or a commit
				must(t, Committed(w.volume, id))
				trials = nil
				log += "committed\n"
			}
			if len(trials) > 0 {
				tried = []string{now}
			} else {
				committed, tried = now, nil
			}
			if left := entries(t, filepath.Join(w.volume, ".sealroot/etc")); len(left) > 6 {
				t.Fatalf("kept is %s", strings.Join(left, " "))
			}
		}
		must(t, unix.Unmount(w.dir, unix.MNT_DETACH))
	}
}
