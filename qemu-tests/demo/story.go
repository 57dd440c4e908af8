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
	"strconv"
	"strings"

	"sealroot/qemu-tests/machine"
)

// image makes keys and the disk. Slot b gets a newer version that is not
// switched to yet.
func (d *demo) image() (string, error) {
	if err := d.prepare(); err != nil {
		return "", err
	}
	extra, err := d.extra()
	if err != nil {
		return "", err
	}
	mkinitramfs := filepath.Join(d.build, "sealroot-mkinitramfs")
	if _, err := run(mkinitramfs, "keys", d.file("keys")); err != nil {
		return "", err
	}
	name := "uki.yaml"
	var secureBoot []string
	if d.bios() {
		name = "bios.yaml"
	} else if secureBoot, err = d.secureBoot(); err != nil {
		return "", err
	}
	config, err := os.ReadFile("mkinitramfs/yamlconfig/testdata/" + name)
	if err != nil {
		return "", err
	}
	for name, version := range map[string]string{"a.yaml": "1", "b.yaml": "2"} {
		text := regexp.MustCompile(`(?m)^version:.*`).ReplaceAll(config, []byte("version: "+version))
		if err := os.WriteFile(d.file(name), text, 0o644); err != nil {
			return "", err
		}
	}
	args := []string{"disk", "-o", d.disk, "--keys", d.file("keys"), "--extra", extra,
		"--rootfs", d.rootfs, "--kernel", filepath.Join(d.kernel, "vmlinuz"), "--modules-dir", d.kernel,
		"--config", d.file("a.yaml"),
		"--slot-b", "off", "--slot-b-rootfs", d.rootfs, "--slot-b-config", d.file("b.yaml"),
		"--slot-b-kernel", filepath.Join(d.kernel, "vmlinuz"), "--slot-b-modules-dir", d.kernel,
		"--cmdline", "console=ttyS0"}
	if _, err := run(mkinitramfs, append(args, secureBoot...)...); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s has version 1 in slot a and version 2 in slot b, both signed; configuration: %s", d.disk, d.file("a.yaml")), nil
}

// secureBoot gives the options that sign the kernel images with the test key
// whose certificate the demo's firmware has. Its passphrase is taken off.
func (d *demo) secureBoot() ([]string, error) {
	key := d.file("secureboot.key")
	_, err := run("openssl", "pkey", "-in", machine.SnakeoilKey, "-passin", "pass:snakeoil", "-out", key)
	return []string{"--secureboot-key", key, "--secureboot-cert", machine.SnakeoilCert}, err
}

// extra is the tree of files that is added to the root: the command with its
// unit, and the agent that this program speaks with.
func (d *demo) extra() (string, error) {
	tree := d.file("extra")
	if _, err := run("sealroot/units/install", tree, filepath.Join(d.build, "sealroot")); err != nil {
		return "", err
	}
	return tree, machine.AddAgent(tree)
}

// witness is the file that is written on the first boot and must stay.
const witness = "/var/lib/demo"

func (d *demo) firstBoot() (string, error) {
	g, err := d.powerOn("first")
	if err != nil {
		return "", err
	}
	r, err := g.report("a")
	if err != nil {
		return "", err
	}
	if r.State.Unlocked != "created" {
		return "", fmt.Errorf("the state is %q, want it created", r.State.Unlocked)
	}
	if _, err := g.run("echo 'written by version 1' >" + witness + "; sync"); err != nil {
		return "", err
	}
	if _, err := g.settled(); err != nil {
		return "", err
	}
	return fmt.Sprintf("slot a (version %s) runs, boot path %s; the encrypted state was made: %d MiB, sealed to the TPM (%s); a file was written to /var",
		r.Version, r.BootPath, r.State.ReservedBytes>>20, r.TPM.Policy), nil
}

// trial switches to slot b as an administrator does after an update.
func (d *demo) trial() (string, error) {
	g := d.guest
	if err := g.tell("sealroot try b"); err != nil {
		return "", err
	}
	if err := g.Post("systemctl reboot", commandTime); err != nil {
		return "", err
	}
	if err := g.WaitReady(bootTime); err != nil {
		return "", err
	}
	r, err := g.report("b")
	if err != nil {
		return "", err
	}
	if !r.Slot.Trial || r.State.Unlocked != "tpm2" {
		return "", fmt.Errorf("slot b: trial %t, state unlocked by %q; want a trial unlocked by tpm2", r.Slot.Trial, r.State.Unlocked)
	}
	if err := g.stateIsThere(); err != nil {
		return "", err
	}
	committed, err := g.settled()
	if err != nil {
		return "", err
	}
	if !committed["b"] {
		return "", errors.New("slot b was not committed")
	}
	return fmt.Sprintf("slot b (version %s) ran on trial with %d tries left, came up and was committed; the TPM opened the same state, the file is there",
		r.Version, r.Slot.TriesAfter), nil
}

// brokenSlot damages the slot that was kept.
func (d *demo) brokenSlot() (string, error) {
	if err := d.powerOff(); err != nil {
		return "", err
	}
	if err := d.flip("root-b"); err != nil {
		return "", err
	}
	g, err := d.powerOn("broken")
	if err != nil {
		return "", err
	}
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
	if _, err := g.settled(); err != nil {
		return "", err
	}
	if err := g.tell("sealroot status"); err != nil {
		return "", err
	}
	return fmt.Sprintf("slot b was refused (%s), slot a booted in its place; the state was opened by %s, the file is still there",
		short(r.FellBack.Reason), r.State.Unlocked), nil
}

func (d *demo) finish() (string, error) {
	return "the machine is off; its disk, TPM and firmware memory are kept", d.powerOff()
}

// short is the reason without its details.
func short(reason string) string {
	words, _, _ := strings.Cut(reason, ": ")
	return words
}

// flip inverts a byte in the first block of a partition, which every boot reads.
func (d *demo) flip(name string) error {
	table, err := run("sfdisk", "--json", d.disk)
	if err != nil {
		return err
	}
	var dump struct {
		Table struct {
			Partitions []struct {
				Name  string `json:"name"`
				Start int64  `json:"start"` // sectors of 512 bytes
			} `json:"partitions"`
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal([]byte(table), &dump); err != nil {
		return fmt.Errorf("cannot read the partition table: %w", err)
	}
	for _, p := range dump.Table.Partitions {
		if p.Name == name {
			return invert(d.disk, p.Start*512+8)
		}
	}
	return fmt.Errorf("%s has no partition %s", d.disk, strconv.Quote(name))
}

// invert changes all bits of one byte of a file.
func invert(path string, offset int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	if _, err = f.ReadAt(b, offset); err == nil {
		_, err = f.WriteAt([]byte{^b[0]}, offset)
	}
	return errors.Join(err, f.Close())
}

// run runs a program on the host, which must succeed.
func run(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var failure bytes.Buffer
	cmd.Stderr = &failure
	output, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, bytes.TrimSpace(failure.Bytes()))
	}
	return string(output), nil
}
