package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/recovery"
	"sealroot/sealroot/secret"
	"sealroot/sealroot/volume"
	"sealroot/state/enrol"
	"sealroot/state/luks2"
)

func enroll(c *command) action {
	a := authorityOptions(c, "passphrase-file")
	pinFile := pinOption(c)
	burn := c.flags.Bool("burn", false, "seal to the present PCR policy key although another slot's image does not have it: that slot will not open the state any more")
	return func(ctx context.Context, _ []string) error {
		j, err := c.beginKeys(ctx)
		if err != nil {
			return err
		}
		defer j.close()
		look, done := c.lookAtTPM(ctx, j.report, j.config)
		defer done()
		// What cannot work is refused before anybody types a key.
		plan, err := c.planEnrolment(ctx, j, look)
		if err != nil {
			return err
		}
		rolls := rollsKey(look.Tokens(ctx, j.Header))
		if rolls && !*burn {
			if err := c.noSlotLeft(j.report, fingerprint(look.PublicKey)); err != nil {
				return err
			}
		}
		key, err := c.allow(ctx, a, j.Header)
		if err != nil {
			return err
		}
		defer clear(key)
		with := change(key)
		if with.PIN, err = c.newPIN(ctx, *pinFile, j.config); err != nil {
			return err
		}
		defer clear(with.PIN)
		if err := c.hold(ctx, j); err != nil {
			return err
		}
		h, enrolled, err := plan(j.Header, with)
		if err != nil {
			return err
		}
		if err := j.Apply(h, rand.Reader); err != nil {
			return err
		}
		c.result.Data = enrolled
		c.tellEnrolled(j.config, enrolled)
		if rolls || len(j.report.TPM.RecordKeys) > 0 {
			c.say("the TPM's records of this machine move to the present PCR policy key at the next boot of a committed slot: restart before you install an image without the previous one")
		}
		if f := j.report.Floor; f != nil && !f.Known {
			c.say("the rollback floor is not known: the next boot asks for the recovery key once more, and sets it")
		}
		if j.report.State.Pinned == report.PinnedNo {
			c.say("the TPM does not have this volume for the machine's own: the next boot asks for the recovery key once more, and pins it")
		}
		return nil
	}
}

// enrolment makes the header with the TPM's new keyslot.
type enrolment func(*luks2.Header, volume.Change) (*luks2.Header, volume.Enrolled, error)

// planEnrolment decides what to seal to, and refuses what would not open at the
// next boot.
func (c *command) planEnrolment(ctx context.Context, j *keyJob, look volume.Look) (enrolment, error) {
	if !slices.Contains(j.config.State.Unlock, config.UnlockTPM2) {
		return nil, fmt.Errorf("cannot enrol the TPM: state.unlock of this image lacks tpm2: %w", bootset.ErrRefused)
	}
	policy, err := look.Policy(ctx, j.config, enrol.Path(j.report.BootPath))
	if err != nil {
		return nil, fmt.Errorf("cannot enrol the TPM: %w", err)
	}
	if j.report.State.Unlocked == "tpm2" {
		for _, t := range look.Tokens(ctx, j.Header) {
			if t.ID == j.report.State.Token && t.NextBoot == volume.No && !t.OpensNow {
				return nil, fmt.Errorf("cannot enrol the TPM: token %d opened this boot, and would not open the next one (%s): %w", t.ID, t.Why, volume.ErrPCRs)
			}
		}
	}
	return func(h *luks2.Header, change volume.Change) (*luks2.Header, volume.Enrolled, error) {
		return look.Enroll(ctx, h, policy, change)
	}, nil
}

func (c *command) tellEnrolled(cfg config.Config, e volume.Enrolled) {
	for _, r := range e.Replaced {
		if r.NextBoot == volume.Yes {
			c.say("token %d is replaced; it was still good", r.Token)
		} else {
			c.say("token %d is replaced: %s", r.Token, r.Why)
		}
	}
	for _, id := range e.Kept {
		c.say("token %d was made by others and stays; sealroot state remove takes its keyslot away", id)
	}
	if perSlot(cfg) && slices.ContainsFunc(e.Replaced, func(r volume.Replaced) bool { return r.NextBoot == volume.No }) {
		c.say("a token for another slot's image, if one was among them, is gone too: sealroot state prepare-update seals the state to that slot")
	}
	c.say("the TPM opens the volume from the next boot on: keyslot %d, token %d, %s", e.Keyslot, e.Token, e.Policy)
}

