// Package disk builds a bootable A/B disk image from a root file system,
// without root rights, mounts or loop devices: it makes the boot set of each
// version, lays the disk out, and places the sets on it.
package disk

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"sealroot/mkinitramfs/atomicfile"
	"sealroot/mkinitramfs/modules"
	"sealroot/mkinitramfs/tools"
	"sealroot/slots/bootlog"
	"sealroot/slots/gpt"
	"sealroot/slots/manifest"
)

// Builder is what every build shares.
type Builder struct {
	Tools   tools.Runner
	Stdin   io.Reader // a root given as "-"
	Log     io.Writer // progress, for a person
	Init    string    // path of PID 1
	Signing Signing
	Time    time.Time // time stamp of files made here
	Now     time.Time // for warnings about certificates; no file has it
	Ignore  []string  // names of rules of rootcheck that are not asked
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

	p, err := b.plan(ctx, o, work)
	if err != nil {
		return err
	}
	parts, size, err := layout(o.Sizes, p.needs, p.slots)
	if err != nil {
		return err
	}
	if err := b.assemble(ctx, out.File, parts, size, p, work); err != nil {
		return err
	}
	if err := b.step("write to "+o.Output, out.Commit); err != nil {
		return err
	}
	fmt.Fprintf(b.Log, "%s: %d MiB, slot a: %s %s, kernel %s, root hash %x\n", o.Output, size/mib,
		o.A.Config.Name, o.A.Config.Version, p.sets[0].parts.release, p.sets[0].parts.rootHash)
	return nil
}

// assemble writes everything to the disk image.
func (b *Builder) assemble(ctx context.Context, disk *os.File, parts []partition, size int64, p plan, work string) error {
	if err := disk.Truncate(size); err != nil {
		return fmt.Errorf("cannot size disk image: %w", err)
	}
	at := map[string]partition{}
	for _, part := range parts {
		at[part.label] = part
	}
	if err := b.step("slots", func() error { return placeSets(disk, at, p.sets) }); err != nil {
		return err
	}
	if err := b.step("EFI system partition", func() error { return b.placeESP(ctx, disk, at[gpt.LabelESP], p.files, work) }); err != nil {
		return err
	}
	if state, ok := at[gpt.LabelState]; ok && !p.unfinished {
		if err := b.step("state partition", func() error { return b.placeState(ctx, disk, state, layersOf(p.sets)) }); err != nil {
			return err
		}
	}
	// An empty but valid log: a damaged one would make the first boot careful.
	if err := bootlog.Format(window{disk, at[gpt.LabelLog]}); err != nil {
		return err
	}
	attr := attributesOf(p.needs.naming, p.slots, p.kept.attr)
	readOnlyLayers(attr, parts)
	if err := writeTable(disk, size, parts, attr, rand.Reader); err != nil {
		return err
	}
	return p.loader.place(disk, at[gpt.LabelBIOSBoot])
}

// placeSets copies root image, hash tree and signature of each slot.
func placeSets(disk *os.File, at map[string]partition, sets []set) error {
	for _, s := range sets {
		n := s.in.Config.Root.Naming()
		root, tree := at[n.Label(s.name, gpt.Data)], at[n.Label(s.name, gpt.Tree)]
		if offset := s.in.Config.Root.Verity.TreeAt(); offset > 0 {
			root, tree = root.split(offset)
		}
		for _, c := range []struct {
			to   partition
			path string
		}{{root, s.parts.path(manifest.Root)}, {tree, s.parts.path(manifest.Verity)}} {
			if err := copyFile(disk, c.to, c.path); err != nil {
				return fmt.Errorf("slot %s: %w", s.name, err)
			}
		}
		if _, err := disk.WriteAt(s.parts.signature, at[n.Label(s.name, gpt.Sig)].start); err != nil {
			return fmt.Errorf("slot %s: cannot write signature: %w", s.name, err)
		}
		if err := placeInPartitions(disk, at, s); err != nil {
			return fmt.Errorf("slot %s: %w", s.name, err)
		}
	}
	return nil
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
