package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/install"
	"sealroot/slots"
	"sealroot/slots/manifest"
	"sealroot/state/enrol"
	"sealroot/verity/signature"
)

// installer is a machine whose slots can be written and read as a whole.
type installer interface {
	Machine
	Install(changed func(place, slot string)) (install.Machine, error)
	// Tries is boot.tries of the configuration, Replicates whether boot.replicate
	// names an occasion.
	Tries() int
	Replicates(after string) bool
}

// long are the options of the commands that take minutes.
type long struct {
	trust    *string
	progress *bool
}

func longOptions(c *command) long {
	return long{
		c.flags.String("trust", report.RootCertificates, "folder with the certificates (*.crt) that vouch for images"),
		c.flags.Bool("progress", false, "show progress although standard error is no terminal"),
	}
}

// job is one run of such a command.
type job struct {
	machine install.Machine
	opened  installer
	report  report.Report
	running install.Running
	trust   string // folder with the certificates
	close   func()
}

// begin opens the machine and keeps other commands out.
func (c *command) begin(ctx context.Context, o long) (*job, error) {
	r, err := c.booted()
	if err != nil {
		return nil, err
	}
	certs, err := signature.LoadCertificates(os.DirFS(*o.trust))
	if err != nil {
		return nil, fmt.Errorf("cannot read the certificates in %s (--trust names another folder): %w", *o.trust, err)
	}
	unlock, err := lock(ctx, c.env.Lock)
	if err != nil {
		return nil, err
	}
	j, err := c.openJob(r, *o.progress)
	if err != nil {
		unlock()
		return nil, err
	}
	j.machine.Certs, j.trust, j.close = certs, *o.trust, unlock
	return j, nil
}

func (c *command) openJob(r report.Report, progress bool) (*job, error) {
	opened, err := c.env.Open(Where{Report: r, Write: true})
	if err != nil {
		return nil, err
	}
	m, ok := opened.(installer)
	if !ok {
		return nil, fmt.Errorf("this disk cannot be written as a whole: %w", bootset.ErrRefused)
	}
	j := &job{opened: m, report: r, running: install.Running{
		Boot:    bootset.Boot{Running: r.Slot.Name, Loaded: c.loaded(m), Degraded: r.Degraded},
		Name:    r.Name,
		Version: r.Root.ImageVersion, RootHash: r.Root.RootHash, SecurityVersion: r.Root.SecurityVersion,
		WasCommitted: r.Slot.Successful,
	}}
	if j.machine, err = m.Install(func(place, slot string) { c.say("slot %s: %s starts it now", slot, place) }); err != nil {
		return nil, err
	}
	j.machine.BeforeChange = c.unloadKernel
	if j.running.Floor, err = c.env.floorNow(r); err != nil {
		c.say("the rollback floor asked for cannot be read: %v", err)
	}
	record, err := m.Record()
	if err != nil {
		c.say("the boot log cannot be read: %v", err)
	}
	j.machine.Failures = record.SlotFailures()
	j.running.KernelDead = j.machine.Failures[r.Slot.Name].Reason == slots.KernelNeverReached
	j.machine.Say, j.machine.Progress = c.say, c.meter(progress)
	return j, nil
}

// meter shows progress to a person who watches, or who asked for it.
func (c *command) meter(asked bool) install.Progress {
	f, ok := c.stderr.(*os.File)
	terminal := ok && isTerminal(f)
	if !terminal && !asked {
		return install.Quiet{}
	}
	return &install.Meter{Out: c.stderr, Lines: !terminal, Now: time.Now}
}

