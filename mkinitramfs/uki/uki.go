// Package uki makes unified kernel images: one signed EFI program that holds
// kernel, initramfs and command line, which systemd's stub measures into PCR 11
// and starts (man systemd-stub).
package uki

import (
	"context"
	"crypto"
	"debug/pe"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sealroot/mkinitramfs/tools"
	"sealroot/state/tpm/pcrsig"
)

// ErrStub means that a file is not an EFI stub that can take sections.
var ErrStub = errors.New("not a usable EFI stub")

// Image is the content of a unified kernel image.
type Image struct {
	OSRelease    []byte
	Cmdline      string
	Kernel       []byte
	Initrd       []byte
	PCRPublicKey []byte        // PEM; with PCRKey
	PCRKey       crypto.Signer // signs PCR 11; nil leaves both sections out
}

// SecureBoot says how an image is signed for Secure Boot.
type SecureBoot struct {
	Key, Cert string // PEM files
}

// sections lists the PE sections that version 252 of the stub knows. The kernel
// comes last, as the others are small and found by address.
func (im Image) sections() ([]pcrsig.Section, error) {
	list := []pcrsig.Section{
		{Name: ".osrel", Data: im.OSRelease},
		{Name: ".cmdline", Data: []byte(im.Cmdline)},
		{Name: ".initrd", Data: im.Initrd},
		{Name: ".linux", Data: im.Kernel},
	}
	if im.PCRKey == nil {
		return list, nil
	}
	list = append(list, pcrsig.Section{Name: ".pcrpkey", Data: im.PCRPublicKey})
	// The signed value is that of the initramfs only: after enter-initrd, and
	// before PID 1 closes PCR 11 for all that comes later.
	file, err := pcrsig.SignPCR11(im.PCRKey, pcrsig.Banks(), list, []string{pcrsig.PhaseEnterInitrd})
	if err != nil {
		return nil, fmt.Errorf("cannot sign PCR 11: %w", err)
	}
	signature, err := file.Encode()
	if err != nil {
		return nil, fmt.Errorf("cannot encode PCR signature: %w", err)
	}
	return append(list, pcrsig.Section{Name: ".pcrsig", Data: signature}), nil
}

// Build writes the image to out. A nil sb leaves it without Secure Boot signature.
func Build(ctx context.Context, run tools.Runner, im Image, sb *SecureBoot, out, workDir string) error {
	stub, err := run.Data(tools.EFIStub)
	if err != nil {
		return err
	}
	next, err := firstFree(stub)
	if err != nil {
		return err
	}
	list, err := im.sections()
	if err != nil {
		return err
	}
	var args []string
	for _, s := range list {
		file := filepath.Join(workDir, "uki"+s.Name)
		if err := os.WriteFile(file, s.Data, 0o600); err != nil {
			return fmt.Errorf("cannot write section: %w", err)
		}
		defer os.Remove(file)
		args = append(args, "--add-section", s.Name+"="+file,
			"--change-section-vma", fmt.Sprintf("%s=%#x", s.Name, next))
		next = align(next + uint64(len(s.Data)))
	}
	plain := out
	if sb != nil {
		plain = out + ".unsigned"
		defer os.Remove(plain)
	}
	if err := run.Run(ctx, nil, "objcopy", append(args, stub, plain)...); err != nil {
		return err
	}
	if err := check(plain, list); err != nil {
		return err
	}
	if sb == nil {
		return nil
	}
	return run.Run(ctx, nil, "sbsign", "--key", sb.Key, "--cert", sb.Cert, "--output", out, plain)
}

// sectionAlignment is that of the stub and of every page table.
const sectionAlignment = 4096

func align(n uint64) uint64 { return (n + sectionAlignment - 1) &^ (sectionAlignment - 1) }

// firstFree returns the virtual address behind the stub's last section. Fixed
// addresses, as older instructions have them, overlap when a section grows.
func firstFree(stub string) (uint64, error) {
	f, err := pe.Open(stub)
	if err != nil {
		return 0, fmt.Errorf("cannot read EFI stub %s: %w", stub, errors.Join(ErrStub, err))
	}
	defer f.Close()
	header, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok || len(f.Sections) == 0 {
		return 0, fmt.Errorf("cannot read EFI stub %s: %w", stub, ErrStub)
	}
	end := uint64(0)
	for _, s := range f.Sections {
		end = max(end, uint64(s.VirtualAddress)+uint64(s.VirtualSize))
	}
	return align(header.ImageBase + end), nil
}

// check reads the image back: the stub measures exactly what was signed only
// if every section is there with its own size.
func check(path string, want []pcrsig.Section) error {
	f, err := pe.Open(path)
	if err != nil {
		return fmt.Errorf("cannot read back %s: %w", path, err)
	}
	defer f.Close()
	for _, w := range want {
		s := f.Section(w.Name)
		if s == nil || int(s.VirtualSize) != len(w.Data) {
			return fmt.Errorf("cannot find section %s with %d bytes in %s: %w", w.Name, len(w.Data), path, ErrStub)
		}
	}
	return nil
}

// Cmdline is the command line of a slot's image. The slot stands in it because
// the initramfs is the same for both slots. "gpt" lets the kernel use the backup
// table when a power cut has damaged the primary one; "panic" restarts a machine
// whose kernel dies before PID 1 can say so.
func Cmdline(slot, extra string) string {
	return strings.Join(append([]string{"sealroot.slot=" + slot, "ro", "gpt", "panic=10"}, strings.Fields(extra)...), " ")
}
