package boot

import (
	"sealroot/init/config"
	"sealroot/slots"
	"sealroot/verity/signature"
)

// discoverable tells whether the disk is one that systemd-repart or mkosi made.
func (b *boot) discoverable() bool {
	return b.cfg.Root.Partitions == config.PartitionsDiscoverable
}

// discover finds out which partitions of such a disk belong together. What the
// signatures say is not verified here: see rootHash.
func (b *boot) discover() error {
	if !b.discoverable() {
		return nil
	}
	skipped, err := b.disk.Discover(b.cfg.Wanted(), signature.ReadRootHash)
	for _, s := range skipped {
		b.warn("%v", s)
	}
	if err != nil {
		return environmentError(slots.DeviceMissing, "%w", err)
	}
	return nil
}
