package btrfs

// The kernel moves what lies beyond the new end of a file system that gets smaller. Where
// it finds no room for that in the middle of a transaction it ends that and makes the
// file system read-only: measured with sizes close to what is used, and never by these
// rules.

// Slack is what stays free at least, in bytes, where used bytes are used: a gigabyte, or
// 15 % of what is used where that is more. A volume that holds less than a gigabyte keeps
// as much free as it holds: its chunks are smaller, too.
func Slack(used int64) int64 {
	return max(min(max(used, 256<<20), 1<<30), used/100*15)
}

// Unallocated is what of a file system of size bytes stays without chunks: an eighth, at
// most a gigabyte. Then there is a place for what is moved, and for the metadata of
// moving it.
func Unallocated(size int64) int64 { return min(size/8, 1<<30) }

// LargestStep is how much smaller a file system of size bytes may get at once.
func LargestStep(size int64) int64 { return min(max(size/8, 64<<20), 1<<30) }