// newRecoveryKey puts a new recovery key in the place of the old one and keeps it in
// the volume, where the command shows it once.
func (c *command) newRecoveryKey(ctx context.Context, a authority) error {
	j, err := c.beginKeys(ctx)
	if err != nil {
		return err
	}
	defer j.close()
	if !slices.Contains(j.config.State.Unlock, config.UnlockRecoveryKey) {
		return fmt.Errorf("cannot enrol a recovery key: state.unlock of this image lacks recovery-key, so no boot would ask for it: %w", bootset.ErrRefused)
	}
	key, err := c.allow(ctx, a, j.Header)
	if err != nil {
		return err
	}
	defer clear(key)
	if err := c.hold(ctx, j); err != nil {
		return err
	}
	fresh, err := luks2.GenerateRecoveryKey(rand.Reader)
	if err != nil {
		return err
	}
	defer clear(fresh)
	h, keyslot, err := change(key).RecoveryKey(j.Header, fresh)
	if err != nil {
		return err
	}
	escrowed := kept(c.env.escrow())
	if err := recovery.ForgetEscrow(c.env.escrow()); err != nil {
		return err
	}
	// crash point: the old key still opens, and nobody is told of an escrow
	if err := c.replaceKept(j, c.env.Key, fresh, h); err != nil {
		return err
	}
	fmt.Fprintf(c.stderr, "sealroot: a new recovery key opens keyslot %d; the old one opens nothing on this disk any more, only older copies of it\n", keyslot)
	if escrowed {
		fmt.Fprintln(c.stderr, "sealroot: the escrow of the old one was deleted, the new one is in no escrow: write it down")
	}
	return nil
}

// replaceKept changes the header and the key that is kept for it: see recovery.
func (c *command) replaceKept(j *keyJob, path string, key []byte, h *luks2.Header) error {
	if err := recovery.Prepare(path, key); err != nil {
		return err
	}
	// crash point: the new file opens nothing yet
	if err := j.Apply(h, rand.Reader); err != nil {
		return err
	}
	// crash point: it waits under its other name
	return recovery.Publish(path)
}

// settleRecoveryKey gives a recovery key its name that a power cut kept from it,
// if it opens the volume, and deletes it if it does not.
func (c *command) settleRecoveryKey(ctx context.Context) error {
	if !kept(recovery.Pending(c.env.Key)) {
		return nil
	}
	im, err := volume.Open(ctx, c.env.State, false)
	if err != nil {
		return err
	}
	defer im.Close()
	waiting, err := recovery.Read(recovery.Pending(c.env.Key))
	if err != nil {
		return err
	}
	defer clear(waiting)
	key, err := c.open(im.Header, waiting)
	clear(key)
	if errors.Is(err, luks2.ErrKDFCost) {
		return err // it is not known
	}
	if err != nil { // of a change that never was
		return recovery.Drop(c.env.Key)
	}
	return recovery.Publish(c.env.Key)
}

// minPassphrase is the shortest passphrase that is enrolled, in bytes.
const minPassphrase = 8

func passphrase(c *command) action {
	a := authorityOptions(c, "old-passphrase-file")
	file := c.flags.String("passphrase-file", "", "file with the new passphrase, - for standard input; without it a person types it twice")
	add := c.flags.Bool("add", false, "keep the passphrases that are there")
	return func(ctx context.Context, _ []string) error {
		j, err := c.beginKeys(ctx)
		if err != nil {
			return err
		}
		defer j.close()
		if !slices.Contains(j.config.State.Unlock, config.UnlockPassphrase) {
			return fmt.Errorf("cannot enrol a passphrase: state.unlock of this image lacks passphrase, so no boot would ask for it: %w", bootset.ErrRefused)
		}
		old := volume.Of(j.Header, volume.Passphrase)
		if *add {
			old = nil
		}
		if len(old) > 1 {
			return fmt.Errorf("cannot tell which passphrase to replace, keyslots %v have one; --add keeps them, sealroot state remove takes one away: %w", old, bootset.ErrRefused)
		}
		key, err := c.allow(ctx, a, j.Header)
		if err != nil {
			return err
		}
		defer clear(key)
		fresh, err := c.newPassphrase(ctx, *file)
		if err != nil {
			return err
		}
		defer clear(fresh)
		if err := c.hold(ctx, j); err != nil {
			return err
		}
		// At the next boot as much is free as now, or more.
		h, keyslot, err := change(key).Passphrase(j.Header, fresh, volume.Budget(c.env.Meminfo).MemoryKiB/2, old)
		if err != nil {
			return err
		}
		if err := j.Apply(h, rand.Reader); err != nil {
			return err
		}
		c.result.Data = map[string]any{"keyslot": keyslot, "replaced": append([]int{}, old...)}
		c.say("the passphrase opens keyslot %d", keyslot)
		return nil
	}
}

