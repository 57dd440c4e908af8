package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/durable"
	"sealroot/sealroot/volume"
	"sealroot/state"
	"sealroot/state/enrol"
	"sealroot/state/layout"
	"sealroot/state/luks2"
	"sealroot/state/tpm"
	"sealroot/state/voucher"
)

// unlocked is what state unlock tells programs.
type unlocked struct {
	UUID     string           `json:"uuid"`
	Mounted  string           `json:"mounted"`
	ReadOnly bool             `json:"read_only"`
	Enrolled *volume.Enrolled `json:"enrolled"` // null: the TPM was not bound
	NextBoot string           `json:"next_boot"`
}

// What the next boot does after state unlock.
const (
	nextByItself = "by-itself"
	nextAsks     = "asks"
)

// unlockState opens the volume of a degraded boot, for a person who has a key of it,
// and binds the TPM, so that the next boot is whole.
func unlockState(c *command) action {
	a := authorityOptions(c, "passphrase-file")
	pinFile := pinOption(c)
	return func(ctx context.Context, _ []string) error {
		r, cfg, err := c.mayUnlock()
		if err != nil {
			return err
		}
		im, err := c.readHeader(ctx)
		if err != nil {
			return err
		}
		if state.PrebuiltOf(im.Header) != nil {
			return fmt.Errorf("cannot unlock the state: %w: %w", state.ErrPrebuilt, bootset.ErrRefused)
		}
		key, err := c.allow(ctx, a, im.Header)
		if err != nil {
			return err
		}
		defer clear(key)
		b := c.planBinding(ctx, r, cfg, *pinFile)
		defer b.close()
		// Nobody is asked any more, and nobody was kept out until here.
		release, err := lock(ctx, c.env.Lock)
		if err != nil {
			return err
		}
		defer release()
		dir, err := os.Open(c.env.State)
		if err != nil {
			return fmt.Errorf("cannot open the state partition: %w", err)
		}
		defer dir.Close()
		u := unlocked{Mounted: c.env.volume(), NextBoot: nextAsks}
		v, err := state.Open(dir, c.env.Devices, state.DeviceSize(cfg.State.Device), func(l *state.LockedVolume) ([]byte, error) {
			if !sameHeader(im.Header, l.Header) {
				return nil, fmt.Errorf("cannot unlock the state: %w: %w", errChanged, bootset.ErrRefused)
			}
			if err := c.bindUnlocked(ctx, r, cfg, l, key, b, &u); err != nil {
				c.say("the TPM is not bound: %v; the next boot asks again", err)
			}
			return bytes.Clone(key), nil
		})
		if err != nil {
			return err
		}
		if err := v.Mount(dir, c.mounting()); err != nil {
			return errors.Join(err, v.Close())
		}
		u.UUID, u.ReadOnly = v.Header.UUID(), v.ReadOnly != nil
		// The devices stay when this program has ended.
		c.result.Data = u
		c.say("volume %s is open at %s, over what this boot has in memory there", u.UUID, u.Mounted)
		if v.ReadOnly != nil {
			c.say("it is read-only: %v", v.ReadOnly)
		}
		if v.Unreplayed != nil {
			c.say("its journal, which may hold the latest changes, cannot be replayed in this boot: %v", v.Unreplayed)
		}
		if err := c.dropVoucher(); err != nil {
			c.say("%v", err)
		}
		c.say("/etc, /var and /home are still those in memory: restart to have yours")
		return nil
	}
}

// mayUnlock refuses where there is nothing to open.
func (c *command) mayUnlock() (r report.Report, cfg config.Config, err error) {
	if r, err = c.booted(); err != nil {
		return r, cfg, err
	}
	if cfg, err = c.env.configuration(); err != nil {
		return r, cfg, err
	}
	switch {
	case !r.Degraded || r.State.UUID != "":
		err = fmt.Errorf("cannot unlock the state: this boot has it open: %w", bootset.ErrRefused)
	case cfg.State.Create == config.CreateNone || cfg.State.Plain():
		err = fmt.Errorf("cannot unlock the state: this image has no encrypted volume: %w", bootset.ErrRefused)
	}
	return r, cfg, err
}

// binding is what a new secret is sealed to, and with which PIN.
type binding struct {
	look   volume.Look
	policy tpm.Policy
	pin    []byte
	err    error // why not
	done   func()
}

func (b *binding) close() {
	clear(b.pin)
	b.done()
}

