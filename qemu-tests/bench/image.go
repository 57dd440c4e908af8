package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"sealroot/qemu-tests/machine"
)

// The two configurations. Without a state sealroot has no mode of its own: the
// nearest is a volume that is never made and a boot that goes on without it.
const (
	common = `name: sealroot-bench
version: 1
build: production
boot: {loader: grub}
root: {source: verity, filesystem: squashfs}
trust: {root: [image.crt]}
modules: {sets: [virtio]}
`
	verityOnly = common + `state:
  create: never
  unlock: [recovery-key]
  recovery: none
  on_failure: [degraded]
`
	withTPM = common + `state:
  create: first-boot
  unlock: [tpm2, recovery-key]
  tpm2: {policy: pcrs, pcrs: [], tpm_without_measured_boot: accept-theft-by-disk-edit}
  recovery: later
  on_failure: [halt]
`
)

// stateModules begin like this: what only an encrypted state needs.
var stateModules = []string{"loop", "dm_crypt", "ext4", "jbd2", "mbcache", "crc16", "crc32c", "libcrc32c", "xts", "ecb", "cbc",
	"aes", "crypto_simd", "cryptd", "encrypted_keys", "trusted", "asn1_encoder", "tee", "sha512"}

func without(names []string, prefixes ...string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
	})
}

func (b *bench) file(name string) string { return filepath.Join(b.build, "bench", name) }

// prepare builds the helpers, a root with nothing but them, and keys.
func (b *bench) prepare() error {
	if err := errors.Join(os.RemoveAll(b.file("")), os.MkdirAll(b.file(""), 0o755)); err != nil {
		return err
	}
	for _, name := range []string{"floor", "reader"} {
		cmd := exec.Command(b.goTool, "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", b.file(name), "./qemu-tests/bench/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("cannot build %s: %w\n%s", name, err, text)
		}
	}
	reader, err := os.ReadFile(b.file("reader"))
	if err != nil {
		return err
	}
	root, err := rootTar(reader)
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.file("root.tar"), root, 0o644); err != nil {
		return err
	}
	_, err = output(filepath.Join(b.build, "sealroot-mkinitramfs"), "keys", b.file("keys"))
	return err
}

// rootTar is the smallest root that boots: mount points, os-release, and an
// init of a few instructions.
func rootTar(reader []byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	var errs []error
	add := func(name string, mode int64, data []byte) {
		h := tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))}
		if data == nil {
			h.Typeflag = tar.TypeDir
		}
		errs = append(errs, w.WriteHeader(&h))
		_, err := w.Write(data)
		errs = append(errs, err)
	}
	for _, dir := range []string{"dev", "etc", "home", "proc", "run", "sbin", "state", "sys", "tmp", "usr", "usr/lib", "var"} {
		add(dir+"/", 0o755, nil)
	}
	add("usr/lib/os-release", 0o644, []byte("ID=bench\n"))
	add("sbin/init", 0o755, firstInstruction("/sbin/reader"))
	add("sbin/reader", 0o755, reader)
	err := errors.Join(append(errs, w.Close())...)
	return b.Bytes(), err
}

// image makes a machine with a disk and the initramfs of one configuration.
// QEMU loads the kernel: a boot loader's time is not sealroot's. flags are more of
// those of the disk command.
func (b *bench) image(name, config string, flags ...string) (machine.Config, error) {
	dir := b.file(name)
	m := machine.Config{
		Dir: dir, Firmware: machine.DirectKernel, Disk: filepath.Join(dir, "disk.img"),
		Kernel: filepath.Join(b.kernel, "vmlinuz"), Initrd: filepath.Join(dir, "initrd"),
		// A line on the serial port would cost milliseconds of guest time; a
		// boot that goes on degraded has an error to tell.
		Cmdline: "console=ttyS0 loglevel=1 panic=10",
	}
	if config == withTPM {
		m.Cmdline = "console=ttyS0 quiet panic=10"
		m.TPM = filepath.Join(dir, "tpm")
	}
	yaml := filepath.Join(dir, "config.yaml")
	err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(yaml, []byte(config), 0o644))
	if err != nil {
		return machine.Config{}, err
	}
	mkinitramfs := filepath.Join(b.build, "sealroot-mkinitramfs")
	_, err = output(mkinitramfs, append([]string{"disk", "-o", m.Disk, "--keys", b.file("keys"), "--config", yaml,
		"--rootfs", b.file("root.tar"), "--no-root-modules", "--kernel", m.Kernel, "--modules-dir", b.kernel}, flags...)...)
	if err == nil {
		_, err = output(mkinitramfs, "-o", m.Initrd, "--keys", b.file("keys"), "--config", yaml,
			"--modules-dir", b.kernel, "--kernel-version", filepath.Base(b.kernel))
	}
	return m, err
}

