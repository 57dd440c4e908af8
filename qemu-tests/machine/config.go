// Package machine runs whole computers in QEMU: firmware, disk, TPM, two
// serial ports. Tests, the demo and the benchmark drive them through it.
//
// The first serial port is the console (Guest.Expect, Guest.Send). Behind the
// second a small agent in the guest runs commands (Guest.Run).
package machine

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// Firmware is what starts the machine.
type Firmware int

// The ways to start a machine.
const (
	// BIOS is SeaBIOS, which reads the boot sector.
	BIOS Firmware = iota
	// UEFI is OVMF with Secure Boot off.
	UEFI
	// UEFISecure is OVMF with Secure Boot on; db holds Debian's snakeoil key.
	UEFISecure
	// DirectKernel has QEMU load Config.Kernel and Config.Initrd, no boot loader.
	DirectKernel
)

func (f Firmware) String() string {
	switch f {
	case BIOS:
		return "BIOS"
	case UEFI:
		return "UEFI"
	case UEFISecure:
		return "UEFI with Secure Boot"
	case DirectKernel:
		return "direct kernel"
	}
	return "Firmware(" + strconv.Itoa(int(f)) + ")"
}

// SnakeoilKey and SnakeoilCert are the key pair of package ovmf whose
// certificate is in the db of UEFISecure machines. The key's passphrase is
// "snakeoil".
const (
	SnakeoilKey  = "/usr/share/ovmf/PkKek-1-snakeoil.key"
	SnakeoilCert = "/usr/share/ovmf/PkKek-1-snakeoil.pem"
)

// EFIVarsFile is the name of the firmware's variables in Config.Dir.
const EFIVarsFile = "efivars.fd"

const (
	ovmfDir      = "/usr/share/OVMF"
	defaultAccel = "tcg"
	defaultMiB   = 1024
)

// cpu is what QEMU emulates, without what its 7.2 is bad at.
//   - It loses an interrupted cmpxchg16b, on which the kernel's slab allocator relies:
//     kernels panic at random. Without it they use locks.
//   - It copies byte by byte where a processor says that rep movsb is fast (erms, fsrm).
//   - Vectors of 256 bits are made by calls, and page tables of five levels (la57) are one
//     more look for each miss.
//   - Where the kernel may look at a program's memory for as long as it copies only (smap), the
//     emulator ends what it translates at either end: a tenth of a boot.
const cpu = "max,cx16=off,erms=off,fsrm=off,la57=off,avx=off,avx2=off,xsave=off,smap=off"

// Config is one computer: hardware, and what it keeps when it is switched off.
type Config struct {
	// Dir holds the firmware's variables, made on the first start.
	Dir      string
	Firmware Firmware
	// Disk is the raw image of the boot disk, "" for none. More disks follow
	// it in MoreDisks.
	Disk      string
	MoreDisks []string
	// WriteLog is a file that records all that is asked of Disk, as package
	// qemu-tests/writes reads it; a record that is there goes on.
	WriteLog string
	// TPM is the directory of a software TPM's state, "" for a machine without one.
	TPM string
	// Bus stands between the machine and its TPM, nil for nothing.
	Bus Bus
	// Kernel, Initrd and Cmdline are for DirectKernel.
	Kernel, Initrd, Cmdline string
	// MemoryMiB is 1024 when zero.
	MemoryMiB int
	// Accel is QEMU's accelerator: "tcg" when empty, or "kvm".
	Accel string
	// NoReboot makes a reset of the machine end it.
	NoReboot bool
	// FreshReset makes another QEMU go on where a reset has ended one. The emulator drops
	// what it has translated of the memory's content page by page, when firmware and
	// kernel write there anew: a restart takes it up to four times as long as a start.
	// Where writes are recorded the same QEMU goes on: 7.2 hangs as it opens a record that
	// the one before has not closed in order.
	FreshReset bool
	// Args is appended to QEMU's command line.
	Args []string
	// Log receives the console, every line with the seconds since the start.
	Log io.Writer
}

// Descriptors that QEMU inherits, in the order of its connections.
const (
	consoleFD = 3 + iota
	agentFD
	qmpFD
)

