package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"sealroot/init/config"
	"sealroot/mkinitramfs/built"
	"sealroot/mkinitramfs/tools"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/durable"
	"sealroot/sealroot/machine"
	"sealroot/sealroot/prebuilt"
	"sealroot/state/escrow"
	"sealroot/state/luks2"
	"sealroot/verity/signature"
)

const mib = 1 << 20

func createState(c *command) action {
	disk := c.flags.String("disk", "", "`image` file of the disk, which no machine runs from")
	keyFile := c.flags.String("recovery-key-file", "", "new `file` for the volume's recovery key, 0600")
	certs := c.flags.String("escrow", "", "`certificate` to encrypt the recovery key to; it is left beside the volume")
	size := c.flags.Int64("state-size", 0, "size of the partition in `MiB`, for an image without one; the file is made larger where it has to be")
	reserve := c.flags.Int64("reserve", 0, "how many `MiB` of it the volume gets (default: half of it)")
	return func(ctx context.Context, _ []string) error {
		switch {
		case *disk == "":
			return fmt.Errorf("%w: --disk says which image", errUsage)
		case *keyFile != "" && *certs != "":
			return fmt.Errorf("%w: --recovery-key-file or --escrow, not both", errUsage)
		case *size < 0 || *reserve < 0 || *size > 1<<30 || *reserve > 1<<30:
			return fmt.Errorf("%w: a size is in MiB", errUsage)
		}
		o := prebuilt.Options{Partition: *size * mib, Reserve: *reserve * mib, Rand: rand.Reader}
		defer func() { clear(o.Recovery) }()
		if *keyFile != "" || *certs != "" {
			key, err := luks2.GenerateRecoveryKey(rand.Reader)
			if err != nil {
				return err
			}
			o.Recovery = key
		}
		if *certs != "" {
			message, err := sealTo(*certs, o.Recovery)
			if err != nil {
				return fmt.Errorf("cannot escrow the recovery key: %w", err)
			}
			o.Escrow = message
		}
		f, err := machine.OpenFile(*disk)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := c.mayPrebuild(ctx, *disk); err != nil {
			return fmt.Errorf("cannot create the state in %s: %w", *disk, err)
		}
		if *keyFile != "" {
			if err := durable.Create(*keyFile, o.Recovery); err != nil {
				return fmt.Errorf("cannot write the recovery key: %w", err)
			}
		}
		made, err := prebuilt.Make(ctx, f, o)
		if err != nil {
			if *keyFile != "" {
				err = errors.Join(err, durable.Remove(*keyFile))
			}
			return fmt.Errorf("cannot create the state in %s: %w", *disk, err)
		}
		c.result.Data = made
		c.say("volume %s is made, %d MiB reserved", made.UUID, made.Reserved/mib)
		c.say("each machine replaces it at its first boot by one of its own, with other keys: state.recovery of the image says how that is recovered")
		return nil
	}
}

// mayPrebuild refuses an image whose machines would not replace the volume: they open
// none that came with an image. Errors: bootset.ErrRefused.
func (c *command) mayPrebuild(ctx context.Context, disk string) error {
	cfg, err := built.Config(ctx, tools.New(), disk, built.Options{Slot: "a"})
	if err != nil {
		// A slot may come later, and PID 1 decides by what is there then.
		c.say("whether its machines take a volume that came with the image is not known: %v", err)
		return nil
	}
	return takesPrebuilt(cfg)
}

// takesPrebuilt is mayPrebuild for an image with this configuration.
func takesPrebuilt(cfg *config.Config) error {
	switch {
	case cfg.State.Plain():
		return fmt.Errorf("its configuration has an unencrypted state (state.unlock: plain): %w", bootset.ErrRefused)
	case cfg.State.PartitionFilesystem == "btrfs":
		return fmt.Errorf("its configuration has state.partition_filesystem: btrfs; %w: %w", prebuilt.ErrBtrfs, bootset.ErrRefused)
	case cfg.State.Create != config.CreateFirstBoot:
		return fmt.Errorf("its configuration has state.create: %s; every copy of the image would have the keys of this volume, so that a machine replaces it (first-boot) and never opens it: %w", cfg.State.Create, bootset.ErrRefused)
	}
	return nil
}

// sealTo encrypts a key to the certificates in a file.
func sealTo(path string, key []byte) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	certs, err := signature.ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("cannot use %s: %w", path, err)
	}
	var to []escrow.Recipient
	for _, cert := range certs {
		r, err := escrow.NewRecipient(cert.Issuer, cert.Serial, cert.Key)
		if err != nil {
			return nil, fmt.Errorf("cannot use %s: %w", path, err)
		}
		to = append(to, r)
	}
	return escrow.Seal(rand.Reader, key, to)
}
