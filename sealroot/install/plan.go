package install

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"sealroot/sealroot/bootset"
	"sealroot/slots"
	"sealroot/slots/manifest"
	"sealroot/verity"
)

// bootSlack is room on the EFI system partition beside the files themselves,
// for directories and the rest of each file's last cluster.
const bootSlack = 256 << 10

// chooseSlot returns the slot that is written: the one asked for, else one that
// is not bootable, else the one of lowest priority. It is never the running one
// and never the only committed one. Errors: bootset.ErrUsage, ErrRefused.
func chooseSlot(list []slots.Slot, running, asked string) (string, error) {
	if _, ok := slots.Find(list, running); !ok {
		return "", fmt.Errorf("the boot disk has no slot %q, which the boot report says is running: %w", running, bootset.ErrRefused)
	}
	if asked != "" {
		if _, ok := slots.Find(list, asked); !ok {
			return "", fmt.Errorf("there is no slot %q: %w", asked, bootset.ErrUsage)
		}
		return asked, allowed(list, running, asked)
	}
	others := slices.DeleteFunc(slices.Clone(list), func(s slots.Slot) bool { return s.Name == running })
	slices.SortStableFunc(others, func(a, b slots.Slot) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Priority, b.Priority))
	})
	err := fmt.Errorf("the disk has no slot beside the running one: %w", bootset.ErrRefused)
	for _, s := range others {
		if err = allowed(list, running, s.Name); err == nil {
			return s.Name, nil
		}
	}
	return "", err
}

// rank puts first what is lost least.
func rank(s slots.Slot) int {
	if s.State() < slots.Trial {
		return 0
	}
	return 1
}

func allowed(list []slots.Slot, running, slot string) error {
	if slot == running {
		return fmt.Errorf("slot %s runs now and is never written: %w", slot, bootset.ErrRefused)
	}
	_, err := slots.BeginUpdate(list, slot)
	if errors.Is(err, slots.ErrLastGood) {
		return fmt.Errorf("slot %s is the only committed one; sealroot commit keeps the running slot %s first: %w", slot, running, bootset.ErrRefused)
	}
	return err
}

// kernelStays makes sure that a kernel which starts is left when the slot is
// written. It returns the slot that the loader has to start by default before
// that, "" when the default is another slot's already: then it is not touched.
// It is never moved to a kernel that does not run now. Errors:
// bootset.ErrRefused.
func (m Machine) kernelStays(list []slots.Slot, r Running, target string) (string, error) {
	if err := r.kernelProved(target); err != nil {
		return "", err
	}
	named, err := m.StartsByDefault(target)
	if !named {
		return "", nil
	}
	others := slices.DeleteFunc(slices.Clone(list), func(s slots.Slot) bool { return s.Name == target })
	_, committed := slots.Default(others)
	if s, ok := slots.Find(others, r.Loaded); ok && (s.Successful || !committed) {
		return r.Loaded, nil
	}
	err = errors.Join(err, bootset.ErrRefused)
	return "", fmt.Errorf("the boot loader starts slot %s by default, and the kernel that runs is not that of another committed slot; sealroot commit and a restart bring the one of slot %s: %w", target, r.Running, err)
}

// kernelProved refuses to write the slot whose kernel runs while the running
// slot's own kernel may be one that never starts: then no kernel would be left.
// A commit under a foreign kernel has the next boot load the slot's own one, and
// a kernel that does not come is remembered; so one that was committed before
// this boot, without such a memory, has started.
func (r Running) kernelProved(target string) error {
	switch {
	case r.Loaded != target:
		return nil
	case r.KernelDead:
		return fmt.Errorf("the kernel of slot %s runs, and slot %s's own one does not start (see sealroot status): %w", target, r.Running, bootset.ErrRefused)
	case !r.WasCommitted:
		return fmt.Errorf("the kernel of slot %s runs; sealroot commit and a restart bring slot %s's own one: %w", target, r.Running, bootset.ErrRefused)
	}
	return nil
}

