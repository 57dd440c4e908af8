package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"sealroot/init/report"
	"sealroot/qemu-tests/machine"
)

const (
	bootTime    = 6 * time.Minute
	commandTime = 2 * time.Minute
)

const commitUnit = `[Unit]
Description=Keep the slot that has come up
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/usr/bin/sealroot commit
[Install]
WantedBy=multi-user.target
`

// file names something in the demo's folder.
func (d *demo) file(name string) string { return filepath.Join(d.build, "demo", name) }

// image makes keys and the disk. Slot b gets a newer version that is not
// switched to yet.
func (d *demo) image() (string, error) {
	for _, name := range []string{"keys", "extra", "machine"} {
		if err := os.RemoveAll(d.file(name)); err != nil {
			return "", err
		}
	}
	extra, err := d.extra()
	if err != nil {
		return "", err
	}
	mkinitramfs := filepath.Join(d.build, "sealroot-mkinitramfs")
	if _, err := run(mkinitramfs, "keys", d.file("keys")); err != nil {
		return "", err
	}
	key := d.file("secureboot.key")
	if _, err := run("openssl", "pkey", "-in", machine.SnakeoilKey, "-passin", "pass:snakeoil", "-out", key); err != nil {
		return "", err
	}
	config, err := os.ReadFile("mkinitramfs/yamlconfig/testdata/uki.yaml")
	if err != nil {
		return "", err
	}
	for name, version := range map[string]string{"a.yaml": "1", "b.yaml": "2"} {
		text := regexp.MustCompile(`(?m)^version:.*`).ReplaceAll(config, []byte("version: "+version))
		if err := os.WriteFile(d.file(name), text, 0o644); err != nil {
			return "", err
		}
	}
	d.disk = d.file("disk.img")
	_, err = run(mkinitramfs, "disk", "-o", d.disk, "--keys", d.file("keys"), "--extra", extra,
		"--rootfs", d.rootfs, "--kernel", filepath.Join(d.kernel, "vmlinuz"), "--modules-dir", d.kernel,
		"--config", d.file("a.yaml"),
		"--slot-b", "off", "--slot-b-rootfs", d.rootfs, "--slot-b-config", d.file("b.yaml"),
		"--slot-b-kernel", filepath.Join(d.kernel, "vmlinuz"), "--slot-b-modules-dir", d.kernel,
		"--cmdline", "console=ttyS0",
		"--secureboot-key", key, "--secureboot-cert", machine.SnakeoilCert)
	if err != nil {
		return "", err
	}
	d.config = machine.Config{Dir: d.file("machine"), Firmware: machine.UEFISecure, Disk: d.disk,
		TPM: d.file("machine/tpm"), Accel: d.accel}
	return fmt.Sprintf("the image: %s, version 1 in slot a, version 2 in slot b", d.disk), os.MkdirAll(d.config.Dir, 0o700)
}

// extra is the tree of files that is added to the root.
func (d *demo) extra() (string, error) {
	tree := d.file("extra")
	program, err := os.ReadFile(filepath.Join(d.build, "sealroot"))
	if err != nil {
		return "", err
	}
	bin := filepath.Join(tree, "usr/bin")
	err = errors.Join(os.MkdirAll(bin, 0o755), os.WriteFile(filepath.Join(bin, "sealroot"), program, 0o755),
		machine.AddAgent(tree), machine.AddUnit(tree, "sealroot-commit.service", commitUnit))
	return tree, err
}

func (d *demo) firstBoot() (string, error) {
	return d.boot("first", func(g *guest) (string, error) {
		r, err := g.report("a")
		if err != nil {
			return "", err
		}
		if _, err := g.run("echo 'written in slot a' >/var/lib/demo"); err != nil {
			return "", err
		}
		return fmt.Sprintf("slot %s booted by %s; the state was %s", r.Slot.Name, r.BootPath, r.State.Unlocked), nil
	})
}

