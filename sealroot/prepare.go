package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/machine"
	"sealroot/sealroot/volume"
	"sealroot/slots"
	"sealroot/slots/manifest"
	"sealroot/state/enrol"
	"sealroot/state/luks2"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/predict"
)

// foreteller is a machine of which it can be computed what its boot loader will
// measure.
type foreteller interface {
	// GRUB is how EFI GRUB loads kernels there, and the files of the slots.
	GRUB() (predict.GRUB, map[string]predict.BootFiles, error)
	// Manifest is a slot's signed manifest, by the certificates in the folder trust.
	Manifest(slot, trust string) (manifest.Manifest, error)
}

var _ foreteller = (*machine.Machine)(nil)

// foretold lists the PCRs that can be foretold.
func foretold() []int { return []int{predict.PCRGRUBCommands, predict.PCRGRUBFiles} }

// errNotForetold: what the next image's PCRs are is not known.
var errNotForetold = errors.New("its PCRs cannot be foretold")

// foresees says why PCRs of other images cannot be foretold, if so.
func foresees(cfg config.Config, path enrol.Path) error {
	changes := cfg.PerImage(cfg.State.TPM2.PCRs)
	switch {
	case cfg.State.TPM2.Policy == config.PolicySignedPCR11And4, cfg.Boot.Loader != config.LoaderGRUB:
		// The pin of the volume lies under the same policy, and there nobody adopts a
		// volume that is not pinned (enrol.Adopts).
		return fmt.Errorf("%w: only those of EFI GRUB are; a token alone would not do, as the TPM's record of this volume is bound to the same PCRs, and the image itself writes it, once a person has opened the volume for it", errNotForetold)
	case path != enrol.GRUBEFI:
		return fmt.Errorf("%w: this machine was not started by EFI GRUB", errNotForetold)
	case slices.ContainsFunc(changes, func(pcr int) bool { return !slices.Contains(foretold(), pcr) }):
		return fmt.Errorf("%w: of state.tpm2.pcrs only %v can", errNotForetold, foretold())
	}
	return nil
}

// tokensPerImage says that each image takes a token of its own here, and that the PCRs
// which that is sealed to can be foretold.
func tokensPerImage(cfg config.Config, r report.Report) bool {
	return r.State.UUID != "" && slices.Contains(cfg.State.Unlock, config.UnlockTPM2) &&
		len(cfg.PerImage(cfg.State.TPM2.PCRs)) > 0 && foresees(cfg, enrol.Path(r.BootPath)) == nil
}

// preparation is a new secret for a boot that is to come, all decided.
type preparation struct {
	slot   string
	at     volume.Foreseen
	header *luks2.Header // that it was decided by
	look   volume.Look
	policy tpm.Policy
	retire []int // tokens that no slot needs any more
	// ready is the token that opens that boot already, -1 for none.
	ready int
	done  func() // lets go of the TPM
}

// prepared is what was done about a boot that is to come.
type prepared struct {
	Slot    string `json:"slot"`
	Version string `json:"version,omitempty"`
	// Already: a token for it was there.
	Already bool `json:"already"`
	Token   int  `json:"token"` // -1: none is needed
	*volume.Enrolled
}

// prepare decides how a slot's boot will open the state, when the slot has the files:
// which token does, or what a new one is sealed to. The caller calls done.
func (c *command) prepare(ctx context.Context, m Machine, r report.Report, slot string, files predict.BootFiles) (p *preparation, err error) {
	cfg, err := c.env.configuration()
	if err != nil {
		return nil, err
	}
	if err := foresees(cfg, enrol.Path(r.BootPath)); err != nil {
		return nil, err
	}
	p = &preparation{slot: slot, ready: -1}
	p.look, p.done = c.lookAtTPM(ctx, r, cfg)
	defer func() {
		if err != nil {
			p.done()
			p = nil
		}
	}()
	im, err := c.readHeader(ctx)
	if err != nil {
		return p, err
	}
	p.header = im.Header
	if p.policy, err = p.look.Policy(ctx, cfg, enrol.Path(r.BootPath)); err != nil {
		return p, err
	}
	kept, f, err := c.foresee(ctx, m, r, p.look.TPM)
	if err != nil {
		return p, err
	}
	if p.at, err = f.Values(slot, files); err != nil {
		return p, err
	}
	if id, ok := p.look.OpenedBy(ctx, p.header, p.at); ok {
		p.ready = id
		return p, nil
	}
	// A keyslot more for every image would fill the header.
	p.retire, err = p.look.Unused(ctx, p.header, p.policy, append(kept, p.at))
	return p, err
}

