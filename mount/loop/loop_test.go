package loop

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/freddierice/go-losetup"
	"golang.org/x/sys/unix"
)

func image(t *testing.T, size int64) *os.File {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test attaches loop devices: run it as root")
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

// losetup8 asks losetup(8) about a device.
func losetup8(t *testing.T, path, column string) string {
	t.Helper()
	out, err := exec.Command("losetup", "--noheadings", "--output", column, path).CombinedOutput()
	if err != nil {
		return "" // not attached
	}
	return strings.TrimSpace(string(out))
}

// gone waits until the device has our file no longer: others may have it by then.
func gone(t *testing.T, path string, f *os.File) {
	t.Helper()
	for began := time.Now(); losetup8(t, path, "BACK-FILE") == f.Name(); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatalf("%s is still attached to %s", path, f.Name())
		}
	}
}

func TestAttach(t *testing.T) {
	f := image(t, 1<<20)
	d, err := Attach(f, Options{BlockSize: 4096, DirectIO: true})
	if err != nil {
		t.Fatal(err)
	}
	for column, want := range map[string]string{"BACK-FILE": f.Name(), "LOG-SEC": "4096", "RO": "0", "AUTOCLEAR": "0", "MAJ:MIN": d.DevNo()} {
		if got := losetup8(t, d.Path, column); got != want {
			t.Errorf("%s: got %q, want %q", column, got, want)
		}
	}
	if got := losetup8(t, d.Path, "DIO") == "1"; got != d.DirectIO {
		t.Errorf("direct I/O: got %t, losetup says %t", d.DirectIO, got)
	}
	want := bytes.Repeat([]byte("sealroot"), 512)
	if _, err := d.File().WriteAt(want, 8192); err != nil {
		t.Fatal(err)
	}
	if err := d.File().Sync(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 8192); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file has not got what was written to the device: %v", err)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	gone(t, d.Path, f)
}

func TestAttachReadOnlyWithALimit(t *testing.T) {
	f := image(t, 1<<20)
	d, err := Attach(f, Options{ReadOnly: true, SizeLimit: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Detach(); err != nil {
			t.Error(err)
		}
	}()
	for column, want := range map[string]string{"RO": "1", "SIZELIMIT": "262144", "LOG-SEC": "512"} {
		if got := losetup8(t, d.Path, column); got != want {
			t.Errorf("%s: got %q, want %q", column, got, want)
		}
	}
	if end, err := d.File().Seek(0, 2); end != 256<<10 || err != nil {
		t.Errorf("size: got %d, %v, want 262144", end, err)
	}
}

func TestAutoclearWaitsForTheLastUser(t *testing.T) {
	f := image(t, 1<<20)
	d, err := Attach(f, Options{Autoclear: true})
	if err != nil {
		t.Fatal(err)
	}
	user, err := os.Open(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Release(); err != nil {
		t.Fatal(err)
	}
	if losetup8(t, d.Path, "BACK-FILE") != f.Name() {
		t.Error("the device went although somebody uses it")
	}
	user.Close()
	gone(t, d.Path, f)
}

func TestClassicDoesTheSame(t *testing.T) {
	f := image(t, 1<<20)
	dev := classicOnAFreeDevice(t, f, Options{BlockSize: 4096, Autoclear: true, SizeLimit: 512 << 10, DirectIO: true})
	for column, want := range map[string]string{"BACK-FILE": f.Name(), "LOG-SEC": "4096", "AUTOCLEAR": "1", "SIZELIMIT": "524288"} {
		if got := losetup8(t, dev.Name(), column); got != want {
			t.Errorf("%s: got %q, want %q", column, got, want)
		}
	}
	dev.Close()
	gone(t, dev.Name(), f)
}

// classicOnAFreeDevice attaches f as classic does, and returns the open device. Other tests
// may be faster to take the one that is free.
func classicOnAFreeDevice(t *testing.T, f *os.File, o Options) *os.File {
	t.Helper()
	for range 20 {
		free, err := losetup.GetFree()
		if err != nil {
			t.Fatal(err)
		}
		dev, err := os.OpenFile(free.Path(), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err = classic(dev, f, o); err == nil {
			return dev
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			t.Fatal(err)
		}
	}
	t.Fatal("others took each free device")
	return nil
}

func TestAttachRefusesABadBlockSize(t *testing.T) {
	d, err := Attach(image(t, 1<<20), Options{BlockSize: 513})
	if !errors.Is(err, unix.EINVAL) || d != (Device{}) {
		t.Errorf("got %v, %v, want no device and EINVAL", d, err)
	}
}

func TestAttachesSideBySideTakeDifferentDevices(t *testing.T) {
	const n = 6
	f := image(t, 1<<20)
	results := make(chan Device, n)
	for range n {
		go func() {
			d, err := Attach(f, Options{ReadOnly: true})
			if err != nil {
				t.Error(err)
			}
			results <- d
		}()
	}
	var devices []Device
	for range n {
		if d := <-results; d.Path != "" {
			devices = append(devices, d)
		}
	}
	seen := make(map[string]bool)
	for _, d := range devices {
		if seen[d.Path] {
			t.Errorf("%s was given twice", d.Path)
		}
		seen[d.Path] = true
		if err := d.Detach(); err != nil {
			t.Error(err)
		}
	}
}
