// Command demo is the second half of `make demo`: it makes an image and boots
// it, telling what happens. scripts/demo prepares what it needs.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"sealroot/qemu-tests/machine"
)

func main() {
	var d demo
	var firmware string
	flag.IntVar(&d.number, "first-step", 1, "number of the first step")
	flag.StringVar(&d.build, "build", "build", "folder with the programs; everything is written to its folder demo")
	flag.StringVar(&d.rootfs, "rootfs", "", "root file system, a tar or a folder")
	flag.StringVar(&d.kernel, "kernel", "", "folder with vmlinuz and lib/modules")
	flag.StringVar(&d.accel, "accel", "tcg", "QEMU's accelerator")
	flag.StringVar(&firmware, "firmware", "uefi", "uefi (with Secure Boot) or bios (with GRUB)")
	flag.Parse()
	d.number--
	d.disk = d.file("disk.img")
	d.config = machine.Config{Dir: d.file("machine"), Disk: d.disk, TPM: d.disk + ".tpm", Accel: d.accel}
	switch firmware {
	case "uefi":
		d.config.Firmware = machine.UEFISecure
	case "bios":
		d.config.Firmware = machine.BIOS
	default:
		fmt.Fprintf(os.Stderr, "demo: firmware %q is unknown\n", firmware)
		os.Exit(2)
	}
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
	guest   *guest // the running machine, nil when it is off
	summary []string
}

// file names something in the demo's folder.
func (d *demo) file(name string) string { return filepath.Join(d.build, "demo", name) }

// step is one of the steps that are told and timed.
type step struct {
	text string
	// run returns what the step has shown, for the summary.
	run func() (string, error)
	// remedy is what helps when it fails.
	remedy string
}

const (
	imageRemedy = "build/sealroot-mkinitramfs tools names missing programs; ROOTFS must hold a root file system"
	bootRemedy  = "read the console's log; QEMU_ACCEL=tcg make demo does without KVM"
)

func (d *demo) run() error {
	defer func() {
		if d.guest != nil {
			d.guest.Kill()
		}
	}()
	for _, s := range []step{
		{"keys, and a disk image: version 1 in slot a, version 2 waits in slot b", d.image, imageRemedy},
		{"power on: slot a boots and makes the encrypted state", d.firstBoot, bootRemedy},
		{"sealroot try b, restart: slot b runs on trial and is committed", d.trial, bootRemedy},
		{"power off, damage a block of slot b, power on", d.brokenSlot, bootRemedy},
		{"power off", d.finish, bootRemedy},
	} {
		if err := d.step(s); err != nil {
			return err
		}
	}
	d.sayEnd()
	return nil
}

// step runs one step and shows how long it took.
func (d *demo) step(s step) error {
	d.number++
	fmt.Fprintf(os.Stderr, "sealroot: step %d: %s\n", d.number, s.text)
	began := time.Now()
	result, err := s.run()
	if err != nil {
		err = fmt.Errorf("step %d (%s) failed: %w\nwhat helps: %s", d.number, s.text, err, s.remedy)
		if d.guest != nil {
			err = fmt.Errorf("%w\nthe last lines of the console (all of it: %s):\n%s\nthe machine was: %s",
				err, d.guest.logName, d.guest.Tail(25), d.guest.CommandLine())
		}
		return err
	}
	fmt.Fprintf(os.Stderr, "    %.0f s: %s\n", time.Since(began).Seconds(), result)
	d.summary = append(d.summary, result)
	return nil
}

func (d *demo) bios() bool { return d.config.Firmware == machine.BIOS }

func (d *demo) sayEnd() {
	fmt.Fprintf(os.Stderr, "\nsealroot demo: done.\n")
	for _, line := range d.summary {
		fmt.Fprintf(os.Stderr, "  - %s\n", line)
	}
	uefi := " UEFI=secure"
	if d.bios() {
		uefi = ""
		fmt.Fprint(os.Stderr, `With BIOS and GRUB nobody vouches for the initramfs. This image has the named exception
tpm_without_measured_boot: accept-theft-by-disk-edit, and it means what it says: the state is
safe on a disk that is taken out of the machine, and open to whoever edits the disk and puts
it back. make demo shows the way without the exception.
`)
	}
	fmt.Fprintf(os.Stderr, `What to try next:
  make run DISK=%s TPM=1%s
                                  the same machine with a login here; Ctrl-A X leaves
  sealroot status                 in there: slots, why this one, how the state was unlocked
  sealroot state recovery-key     in there: write the recovery key down
  rm -r %s.tpm    the disk in another machine: it asks for that key
  make demo ROOTFS=my.tar         your own root; FIRMWARE=bios: an old machine
`, d.disk, uefi, d.disk)
}

// prepare makes the demo's folder as on the first run.
func (d *demo) prepare() error {
	var errs []error
	for _, name := range []string{d.file("keys"), d.file("extra"), d.config.Dir, d.config.TPM, d.disk + ".efivars"} {
		errs = append(errs, os.RemoveAll(name))
	}
	errs = append(errs, os.MkdirAll(d.config.Dir, 0o700))
	if !d.bios() {
		// Where `make run` looks for them: it goes on with the same machine.
		errs = append(errs, os.Symlink(filepath.Join("machine", machine.EFIVarsFile), d.disk+".efivars"))
	}
	return errors.Join(errs...)
}