func installImage(c *command) action {
	o := longOptions(c)
	slot := c.flags.String("slot", "", "slot to write; without it one that is not bootable, else the one of lowest priority")
	tries := c.flags.Int("tries", 0, "how often it is booted without a commit, 1 to 15 (default: boot.tries of the configuration)")
	force := c.flags.Bool("force", false, "take another image that has the version which runs")
	locked := c.flags.Bool("locked-state", false, "take an image that could not open the state by itself; without a key that somebody types its trial falls back")
	a := authorityOptions(c, "passphrase-file")
	again := c.flags.Bool("replicate-on-failure", false, "when writing fails, make the slot a copy of the running one (default: as boot.replicate of the configuration says)")
	return func(ctx context.Context, words []string) error {
		if f, ok := c.env.Stdin.(*os.File); words[0] == "-" && ok && isTerminal(f) {
			return fmt.Errorf("%w: - reads a tar from standard input, which is a terminal", errUsage)
		}
		if words[0] == "-" && (*a.recovery == "-" || *a.passphrase == "-") {
			return fmt.Errorf("%w: standard input is the image, the key comes from a file", errUsage)
		}
		j, err := c.begin(ctx, o)
		if err != nil {
			return err
		}
		defer j.close()
		source, err := install.OpenSource(words[0], interruptible(ctx, c.env.Stdin))
		if err != nil {
			return err
		}
		defer source.Close()
		options := install.Options{Slot: *slot, Tries: *tries, Force: *force}
		var next update
		defer next.close()
		options.Accept = func(slot string, m manifest.Manifest) error {
			c.tellLayers(j.report, m)
			err := next.decide(ctx, c, j.opened, j.report, a, slot, m)
			if !errors.Is(err, bootset.ErrRefused) {
				return err
			}
			if !*locked {
				return fmt.Errorf("%w; --locked-state takes it all the same%s", err, c.lockedState("; ", err))
			}
			c.say("WARNING: %v; a trial falls back while a committed slot is there, and a committed one asks for a key%s", err, c.lockedState("; but ", err))
			return nil
		}
		options.Ready = func() error { return next.ready(ctx, c) }
		if options.Tries == 0 {
			options.Tries = j.opened.Tries()
		}
		done, err := j.machine.Install(ctx, source, j.running, options)
		c.result.Slot, c.result.Data = done.Slot, done
		if !c.given("replicate-on-failure") {
			*again = j.opened.Replicates(config.ReplicateFailedInstall)
		}
		if *again && errors.Is(err, install.ErrUnbootable) && ctx.Err() == nil {
			c.say("%v", err)
			_, copyErr := j.copy(ctx, c, install.CopyOptions{Slot: done.Slot, Force: true})
			return errors.Join(err, copyErr)
		}
		if err == nil || errors.Is(err, bootset.ErrUnarmed) {
			c.dropWritten(j.report, done.Slot)
		}
		if errors.Is(err, bootset.ErrUnarmed) {
			return err // it says that it is installed
		}
		if err != nil {
			return fmt.Errorf("cannot install: %w", err)
		}
		c.say("slot %s: version %s, on trial from the next boot on, %d tries; without a commit slot %s comes back",
			done.Slot, done.Version, options.Tries, j.running.Running)
		return c.tellSlots(j)
	}
}

// lockedState says behind sep what becomes of an image that was refused because the TPM
// cannot know it before its first boot, "" of all others.
func (c *command) lockedState(sep string, refused error) string {
	cfg, err := c.env.configuration()
	if err != nil || !errors.Is(refused, errPerImage) || !enrol.PersonPerImage(&cfg) || !slices.Contains(cfg.State.OnFailure, config.FailurePrompt) {
		return ""
	}
	return sep + "its trial waits two minutes at the console for the recovery key; with that, commit it, and sealroot state enroll has it open by itself from then on"
}

// interruptible ends reading with ctx, which a read from a pipe does not.
func interruptible(ctx context.Context, from io.Reader) io.Reader {
	r, w := io.Pipe()
	context.AfterFunc(ctx, func() { w.CloseWithError(ctx.Err()) })
	return &lazyPipe{reader: r, start: func() {
		_, err := io.Copy(w, from)
		w.CloseWithError(err)
	}}
}

// lazyPipe begins to read its source with its own first read.
type lazyPipe struct {
	reader io.Reader
	start  func()
}

func (l *lazyPipe) Read(b []byte) (int, error) {
	if l.start != nil {
		go l.start()
		l.start = nil
	}
	return l.reader.Read(b)
}

func repair(c *command) action {
	o := longOptions(c)
	force := c.flags.Bool("force", false, "overwrite a slot that waits for its trial")
	return func(ctx context.Context, words []string) error {
		return c.replicate(ctx, o, install.CopyOptions{Slot: words[0], Force: *force}, false)
	}
}

func replicate(c *command) action {
	o := longOptions(c)
	force := c.flags.Bool("force", false, "overwrite a slot that waits for its trial")
	quick := c.flags.Bool("quick", false, "do nothing when the slot looks like a copy, without reading it as a whole")
	configured := c.flags.Bool("configured", false, "do nothing unless boot.replicate of the configuration names commit (sealroot-replicate.service)")
	return func(ctx context.Context, _ []string) error {
		return c.replicate(ctx, o, install.CopyOptions{Force: *force, Quick: *quick}, *configured)
	}
}

