package sharing

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWaiter(t *testing.T) {
	wait := Waiter(nil)
	began := time.Now()
	if err := wait(context.Background(), 50*time.Millisecond, true); err != nil || time.Since(began) < 50*time.Millisecond {
		t.Errorf("%v after %v, want nil after 50 ms", err, time.Since(began))
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	began = time.Now()
	if err := wait(ctx, time.Minute, false); !errors.Is(err, context.Canceled) || time.Since(began) > 30*time.Second {
		t.Errorf("%v after %v, want it cancelled", err, time.Since(began))
	}
	if err := wait(ctx, time.Minute, false); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want it cancelled before it began", err)
	}
}

// TestWrites: a write wakes who waits for one, and only then.
func TestWrites(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	w, err := WatchWrites(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	wait := Waiter(w)
	write := func() {
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte("text"), 0o600); err != nil {
			t.Error(err)
		}
	}
	took := func(quiet bool, d time.Duration) time.Duration {
		t.Helper()
		began := time.Now()
		if err := wait(context.Background(), d, quiet); err != nil {
			t.Fatal(err)
		}
		return time.Since(began)
	}
	write() // while nobody waits: it wakes nobody later
	if d := took(true, 200*time.Millisecond); d < 200*time.Millisecond {
		t.Errorf("woken after %v by nothing", d)
	}
	for range 2 {
		time.AfterFunc(50*time.Millisecond, write)
		if d := took(true, 30*time.Second); d > 20*time.Second {
			t.Errorf("not woken by a write in %v", d)
		}
	}
	time.AfterFunc(50*time.Millisecond, write)
	if d := took(false, 300*time.Millisecond); d < 300*time.Millisecond {
		t.Errorf("woken after %v, though not quiet", d)
	}
}