// foresee computes what the kernels of the slots find in the PCRs: first that of this
// boot, then those of the other slots that boot. It is believed because it gives the
// PCRs of this boot. Errors: predict.ErrGRUB.
func (c *command) foresee(ctx context.Context, m Machine, r report.Report, dev *tpm.TPM) (kept []volume.Foreseen, g predict.GRUB, err error) {
	f, ok := m.(foreteller)
	if !ok {
		return nil, g, fmt.Errorf("this disk does not say what GRUB loads: %w", errNotForetold)
	}
	g, files, err := f.GRUB()
	if err != nil {
		return nil, g, err
	}
	present, err := dev.ReadPCRs(ctx, pcrsig.SHA256, foretold())
	if err != nil {
		return nil, g, err
	}
	loaded := r.Slot.Loaded
	if _, ok := files[loaded]; !ok {
		return nil, g, fmt.Errorf("slot %q, whose kernel runs, has no kernel: %w", loaded, errNotForetold)
	}
	if g, err = predict.LocateGRUB(g, loaded, files[loaded], present); err != nil {
		return nil, g, err
	}
	list, err := m.Slots()
	if err != nil {
		return nil, g, err
	}
	kept = []volume.Foreseen{present}
	for _, s := range list {
		one, ok := files[s.Name]
		if s.Name == loaded || !ok || s.State() == slots.Unbootable {
			continue
		}
		values, err := g.Values(s.Name, one)
		if err != nil {
			return nil, g, err
		}
		kept = append(kept, values)
	}
	return kept, g, nil
}

// enrolNext seals the new secret and makes it a way into the volume. The caller holds
// the lock. A power cut leaves the old header or the new one, in which all that opened
// the volume for a slot still does.
func (c *command) enrolNext(ctx context.Context, p *preparation, with volume.Change) (volume.Enrolled, error) {
	im, err := volume.Open(ctx, c.env.State, true)
	if err != nil {
		return volume.Enrolled{}, err
	}
	defer im.Close()
	if !sameHeader(p.header, im.Header) {
		return volume.Enrolled{}, fmt.Errorf("cannot change keyslots: %w: %w", errChanged, bootset.ErrRefused)
	}
	if err := c.settleManageKey(im.Header); err != nil {
		return volume.Enrolled{}, err
	}
	h, e, err := p.look.Prepare(ctx, im.Header, p.policy, p.at, p.retire, with)
	if err == nil {
		err = im.Apply(h, rand.Reader)
	}
	if err != nil {
		return volume.Enrolled{}, fmt.Errorf("cannot seal the state to the next boot of slot %s: %w", p.slot, err)
	}
	for _, r := range e.Replaced {
		c.say("token %d is removed: %s", r.Token, r.Why)
	}
	c.say("slot %s: the TPM opens the state for its kernel too: keyslot %d, token %d, %s", p.slot, e.Keyslot, e.Token, e.Policy)
	return e, nil
}

// alone finds the volume key without a person: with a key that was given, or the
// manage key. The caller wipes it. Errors: errNoAuthority.
func (c *command) alone(ctx context.Context, a authority, h *luks2.Header) ([]byte, error) {
	if *a.recovery != "" || *a.passphrase != "" {
		return c.allow(ctx, a, h)
	}
	if key := c.allowByManageKey(h); key != nil {
		return key, nil
	}
	return nil, errNoAuthority
}

// update makes the state open for an image that is about to be installed.
type update struct {
	*preparation
	key []byte // of the volume
}

// close wipes the key.
func (u *update) close() {
	if u.preparation != nil {
		clear(u.key)
		u.done()
	}
}

// decide refuses a slot's image that could not open the state, or finds out how it is
// made to, without a change. Errors: bootset.ErrRefused.
func (u *update) decide(ctx context.Context, c *command, m Machine, r report.Report, a authority, slot string, set manifest.Manifest) error {
	err := c.stateOpens(ctx, r, set)
	if !errors.Is(err, errPerImage) {
		return err
	}
	refuse := func(why error) error { return fmt.Errorf("%w; %w: %w", err, why, bootset.ErrRefused) }
	files, why := c.foreseeable(r, set)
	if why != nil {
		return refuse(why)
	}
	p, why := c.prepare(ctx, m, r, slot, files)
	if why != nil {
		return refuse(why)
	}
	if p.ready < 0 {
		switch {
		case p.look.PIN:
			why = errors.New("sealroot state prepare-update seals it to that image before, and asks for a PIN")
		default:
			u.key, why = c.alone(ctx, a, p.header)
			if errors.Is(why, errNoAuthority) {
				why = errors.New("to seal it to that image too takes a key: give --recovery-key-file or --passphrase-file, run sealroot state prepare-update before, which asks for one, or set state.manage_key")
			}
		}
		if why != nil {
			p.done()
			return refuse(why)
		}
	}
	u.preparation = p
	return nil
}

