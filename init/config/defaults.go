package config

import (
	"fmt"
	"path"
	"slices"
	"time"

	"sealroot/slots"
)

// WithDefaults returns the configuration with each missing key at its default
// (the fields' comments name them). It decides nothing that the builder must
// say: loader, build, create, unlock and, in production builds, recovery.
func (c Config) WithDefaults() Config {
	set(&c.Boot.Store, StoreGPT)
	if c.Boot.Tries == 0 {
		c.Boot.Tries = slots.DefaultTries
	}
	if c.Boot.NewGUIDs == "" {
		c.Boot.NewGUIDs = NewGUIDsFirstBoot
		// PCR 4 counts attempts to boot: firmware that has made itself an entry for
		// the disk may try that once in vain.
		t := c.State.TPM2
		if c.restsOnGUIDs() != "" || t.Policy == PolicySignedPCR11And4 || slices.Contains(t.PCRs, 4) {
			c.Boot.NewGUIDs = NewGUIDsNever
		}
	}
	if c.Boot.CommitDeadline == 0 {
		c.Boot.CommitDeadline = Duration(10 * time.Minute)
	}
	set(&c.Root.Source, SourceVerity)
	set(&c.Root.Partitions, PartitionsLabels)
	set(&c.Root.Filesystem, "squashfs")
	set(&c.Root.OnCorruption, "eio")
	set(&c.Root.Verity.Algorithm, "sha256")
	for _, size := range []*int{&c.Root.Verity.DataBlockSize, &c.Root.Verity.HashBlockSize} {
		if *size == 0 {
			*size = 4096
		}
	}
	set(&c.Trust.Cmdline, "ignore")
	if c.Trust.MeasurePCR == 0 {
		c.Trust.MeasurePCR = DefaultMeasurePCR
	}
	set(&c.Etc, EtcOverlay)
	c.Layers = slices.Clone(c.Layers)
	for i := range c.Layers {
		l := &c.Layers[i]
		set(&l.From, LayerFromState)
		set(&l.Verity, LayerVerified)
		set(&l.Filesystem, c.Root.Filesystem)
		if l.From == LayerFromVolume {
			set(&l.OnFailure, LayerSkip)
		}
		set(&l.OnFailure, LayerStop)
	}
	set(&c.State.Fsck, "no")
	set(&c.State.Filesystem, "ext4")
	set(&c.State.PartitionFilesystem, "ext4")
	set(&c.State.AutoResize, AutoResizeOff)
	set(&c.State.Device, DeviceOversized)
	set(&c.State.Reset, ResetAuthenticated)
	if c.State.TPM2.Signed() {
		set(&c.State.TPM2.PublicKey, "pcr.pub")
	}
	if c.State.KeyFile.Path != "" {
		set(&c.State.KeyFile.Filesystem, "vfat")
	}
	if c.State.Plain() {
		set(&c.State.Recovery, RecoveryNone)
	}
	if c.State.Create == CreateNone {
		set(&c.State.Recovery, RecoveryNone)
		return c // nothing to open, so nothing that could fail
	}
	if c.Build == Development {
		def := RecoveryNone
		if c.State.Create != CreateNever && c.State.can(UnlockTPM2) && c.State.can(UnlockRecoveryKey) {
			def = RecoveryLater
		}
		set(&c.State.Recovery, def)
	}
	if len(c.State.OnFailure) == 0 {
		c.State.OnFailure = []string{FailureHalt}
		if c.State.canType() {
			c.State.OnFailure = []string{FailurePrompt, FailureHalt}
		}
	}
	return c
}

