// Package uki makes unified kernel images: one signed EFI program that holds
// kernel, initramfs and command line, which systemd's stub measures into PCR 11
// and starts (man systemd-stub).
package uki

import (
	"context"
	"crypto"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sealroot/mkinitramfs/keys"
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
	PCRPublicKey []byte          // PEM; with PCRKey
	PCRKey       crypto.Signer   // signs PCR 11; nil leaves both sections out
	PCRPrevious  []crypto.Signer // sign it as well, for what was sealed under them
	Time         time.Time       // that the image says it was made at
}

// SecureBoot says how an image is signed for Secure Boot.
type SecureBoot struct {
	Key, Cert string        // PEM files
	Command   *keys.Command // signs instead of Key when it is not nil
}

// Programs are those of other projects that Sign runs.
func (sb SecureBoot) Programs() []string {
	if sb.Command != nil {
		return []string{"sbverify"}
	}
	return []string{"sbsign"}
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
	for _, key := range im.PCRPrevious {
		more, err := pcrsig.SignPCR11(key, pcrsig.Banks(), list, []string{pcrsig.PhaseEnterInitrd})
		if err != nil {
			return nil, fmt.Errorf("cannot sign PCR 11 with a previous key: %w", err)
		}
		file.Add(more)
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
	if err := stamp(plain, im.Time); err != nil {
		return err
	}
	if err := check(plain, list); err != nil {
		return err
	}
	if sb == nil {
		return nil
	}
	return sb.Sign(ctx, run, plain, out)
}

// Sign signs an EFI program for Secure Boot.
func (sb SecureBoot) Sign(ctx context.Context, run tools.Runner, in, out string) error {
	if sb.Command != nil {
		if err := sb.Command.SignEFI(ctx, in, out); err != nil {
			return err
		}
		// A signature that the firmware refuses must show here.
		if err := run.Run(ctx, nil, "sbverify", "--cert", sb.Cert, out); err != nil {
			return fmt.Errorf("cannot use what the sign command made of %s: %w", in, err)
		}
		return nil
	}
	return run.Run(ctx, nil, "sbsign", "--key", sb.Key, "--cert", sb.Cert, "--output", out, in)
}

// stamp gives a PE file the time t instead of the present one, which objcopy
// writes into it. The checksum behind it, which follows from that time and which
// firmware does not look at, becomes zero. Offsets are those of the PE format:
// at 0x3c where its header begins, in that at 8 the time and at 88 the checksum.
func stamp(path string, t time.Time) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("cannot set the time of %s: %w", path, err)
	}
	var at [4]byte
	_, err = f.ReadAt(at[:], 0x3c)
	if err == nil {
		header := int64(binary.LittleEndian.Uint32(at[:]))
		_, err1 := f.WriteAt(binary.LittleEndian.AppendUint32(nil, uint32(t.Unix())), header+8)
		_, err2 := f.WriteAt(make([]byte, 4), header+88)
		err = errors.Join(err1, err2)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("cannot set the time of %s: %w", path, err)
	}
	return nil
}

// sectionAlignment is that of the stub and of every page table.
const sectionAlignment = 4096

func align(n uint64) uint64 { return (n + sectionAlignment - 1) &^ (sectionAlignment - 1) }

// firstFree returns the virtual address behind the stub's last section. Fixed
// addresses, as older instructions have them, overlap when a section grows.
func firstFree(stub string) (uint64, error) {
	f, err := pe.Open(stub)
	if err != nil {
		return 0, fmt.Errorf("cannot read EFI stub %s: %w: %w", stub, ErrStub, err)
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

// Cmdline is the command line of an image. No slot stands in it: one image
// serves both slots, so that it can be copied from one to the other and a
// version has one value of PCR 4. "gpt" lets the kernel use the backup table
// when a power cut has damaged the primary one; "panic" restarts a machine whose
// kernel dies before PID 1 can say so.
func Cmdline(extra string) string {
	return strings.Join(append([]string{"ro", "gpt", "panic=10"}, strings.Fields(extra)...), " ")
}