// checkManifest compares a set with the machine: what would not start there is
// refused. The warnings are for a person. force takes a version that runs
// already under another root hash.
func checkManifest(m manifest.Manifest, r Running, needs []BootFile, force bool) (warnings []string, err error) {
	switch {
	case m.Name != r.Name:
		return nil, fmt.Errorf("it is for %q, this machine is %q: %w", m.Name, r.Name, ErrSet)
	case m.Architecture != manifest.Architecture:
		return nil, fmt.Errorf("it is for %s, this machine is %s: %w", m.Architecture, manifest.Architecture, ErrSet)
	}
	if m.SecurityVersion < r.Floor {
		return nil, fmt.Errorf("it has security version %d, and the rollback floor of this machine is %d: it would never boot: %w", m.SecurityVersion, r.Floor, bootset.ErrRefused)
	}
	for _, f := range needs {
		if !m.Has(manifest.Name(f)) {
			return nil, fmt.Errorf("it has no %s, from which this machine starts; build the parts with this machine's boot.loader: %w", f, ErrSet)
		}
	}
	if m.Version == r.Version {
		if hex.EncodeToString(m.RootHash) == r.RootHash {
			warnings = append(warnings, "version "+m.Version+" is the image that runs: it is installed once more")
		} else if !force {
			return nil, fmt.Errorf("version %s runs already, and this image is another one; give it a version of its own, or use --force: %w", m.Version, bootset.ErrRefused)
		}
	}
	if m.SecurityVersion < r.SecurityVersion {
		warnings = append(warnings, fmt.Sprintf("security version %d is older than the running %d", m.SecurityVersion, r.SecurityVersion))
	}
	return warnings, nil
}

// checkLayout refuses a set whose initramfs expects another disk: it would look
// for its hash tree elsewhere, or count its trial where nobody reads it. A set of
// a builder that did not tell is taken.
func checkLayout(set *manifest.Layout, disk manifest.Layout) error {
	if set == nil {
		return nil
	}
	for _, c := range []struct {
		key       string
		set, disk any
	}{
		{"boot.loader", set.Loader, disk.Loader},
		{"boot.store", set.Store, disk.Store},
		{"root.source", cmp.Or(set.Source, "verity"), cmp.Or(disk.Source, "verity")},
		{"root.partitions", set.Partitions, disk.Partitions},
		{"root.partuuids", cmp.Or(set.PartUUIDs, "none"), cmp.Or(disk.PartUUIDs, "none")},
		{"root.verity.tree_at_mib", set.TreeAtMiB, disk.TreeAtMiB},
	} {
		if c.set != c.disk {
			return fmt.Errorf("it was built with %s %v, this disk has %v: it would not boot here; build the parts as this disk is, or make the disk anew: %w", c.key, c.set, c.disk, ErrSet)
		}
	}
	return nil
}

// checkState refuses a set whose initramfs does not mount the state partition that is
// there: btrfs takes its configuration, and ext4 is always mounted.
func checkState(set, disk string) error {
	if disk == manifest.StateBtrfs && set == "" {
		return fmt.Errorf("the state partition of this machine is btrfs, which it would not mount; build the parts with state.partition_filesystem: btrfs: %w", ErrSet)
	}
	return nil
}

// checkTree compares the superblock of the hash tree with the manifest and the
// partitions' sizes in bytes.
func checkTree(p verity.Params, m manifest.Manifest, rootPartition, verityPartition int64) error {
	root, _ := m.Part(manifest.Root)
	tree, _ := m.Part(manifest.Verity)
	switch {
	case len(m.RootHash) != p.Algorithm.Size():
		return fmt.Errorf("the root hash has %d bytes, the tree is %s: %w", len(m.RootHash), p.Algorithm, ErrSet)
	case p.DataSize() != root.Size:
		return fmt.Errorf("the tree covers %d bytes, the root image has %d: %w", p.DataSize(), root.Size, ErrSet)
	}
	p, err := p.OfArea(tree.Size)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSet, err)
	}
	return fits(p, rootPartition, verityPartition)
}

func fits(p verity.Params, rootPartition, verityPartition int64) error {
	if p.DataSize() > rootPartition {
		return fmt.Errorf("the root image has %d bytes, the slot's partition %d: %w", p.DataSize(), rootPartition, ErrRoom)
	}
	if p.AreaSize() > verityPartition {
		return fmt.Errorf("the hash tree has %d bytes, with parity %d, the slot has room for %d: %w", p.HashSize(), p.AreaSize(), verityPartition, ErrRoom)
	}
	return nil
}

// checkRoom says whether boot files of these sizes fit: beside the slot's old
// ones, and, once those are gone, together with the copy of the unified kernel
// image that a commit makes. Without that room a commit could never be completed.
func checkRoom(sizes map[BootFile]int64, room Room) error {
	need := int64(bootSlack)
	for _, n := range sizes {
		need += n
	}
	if room.Fallback {
		need = max(need, need-room.Old+sizes[UKI])
	}
	if need > room.Free {
		return fmt.Errorf("the kernel and its companions take %d KiB on the EFI system partition, %d KiB are free: %w", need>>10, room.Free>>10, ErrRoom)
	}
	return nil
}
