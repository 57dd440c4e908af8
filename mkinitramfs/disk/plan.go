package disk

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"sealroot/init/config"
	"sealroot/slots"
	"sealroot/slots/gpt"
	statelayout "sealroot/state/layout"
)

// set is a slot that is filled.
type set struct {
	name  string
	in    SlotInput
	parts parts
}

// plan is a disk before anything is written to it.
type plan struct {
	sets   []set
	slots  []string // the slots that there are, filled or not
	kept   kept
	loader loader
	// unfinished: the state partition gets no file system here.
	unfinished bool
	files      map[string]content // all files on the ESP
	needs      needs
}

// check finds out what cannot work before anything is built.
func (b *Builder) check(o Options) error {
	if err := o.checkState(); err != nil {
		return err
	}
	if err := b.checkInput(o.A, true); err != nil || o.B == nil {
		return err
	}
	if err := b.checkInput(*o.B, true); err != nil {
		return err
	}
	if o.A.Rootfs == "-" && o.B.Rootfs == "-" {
		return fmt.Errorf("cannot read two roots from stdin: %w", ErrOptions)
	}
	one, two := o.A.Config.Boot, o.B.Config.Boot
	if one.Loader != two.Loader || one.Store != two.Store {
		return fmt.Errorf("cannot build a disk with loader %s and store %s in slot a, %s and %s in slot b: a disk has one of each: %w",
			one.Loader, one.Store, two.Loader, two.Store, ErrOptions)
	}
	if err := sameLayout(o.A.Config.Root, o.B.Config.Root); err != nil {
		return err
	}
	switch {
	case one.Store == config.StoreFixed:
		return fmt.Errorf("cannot fill slot b: a disk with boot.store fixed has one slot: %w", ErrOptions)
	case one.Store == config.StoreEFI && o.BState != Good:
		return fmt.Errorf("cannot begin slot b as %s: boot.store efi keeps that in the machine and not on the disk; choose good: %w", o.BState, ErrOptions)
	}
	return nil
}

// sameLayout: the kernel of each slot must find the image of the other.
func sameLayout(a, b config.Root) error {
	for _, c := range []struct {
		key  string
		a, b any
	}{
		{"source", a.Source, b.Source}, {"partitions", a.Partitions, b.Partitions},
		{"partuuids", a.PartUUIDs.Line(), b.PartUUIDs.Line()}, {"verity.tree_at_mib", a.Verity.TreeAtMiB, b.Verity.TreeAtMiB},
	} {
		if c.a != c.b {
			return fmt.Errorf("cannot build a disk with root.%s %v in slot a, %v in slot b: the kernel of each slot must find the image of the other: %w", c.key, c.a, c.b, ErrOptions)
		}
	}
	return nil
}

// checkState refuses a disk without a state partition, or without a file system on it,
// that no slot would make.
func (o Options) checkState() error {
	what := "leave out the state partition"
	if !o.Sizes.NoState {
		if !o.unfinishedState() {
			return nil
		}
		what = "leave the file system of the state partition to the first boot, as btrfs is"
	}
	if o.B != nil && o.A.Config.WithDefaults().State.PartitionFilesystem != o.B.Config.WithDefaults().State.PartitionFilesystem {
		return fmt.Errorf("cannot build a disk with one state.partition_filesystem in slot a and another in slot b: both mount it: %w", ErrOptions)
	}
	inputs := []SlotInput{o.A}
	if o.B != nil {
		inputs = append(inputs, *o.B)
	}
	for _, in := range inputs {
		switch s := in.Config.State; {
		case s.Create != config.CreateFirstBoot && s.Create != config.CreateNone:
			return fmt.Errorf("cannot %s with state.create %s: only first-boot does it at the first boot: %w", what, s.Create, ErrOptions)
		case len(in.Config.FromState()) > 0:
			return fmt.Errorf("cannot %s: layer %s comes from it; give --state-size and ext4, or make the layer from: partition or encrypted: %w", what, in.Config.FromState()[0].Name, ErrOptions)
		case slices.Contains(s.TPM2.PCRs, 5):
			return fmt.Errorf("cannot %s with PCR 5 in state.tpm2.pcrs: that changes it: %w", what, ErrOptions)
		}
	}
	return nil
}

// unfinishedState tells whether the state partition is left to the first boot to make a
// file system on, the one that PID 1 has: nothing makes btrfs inside a disk image.
func (o Options) unfinishedState() bool {
	return !o.Sizes.NoState && (o.A.Config.State.PartitionFilesystem == "btrfs" || o.B != nil && o.B.Config.State.PartitionFilesystem == "btrfs")
}

