package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"sealroot/bounded"
	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/recovery"
	"sealroot/sealroot/secret"
	"sealroot/sealroot/volume"
	"sealroot/state/enrol"
	"sealroot/state/layout"
	"sealroot/state/luks2"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/predict"
)

// errNoAuthority: nothing was given that opens the volume, and nobody can be asked.
var errNoAuthority = errors.New("this needs a key that opens the volume: " +
	"--recovery-key-file, --passphrase-file, a terminal to ask at, or state.manage_key")

// authority are the options that say with which key keyslots are changed.
type authority struct{ recovery, passphrase *string }

// authorityOptions declares them; passphrase is the name of the second one.
func authorityOptions(c *command, passphrase string) authority {
	return authority{
		c.flags.String("recovery-key-file", "", "file with the recovery key that allows this, - for standard input"),
		c.flags.String(passphrase, "", "file with a passphrase that allows this, - for standard input"),
	}
}

// given tells whether one was named, and nobody has to be asked.
func (a authority) given() bool { return *a.recovery != "" || *a.passphrase != "" }

// errChanged: somebody changed the header while a person was asked.
var errChanged = errors.New("the header of the volume was changed meanwhile; run the command again")

// keyJob is one command on the header of the volume. Nobody is kept out until hold:
// a person may take minutes, and the command that ends a trial in time waits then.
type keyJob struct {
	*volume.Image
	report  report.Report
	config  config.Config
	release func() // nil before hold
}

func (j *keyJob) close() {
	if j.release != nil {
		j.release()
	}
}

// beginKeys reads the header that is to be changed. Refused in a boot without the
// volume: the file is not known to be this machine's then.
func (c *command) beginKeys(ctx context.Context) (*keyJob, error) {
	r, err := c.booted()
	if err != nil {
		return nil, err
	}
	switch {
	case r.Degraded:
		return nil, fmt.Errorf("cannot change keyslots: this boot is degraded, the encrypted volume is not open; sealroot state unlock opens it, or restart, and open it at the prompt: %w", bootset.ErrRefused)
	case r.State.UUID == "":
		return nil, fmt.Errorf("cannot change keyslots: this boot has no encrypted volume: %w", bootset.ErrRefused)
	}
	im, err := c.readHeader(ctx)
	if err != nil {
		return nil, err
	}
	if im.Header.UUID() != r.State.UUID {
		return nil, fmt.Errorf("cannot change keyslots: the volume on the disk is %s, the one that is open is %s: %w", im.Header.UUID(), r.State.UUID, bootset.ErrRefused)
	}
	j := &keyJob{Image: im, report: r}
	if j.config, err = c.env.configuration(); err != nil {
		return nil, err
	}
	return j, nil
}

// readHeader reads the header and locks nobody out.
func (c *command) readHeader(ctx context.Context) (*volume.Image, error) {
	im, err := volume.Open(ctx, c.env.State, false)
	if err != nil {
		return nil, err
	}
	return im, im.Close()
}

// hold keeps other commands out from here on, and opens the header for a change.
// Errors: bootset.ErrRefused when it is not what it was.
func (c *command) hold(ctx context.Context, j *keyJob) error {
	unlock, err := lock(ctx, c.env.Lock)
	if err != nil {
		return err
	}
	im, err := volume.Open(ctx, c.env.State, true)
	if err != nil {
		unlock()
		return err
	}
	before := j.Header
	j.Image, j.release = im, func() { im.Close(); unlock() }
	if !sameHeader(before, im.Header) {
		return fmt.Errorf("cannot change keyslots: %w: %w", errChanged, bootset.ErrRefused)
	}
	return c.settleManageKey(im.Header)
}

func sameHeader(a, b *luks2.Header) bool {
	return a.UUID() == b.UUID() && a.SequenceID() == b.SequenceID()
}

// configuration is that of this boot, as its boot path vouched for it; members of a
// newer one are ignored.
func (e Env) configuration() (config.Config, error) {
	var c config.Config
	text, err := readSmall(e.Config)
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil {
		return config.Config{}, fmt.Errorf("cannot read the configuration of this boot: %w", err)
	}
	return c.WithDefaults(), nil
}

func readSmall(path string) ([]byte, error) { return bounded.ReadFile(path, maxSmall) }

// lookAtTPM opens the TPM, if there is one, and finds out what the image that runs
// measures. The caller calls done.
func (c *command) lookAtTPM(ctx context.Context, r report.Report, cfg config.Config) (look volume.Look, done func()) {
	look = volume.Look{AllowUncapped: cfg.State.TPM2.AllowUncapped, PIN: cfg.State.TPM2.PIN, Kernel: map[tpm.Bank][]byte{}}
	if text, err := readSmall(c.env.PCRKey); err == nil {
		look.PublicKey = text
	}
	for _, name := range cfg.State.TPM2.PreviousKeys {
		if text, err := readSmall(filepath.Join(c.env.PCRKeys, name)); err == nil {
			look.PreviousKeys = append(look.PreviousKeys, text)
		}
	}
	dev, err := c.env.OpenTPM(ctx)
	if err != nil {
		look.Why = err.Error()
		return look, func() {}
	}
	look.TPM = dev
	c.kernelPCR(ctx, dev, r, slices.Contains(cfg.State.TPM2.PCRs, pcrsig.PCRKernel), look.Kernel)
	return look, func() { dev.Close() }
}

