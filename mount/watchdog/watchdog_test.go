package watchdog

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// machine makes a file system with a watchdog's attributes and, as its device,
// a plain file, which knows none of the ioctls.
func machine(t *testing.T, attributes map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	for name, text := range attributes {
		write(t, filepath.Join(root, sysDir, name), text)
	}
	if attributes != nil {
		write(t, filepath.Join(root, Path), "")
	}
	return root
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A watchdog that cannot be stopped is not started where nobody promised to
// feed it: it would reset every system that does not, for ever.
func TestOpenLeavesAloneWhatCannotBeStopped(t *testing.T) {
	for _, tt := range []struct {
		name       string
		attributes map[string]string
		endless    bool
		want       error
	}{
		{"can_be_stopped", map[string]string{"nowayout": "0\n"}, false, nil},
		{"nowayout", map[string]string{"nowayout": "1\n"}, false, ErrNoWayOut},
		{"nowayout_and_somebody_feeds_it", map[string]string{"nowayout": "1\n"}, true, nil},
		{"kernel_does_not_tell", map[string]string{"identity": "x\n"}, false, ErrNoWayOut},
		{"kernel_does_not_tell_and_somebody_feeds_it", map[string]string{"identity": "x\n"}, true, nil},
		{"no_device", nil, false, ErrNoDevice},
		{"no_device_though_somebody_would_feed_it", nil, true, ErrNoDevice},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := machine(t, tt.attributes)
			// A directory in the device's place shows whether it was opened.
			if tt.want != nil && tt.attributes != nil {
				if err := errors.Join(os.Remove(filepath.Join(root, Path)), os.Mkdir(filepath.Join(root, Path), 0o755)); err != nil {
					t.Fatal(err)
				}
			}
			d, err := Open(root, Options{Timeout: 30 * time.Second, Endless: tt.endless})
			if !errors.Is(err, tt.want) || (d == nil) != (tt.want != nil) || errors.Is(err, unix.EISDIR) {
				t.Fatalf("Open() = %v, %v; want %v", d, err, tt.want)
			}
		})
	}
}

func TestOpenReadsAttributes(t *testing.T) {
	for _, tt := range []struct {
		name       string
		attributes map[string]string
		want       Info
	}{
		// The plain file takes no timeout and tells none.
		{"last_boot_ended_by_it", map[string]string{"nowayout": "0\n", "identity": "i6300ESB timer\n", "bootstatus": "32\n"},
			Info{Identity: "i6300ESB timer", Timeout: shortest, Fired: true}},
		{"other_status", map[string]string{"nowayout": "1\n", "bootstatus": "1\n"}, Info{Timeout: shortest, NoWayOut: true}},
		{"status_is_no_number", map[string]string{"nowayout": "0\n", "bootstatus": "-1\n"}, Info{Timeout: shortest}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := Open(machine(t, tt.attributes), Options{Timeout: 30 * time.Second, Endless: true})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if d.Info() != tt.want {
				t.Errorf("Info() = %+v, want %+v", d.Info(), tt.want)
			}
		})
	}
}

// fakeDevice is a driver. Zero seconds means that it does not tell its timeout.
type fakeDevice struct {
	bytes.Buffer
	options uint32
	takes   func(seconds int) (int, error)
	seconds int
	closed  bool
}

func (f *fakeDevice) Close() error { f.closed = true; return nil }
func (f *fakeDevice) support() (*unix.WatchdogInfo, error) {
	return &unix.WatchdogInfo{Options: f.options, Identity: [32]byte{'f', 'a', 'k', 'e'}}, nil
}
func (f *fakeDevice) setTimeout(seconds int) (err error) {
	f.seconds, err = f.takes(seconds)
	return err
}
func (f *fakeDevice) timeout() (uint32, error) {
	if f.seconds == 0 {
		return 0, unix.EOPNOTSUPP
	}
	return uint32(f.seconds), nil
}

func TestStartTellsWhatTheDriverTook(t *testing.T) {
	for _, tt := range []struct {
		name    string
		options uint32
		takes   func(int) (int, error)
		want    Info
	}{
		{"as_asked", unix.WDIOF_MAGICCLOSE, func(s int) (int, error) { return s, nil }, Info{Identity: "fake", Timeout: 30 * time.Second}},
		{"rounded", unix.WDIOF_MAGICCLOSE, func(int) (int, error) { return 32, nil }, Info{Identity: "fake", Timeout: 32 * time.Second}},
		{"has_only_one", unix.WDIOF_MAGICCLOSE, func(int) (int, error) { return 15, unix.EOPNOTSUPP }, Info{Identity: "fake", Timeout: 15 * time.Second}},
		{"takes_it_and_tells_nothing", 0, func(int) (int, error) { return 0, nil }, Info{Identity: "fake", Timeout: 30 * time.Second, StopsOnClose: true}},
		{"refuses_and_tells_nothing", 0, func(int) (int, error) { return 0, unix.EINVAL }, Info{Identity: "fake", Timeout: shortest, StopsOnClose: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &Dog{dev: &fakeDevice{options: tt.options, takes: tt.takes}}
			d.start(30 * time.Second)
			if d.Info() != tt.want {
				t.Errorf("Info() = %+v, want %+v", d.Info(), tt.want)
			}
		})
	}
}

// 'V' as the last byte before the close stops a watchdog, and nothing else does.
func TestMagicClose(t *testing.T) {
	for _, tt := range []struct {
		name  string
		steps func(d *Dog) error
		want  string
	}{
		{"handed_over", func(d *Dog) error { return errors.Join(d.Feed(), d.Close()) }, "\x00"},
		{"disarmed", func(d *Dog) error { return errors.Join(d.Feed(), d.Disarm(), d.Close()) }, "\x00V"},
		{"armed_again", func(d *Dog) error { return errors.Join(d.Disarm(), d.Feed(), d.Close()) }, "V\x00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fakeDevice{}
			if err := tt.steps(&Dog{dev: f}); err != nil {
				t.Fatal(err)
			}
			if f.String() != tt.want || !f.closed {
				t.Errorf("the driver got %q, closed: %v; want %q", f.String(), f.closed, tt.want)
			}
		})
	}
}
