// Package tools is the one place that knows which programs of other projects
// mkinitramfs runs, and the one that runs them.
package tools

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Tool is a program of another project.
type Tool struct {
	Name       string
	Package    string // Debian package
	MinVersion string // oldest version known to do what is needed
	Purpose    string
}

// ErrMissing means that a helper program is not installed.
var ErrMissing = errors.New("helper program is missing")

// Table returns every helper program.
func Table() []Tool {
	return []Tool{
		{"depmod", "kmod", "29", "module dependencies, when the kernel package has no modules.dep"},
		{"sqfstar", "squashfs-tools", "4.5", "root image from a tar stream, without root rights"},
		{"unsquashfs", "squashfs-tools", "4.5", "what a layer has and is for, out of its image"},
		{"fsck.erofs", "erofs-utils", "1.5", "the same, of a layer with erofs"},
		{"mkfs.erofs", "erofs-utils", "1.5", "root image, with root.filesystem erofs"},
		{"fakeroot", "fakeroot", "1.29", "owners and devices in an image, made or read without root rights"},
		{"bsdtar", "libarchive-tools", "3.6", "unpacks the root for an erofs image"},
		{"mkfs.vfat", "dosfstools", "4.2", "file system of the EFI system partition"},
		{"mcopy", "mtools", "4.0.33", "files on the EFI system partition, without mounting it"},
		{"mke2fs", "e2fsprogs", "1.47", "file system of the state partition"},
		{"debugfs", "e2fsprogs", "1.47", "layers on the state partition, without mounting it"},
		{"e2fsck", "e2fsprogs", "1.47", "check of the state partition that layers were put on"},
		{"grub-mkimage", "grub-common", "2.06", "GRUB's core images for BIOS and UEFI"},
		{"objcopy", "binutils", "2.40", "unified kernel image from systemd's stub"},
		{"sbverify", "sbsigntool", "0.9.4", "check of a Secure Boot signature that --sign-command made"},
		{"sbsign", "sbsigntool", "0.9.4", "Secure Boot signature of unified kernel images and systemd-boot"},
	}
}

// DataFile is a file of another project that is needed beside the programs.
type DataFile struct {
	Path    string
	Package string
	Purpose string
}

// The files that mkinitramfs reads below a root directory.
var (
	// EFIStub starts a unified kernel image and measures it into PCR 11.
	EFIStub = DataFile{"usr/lib/systemd/boot/efi/linuxx64.efi.stub", "systemd-boot-efi", "starts and measures the unified kernel image"}
	// GRUBDir holds boot.img and the modules of GRUB for BIOS.
	GRUBDir = DataFile{"usr/lib/grub/i386-pc", "grub-pc-bin", "GRUB's boot sector and modules for BIOS"}
	// GRUBEFIDir holds the modules of GRUB for UEFI.
	GRUBEFIDir = DataFile{"usr/lib/grub/x86_64-efi", "grub-efi-amd64-bin", "GRUB's modules for UEFI"}
	// SystemdBoot is the boot loader of systemd.
	SystemdBoot = DataFile{"usr/lib/systemd/boot/efi/systemd-bootx64.efi", "systemd-boot-efi", "systemd-boot, with boot.loader systemd-boot"}
)

// DataFiles returns every file of the table above.
func DataFiles() []DataFile { return []DataFile{EFIStub, SystemdBoot, GRUBDir, GRUBEFIDir} }

// Runner finds and runs helper programs.
type Runner struct {
	// Dirs are searched after PATH: an ordinary user's PATH lacks the sbin
	// directories, where mke2fs and mkfs.vfat live.
	Dirs []string
	// Root is where data files are looked up, "/" in production.
	Root string
	// Env is added to the environment of the programs.
	Env []string
	// Files are their descriptors from 3 on.
	Files []*os.File
}

// New returns the Runner for this machine.
func New() Runner {
	return Runner{
		Dirs: []string{"/usr/local/sbin", "/usr/sbin", "/sbin"},
		Root: "/",
		// Messages in English; no time zone in what they write.
		Env: []string{"LC_ALL=C", "TZ=UTC"},
	}
}

// Find returns the path of a program of the table, or ErrMissing with the
// name of the package that has it.
func (r Runner) Find(name string) (string, error) {
	table := Table()
	i := slices.IndexFunc(table, func(t Tool) bool { return t.Name == name })
	if i < 0 {
		return "", fmt.Errorf("cannot run %s: not in the table of helper programs", name)
	}
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range r.Dirs {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	t := table[i]
	return "", fmt.Errorf("cannot find %s (%s): %w; install Debian package %s, version %s or later",
		t.Name, t.Purpose, ErrMissing, t.Package, t.MinVersion)
}

// Data returns the path of a data file, or ErrMissing with its package.
func (r Runner) Data(d DataFile) (string, error) {
	path := filepath.Join(r.Root, d.Path)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("cannot find %s (%s): %w; install Debian package %s", path, d.Purpose, ErrMissing, d.Package)
	}
	return path, nil
}

// Require checks at the start of a long job that every named program is there,
// so that none is missed after minutes of work.
func (r Runner) Require(names ...string) error {
	var errs []error
	for _, name := range names {
		if _, err := r.Find(name); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Run runs a program to its end. What it prints is shown only when it fails.
func (r Runner) Run(ctx context.Context, stdin io.Reader, name string, args ...string) error {
	_, err := r.Output(ctx, stdin, name, args...)
	return err
}

// Output is Run that returns what the program prints.
func (r Runner) Output(ctx context.Context, stdin io.Reader, name string, args ...string) (string, error) {
	path, err := r.Find(name)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &out
	cmd.ExtraFiles = r.Files
	// Only who makes a root image knows what it should make of this.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "SOURCE_DATE_EPOCH=") })
	if name == "fakeroot" {
		cmd.Env = outsideFakeroot(cmd.Env)
	}
	cmd.Env = append(cmd.Env, r.Env...)
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("cannot run %s %s: %w\n%s", name, strings.Join(args, " "), err, tail(out.String(), 20))
	}
	return out.String(), nil
}

// outsideFakeroot is an environment without what fakeroot has put into it: it refuses to
// run within another one. That one would not do in its place, for it remembers inodes of
// files that a program without its library, as this one, has removed.
func outsideFakeroot(env []string) []string {
	var out []string
	for _, v := range env {
		name, value, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, "FAKEROOT") && name != "FAKEROOTDONTTRYCHOWN" || name == "FAKED_MODE" {
			continue
		}
		if name == "LD_PRELOAD" { // ld.so(8): separated by colons or spaces
			libraries := strings.FieldsFunc(value, func(r rune) bool { return r == ':' || r == ' ' })
			libraries = slices.DeleteFunc(libraries, func(l string) bool { return strings.HasPrefix(filepath.Base(l), "libfakeroot") })
			v = name + "=" + strings.Join(libraries, ":")
		}
		out = append(out, v)
	}
	return out
}

// WithEnv returns a Runner whose programs also get these variables.
func (r Runner) WithEnv(vars ...string) Runner {
	r.Env = append(slices.Clone(r.Env), vars...)
	return r
}

// tail returns the last n lines of s.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