// restsOnGUIDs says what of the configuration ties the machine to the GUIDs that
// its disk has when the state is made; "" for nothing.
func (c Config) restsOnGUIDs() string {
	if c.Root.Partitions == PartitionsDiscoverable {
		return "root.partitions discoverable pairs partitions by them"
	}
	if c.Root.Partitions == PartitionsPartUUIDs {
		return "root.partuuids names partitions by them"
	}
	for _, pcr := range c.State.TPM2.PCRs {
		// 1: boot entries; 5: the partition table; 8: GRUB's commands, among them
		// sealroot.disk=; 9: the command line again, by the kernel.
		if pcr == 1 || pcr == 5 || pcr == 8 || pcr == 9 {
			return fmt.Sprintf("state.tpm2.pcrs names PCR %d, which may hold them", pcr)
		}
	}
	return ""
}

// DefaultMeasurePCR is the PCR in which systemd has system extensions: what is
// mounted beside or below the root.
const DefaultMeasurePCR = 13

// set gives *v the value def when it has none.
func set[T ~string](v *T, def T) {
	if *v == "" {
		*v = def
	}
}

// can tells whether means is among the ways to unlock the state.
func (s State) can(means string) bool { return slices.Contains(s.Unlock, means) }

// KeepsEtc tells whether changes to /etc outlive a boot.
func (c *Config) KeepsEtc() bool {
	return (c.Etc == "" || c.Etc == EtcOverlay) && c.State.Create != CreateNone
}

// Plain tells whether the state is not encrypted.
func (s State) Plain() bool { return s.can(UnlockPlain) }

// opensAlone tells whether there is a way that needs nobody at the machine.
func (s State) opensAlone() bool { return s.can(UnlockTPM2) || s.can(UnlockKeyFile) }

// canType tells whether there is something that a person could type.
func (s State) canType() bool { return s.can(UnlockRecoveryKey) || s.can(UnlockPassphrase) }

// Signed tells whether the policy rests on signed values of PCR 11.
func (t TPM2) Signed() bool {
	return t.Policy == PolicySignedPCR11And7 || t.Policy == PolicySignedPCR11And4
}

// LiteralBacked tells whether the PCRs named tell an exchanged system and an
// exchanged command line under a UKI: PCR 7 does with Secure Boot on, else PCR 4
// and, for load options, PCR 12.
func (t TPM2) LiteralBacked(secureBoot bool) bool {
	return slices.Contains(t.PCRs, 4) && slices.Contains(t.PCRs, 12) || secureBoot && slices.Contains(t.PCRs, 7)
}

// PINStandsIn tells whether the PIN is what keeps the key from whoever starts
// another system, where the loader's boot path vouches for nothing. A UKI's path
// vouches for it, and its rules hold with a PIN too.
func (t TPM2) PINStandsIn(l Loader) bool { return l == LoaderGRUB && t.PIN && t.Policy == PolicyPCRs }

// Embed returns the configuration as it goes into the initramfs made for this
// kernel: file names reduced to their base names, because the files lie there at
// fixed places. Two files of one role with the same base name are a *Problem.
func (c Config) Embed(kernel Kernel) (Config, error) {
	c.Kernel = &kernel
	c.Trust.Root = baseNames(c.Trust.Root)
	c.Trust.Usr = baseNames(c.Trust.Usr)
	c.Trust.Layer = baseNames(c.Trust.Layer)
	c.Trust.Dev = baseNames(c.Trust.Dev)
	c.State.Escrow = baseNames(c.State.Escrow)
	c.State.TPM2.PreviousKeys = baseNames(c.State.TPM2.PreviousKeys)
	c.Layers = slices.Clone(c.Layers)
	for i := range c.Layers {
		c.Layers[i].Image = "" // Hash says which
	}
	if c.State.TPM2.PublicKey != "" {
		c.State.TPM2.PublicKey = path.Base(c.State.TPM2.PublicKey)
	}
	if err := c.validateEmbedded(); err != nil {
		return Config{}, fmt.Errorf("cannot embed configuration: %w", err)
	}
	return c, nil
}

func baseNames(files []string) []string {
	var names []string
	for _, f := range files {
		names = append(names, path.Base(f))
	}
	return names
}
