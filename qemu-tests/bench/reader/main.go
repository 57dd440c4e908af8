// Command reader is what the benchmark's root runs after its first instruction:
// it reads the kernel log and says on the console when /init and the real init
// began, which modules are loaded, and how the state was unlocked. Then it
// switches the machine off.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	began, arrived, err := times()
	if err != nil {
		fmt.Printf("bench: error: %v\n", err)
	}
	fmt.Printf("bench: unlocked %s.\n", unlocked())
	fmt.Printf("bench: modules %s.\n", strings.Join(modules(), " "))
	fmt.Printf("bench: init %s real-init %s microseconds.\n", began, arrived)
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// times reads the records of /dev/kmsg, "level,number,microseconds,flags;text".
func times() (began, arrived string, err error) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", "", err
	}
	defer unix.Close(fd)
	record := make([]byte, 8192)
	for {
		n, err := unix.Read(fd, record)
		switch {
		case err == unix.EAGAIN:
			return began, arrived, nil
		case err == unix.EPIPE: // overwritten meanwhile
			continue
		case err != nil:
			return "", "", err
		}
		head, text, _ := strings.Cut(string(record[:n]), ";")
		fields := strings.Split(head, ",")
		switch {
		case len(fields) < 3:
		case strings.HasPrefix(text, "Run /init as init process"):
			began = fields[2]
		case strings.HasPrefix(text, "bench: the real init"):
			arrived = fields[2]
		}
	}
}

// modules are the loaded modules in the order in which they were loaded.
func modules() []string {
	text, err := os.ReadFile("/proc/modules")
	if err != nil {
		return nil
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		name, _, _ := strings.Cut(line, " ")
		names = append(names, name)
	}
	slices.Reverse(names) // the kernel lists the newest first
	return names
}

func unlocked() string {
	var report struct {
		State struct {
			Unlocked string `json:"unlocked"`
		} `json:"state"`
	}
	text, err := os.ReadFile("/run/sealroot/boot.json")
	if err != nil || json.Unmarshal(text, &report) != nil {
		return "nothing"
	}
	return report.State.Unlocked
}
