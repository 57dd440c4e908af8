package boot

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"sealroot/mount"
)

func TestSerialized(t *testing.T) {
	start := moment{real: 1700000000*time.Second + 5*time.Microsecond, monotonic: 2*time.Second + 999*time.Nanosecond}
	if got, want := string(serialized(start)), "initrd-timestamp=1700000000000005 2000000\n\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if now := readMoment(); time.Since(time.Unix(0, int64(now.real))).Abs() > time.Minute || now.monotonic <= 0 {
		t.Errorf("the clocks read %+v", now)
	}
}

// Only systemd gets arguments, whatever leads to it.
func TestInitArgs(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"usr/lib/systemd/systemd", "usr/bin/busybox", "usr/lib/other/systemd"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"systemd": "/usr/lib/systemd/systemd", "busybox": "usr/bin/busybox",
		"other": "/usr/lib/other/systemd", "nothing": "/missing",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := mount.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	b := newBoot(&System{Log: NewLog(io.Discard)})
	for _, path := range []string{"/busybox", "/other", "/nothing"} {
		if args, passed := b.initArgs(root, path); !slices.Equal(args, []string{path}) || passed != nil {
			t.Errorf("%s gets %q and %v, want its name alone", path, args, passed)
		}
	}
	args, passed := b.initArgs(root, "/systemd")
	if passed == nil || !slices.Equal(args[:4], []string{"/systemd", "--switched-root", "--system", "--deserialize"}) {
		t.Fatalf("systemd gets %q and %v", args, passed)
	}
	defer passed.Close()
	if text, err := io.ReadAll(passed); err != nil || string(text) != string(serialized(b.clock.began)) {
		t.Errorf("systemd reads %q, %v", text, err)
	}
}