// replicate copies the running slot. configured: only where the configuration asks
// for that after a commit.
func (c *command) replicate(ctx context.Context, o long, options install.CopyOptions, configured bool) error {
	j, err := c.begin(ctx, o)
	if err != nil {
		return err
	}
	defer j.close()
	if configured && !j.opened.Replicates(config.ReplicateCommit) {
		c.say("boot.replicate of the configuration does not name commit: nothing is copied")
		return nil
	}
	done, err := j.copy(ctx, c, options)
	c.result.Slot, c.result.Data = done.To, done
	if err != nil {
		return fmt.Errorf("cannot copy slot %s: %w", j.running.Running, err)
	}
	list, err := j.machine.Store.Load()
	if err != nil {
		return fmt.Errorf("cannot read the slots: %w", err)
	}
	c.after(list)
	return c.raiseFloor(j.opened, j.report, list, *o.trust, false)
}

// copy makes a slot a copy of the running one.
func (j *job) copy(ctx context.Context, c *command, options install.CopyOptions) (install.Copied, error) {
	options.Ready = func(slot string) error { return c.prepareCopy(ctx, j.opened, j.report, j.trust, slot) }
	done, err := j.machine.Copy(ctx, j.running, options)
	switch {
	case err != nil:
	case done.Already:
		c.say("slot %s: is a copy of slot %s already", done.To, done.From)
	default:
		c.say("slot %s: is a verified copy of slot %s now, and committed", done.To, done.From)
		c.dropWritten(j.report, done.To)
	}
	return done, err
}

func verifySlots(c *command) action {
	o := longOptions(c)
	return func(ctx context.Context, words []string) error {
		j, err := c.begin(ctx, o)
		if err != nil {
			return err
		}
		defer j.close()
		list, err := j.machine.Store.Load()
		if err != nil {
			return fmt.Errorf("cannot read the slots: %w", err)
		}
		if len(words) == 0 {
			for _, s := range list {
				if s.Bootable() {
					words = append(words, s.Name)
				}
			}
		}
		held := []verified{}
		var errs []error
		for _, slot := range words {
			if _, ok := slots.Find(list, slot); !ok {
				return fmt.Errorf("there is no slot %q: %w", slot, bootset.ErrUsage)
			}
			v, err := j.verify(ctx, c, slot)
			held = append(held, v)
			errs = append(errs, err)
		}
		c.result.Data = held
		return errors.Join(append(errs, c.tellSlots(j))...)
	}
}

// verified is what verify tells of one slot.
type verified struct {
	install.Held
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

// verify gives a slot that is good itself its place back whatever the layers are that do
// not lie in it.
func (j *job) verify(ctx context.Context, c *command, slot string) (verified, error) {
	held, bad := j.machine.Verify(ctx, slot)
	errs := []error{bad}
	layers := func(what string, list []manifest.Layer) {
		names, err := j.machine.VerifyLayers(ctx, list)
		held.Layers = append(held.Layers, names...)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	layers("slot "+slot, held.OnState)
	if bad == nil && slot == j.report.Slot.Name {
		layers("what was added on this machine", addedLayers(j.report))
	}
	ok := !slices.ContainsFunc(errs, func(err error) bool { return err != nil && !unread(err) })
	if bad == nil && ctx.Err() == nil {
		var err error
		held.Restored, err = j.machine.Proved(held, j.machine.Failures[slot], j.machine.Refill)
		errs = append(errs, err)
	}
	if bad == nil { // the slot itself, whatever else is wrong
		c.say("slot %s: verified%s, root hash %s, signed by %s", slot, bootFilesText(held), held.RootHash, held.Certificate)
	}
	if held.Restored {
		c.say("slot %s: what had been wrong with it is not any more; it has its place back", slot)
	}
	v := verified{Held: held, OK: ok}
	err := errors.Join(errs...)
	if err != nil {
		v.Error = err.Error()
	}
	return v, err
}

// unread: nothing was found bad, but the state partition is not there to be read.
func unread(err error) bool {
	return errors.Is(err, bootset.ErrRefused) && !errors.Is(err, install.ErrBad)
}

// addedLayers are those that this boot has and its image does not name.
func addedLayers(r report.Report) (list []manifest.Layer) {
	for _, l := range r.Layers {
		if hash, err := hex.DecodeString(l.RootHash); err == nil && len(hash) > 0 && l.Source == report.LayerAdded && l.LeftOut == "" {
			list = append(list, manifest.Layer{Name: l.Name, RootHash: hash})
		}
	}
	return list
}

func bootFilesText(h install.Held) string {
	if h.BootFiles {
		text := " with its boot files"
		if len(h.Layers) > 0 {
			text += " and layers (" + strings.Join(h.Layers, ", ") + ")"
		}
		return text + ", version " + h.Version
	}
	return ", without its boot files (it has no signed manifest of this image)"
}

// tellSlots adds the slots as they are now to the result.
func (c *command) tellSlots(j *job) error {
	list, err := j.machine.Store.Load()
	if err != nil {
		return fmt.Errorf("cannot read the slots: %w", err)
	}
	c.after(list)
	return nil
}
