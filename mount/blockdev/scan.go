// Package blockdev finds the disks of the machine in sysfs and opens them.
package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

// Disk is a whole disk.
type Disk struct {
	Name         string // as in /sys/block, e.g. vda
	Node         string // device node, e.g. /dev/vda
	Major, Minor uint32
	Size         int64 // bytes
	SectorSize   int   // logical, bytes
	Removable    bool
	ReadOnly     bool
	Partitions   []Partition // by number
}

// Partition is a partition that the kernel knows of.
type Partition struct {
	Number       int
	Name         string // e.g. vda1
	Node         string // e.g. /dev/vda1
	Major, Minor uint32
	Start        int64 // bytes from the beginning of the disk
	Size         int64 // bytes
}

// DevNo is the disk as a device-mapper table names it, e.g. "254:0".
func (d Disk) DevNo() string { return devNo(d.Major, d.Minor) }

// DevNo is the partition as a device-mapper table names it, e.g. "254:1".
func (p Partition) DevNo() string { return devNo(p.Major, p.Minor) }

func devNo(major, minor uint32) string { return fmt.Sprintf("%d:%d", major, minor) }

// Partition returns the partition of that number.
func (d Disk) Partition(number int) (Partition, bool) {
	for _, p := range d.Partitions {
		if p.Number == number {
			return p, true
		}
	}
	return Partition{}, false
}

// ErrSysfs means that sysfs describes a device in a way that makes no sense.
var ErrSysfs = errors.New("bad block device in sysfs")

// notDisks are the beginnings of the names of block devices that are not disks
// of the machine: memory, files, other devices' layers, drives for media.
var notDisks = []string{"loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd", "mtdblock", "zd"}

// sysfsSector is the unit of sizes in sysfs, whatever the disk's sectors are.
const sysfsSector = 512

// Scan lists the machine's whole disks by name. sys and dev are "/sys" and
// "/dev" on a real machine. Disks of no size (an empty card reader) and
// devices that cannot be read, as one that goes away during the scan, are left
// out. A machine without block
// devices has an empty list.
func Scan(sys, dev string) ([]Disk, error) {
	entries, err := os.ReadDir(filepath.Join(sys, "block"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list block devices: %w", err)
	}
	var disks []Disk
	for _, e := range entries {
		if !isDisk(e.Name()) {
			continue
		}
		d, err := readDisk(filepath.Join(sys, "block", e.Name()), dev)
		if err != nil {
			continue // it went away, or is nothing that we could boot from
		}
		if d.Size > 0 {
			disks = append(disks, d)
		}
	}
	return disks, nil
}

func isDisk(name string) bool {
	for _, p := range notDisks {
		rest, found := strings.CutPrefix(name, p)
		// A number follows: "sr0" is a drive, "srv" would not be.
		if found && rest != "" && rest[0] >= '0' && rest[0] <= '9' {
			return false
		}
	}
	return true
}

func readDisk(dir, dev string) (Disk, error) {
	d := Disk{Name: filepath.Base(dir)}
	d.Node = node(dev, d.Name)
	var err error
	if d.Major, d.Minor, err = readDevNo(dir); err != nil {
		return Disk{}, err
	}
	if d.Size, err = readSectors(filepath.Join(dir, "size")); err != nil {
		return Disk{}, err
	}
	sector, err := readNumber(filepath.Join(dir, "queue", "logical_block_size"))
	if err != nil {
		return Disk{}, err
	}
	if sector < 512 || sector > 65536 || sector&(sector-1) != 0 {
		return Disk{}, fmt.Errorf("%w: sector size %d", ErrSysfs, sector)
	}
	d.SectorSize = int(sector)
	if d.Removable, err = readFlag(filepath.Join(dir, "removable")); err != nil {
		return Disk{}, err
	}
	if d.ReadOnly, err = readFlag(filepath.Join(dir, "ro")); err != nil {
		return Disk{}, err
	}
	d.Partitions, err = readPartitions(dir, dev)
	if err != nil {
		return Disk{}, err
	}
	return d, nil
}

// readPartitions reads the directories below a disk's that have a file
// "partition", in which their number stands.
func readPartitions(dir, dev string) ([]Partition, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var parts []Partition
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), filepath.Base(dir)) {
			continue
		}
		p, err := readPartition(filepath.Join(dir, e.Name()), dev)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	sort.Slice(parts, func(i, j int) bool { return parts[i].Number < parts[j].Number })
	return parts, nil
}

func readPartition(dir, dev string) (Partition, error) {
	number, err := readNumber(filepath.Join(dir, "partition"))
	if err != nil {
		return Partition{}, err
	}
	p := Partition{Number: int(number), Name: filepath.Base(dir)}
	p.Node = node(dev, p.Name)
	if p.Major, p.Minor, err = readDevNo(dir); err != nil {
		return Partition{}, err
	}
	if p.Start, err = readSectors(filepath.Join(dir, "start")); err != nil {
		return Partition{}, err
	}
	if p.Size, err = readSectors(filepath.Join(dir, "size")); err != nil {
		return Partition{}, err
	}
	return p, nil
}

// node is the device node of a sysfs name; "cciss!c0d0" lies in a directory.
func node(dev, name string) string {
	return filepath.Join(dev, strings.ReplaceAll(name, "!", "/"))
}

func readDevNo(dir string) (major, minor uint32, err error) {
	text, err := readLine(filepath.Join(dir, "dev"))
	if err != nil {
		return 0, 0, err
	}
	a, b, _ := strings.Cut(text, ":")
	ma, errA := strconv.ParseUint(a, 10, 12)
	mi, errB := strconv.ParseUint(b, 10, 20)
	if errA != nil || errB != nil {
		return 0, 0, fmt.Errorf("%w: device number %q", ErrSysfs, text)
	}
	return uint32(ma), uint32(mi), nil
}

func readSectors(path string) (int64, error) {
	n, err := readNumber(path)
	if err != nil {
		return 0, err
	}
	if n > (1<<63-1)/sysfsSector {
		return 0, fmt.Errorf("%w: %d sectors in %s", ErrSysfs, n, filepath.Base(path))
	}
	return n * sysfsSector, nil
}

func readFlag(path string) (bool, error) {
	n, err := readNumber(path)
	return n != 0, err
}

func readNumber(path string) (int64, error) {
	text, err := readLine(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%w: %s is %q", ErrSysfs, filepath.Base(path), text)
	}
	return n, nil
}

// readLine reads a sysfs attribute, which is at most one page.
func readLine(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b)), nil
}
