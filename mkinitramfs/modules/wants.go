package modules

import (
	"crypto/sha512"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sealroot/init/config"
	"sealroot/mount/kmod"
)

// ErrUnknownSet means that a configuration names a module set that does not exist.
var ErrUnknownSet = errors.New("unknown module set")

// Want is one module that the initramfs should hold.
type Want struct {
	Name     string
	Group    kmod.Group
	Optional bool // not every kernel has it, or has it under this name
}

// set lists drivers by the hardware they are for. Kernels differ in what they
// build in and in names, so members of a set are optional.
func set(name string) ([]string, bool) {
	sets := map[string][]string{
		"virtio":   {"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_scsi", "sd_mod", "virtio_rng"},
		"nvme":     {"nvme"},
		"ahci":     {"ahci", "sd_mod"},
		"usb":      {"xhci_pci", "ehci_pci", "uhci_hcd", "uas", "usb_storage", "sd_mod", "usbhid", "hid_generic"},
		"tpm":      {"tpm_tis", "tpm_crb"},
		"keyboard": {"i8042", "atkbd"},
		"watchdog": watchdogSet(),
	}
	s, ok := sets[name]
	return s, ok
}

// For returns what a configuration needs, in load order.
func For(cfg *config.Config) ([]Want, error) {
	// The hash accelerator comes first: the signature check of every later
	// module then uses it, which is a sixth of the time of a whole boot. Like
	// every accelerator it is a driver of the CPU: others refuse it.
	wants := []Want{{"sha256_ssse3", kmod.GroupDriver, true}}

	sets := slices.Clone(cfg.Modules.Sets)
	sets = append(sets, "tpm", "keyboard") // a passphrase may have to be typed
	if cfg.Boot.Watchdog.Seconds > 0 {
		sets = append(sets, "watchdog")
	}
	for _, name := range sets {
		members, ok := set(name)
		if !ok {
			return nil, fmt.Errorf("cannot use modules.sets %q: %w; known: %s", name, ErrUnknownSet, strings.Join(config.ModuleSets(), ", "))
		}
		for _, m := range members {
			wants = append(wants, Want{m, kmod.GroupDriver, true})
		}
	}
	for _, m := range cfg.Modules.Add {
		wants = append(wants, Want{normalize(m), kmod.GroupDriver, false})
	}

	whole := cfg.WithDefaults()
	if cfg.Root.Verity.Algorithm == "sha512" || slices.ContainsFunc(whole.Layers, isSHA512) {
		// Kernels need sha256 for themselves; this one is a module, called
		// sha512_generic up to 6.16, and nobody loads it on demand here.
		wants = append(wants, Want{"sha512_ssse3", kmod.GroupDriver, true}, Want{"sha512_generic", kmod.GroupRoot, true}, Want{"sha512", kmod.GroupRoot, true})
	}
	wants = append(wants, Want{"dm_verity", kmod.GroupRoot, false}, Want{whole.Root.Filesystem, kmod.GroupRoot, false}, Want{"overlay", kmod.GroupRoot, false})
	for _, l := range whole.Layers {
		// with the root's: a layer in partitions may come without a state
		if w := (Want{l.Filesystem, kmod.GroupRoot, false}); l.From != config.LayerFromVolume && !slices.Contains(wants, w) {
			wants = append(wants, w)
		}
	}
	wants = append(wants, stateWants(whole)...)
	return append(wants,
		Want{"vfat", kmod.GroupHint, false},
		// FAT needs its code page and its character set as modules; which ones
		// are the kernel's defaults is a matter of the kernel's configuration.
		Want{"nls_cp437", kmod.GroupHint, true}, Want{"nls_ascii", kmod.GroupHint, true},
		Want{"nls_iso8859_1", kmod.GroupHint, true}, Want{"nls_utf8", kmod.GroupHint, true},
		Want{"efivarfs", kmod.GroupHint, true},
	), nil
}

// isSHA512 tells it by the length of the root hash.
func isSHA512(l config.Layer) bool { return len(l.Hash) == 2*sha512.Size }

// stateWants returns what the encrypted volume needs.
func stateWants(cfg config.Config) []Want {
	wants := []Want{
		{"loop", kmod.GroupState, false},
		{"aesni_intel", kmod.GroupDriver, true},
		{"xts", kmod.GroupState, true},
		{"dm_crypt", kmod.GroupState, false},
		{"ext4", kmod.GroupState, false}, // either file system may be there from before
	}
	if cfg.State.Filesystem == "btrfs" || cfg.State.PartitionFilesystem == "btrfs" {
		wants = append(wants, Want{"btrfs", kmod.GroupState, false})
	}
	return wants
}
