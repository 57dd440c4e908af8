// Package disk builds a bootable A/B disk image from a root file system,
// without root rights, mounts or loop devices: it makes the boot set of each
// version (Parts), lays the disk out, and places the sets on it.
package disk

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"time"

	"sealroot/mkinitramfs/atomicfile"
	"sealroot/mkinitramfs/grub"
	"sealroot/mkinitramfs/modules"
	"sealroot/mkinitramfs/tools"
	"sealroot/mkinitramfs/uki"
	"sealroot/slots/bootlog"
	"sealroot/slots/gpt"
)

// Builder is what every build shares.
type Builder struct {
	Tools   tools.Runner
	Stdin   io.Reader // a root given as "-"
	Log     io.Writer // progress, for a person
	Init    string    // path of PID 1
	Signing Signing
	Time    time.Time // time stamp of files made here
}

// BuildTime is SOURCE_DATE_EPOCH (reproducible-builds.org), 1970 when unset:
// the time of a build must not show in its result.
func BuildTime() (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return time.Time{}, fmt.Errorf("cannot use SOURCE_DATE_EPOCH=%q: %w", text, err)
	}
	return time.Unix(int64(n), 0).UTC(), nil
}

// depmod runs the real depmod.
func (b *Builder) depmod(ctx context.Context, baseDir, release string) error {
	return b.Tools.Run(ctx, nil, "depmod", "-b", baseDir, release)
}

var _ modules.Depmod = (*Builder)(nil).depmod

// step runs one step and tells how long it took.
func (b *Builder) step(name string, f func() error) error {
	start := time.Now()
	if err := f(); err != nil {
		return err
	}
	fmt.Fprintf(b.Log, "%6.1f s  %s\n", time.Since(start).Seconds(), name)
	return nil
}

// SlotState is how a slot begins its life.
type SlotState string

// The states of a slot on a new disk.
const (
	Good  SlotState = "good"  // committed
	Trial SlotState = "trial" // started at the first boot, and to be committed by it
	Off   SlotState = "off"   // there, and not to be started
)

// Options describes a disk.
type Options struct {
	A      SlotInput
	B      *SlotInput // nil leaves slot b empty
	BState SlotState
	Sizes  Sizes
	Output string
}

// ErrOptions means that a disk cannot be built as asked.
var ErrOptions = errors.New("unusable options")

// set is the boot set of a slot, with what only this slot has.
type set struct {
	name    string
	in      SlotInput
	parts   Parts
	uki     string // path
	attr    gpt.Attributes
	onTrial bool
}

// Disk builds a disk image. The output appears when it is complete.
func (b *Builder) Disk(ctx context.Context, o Options) error {
	if err := b.check(o); err != nil {
		return err
	}
	out, err := atomicfile.Create(o.Output, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = out.Discard() }()
	// Beside the output, because a root image may not fit into /tmp.
	work, err := os.MkdirTemp(filepath.Dir(o.Output), ".sealroot-build-")
	if err != nil {
		return fmt.Errorf("cannot make work directory: %w", err)
	}
	defer os.RemoveAll(work)

	sets, err := b.sets(ctx, o, work)
	if err != nil {
		return err
	}
	parts, size, err := layout(o.Sizes, needsOf(sets), []string{"a", "b"})
	if err != nil {
		return err
	}
	if err := b.assemble(ctx, out.File, parts, size, sets, work); err != nil {
		return err
	}
	if err := b.step("write to "+o.Output, out.Commit); err != nil {
		return err
	}
	fmt.Fprintf(b.Log, "%s: %d MiB, slot a: %s %s, kernel %s, root hash %x\n", o.Output, size/mib,
		o.A.Config.Name, o.A.Config.Version, sets[0].parts.Release, sets[0].parts.RootHash)
	return nil
}

// check finds out what cannot work before anything is built.
func (b *Builder) check(o Options) error {
	for _, in := range []*SlotInput{&o.A, o.B} {
		if in == nil {
			continue
		}
		if fs := in.Config.Root.Filesystem; fs != "" && fs != "squashfs" {
			return fmt.Errorf("cannot make a root image of type %s, only squashfs: %w", fs, ErrOptions)
		}
		if in.Config.State.TPM2.Policy != "" && in.Config.State.TPM2.Policy != "pcrs" && b.Signing.PCRKey == nil {
			return fmt.Errorf("cannot sign PCR 11 for policy %s: no pcr.key in %s: %w", in.Config.State.TPM2.Policy, b.Signing.Dir, ErrOptions)
		}
	}
	if o.B != nil && o.A.Rootfs == "-" && o.B.Rootfs == "-" {
		return fmt.Errorf("cannot read two roots from stdin: %w", ErrOptions)
	}
	need := []string{"sqfstar", "mkfs.vfat", "mcopy", "mke2fs", "grub-mkimage", "objcopy"}
	if b.Signing.Secure != nil {
		need = append(need, "sbsign")
	}
	_, stubErr := b.Tools.Data(tools.EFIStub)
	_, grubErr := b.Tools.Data(tools.GRUBDir)
	return errors.Join(b.Tools.Require(need...), stubErr, grubErr)
}

