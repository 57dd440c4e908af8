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

// keep is the slot that the boot loader starts while another one is written: the
// running one, unless it is itself on trial and a committed one is left.
func keep(after []slots.Slot, running string) string {
	if s, ok := slots.Find(after, running); ok && !s.Successful {
		if d, ok := slots.Default(after); ok {
			return d.Name
		}
	}
	return running
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

// checkTree compares the superblock of the hash tree with the manifest and the
// partitions' sizes in bytes.
func checkTree(p verity.Params, m manifest.Manifest, rootPartition, verityPartition int64) error {
	root, _ := m.Part(manifest.Root)
	tree, _ := m.Part(manifest.Verity)
	switch {
	case len(m.RootHash) != p.Algorithm.Size():
		return fmt.Errorf("the root hash has %d bytes, the tree is %s: %w", len(m.RootHash), p.Algorithm, ErrSet)
	case p.DataSize() != root.Size || p.HashSize() != tree.Size:
		return fmt.Errorf("the tree covers %d bytes and has %d, the parts have %d and %d: %w", p.DataSize(), p.HashSize(), root.Size, tree.Size, ErrSet)
	}
	return fits(p, rootPartition, verityPartition)
}

func fits(p verity.Params, rootPartition, verityPartition int64) error {
	if p.DataSize() > rootPartition {
		return fmt.Errorf("the root image has %d bytes, the slot's partition %d: %w", p.DataSize(), rootPartition, ErrRoom)
	}
	if p.HashSize() > verityPartition {
		return fmt.Errorf("the hash tree has %d bytes, the slot's partition %d: %w", p.HashSize(), verityPartition, ErrRoom)
	}
	return nil
}

// bootNeeds is the room that a set's boot files take, in bytes.
func bootNeeds(sizes []int64) int64 {
	total := int64(bootSlack)
	for _, n := range sizes {
		total += n
	}
	return total
}

// checkRoom compares it with what is there.
func checkRoom(need, room int64) error {
	if need > room {
		return fmt.Errorf("the kernel and its companions take %d KiB on the EFI system partition, %d KiB are free: %w", need>>10, room>>10, ErrRoom)
	}
	return nil
}