// floor makes a machine that boots the same root from the same disk through
// the program floor, with the given modules.
func (b *bench) floor(name string, m machine.Config, modules []string) (machine.Config, error) {
	dir := b.file(name)
	tree := filepath.Join(dir, "tree")
	table, err := verityTable(m.Disk)
	if err != nil {
		return machine.Config{}, err
	}
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return machine.Config{}, err
	}
	program, err := os.ReadFile(b.file("floor"))
	if err == nil {
		err = os.WriteFile(filepath.Join(tree, "init"), program, 0o755)
	}
	if err != nil {
		return machine.Config{}, err
	}
	list := table + "\n"
	for _, module := range modules {
		data, err := b.module(module)
		if err == nil {
			err = os.WriteFile(filepath.Join(tree, module+".ko"), data, 0o644)
		}
		if err != nil {
			return machine.Config{}, err
		}
		list += "/" + module + ".ko\n"
	}
	if err := os.WriteFile(filepath.Join(tree, "floor"), []byte(list), 0o644); err != nil {
		return machine.Config{}, err
	}
	m.Dir, m.Initrd = dir, filepath.Join(dir, "initrd")
	_, err = output("sh", "-c", `cd "$1" && find . | bsdcpio -o -H newc --quiet >"$2/initrd"`, "sh", tree, absolute(dir))
	return m, err
}

// module returns the file of a kernel module by the name it has when loaded.
func (b *bench) module(name string) ([]byte, error) {
	path, err := output("modinfo", "-b", b.kernel, "-k", filepath.Base(b.kernel), "-n", name)
	if err != nil {
		return nil, err
	}
	path = strings.TrimSpace(path)
	if strings.HasSuffix(path, ".xz") {
		text, err := output("xz", "-dc", path)
		return []byte(text), err
	}
	return os.ReadFile(path)
}

// verityTable returns "sectors parameters" of slot a's dm-verity device.
func verityTable(disk string) (string, error) {
	text, err := output("sfdisk", "--json", disk)
	if err != nil {
		return "", err
	}
	var dump struct {
		Table struct {
			Partitions []struct {
				Node  string `json:"node"`
				Name  string `json:"name"`
				Start int64  `json:"start"` // sectors of 512 bytes
			} `json:"partitions"`
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal([]byte(text), &dump); err != nil {
		return "", err
	}
	node, start := map[string]string{}, map[string]int64{}
	for _, p := range dump.Table.Partitions {
		node[p.Name], start[p.Name] = "/dev/vda"+strings.TrimPrefix(p.Node, disk), p.Start*512
	}
	superblock, err := superblockOf(disk, start["root-a-verity"])
	if err != nil {
		return "", err
	}
	f, err := os.Open(disk)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var signature struct {
		RootHash string `json:"rootHash"`
	}
	// What follows the document in its partition is zero, which Decode does not read.
	if err := json.NewDecoder(io.NewSectionReader(f, start["root-a-verity-sig"], 16<<10)).Decode(&signature); err != nil {
		return "", fmt.Errorf("cannot read the signature: %w", err)
	}
	var blocks, dataSize int64
	if _, err := fmt.Sscan(superblock["Data blocks"]+" "+superblock["Data block size"], &blocks, &dataSize); err != nil {
		return "", fmt.Errorf("cannot read the superblock %v: %w", superblock, err)
	}
	return fmt.Sprintf("%d 1 %s %s %d %s %d 1 %s %s %s", blocks*dataSize/512, node["root-a"], node["root-a-verity"],
		dataSize, superblock["Hash block size"], blocks, superblock["Hash algorithm"], signature.RootHash, superblock["Salt"]), nil
}

// superblockOf has veritysetup read the superblock at an offset of the disk, in
// the words that it prints.
func superblockOf(disk string, offset int64) (map[string]string, error) {
	text, err := output("veritysetup", "dump", disk, "--hash-offset", strconv.FormatInt(offset, 10))
	if err != nil {
		return nil, err
	}
	fields := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		value, _, _ = strings.Cut(strings.TrimSpace(value), " ") // without "[bytes]"
		fields[name] = value
	}
	return fields, nil
}

func absolute(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil { // no working directory
		return path
	}
	return abs
}

// output runs a program that must succeed and returns what it wrote.
func output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var failure bytes.Buffer
	cmd.Stderr = &failure
	text, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, bytes.TrimSpace(failure.Bytes()))
	}
	return string(text), nil
}
