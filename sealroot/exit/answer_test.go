package exit

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestAwait(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		takes    time.Duration
		at       func(passed time.Duration) toDo
		answered bool
		within   time.Duration
	}{
		{"at_once", time.Second, func(time.Duration) toDo { return toDo{3, 0} }, true, time.Second},
		{"dead", time.Hour, func(time.Duration) toDo { return toDo{3, 1 << 20} }, false, patience},
		{"many_mounts", 10 * patience, func(d time.Duration) toDo { return toDo{300 - int(d/time.Second), 0} }, true, 10 * patience},
		{"much_to_write", 10 * patience, func(d time.Duration) toDo { return toDo{1, 1 << 40 >> (d / time.Second / 10)} }, true, 10 * patience},
		{"dead_later", time.Hour, func(d time.Duration) toDo { return toDo{max(3, 100-int(d/time.Second)), 0} }, false, 5 * patience},
		{"ever_less", time.Hour, func(d time.Duration) toDo { return toDo{1, 1<<40 - int64(d)} }, false, longest},
		{"up_and_down", time.Hour, func(d time.Duration) toDo { return toDo{1, int64(d/patience) % 2 << 20} }, false, patience},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, done, stop := time.Now(), make(chan []string, 1), make(chan bool)
				defer close(stop)
				go func() {
					select {
					case <-time.After(tt.takes):
						done <- []string{"apart"}
					case <-stop:
					}
				}()
				got, answered := await(done, func() toDo { return tt.at(time.Since(began)) })
				if took := time.Since(began); answered != tt.answered || answered != slices.Equal(got, []string{"apart"}) || took != tt.within {
					t.Errorf("got %q, %t after %s, want %t after %s", got, answered, took, tt.answered, tt.within)
				}
			})
		})
	}
}
