package sharing

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWaiter(t *testing.T) {
	wait := Waiter(nil, nil)
	began := time.Now()
	if _, err := wait(context.Background(), 50*time.Millisecond, time.Minute); err != nil || time.Since(began) < 50*time.Millisecond {
		t.Errorf("%v after %v, want nil after 50 ms", err, time.Since(began))
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	began = time.Now()
	if _, err := wait(ctx, time.Minute, 0); !errors.Is(err, context.Canceled) || time.Since(began) > 30*time.Second {
		t.Errorf("%v after %v, want it cancelled", err, time.Since(began))
	}
	if _, err := wait(ctx, time.Minute, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want it cancelled before it began", err)
	}
}

// took is how long a wait took.
func took(t *testing.T, wait func(context.Context, time.Duration, time.Duration) (bool, error), next, idle time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	if _, err := wait(context.Background(), next, idle); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

// soonAndAgain does something in 50 ms, and again every 200 ms: on a busy host the first
// time may come before anybody waits for it. The function that it returns ends that, and
// says when the first time was.
func soonAndAgain(do func()) (end func() time.Time) {
	stop, first := make(chan struct{}), make(chan time.Time, 1)
	go func() {
		var began time.Time
		defer func() { first <- began }()
		for next := 50 * time.Millisecond; ; next = 200 * time.Millisecond {
			select {
			case <-stop:
				return
			case <-time.After(next):
			}
			if began.IsZero() {
				began = time.Now()
			}
			do()
		}
	}()
	return func() time.Time {
		close(stop)
		return <-first
	}
}

// TestWrites: the first write, or file that is made, ends the wait for one, and only that.
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
	wait := Waiter(w, nil)
	write := func() {
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte("text"), 0o600); err != nil {
			t.Error(err)
		}
	}
	write() // while nobody waits: it wakes nobody later
	if d := took(t, wait, time.Millisecond, 200*time.Millisecond); d < 200*time.Millisecond {
		t.Errorf("woken after %v by nothing", d)
	}
	folders := 0
	folder := func() { // which takes an inode, and is no write to a file
		folders++
		if err := os.Mkdir(filepath.Join(dir, strconv.Itoa(folders)), 0o700); err != nil {
			t.Error(err)
		}
	}
	for _, do := range []func(){write, write, folder} {
		end := soonAndAgain(do)
		d := took(t, wait, 100*time.Millisecond, 30*time.Second)
		back := time.Now()
		if first := end(); first.IsZero() || back.Sub(first) < 100*time.Millisecond || d > 20*time.Second {
			t.Errorf("back after %v, %v after the first write, want 100 ms after one", d, back.Sub(first))
		}
	}
	time.AfterFunc(50*time.Millisecond, write)
	if d := took(t, wait, 300*time.Millisecond, 0); d < 300*time.Millisecond {
		t.Errorf("woken after %v, though it did not wait for a write", d)
	}
}

// TestWritesToBtrfs: one in a subvolume is told, too; it has no device.
func TestWritesToBtrfs(t *testing.T) {
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 256<<20)); err != nil {
		t.Fatal(err)
	}
	run("mkfs.btrfs", "-q", image)
	run("mount", "-o", "loop,nodiscard,subvolid=5", image, dir)
	defer run("umount", dir)
	run("btrfs", "subvolume", "create", filepath.Join(dir, "sub"))
	if node, err := DeviceOf(dir); err != nil || node != "" {
		t.Errorf("DeviceOf = %q, %v", node, err)
	}
	w, err := WatchWrites(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	wait := Waiter(w, nil)
	for _, name := range []string{"file", "sub/file"} {
		end := soonAndAgain(func() {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("text"), 0o600); err != nil {
				t.Error(err)
			}
		})
		if d := took(t, wait, 100*time.Millisecond, 30*time.Second); d > 20*time.Second {
			t.Errorf("a write to %s is told after %v", name, d)
		}
		end()
	}
}

// TestDevice: who closes a device that was open for writing ends each wait, also when
// that was before it; a reader does not.
func TestDevice(t *testing.T) {
	node := filepath.Join(t.TempDir(), "node")
	open := func(flags int) {
		f, err := os.OpenFile(node, flags|os.O_CREATE, 0o600)
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Error(err)
		}
	}
	open(os.O_RDWR)
	d, err := WatchDevice(node)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	wait := Waiter(nil, d)
	open(os.O_RDONLY)
	if d := took(t, wait, 200*time.Millisecond, 0); d < 200*time.Millisecond {
		t.Errorf("woken after %v by a reader", d)
	}
	time.AfterFunc(50*time.Millisecond, func() { open(os.O_RDWR) })
	began := time.Now()
	if touched, err := wait(context.Background(), 30*time.Second, 0); err != nil || !touched || time.Since(began) > 20*time.Second || time.Since(began) < settle {
		t.Errorf("a writer: %v, %v after %v, want true some time after it", touched, err, time.Since(began))
	}
	if touched, err := wait(context.Background(), time.Millisecond, 0); err != nil || touched {
		t.Errorf("nobody: %v, %v, want false", touched, err)
	}
	open(os.O_RDWR)
	if d := took(t, wait, 30*time.Second, 0); d > 20*time.Second {
		t.Errorf("not woken in %v by a writer that came before", d)
	}
	if d := took(t, wait, 200*time.Millisecond, 0); d < 200*time.Millisecond {
		t.Errorf("woken after %v a second time", d)
	}
	if _, err := WatchDevice(node + "x"); err == nil {
		t.Error("what is not there is watched")
	}
}
