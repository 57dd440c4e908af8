package state

import (
	"fmt"
	"os"
)

// DeviceSize says how large encrypted.img and the devices over it are, beside what is
// reserved of it.
type DeviceSize string

// The sizes.
const (
	// Oversized devices never have to be changed while the machine runs: growing takes
	// no volume key. It is what the zero value means, too.
	Oversized DeviceSize = "oversized"
	// Classic devices end where the file system ends. Each change of its size takes the
	// volume key, for the table of the crypt device is loaded anew.
	Classic DeviceSize = "classic"
)

// apparent is the size of a file of which so many bytes are reserved.
func (d DeviceSize) apparent(reserved int64) int64 {
	if d == Classic {
		return reserved
	}
	return apparentFor(reserved)
}

// end decides at which byte a file of size bytes ends from this boot on, where the file
// system in it ends at byte end. sure tells that no journal can hold another size than
// the superblock that says so: else the kernel may know of more than that, and the next
// boot decides.
func (d DeviceSize) end(size, end int64, sure bool) int64 {
	if d == Classic && (sure || end > size) {
		return end
	}
	return size
}

// longest is the byte that a file system in a file of size bytes may end at, on the
// partition of dir. A Classic file may be shorter than it: the kernel goes on with a
// resize of another program for which it has seen the device before that was cut. An
// Oversized one is never cut.
func (d DeviceSize) longest(dir *os.File, size int64) int64 {
	if d == Classic {
		if total, err := sizeOf(dir); err == nil {
			return max(size, total)
		}
	}
	return size
}

// endAt lets file and devices end at byte end, beyond which nothing lies. Nobody uses the
// devices yet: they are made anew.
func (v *Volume) endAt(devs Devices, volumeKey []byte, end int64) error {
	err := v.detach()
	if err == nil {
		// crash point: the file has the old length or the new one
		err = v.image.Truncate(end)
	}
	if err != nil {
		return fmt.Errorf("cannot bring %s to %d MiB: %w", ImageName, end>>20, err)
	}
	return v.attach(devs, volumeKey)
}