// ready enrols what was decided, before the slot changes.
func (u *update) ready(ctx context.Context, c *command) error {
	if u.preparation == nil || u.preparation.ready >= 0 {
		return nil
	}
	_, err := c.enrolNext(ctx, u.preparation, change(u.key))
	return err
}

// foreseeable are the files of a set by which its PCRs are foretold, where they can be.
func (c *command) foreseeable(r report.Report, set manifest.Manifest) (predict.BootFiles, error) {
	cfg, err := c.env.configuration()
	if err == nil {
		err = foresees(cfg, enrol.Path(r.BootPath))
	}
	files, ok := bootFiles(set)
	if err == nil && !ok {
		err = fmt.Errorf("it has no kernel and initramfs for GRUB: %w", errNotForetold)
	}
	return files, err
}

// bootFiles are what GRUB loads of a set.
func bootFiles(m manifest.Manifest) (f predict.BootFiles, ok bool) {
	kernel, hasKernel := m.Part(manifest.Kernel)
	initrd, hasInitrd := m.Part(manifest.Initrd)
	return predict.BootFiles{Kernel: kernel.SHA256, Initrd: initrd.SHA256}, hasKernel && hasInitrd
}

// prepareCopy makes the state open for a copy of the running slot, which GRUB starts
// with other words. Where that cannot be done a person is told: the slot that runs is
// as good as before.
func (c *command) prepareCopy(ctx context.Context, m Machine, r report.Report, trust, slot string) error {
	cfg, err := c.env.configuration()
	if err != nil || !tokensPerImage(cfg, r) {
		return nil
	}
	err = func() error {
		files, err := signedFiles(m, r.Slot.Name, trust)
		if err != nil {
			return err
		}
		p, err := c.prepare(ctx, m, r, slot, files)
		if err != nil {
			return err
		}
		defer p.done()
		if p.ready >= 0 {
			return nil
		}
		none := ""
		key, err := c.alone(ctx, authority{&none, &none}, p.header)
		if err != nil {
			return err
		}
		defer clear(key)
		_, err = c.enrolNext(ctx, p, change(key))
		return err
	}()
	if err != nil {
		c.say("WARNING: slot %s will ask for a key when it boots: %v; sealroot state prepare-update --slot %s seals the state to it", slot, err, slot)
	}
	return nil
}

// signedFiles are what GRUB loads of a slot by its signed manifest. What is on the disk
// anybody may have put there, and the state must not be sealed to that.
func signedFiles(m Machine, slot, trust string) (predict.BootFiles, error) {
	f, ok := m.(foreteller)
	if !ok {
		return predict.BootFiles{}, fmt.Errorf("this disk does not say what GRUB loads: %w", errNotForetold)
	}
	set, err := f.Manifest(slot, trust)
	if err != nil {
		return predict.BootFiles{}, fmt.Errorf("cannot tell what slot %s has: %w", slot, err)
	}
	files, ok := bootFiles(set)
	if !ok {
		return files, fmt.Errorf("slot %s has no kernel and initramfs for GRUB: %w", slot, errNotForetold)
	}
	return files, nil
}

// dropUnused removes tokens for images that no slot has any more, after a commit. The
// slots that boot keep theirs, the one of before too: a rollback opens the state as
// ever. What goes wrong is told, and the next commit tries again.
func (c *command) dropUnused(ctx context.Context, t target) {
	r := t.report
	cfg, err := c.env.configuration()
	if err != nil || r.Degraded || !tokensPerImage(cfg, r) {
		return
	}
	if err := c.dropTokens(ctx, t, cfg); err != nil {
		c.say("tokens that no slot needs stay in the volume: %v", err)
	}
}

func (c *command) dropTokens(ctx context.Context, t target, cfg config.Config) error {
	im, err := volume.Open(ctx, c.env.State, true)
	if err != nil {
		return err
	}
	defer im.Close()
	if len(im.Header.TokensOfType(tpm.TokenType)) < 2 {
		return nil
	}
	look, done := c.lookAtTPM(ctx, t.report, cfg)
	defer done()
	policy, err := look.Policy(ctx, cfg, enrol.Path(t.report.BootPath))
	if err != nil {
		return err
	}
	kept, _, err := c.foresee(ctx, t.machine, t.report, look.TPM)
	if err != nil {
		return err
	}
	ids, err := look.Unused(ctx, im.Header, policy, kept)
	if err != nil || len(ids) == 0 {
		return err
	}
	h, err := im.Header.Retire(ids, nil)
	if err == nil {
		err = im.Apply(h, rand.Reader)
	}
	if err != nil {
		return err
	}
	c.say("tokens %v are removed: no slot has the images that they were for", ids)
	return nil
}
