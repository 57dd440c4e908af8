package blockdev

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel shows the partition where it was said to be; another one in the same
// place it refuses.
func TestAddPartition(t *testing.T) {
	path := loopDevice(t)
	d, err := Open(path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const start, size = 64 << 10, 256 << 10
	if err := d.AddPartition(3, start, size); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"start": "128", "size": "512", "partition": "3"} {
		text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(path), filepath.Base(path)+"p3", name))
		if got := strings.TrimSpace(string(text)); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %s", name, got, err, want)
		}
	}
	if err := d.AddPartition(4, start+4096, 4096); !errors.Is(err, unix.EBUSY) {
		t.Errorf("inside of another: got %v, want EBUSY", err)
	}
	if err := d.AddPartition(3, 512<<10, 4096); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a number that is taken: got %v, want EBUSY", err)
	}
}
