// Command demo is the second half of `make demo`: it makes an image and boots
// it, telling what happens. scripts/demo prepares what it needs.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"sealroot/qemu-tests/machine"
)

func main() {
	var d demo
	flag.IntVar(&d.number, "first-step", 1, "number of the first step")
	flag.StringVar(&d.build, "build", "build", "folder with the programs; everything is written to its folder demo")
	flag.StringVar(&d.rootfs, "rootfs", "", "root file system, a tar or a folder")
	flag.StringVar(&d.kernel, "kernel", "", "folder with vmlinuz and lib/modules")
	flag.StringVar(&d.accel, "accel", "tcg", "QEMU's accelerator")
	flag.Parse()
	d.number--
	if err := d.run(); err != nil {
		fmt.Fprintf(os.Stderr, "\nsealroot: error: %v\n", err)
		os.Exit(1)
	}
}

// demo is one run of the demonstration.
type demo struct {
	build, rootfs, kernel, accel string

	number  int // of the last step
	disk    string
	config  machine.Config
	summary []string
}

// step runs one step and shows how long it took. What it returns is shown and
// kept for the summary.
func (d *demo) step(text string, run func() (result string, err error)) error {
	d.number++
	fmt.Fprintf(os.Stderr, "sealroot: step %d: %s ... ", d.number, text)
	began := time.Now()
	result, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "failed")
		return fmt.Errorf("step %d (%s): %w", d.number, text, err)
	}
	fmt.Fprintf(os.Stderr, "%.0f s\n", time.Since(began).Seconds())
	if result != "" {
		fmt.Fprintf(os.Stderr, "    %s\n", result)
		d.summary = append(d.summary, result)
	}
	return nil
}

func (d *demo) run() error {
	for _, s := range []struct {
		text string
		run  func() (string, error)
	}{
		{"make keys and a disk image with two slots", d.image},
		{"boot: slot a, first boot, the encrypted state is made", d.firstBoot},
		{"an update is in slot b: boot it on trial", d.trial},
		{"a block of slot b is changed on the disk: boot", d.brokenSlot},
	} {
		if err := d.step(s.text, s.run); err != nil {
			return err
		}
	}
	fmt.Fprintf(os.Stderr, "\nsealroot demo: done.\n")
	for _, line := range d.summary {
		fmt.Fprintf(os.Stderr, "  - %s\n", line)
	}
	fmt.Fprintf(os.Stderr, `What to try next:
  make run DISK=%s TPM=1 UEFI=1    log in on the serial console; Ctrl-A X leaves
                                   (another TPM than the demo's: it asks for the recovery key)
  sealroot status                  inside: slots, how the state was unlocked
  make demo ROOTFS=my.tar          your own root
`, d.disk)
	return nil
}