// kernelPCR finds out what PCR 11 is while PID 1 of the image that runs works; what
// cannot be found out is left out. Under a unified kernel image that takes the ESP
// and a pass over the image, and is only done where fixed values of it are in use.
// An image that gives another PCR 11 than the present one is not what was booted.
func (c *command) kernelPCR(ctx context.Context, dev *tpm.TPM, r report.Report, fixed bool, into map[tpm.Bank][]byte) {
	var im predict.Image
	if enrol.Path(r.BootPath) == enrol.UKI || enrol.Path(r.BootPath) == enrol.UKISecureBoot {
		if !fixed {
			return
		}
		m, err := c.env.Open(Where{Report: r})
		if err != nil {
			return
		}
		defer m.Close()
		p, ok := m.(predictor)
		if !ok {
			return
		}
		if im, err = p.Image(); err != nil || len(im.Sections) == 0 {
			return
		}
	}
	for _, bank := range pcrsig.Banks() {
		hash, err := bank.Hash()
		if err != nil {
			continue
		}
		value := make([]byte, hash.Size())
		if len(im.Sections) > 0 {
			if value, err = pcrsig.PCR11(bank, im.Sections, pcrsig.PhaseEnterInitrd); err != nil {
				continue
			}
			now, err := dev.ReadPCRs(ctx, bank, []int{pcrsig.PCRKernel})
			if err != nil || !leadsTo(bank, value, now[pcrsig.PCRKernel]) {
				continue
			}
		}
		into[bank] = value
	}
}

// leadsTo tells whether a PCR 11 with this value in the initramfs has become now.
func leadsTo(bank tpm.Bank, initrd, now []byte) bool {
	booted, err := pcrsig.Extend(bank, initrd, pcrsig.PhaseLeaveInitrd, pcrsig.WordCapped)
	if err != nil {
		return false
	}
	_, ok := predict.Later(bank, hex.EncodeToString(booted), hex.EncodeToString(now))
	return ok
}

// escrow is the path of the escrowed recovery key.
func (e Env) escrow() string { return filepath.Join(e.State, layout.Escrow) }

// manageKey is the path of the manage key.
func (e Env) manageKey() string { return filepath.Join(e.volume(), layout.ManageKey) }

// allow finds the volume key with what was given, the manage key, or what a person
// types. The caller wipes it.
func (c *command) allow(ctx context.Context, a authority, h *luks2.Header) ([]byte, error) {
	switch {
	case *a.recovery != "" && *a.passphrase != "":
		return nil, fmt.Errorf("%w: one key is enough", errUsage)
	case *a.recovery != "":
		given, err := secret.FromFile(*a.recovery, c.env.Stdin)
		if err != nil {
			return nil, err
		}
		defer clear(given)
		form, err := luks2.NormalizeRecoveryKey(given)
		if err != nil {
			return nil, fmt.Errorf("cannot use what --recovery-key-file names: %w", err)
		}
		clear(form)
		return c.open(h, given)
	case *a.passphrase != "":
		given, err := secret.FromFile(*a.passphrase, c.env.Stdin)
		if err != nil {
			return nil, err
		}
		defer clear(given)
		return c.open(h, given)
	}
	if key := c.allowByManageKey(h); key != nil {
		return key, nil
	}
	return c.allowByPerson(ctx, h)
}

func (c *command) open(h *luks2.Header, given []byte) ([]byte, error) {
	key, _, err := h.Authorize(given, volume.Budget(c.env.Meminfo))
	return key, err
}

// allowByManageKey takes the manage key, also one of a change that was cut short.
func (c *command) allowByManageKey(h *luks2.Header) []byte {
	path := c.env.manageKey()
	for _, p := range []string{path, recovery.Pending(path)} {
		manage, err := recovery.Read(p)
		if errors.Is(err, recovery.ErrNone) {
			continue
		}
		if err != nil {
			fmt.Fprintf(c.stderr, "sealroot: the manage key is not used: %v\n", err)
			continue
		}
		key := unlockManage(h, manage)
		clear(manage)
		if key != nil {
			return key
		}
	}
	return nil
}

func unlockManage(h *luks2.Header, manage []byte) []byte {
	for _, keyslot := range volume.Of(h, volume.Manage) {
		if key, err := h.Unlock(keyslot, manage); err == nil {
			return key
		}
	}
	return nil
}

// settleManageKey gives a manage key its name that a power cut kept from it, if it
// opens the volume.
func (c *command) settleManageKey(h *luks2.Header) error {
	path := c.env.manageKey()
	if !kept(recovery.Pending(path)) {
		return nil
	}
	manage, err := recovery.Read(recovery.Pending(path))
	if err != nil {
		return err
	}
	key := unlockManage(h, manage)
	clear(manage)
	if key == nil {
		return nil // of a change that never was
	}
	clear(key)
	return recovery.Publish(path)
}

// askTries is how often a person may type.
const askTries = 3

func (c *command) allowByPerson(ctx context.Context, h *luks2.Header) ([]byte, error) {
	tty, err := c.env.TTY()
	if err != nil {
		return nil, fmt.Errorf("%w: %w: %w", errNoAuthority, secret.ErrTerminal, err)
	}
	defer tty.Close()
	for range askTries {
		var typed, key []byte
		if typed, err = secret.Ask(ctx, tty, "Recovery key or passphrase of the volume (it is not shown): "); err != nil {
			return nil, err
		}
		key, err = c.open(h, typed)
		clear(typed)
		if !errors.Is(err, luks2.ErrPassphrase) {
			return key, err
		}
		fmt.Fprintln(tty, "That does not open the volume.")
	}
	return nil, err
}

// change is a change of the header with the volume key.
func change(key []byte) volume.Change { return volume.Change{VolumeKey: key, Rand: rand.Reader} }

// terminal opens the terminal that the command was started at.
func terminal() (*os.File, error) { return os.OpenFile("/dev/tty", os.O_RDWR, 0) }

// kept says whether a file is there.
func kept(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