// arguments returns QEMU's command line. tpmSocket is the control socket of
// the software TPM, "" without one.
func (c *Config) arguments(tpmSocket string) ([]string, error) {
	machine := "q35"
	if c.Firmware == UEFISecure {
		machine += ",smm=on"
	}
	args := []string{
		"-machine", machine,
		"-accel", orDefault(c.Accel, defaultAccel),
		"-cpu", cpu,
		"-m", strconv.Itoa(orDefault(c.MemoryMiB, defaultMiB)),
		"-nodefaults", "-no-user-config", "-display", "none",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", consoleFD), "-serial", "chardev:console",
		"-chardev", fmt.Sprintf("socket,id=agent,fd=%d", agentFD), "-serial", "chardev:agent",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", qmpFD), "-mon", "chardev=qmp,mode=control",
		"-device", "virtio-rng-pci",
	}
	for i, disk := range append([]string{c.Disk}, c.MoreDisks...) {
		if disk == "" {
			continue
		}
		device := "virtio-blk-pci,drive=" + fmt.Sprintf("disk%d", i)
		if i == 0 && c.WriteLog != "" {
			args = append(append(args, c.recordArguments()...), "-device", device)
			continue
		}
		// The host's cache is enough: a test kills QEMU, not the host. A flush
		// of the guest would wait for the host's disk, minutes when that is busy.
		args = append(args,
			"-drive", fmt.Sprintf("if=none,id=disk%d,format=raw,cache=unsafe,discard=unmap,file=%s", i, disk),
			"-device", device)
	}
	if tpmSocket != "" {
		args = append(args, "-chardev", "socket,id=tpm,path="+tpmSocket,
			"-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-tis,tpmdev=tpm0")
	}
	if c.NoReboot || c.freshReset() {
		args = append(args, "-no-reboot")
	}
	firmware, err := c.firmwareArguments()
	if err != nil {
		return nil, err
	}
	return append(append(args, firmware...), c.Args...), nil
}

func (c *Config) freshReset() bool { return c.FreshReset && c.WriteLog == "" && !c.NoReboot }

// recordArguments are for a boot disk whose writes are recorded.
func (c *Config) recordArguments() []string {
	log := "driver=blklogwrites,node-name=disk0,file=disk0-file,log=disk0-log,log-sector-size=512"
	if info, err := os.Stat(c.WriteLog); err == nil && info.Size() > 0 {
		log += ",log-append=on"
	}
	return []string{
		"-blockdev", "driver=file,node-name=disk0-file,cache.no-flush=on,filename=" + c.Disk,
		"-blockdev", "driver=file,node-name=disk0-log,cache.no-flush=on,filename=" + c.WriteLog,
		"-blockdev", log,
	}
}

func (c *Config) firmwareArguments() ([]string, error) {
	switch c.Firmware {
	case BIOS:
		return nil, nil
	case DirectKernel:
		return []string{"-kernel", c.Kernel, "-initrd", c.Initrd, "-append", c.Cmdline}, nil
	case UEFI, UEFISecure:
		code, vars := "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"
		var args []string
		if c.Firmware == UEFISecure {
			code, vars = "OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.snakeoil.fd"
			// Only code in SMM may write the variables.
			args = []string{"-global", "driver=cfi.pflash01,property=secure,value=on",
				"-global", "ICH9-LPC.disable_s3=1"}
		}
		path := filepath.Join(c.Dir, EFIVarsFile)
		if err := copyOnce(path, filepath.Join(ovmfDir, vars)); err != nil {
			return nil, fmt.Errorf("cannot make firmware variables: %w", err)
		}
		return append(args,
			"-drive", "if=pflash,format=raw,readonly=on,file="+filepath.Join(ovmfDir, code),
			"-drive", "if=pflash,format=raw,cache=unsafe,file="+path), nil
	}
	return nil, fmt.Errorf("cannot start %s", c.Firmware)
}

// copyOnce copies a file to dst unless dst is there.
func copyOnce(dst, src string) error {
	if _, err := os.Stat(dst); err == nil {
		return nil
	}
	data, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	return os.WriteFile(dst, data, 0o600)
}

// WorkingAccel returns "kvm" where a machine really runs under KVM, which the
// script kvm-works tries for one second, else "tcg".
func WorkingAccel(scriptsDir string) string {
	if exec.Command(filepath.Join(scriptsDir, "kvm-works")).Run() == nil {
		return "kvm"
	}
	return defaultAccel
}

func orDefault[T comparable](v, byDefault T) T {
	var zero T
	if v == zero {
		return byDefault
	}
	return v
}