// planBinding decides it, and asks for a new PIN where that is wanted and of use.
func (c *command) planBinding(ctx context.Context, r report.Report, cfg config.Config, pinFile string) *binding {
	b := &binding{done: func() {}}
	if !slices.Contains(cfg.State.Unlock, config.UnlockTPM2) {
		b.err = errors.New("state.unlock of this image lacks tpm2")
		return b
	}
	b.look, b.done = c.lookAtTPM(ctx, r, cfg)
	if b.policy, b.err = b.look.Policy(ctx, cfg, enrol.Path(r.BootPath)); b.err == nil {
		b.pin, b.err = c.newPIN(ctx, pinFile, cfg)
	}
	return b
}

// bindUnlocked seals a new secret for the next boot, and says what that boot will do:
// which volume is the machine's is in a record of the TPM that only PID 1 can write.
func (c *command) bindUnlocked(ctx context.Context, r report.Report, cfg config.Config, l *state.LockedVolume, key []byte, b *binding, u *unlocked) error {
	if b.err != nil {
		return b.err
	}
	look, policy, with := b.look, b.policy, change(key)
	with.PIN = b.pin
	h, enrolled, err := look.Enroll(ctx, l.Header, policy, with)
	if err != nil {
		return err
	}
	if err := l.Rewrite(h, rand.Reader); err != nil {
		return err
	}
	u.Enrolled = &enrolled
	for _, t := range enrolled.Replaced {
		c.say("token %d is replaced: %s", t.Token, t.Why)
	}
	c.say("the TPM is bound: keyslot %d, token %d, %s", enrolled.Keyslot, enrolled.Token, enrolled.Policy)
	policy.PIN = false // of the secret, not of the record
	pinned, err := look.Identity(ctx, policy)
	id := luks2.VolumeKeyID(key, state.DeviceName, h.UUID())
	switch {
	case err == nil && bytes.Equal(pinned, id), errors.Is(err, tpm.ErrUnpinned) && enrol.Adopts(cfg.Boot.Loader, cfg.State.TPM2.Policy):
		u.NextBoot = nextByItself
		c.say("the next boot unlocks with the TPM")
		return nil
	case err == nil:
		c.say("WARNING: the TPM remembers another volume as this machine's. If you did not exchange the disk, do not trust what is in this one. If you did, undefine what it remembers (NV indices %#x, and %#x where it is defined): until then every boot asks for a key", tpm.IdentityIndices(), tpm.VoucherIndex)
		return nil
	}
	if errors.Is(err, tpm.ErrUnpinned) && !cfg.Trust.RollbackFloor {
		if err := c.vouch(id); err == nil {
			u.NextBoot = nextByItself
			c.say("the next boot unlocks with the TPM, and records there that this volume is the machine's")
			return nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			c.say("%v", err)
		}
	}
	if slices.Contains(cfg.State.OnFailure, config.FailurePrompt) {
		c.say("the next boot asks for the recovery key once more: only PID 1 can write into the TPM that this volume is the machine's, and does it then")
	} else {
		c.say("WARNING: the next boot is degraded again: only PID 1 can write into the TPM that this volume is the machine's, once a key was typed at its prompt, and state.on_failure of this image has no prompt; one that has it, or state.degraded_unlock, is needed")
	}
	return nil
}

// vouch spends the voucher that PID 1 has left for the volume of that identity.
// Errors: fs.ErrNotExist without one.
func (c *command) vouch(id []byte) error {
	v, err := os.ReadFile(c.env.Voucher)
	if err != nil {
		return err
	}
	defer clear(v)
	spent, err := voucher.Spend(v, id)
	if err == nil {
		err = durable.WriteFile(filepath.Join(c.env.State, layout.Voucher), spent)
	}
	if err != nil {
		return fmt.Errorf("cannot tell the next boot that this volume is the machine's: %w", err)
	}
	return nil
}

// dropVoucher takes it away once the volume is open: nobody who is root later in this
// boot is to spend it for another one.
func (c *command) dropVoucher() error {
	if err := os.Remove(c.env.Voucher); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot take the voucher of this boot away: %w", err)
	}
	return nil
}

// mounting mounts the volume as PID 1 would have.
func (c *command) mounting() state.Mounting {
	place := mount.Place{Root: c.env.State, Path: state.MountDir}
	unmount := func() error { return c.env.Mounter.Unmount(c.env.volume()) }
	return state.Mounting{Unmount: unmount, Mount: func(device string, f state.Filesystem, options []string) (*os.File, error) {
		fs := mount.Filesystem{Type: string(f), Source: device, Options: options, Attr: mount.NoSUID | mount.NoDev | mount.NoExec}
		if err := c.env.Mounter.MountIn(fs, place); err != nil {
			return nil, err
		}
		root, err := os.Open(c.env.volume())
		if err != nil {
			return nil, errors.Join(err, unmount())
		}
		return root, nil
	}}
}