// checkInput is check for what one slot holds.
func (b *Builder) checkInput(in SlotInput, disk bool) error {
	if disk && in.Config.Root.Partitions == config.PartitionsDiscoverable {
		return fmt.Errorf("cannot make a disk for root.partitions discoverable: make `parts`, and the disk from them with systemd-repart or mkosi: %w", ErrOptions)
	}
	if disk && in.Config.Root.PartUUIDs.C != (config.SlotPartUUIDs{}) {
		return fmt.Errorf("cannot make a disk for root.partuuids.c: it gets slots a and b: %w", ErrOptions)
	}
	if err := checkLayers(in.Config); err != nil {
		return err
	}
	if in.Config.State.TPM2.Signed() && b.Signing.PCRKey == nil {
		return fmt.Errorf("cannot sign PCR 11 for policy %s: no pcr.key in %s: %w", in.Config.State.TPM2.Policy, b.Signing.Dir, ErrOptions)
	}
	return b.require(in, disk)
}

// plan makes all that is to be written.
func (b *Builder) plan(ctx context.Context, o Options, work string) (plan, error) {
	boot := o.A.Config.Boot
	list, err := firstState(o.B != nil, o.BState, triesOf(o))
	if err != nil {
		return plan{}, err
	}
	if boot.Store == config.StoreFixed {
		list = list[:1]
	}
	p := plan{unfinished: o.unfinishedState()}
	for _, s := range list {
		p.slots = append(p.slots, s.Name)
	}
	if p.kept, err = keep(boot, o.A.Config.Root.Naming(), list); err != nil {
		return plan{}, err
	}
	if p.unfinished {
		p.kept.attr[gpt.LabelState] = gpt.Unfinished
	}
	if p.sets, err = b.sets(ctx, o, work); err != nil {
		return plan{}, err
	}
	err = b.step("boot loader "+string(boot.Loader), func() error {
		p.loader, err = b.loader(ctx, p.sets, p.slots, work)
		return err
	})
	if err != nil {
		return plan{}, err
	}
	return p, p.count()
}

// sets builds the boot sets of the slots that are to hold one.
func (b *Builder) sets(ctx context.Context, o Options, work string) ([]set, error) {
	parts, err := b.buildParts(ctx, o.A, filepath.Join(work, "a"))
	if err != nil {
		return nil, fmt.Errorf("slot a: %w", err)
	}
	sets := []set{{name: "a", in: o.A, parts: parts}}
	if o.B != nil {
		if !reflect.DeepEqual(*o.B, o.A) {
			if parts, err = b.buildParts(ctx, *o.B, filepath.Join(work, "b")); err != nil {
				return nil, fmt.Errorf("slot b: %w", err)
			}
		}
		sets = append(sets, set{name: "b", in: *o.B, parts: parts})
	}
	return sets, nil
}

func triesOf(o Options) int {
	if o.B == nil {
		return slots.DefaultTries
	}
	return o.B.Config.WithDefaults().Boot.Tries
}

// count collects the files of the ESP and adds up what everything needs.
func (p *plan) count() error {
	p.files = maps.Clone(p.loader.files)
	maps.Copy(p.files, p.kept.files)
	var err error
	if p.needs.shared, err = sizeOf(p.files); err != nil {
		return err
	}
	for _, s := range p.sets {
		files := bootFiles(s, p.kept.counters[s.name])
		size, err := sizeOf(files)
		if err != nil {
			return err
		}
		p.needs.root, p.needs.esp = max(p.needs.root, s.parts.rootSize), max(p.needs.esp, size)
		maps.Copy(p.files, files)
	}
	p.needs.naming = p.sets[0].in.Config.Root.Naming()
	p.needs.layers = layerNeeds(p.sets)
	if p.needs.state, err = leastState(p.sets); err != nil {
		return err
	}
	p.needs.treeAt = p.sets[0].in.Config.Root.Verity.TreeAt()
	p.needs.verity = func(root int64) int64 {
		size := int64(0)
		for _, s := range p.sets {
			v := s.parts.params
			v.DataBlocks = uint64(root / int64(v.DataBlockSize))
			size = max(size, v.AreaSize())
		}
		return size
	}
	return nil
}

// leastState is the least size of the state partition, in bytes: what file system and
// layers take and, where the first boot of any slot makes a volume, the room for that.
func leastState(sets []set) (int64, error) {
	beside := int64(0)
	for _, l := range layersOf(sets) {
		info, err := os.Stat(l.Image)
		if err != nil {
			return 0, fmt.Errorf("cannot copy layer %s: %w", l.Name, err)
		}
		beside += roundUp(info.Size(), 4*kib)
	}
	least := max(32*mib+roundUp(beside, mib), statelayout.LeastHolding("ext4", beside)) // see makeState
	for _, s := range sets {
		if st := s.in.Config.WithDefaults().State; st.Create == config.CreateFirstBoot && !st.Plain() {
			least = max(least, statelayout.LeastPartition(st.Filesystem, st.PartitionFilesystem, beside))
		}
	}
	return least, nil
}

// sizeOf is the size of files on a FAT file system, in bytes.
func sizeOf(files map[string]content) (int64, error) {
	total := int64(0)
	for _, c := range files {
		n, err := c.size()
		if err != nil {
			return 0, err
		}
		total += roundUp(n, cluster)
	}
	return total, nil
}