// newPassphrase takes it from a file, or from a person twice.
func (c *command) newPassphrase(ctx context.Context, file string) (fresh []byte, err error) {
	if file != "" {
		fresh, err = secret.FromFile(file, c.env.Stdin)
	} else {
		fresh, err = c.typedTwice(ctx, "passphrase", "--passphrase-file")
	}
	if err == nil && len(fresh) < minPassphrase {
		err = fmt.Errorf("the passphrase has less than %d bytes: %w", minPassphrase, secret.ErrForm)
	}
	if err == nil && slices.ContainsFunc(fresh, func(b byte) bool { return b < ' ' || b == 0x7f }) {
		err = fmt.Errorf("the passphrase has a byte that no prompt takes: %w", secret.ErrForm)
	}
	if err != nil {
		clear(fresh)
		return nil, err
	}
	return fresh, nil
}

// minPIN is the shortest PIN that is enrolled, in bytes, as at the first boot.
const minPIN = 4

func pinOption(c *command) *string {
	return c.flags.String("pin-file", "", "with state.tpm2.pin: file with the TPM's new PIN, - for standard input; without it a person types it twice")
}

// newPIN takes a new PIN, where the configuration wants one, from a file or from a
// person.
func (c *command) newPIN(ctx context.Context, file string, cfg config.Config) (pin []byte, err error) {
	switch {
	case !cfg.State.TPM2.PIN && file != "":
		return nil, fmt.Errorf("%w: --pin-file, and state.tpm2.pin of this image is not set", errUsage)
	case !cfg.State.TPM2.PIN:
		return nil, nil
	case file != "":
		pin, err = secret.FromFile(file, c.env.Stdin)
	default:
		pin, err = c.typedTwice(ctx, "PIN", "--pin-file")
	}
	if err == nil && len(pin) < minPIN {
		err = fmt.Errorf("the PIN has less than %d bytes: %w", minPIN, secret.ErrForm)
	}
	if err != nil {
		clear(pin)
		return nil, err
	}
	return pin, nil
}

// typedTwice asks a person for a new secret; option is what would take it from a file.
func (c *command) typedTwice(ctx context.Context, what, option string) ([]byte, error) {
	tty, err := c.env.TTY()
	if err != nil {
		return nil, fmt.Errorf("%w: %w; %s takes it from a file", secret.ErrTerminal, err, option)
	}
	defer tty.Close()
	first, err := secret.Ask(ctx, tty, "New "+what+" (it is not shown): ")
	if err != nil {
		return nil, err
	}
	second, err := secret.Ask(ctx, tty, "The same once more: ")
	defer clear(second)
	if err == nil && !slices.Equal(first, second) {
		err = fmt.Errorf("the two are not the same; nothing was changed: %w", secret.ErrForm)
	}
	if err != nil {
		clear(first)
		return nil, err
	}
	return first, nil
}

