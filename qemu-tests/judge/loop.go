package judge

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// attach makes a loop device of an image. Other tests take and leave devices meanwhile: it
// tries a few times to find one that is free.
func attach(image string) (device string, err error) {
	for n := range 10 {
		time.Sleep(time.Duration(n) * 50 * time.Millisecond)
		if device, err = run("losetup", "--find", "--show", image); err == nil {
			return strings.TrimSpace(device), nil
		}
	}
	return "", err
}

// detach waits until nobody has the device any more: a mount namespace that others make
// has a copy of each mount for as long as it is there.
func detach(device string) error {
	backing := filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file")
	image, err := os.ReadFile(backing)
	if _, e := run("losetup", "--detach", device); e != nil || err != nil {
		return errors.Join(e, err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		now, err := os.ReadFile(backing)
		switch {
		case errors.Is(err, fs.ErrNotExist) || err == nil && string(now) != string(image):
			return nil // it is somebody else's by now, or nobody's
		case time.Now().After(end):
			return fmt.Errorf("cannot detach %s: somebody still has it open", device)
		}
	}
}

// kernelSays are the last lines of the kernel about a device: mount(8) tells only that
// something was wrong.
func kernelSays(device string) string {
	text, err := run("dmesg")
	if err != nil {
		return ""
	}
	var about []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, filepath.Base(device)+"):") || strings.Contains(line, filepath.Base(device)+" state") {
			about = append(about, "\n\t"+strings.TrimSpace(line))
		}
	}
	return strings.Join(about[max(0, len(about)-3):], "")
}
