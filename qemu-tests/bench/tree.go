package main

import (
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/verity"
)

// treeData is how much data a tree is built over, in bytes.
const treeData = 256 << 20

// trees compares what builds a hash tree here with veritysetup, on the host and
// with the data in memory. The least of five runs counts: a busy host adds.
func (b *bench) trees() error {
	dir := filepath.Join(b.build, "bench")
	name, hash := filepath.Join(dir, "data"), filepath.Join(dir, "data.verity")
	defer os.Remove(name)
	defer os.Remove(hash)
	data, err := os.Create(name)
	if err != nil {
		return err
	}
	defer data.Close()
	if _, err := io.CopyN(data, rand.Reader, treeData); err != nil {
		return err
	}
	fmt.Printf("\nHash tree over %d MiB (SHA-256, blocks of 4096 bytes), this host:\n%-58s %9s %8s\n", treeData>>20, "", "cpu ms", "wall ms")
	judge := func() (time.Duration, error) {
		cmd := exec.Command("/usr/sbin/veritysetup", "format", name, hash)
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("veritysetup: %w\n%s", err, out)
		}
		return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
	}
	ours := func() (time.Duration, error) {
		p, err := verity.NewParams(treeData, make([]byte, 32), [16]byte{})
		if err != nil {
			return 0, err
		}
		out, err := os.Create(hash)
		if err != nil {
			return 0, err
		}
		defer out.Close()
		before, err := cpuTime()
		if err == nil {
			_, err = verity.Format(data, p, out)
		}
		if err != nil {
			return 0, err
		}
		after, err := cpuTime()
		return after - before, err
	}
	all := runtime.NumCPU()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, row := range []struct {
		name  string
		cores int
		run   func() (time.Duration, error)
	}{
		{"veritysetup format", all, judge},
		{"sealroot-mkinitramfs, one core", 1, ours},
		{fmt.Sprintf("sealroot-mkinitramfs, %d cores", all), all, ours},
	} {
		runtime.GOMAXPROCS(row.cores)
		var cpu, wall time.Duration
		for i := range 5 {
			start := time.Now()
			c, err := row.run()
			if err != nil {
				return err
			}
			w := time.Since(start)
			if i == 0 || c < cpu {
				cpu = c
			}
			if i == 0 || w < wall {
				wall = w
			}
		}
		fmt.Printf("%-58s %9d %8d\n", row.name, cpu.Milliseconds(), wall.Milliseconds())
	}
	return nil
}

// cpuTime is the time that this process has computed.
func cpuTime() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, err
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}