// sets builds the boot sets of the slots that are to hold one.
func (b *Builder) sets(ctx context.Context, o Options, work string) ([]set, error) {
	parts, err := b.buildParts(ctx, o.A, filepath.Join(work, "a"))
	if err != nil {
		return nil, fmt.Errorf("slot a: %w", err)
	}
	attrA, attrB, err := firstAttributes(o.B != nil, o.BState, triesOf(o))
	if err != nil {
		return nil, err
	}
	sets := []set{{name: "a", in: o.A, parts: parts, attr: attrA}}
	if o.B != nil {
		if !reflect.DeepEqual(*o.B, o.A) {
			if parts, err = b.buildParts(ctx, *o.B, filepath.Join(work, "b")); err != nil {
				return nil, fmt.Errorf("slot b: %w", err)
			}
		}
		sets = append(sets, set{name: "b", in: *o.B, parts: parts, attr: attrB, onTrial: o.BState == Trial})
	}
	for i := range sets {
		s := &sets[i]
		s.uki = filepath.Join(work, "uki-"+s.name+".efi")
		if err := b.step("unified kernel image of slot "+s.name, func() error { return b.buildUKI(ctx, s, work) }); err != nil {
			return nil, fmt.Errorf("slot %s: %w", s.name, err)
		}
	}
	return sets, nil
}

func triesOf(o Options) int {
	if o.B != nil && o.B.Config.Boot.Tries > 0 {
		return o.B.Config.Boot.Tries
	}
	return 3
}

func (b *Builder) buildUKI(ctx context.Context, s *set, work string) error {
	return uki.Build(ctx, b.Tools, uki.Image{
		OSRelease: s.parts.OSRelease, Cmdline: uki.Cmdline(s.name, s.in.Cmdline),
		Kernel: s.parts.Kernel, Initrd: s.parts.Initrd,
		PCRPublicKey: b.Signing.PCRPublic, PCRKey: b.Signing.PCRKey,
	}, b.Signing.Secure, s.uki, work)
}

// needsOf adds up what the boot sets need.
func needsOf(sets []set) needs {
	var n needs
	for _, s := range sets {
		n.root = max(n.root, s.parts.RootSize)
		size := int64(len(s.parts.Kernel) + len(s.parts.Initrd))
		if info, err := os.Stat(s.uki); err == nil {
			size += info.Size()
		}
		n.esp = max(n.esp, size)
	}
	params := sets[0].parts.Params
	n.verity = func(root int64) int64 {
		p := params
		p.DataBlocks = uint64(root / int64(p.DataBlockSize))
		return p.HashSize()
	}
	return n
}

// assemble writes everything to the disk image.
func (b *Builder) assemble(ctx context.Context, disk *os.File, parts []partition, size int64, sets []set, work string) error {
	if err := disk.Truncate(size); err != nil {
		return fmt.Errorf("cannot size disk image: %w", err)
	}
	at := map[string]partition{}
	for _, p := range parts {
		at[p.label] = p
	}
	if err := b.step("slots", func() error { return placeSets(disk, at, sets) }); err != nil {
		return err
	}
	if err := b.step("EFI system partition", func() error { return b.placeESP(ctx, disk, at[gpt.LabelESP], sets, work) }); err != nil {
		return err
	}
	if err := b.step("state partition", func() error { return b.placeState(ctx, disk, at[gpt.LabelState]) }); err != nil {
		return err
	}
	// An empty but valid log: a damaged one would make the first boot careful.
	if err := bootlog.Format(window{disk, at[gpt.LabelLog]}); err != nil {
		return err
	}
	if err := writeTable(disk, size, parts, attributesOf(parts, sets), rand.Reader); err != nil {
		return err
	}
	return b.step("GRUB for BIOS", func() error { return b.placeGRUB(ctx, disk, at[gpt.LabelBIOSBoot], sets, work) })
}

// placeSets copies root image, hash tree and signature of each slot.
func placeSets(disk *os.File, at map[string]partition, sets []set) error {
	for _, s := range sets {
		for _, c := range []struct{ label, path string }{
			{gpt.RootLabel(s.name), s.parts.Root}, {gpt.VerityLabel(s.name), s.parts.Hash},
		} {
			if err := copyFile(disk, at[c.label], c.path); err != nil {
				return fmt.Errorf("slot %s: %w", s.name, err)
			}
		}
		if _, err := disk.WriteAt(s.parts.Signature, at[gpt.SigLabel(s.name)].start); err != nil {
			return fmt.Errorf("slot %s: cannot write signature: %w", s.name, err)
		}
	}
	return nil
}

func (b *Builder) placeGRUB(ctx context.Context, disk *os.File, bios partition, sets []set, work string) error {
	// Both slots are named although one may be empty: it is filled later, and
	// this configuration stays.
	cfg, err := grub.Config(sets[0].in.Cmdline, "a", "b")
	if err != nil {
		return err
	}
	images, err := grub.Build(ctx, b.Tools, cfg, work)
	if err != nil {
		return err
	}
	return images.Embed(disk, uint64(bios.start/sectorSize), uint64(bios.size/sectorSize))
}

// copyFile copies a file into a partition and leaves holes where it is zero.
func copyFile(disk io.WriterAt, to partition, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("cannot copy to partition %s: %w", to.label, err)
	}
	defer f.Close()
	buf := make([]byte, 64*kib)
	for at := int64(0); ; {
		n, err := io.ReadFull(f, buf)
		if at+int64(n) > to.size {
			return fmt.Errorf("cannot copy %s to partition %s of %d bytes: %w", path, to.label, to.size, ErrSize)
		}
		if !allZero(buf[:n]) {
			if _, err := disk.WriteAt(buf[:n], to.start+at); err != nil {
				return fmt.Errorf("cannot write partition %s: %w", to.label, err)
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot copy to partition %s: %w", to.label, err)
		}
	}
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