func (d *demo) trial() (string, error) {
	number, err := d.partition("root-b")
	if err != nil {
		return "", err
	}
	// What an installer does at its end: first choice, three tries, not yet good.
	if _, err := run("cgpt", "add", "-i", number, "-P", "3", "-T", "3", "-S", "0", d.disk); err != nil {
		return "", err
	}
	result, err := d.boot("trial", func(g *guest) (string, error) {
		r, err := g.report("b")
		if err != nil {
			return "", err
		}
		if err := g.stateIsThere(); err != nil {
			return "", err
		}
		// The unit in the image commits once the system is up: nothing is queued then.
		_, err = g.run("systemctl is-system-running --wait >/dev/null; sealroot status; systemctl is-failed -q sealroot-commit && exit 1 || exit 0")
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("slot b (version %s) on trial, %d tries left, then committed; the state is the same", r.Version, r.Slot.TriesAfter), nil
	})
	if err != nil {
		return "", err
	}
	successful, err := run("cgpt", "show", "-i", number, "-S", d.disk)
	if err == nil && strings.TrimSpace(successful) != "1" {
		err = errors.New("slot b was not committed")
	}
	return result, err
}

func (d *demo) brokenSlot() (string, error) {
	if err := d.flip("root-b"); err != nil {
		return "", err
	}
	return d.boot("broken", func(g *guest) (string, error) {
		r, err := g.report("a")
		if err != nil {
			return "", err
		}
		if r.FellBack == nil {
			return "", errors.New("slot a runs, but boot.json does not say why")
		}
		if err := g.stateIsThere(); err != nil {
			return "", err
		}
		return fmt.Sprintf("slot b refused (%s), slot a booted instead; the state is still there", r.FellBack.Reason), nil
	})
}

// guest is a running machine with errors that say what was wanted.
type guest struct{ *machine.Guest }

// boot starts the machine, has use look at it and powers it off.
func (d *demo) boot(name string, use func(*guest) (string, error)) (string, error) {
	path := d.file("console-" + name + ".log")
	log, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer log.Close()
	c := d.config
	c.Log = log
	m, err := machine.Start(c)
	if err != nil {
		return "", err
	}
	defer m.Kill()
	g := &guest{m}
	result, err := use(g)
	if err == nil {
		if _, err = g.run("poweroff"); err == nil {
			err = m.Wait(commandTime)
		}
	}
	if err != nil {
		return "", fmt.Errorf("%w\nThe last lines of the console (all of it: %s):\n%s\nThe machine was: %s",
			err, path, m.Tail(25), m.CommandLine())
	}
	return result, nil
}

// run runs a command that must succeed. The first one waits for the boot.
func (g *guest) run(command string) (string, error) {
	output, status, err := g.Run(command, bootTime)
	if err != nil {
		return "", err
	}
	if status != 0 {
		return "", fmt.Errorf("%q in the machine ended with status %d: %s", command, status, output)
	}
	return output, nil
}

// report returns the boot report of a boot that must be one of the given slot.
func (g *guest) report(slot string) (report.Report, error) {
	var r report.Report
	text, err := g.run("cat " + report.Path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return report.Report{}, fmt.Errorf("cannot read the boot report: %w", err)
	}
	if r.Slot.Name != slot {
		return report.Report{}, fmt.Errorf("slot %q came up, want %q", r.Slot.Name, slot)
	}
	return r, nil
}

func (g *guest) stateIsThere() error {
	_, err := g.run("grep -x 'written in slot a' /var/lib/demo")
	return err
}

// partition returns the number of a partition by its name.
func (d *demo) partition(name string) (string, error) {
	list, err := run("sgdisk", "-p", d.disk)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) > 1 && f[len(f)-1] == name {
			return f[0], nil
		}
	}
	return "", fmt.Errorf("%s has no partition %s", d.disk, name)
}

// flip inverts a byte in the first block of a partition, which every boot reads.
func (d *demo) flip(name string) error {
	number, err := d.partition(name)
	if err != nil {
		return err
	}
	info, err := run("partx", "-g", "-o", "START", "-n", number, d.disk)
	if err != nil {
		return err
	}
	var start int64
	if _, err := fmt.Sscan(info, &start); err != nil {
		return fmt.Errorf("cannot find partition %s: %w", name, err)
	}
	f, err := os.OpenFile(d.disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, start*512+8); err != nil {
		return err
	}
	b[0] = ^b[0]
	_, err = f.WriteAt(b, start*512+8)
	return err
}

// run runs a program on the host, which must succeed.
func run(name string, args ...string) (string, error) {
	output, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, bytes.TrimSpace(output))
	}
	return string(output), nil
}
