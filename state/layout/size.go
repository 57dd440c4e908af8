package layout

const (
	mib = int64(1) << 20
	gib = int64(1) << 30

	// KeepFree is what a volume leaves of the partition's file system, in bytes, for what
	// lies beside it and for that file system's own needs.
	KeepFree = 16 * mib

	btrfs = "btrfs" // any other type is ext4
)

// LeastVolume is the smallest reservation of a volume with that file system, in bytes:
// header and template, and some room. The kernel resizes no btrfs to less than 256 MiB.
func LeastVolume(filesystem string) int64 {
	if filesystem == btrfs {
		return 288 * mib
	}
	return 128 * mib
}

// LeastPartition is the smallest partition, a multiple of 1 MiB in bytes, on which the
// first boot finds the room for a volume with that file system; outer is the file system
// of the partition, and beside the bytes of files that lie there already.
func LeastPartition(filesystem, outer string, beside int64) int64 {
	return LeastHolding(outer, LeastVolume(filesystem)+beside)
}

// LeastHolding is the smallest partition, a multiple of 1 MiB in bytes, whose file system
// has room for files of so many bytes, and as much free as a volume would leave.
func LeastHolding(filesystem string, files int64) int64 {
	need := files + KeepFree
	least := need
	for {
		size := (need + ownOf(filesystem, least) + mib - 1) / mib * mib
		if size <= least {
			return least
		}
		least = size
	}
}

// ownOf is what a file system of size bytes keeps for itself, or little more: of btrfs
// two copies of the metadata and what was measured beside; of ext4 the 2 % that the
// kernel leaves free for it (ext4_calculate_resv_clusters), inodes, one for 16 KiB,
// bitmaps, and group descriptors with room for more, and what mke2fs(8) takes for the
// journal, as ext2fs_default_journal_size has it for blocks of 4 KiB.
func ownOf(filesystem string, size int64) int64 {
	if filesystem == btrfs {
		return max(82*mib, 256*mib-size) // no btrfs of less than 256 MiB
	}
	journal := gib
	for _, step := range [...]struct{ below, journal int64 }{
		{128 * mib, 4 * mib}, {gib, 16 * mib}, {2 * gib, 32 * mib}, {16 * gib, 64 * mib}, {32 * gib, 128 * mib}, {64 * gib, 256 * mib}, {128 * gib, 512 * mib},
	} {
		if size < step.below {
			journal = step.journal
			break
		}
	}
	return journal + size/64 + size/200 + min(size/50, 16*mib)
}