func removeKeyslot(c *command) action {
	a := authorityOptions(c, "passphrase-file")
	return func(ctx context.Context, words []string) error {
		j, err := c.beginKeys(ctx)
		if err != nil {
			return err
		}
		defer j.close()
		var ids []int
		kind := volume.Kind(words[0])
		if slices.Contains(volume.Kinds(), kind) {
			ids = volume.Of(j.Header, kind)
		} else if id, err := strconv.Atoi(words[0]); err == nil {
			ids = []int{id}
		} else {
			return fmt.Errorf("%w: %q is neither a keyslot nor tpm2, recovery, passphrase or manage", errUsage, words[0])
		}
		recoveries, manages := volume.Of(j.Header, volume.Recovery), volume.Of(j.Header, volume.Manage)
		look, done := c.lookAtTPM(ctx, j.report, j.config)
		ways := volume.Ways{KeyFile: slices.Contains(j.config.State.Unlock, config.UnlockKeyFile)}
		if slices.Contains(j.config.State.Unlock, config.UnlockTPM2) {
			ways.Dead = look.Dead(ctx, j.Header)
		} else {
			for _, t := range j.Header.Tokens() { // none of them is tried
				ways.Dead = append(ways.Dead, t.ID)
			}
		}
		done()
		if _, err := volume.Remove(j.Header, ids, ways); err != nil {
			return err
		}
		key, err := c.allow(ctx, a, j.Header)
		if err != nil {
			return err
		}
		clear(key)
		if err := c.hold(ctx, j); err != nil {
			return err
		}
		h, err := volume.Remove(j.Header, ids, ways)
		if err != nil {
			return err
		}
		allGo := func(was []int) bool {
			return len(was) > 0 && !slices.ContainsFunc(was, func(id int) bool { return !slices.Contains(ids, id) })
		}
		if allGo(recoveries) {
			if err := recovery.ForgetEscrow(c.env.escrow()); err != nil {
				return err
			}
		}
		if err := j.Apply(h, rand.Reader); err != nil {
			return err
		}
		// crash point: a kept key that opens nothing
		for path, was := range map[string][]int{c.env.Key: recoveries, c.env.manageKey(): manages} {
			if allGo(was) {
				err = errors.Join(err, recovery.Forget(path))
			}
		}
		c.result.Data = map[string]any{"removed": ids}
		c.say("keyslots %v are gone on this disk, and were overwritten; older copies of it still open with their keys", ids)
		left := volume.Left(h, ways)
		c.say("the volume is opened by: %s", strings.Join(left, ", "))
		if len(left) == 1 {
			c.say("WARNING: when that is lost, so is the state")
		}
		return err
	}
}

func rekey(c *command) action {
	a := authorityOptions(c, "passphrase-file")
	pinFile := pinOption(c)
	return func(ctx context.Context, _ []string) error {
		j, err := c.beginKeys(ctx)
		if err != nil {
			return err
		}
		defer j.close()
		look, done := c.lookAtTPM(ctx, j.report, j.config)
		defer done()
		var plan enrolment
		if slices.Contains(j.config.State.Unlock, config.UnlockTPM2) {
			if plan, err = c.planEnrolment(ctx, j, look); err != nil {
				return err
			}
		}
		if plan == nil && !j.config.State.ManageKey {
			return fmt.Errorf("there is nothing to rotate: neither tpm2 in state.unlock nor state.manage_key: %w", bootset.ErrRefused)
		}
		key, err := c.allow(ctx, a, j.Header)
		if err != nil {
			return err
		}
		defer clear(key)
		with := change(key)
		if plan != nil {
			if with.PIN, err = c.newPIN(ctx, *pinFile, j.config); err != nil {
				return err
			}
			defer clear(with.PIN)
		}
		if err := c.hold(ctx, j); err != nil {
			return err
		}
		h := j.Header
		var enrolled *volume.Enrolled
		if plan != nil {
			var e volume.Enrolled
			if h, e, err = plan(h, with); err != nil {
				return err
			}
			enrolled = &e
		}
		data := map[string]any{"tpm2": enrolled}
		if !j.config.State.ManageKey {
			err = j.Apply(h, rand.Reader)
		} else {
			var keyslot int
			if keyslot, err = c.rotateManageKey(j, h, key); err == nil {
				data["manage_keyslot"] = keyslot
				c.say("a new manage key opens keyslot %d", keyslot)
			}
		}
		if err != nil {
			return err
		}
		c.result.Data = data
		if enrolled != nil {
			c.tellEnrolled(j.config, *enrolled)
		}
		return nil
	}
}

// rotateManageKey applies h with a new manage key.
func (c *command) rotateManageKey(j *keyJob, h *luks2.Header, key []byte) (int, error) {
	manage, err := enrol.NewManageKey(rand.Reader)
	if err != nil {
		return 0, err
	}
	defer clear(manage)
	h, keyslot, err := change(key).ManageKey(h, manage)
	if err != nil {
		return 0, err
	}
	return keyslot, c.replaceKept(j, c.env.manageKey(), manage, h)
}
