package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mkinitramfs/built"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/install"
	"sealroot/sealroot/kexec"
	"sealroot/slots"
	"sealroot/slots/manifest"
)

func kexecSlot(c *command) action {
	none := false
	o := long{c.flags.String("trust", report.RootCertificates, "folder with the certificates (*.crt) that vouch for images"), &none}
	start := c.flags.Bool("start", false, "start it at once (systemctl kexec)")
	force := c.flags.Bool("force", false, "with --start: also where nothing but a person opens the state then")
	unload := c.flags.Bool("unload", false, "unload the kernel that is loaded, whoever loaded it")
	return func(ctx context.Context, words []string) error {
		if *unload {
			if len(words) > 0 || *start {
				return fmt.Errorf("%w: --unload loads no slot and starts nothing", errUsage)
			}
			return c.unloadKexec(ctx)
		}
		j, err := c.begin(ctx, o)
		if err != nil {
			return err
		}
		defer j.close()
		seen, err := j.observed()
		if err != nil {
			return err
		}
		slot := kexec.Next(seen)
		if len(words) > 0 {
			slot = words[0]
		}
		c.result.Slot = slot
		if err := kexec.Boots(seen, slot); err != nil {
			return err
		}
		kernel, mf, cfg, err := j.kernel(slot, "/proc/cmdline")
		if err == nil {
			err = startable(mf, cfg, j.running)
		}
		if err != nil {
			return fmt.Errorf("cannot start slot %s by kexec: %w", slot, err)
		}
		if *start && !*force {
			if err := opensAlone(cfg.State); err != nil {
				return fmt.Errorf("cannot start slot %s by kexec: %w", slot, err)
			}
		}
		if err := c.env.Kexec(kernel); err != nil {
			return err
		}
		c.say("slot %s: the kernel of version %s is loaded, as its signed manifest has it", slot, mf.Version)
		if slices.Contains(cfg.State.Unlock, config.UnlockTPM2) {
			c.say("the TPM stays closed until the machine restarts: that boot asks for a key of the state, or goes on as state.on_failure says")
		}
		if !*start {
			c.say("systemctl kexec starts it")
			return nil
		}
		c.keepBeforeRestart(j.opened)
		c.say("starting it")
		return c.env.StartKexec(ctx)
	}
}

// unloadKexec unloads the kernel that is loaded, if there is one.
func (c *command) unloadKexec(ctx context.Context) error {
	unlock, err := lock(ctx, c.env.Lock)
	if err != nil {
		return err
	}
	defer unlock()
	if loaded, err := c.kexecLoaded(); err == nil && !loaded {
		c.say("no kernel is loaded for kexec")
		return nil
	}
	return c.unloadKernel()
}

// unloadKernel unloads a kernel that is loaded for kexec before slots change: it is one of
// the slots as they were, and the next restart may start it, past the boot loader. Its
// error is bootset.ErrRefused. The lock is held.
func (c *command) unloadKernel() error {
	loaded, err := c.kexecLoaded()
	if err == nil && !loaded {
		return nil
	}
	if err == nil {
		err = c.env.UnloadKexec()
	}
	if err != nil {
		return fmt.Errorf("a kernel stays loaded for kexec, which the next restart may start, past the boot loader: %w; restart without it (%s systemctl reboot), and try again: %w", err, throughFirmware, bootset.ErrRefused)
	}
	c.say("the kernel that was loaded for kexec is unloaded: the next restart goes through firmware and boot loader")
	return nil
}

// kexecLoaded asks the kernel whether another one is loaded. One without kexec tells
// nothing.
func (c *command) kexecLoaded() (bool, error) {
	text, err := os.ReadFile(c.env.KexecLoaded)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return strings.TrimSpace(string(text)) != "0", err
}

// observed is what PID 1 of the next kernel will know of the slots.
func (j *job) observed() (o slots.Observed, err error) {
	if o.Slots, err = j.machine.Store.Load(); err != nil {
		return o, fmt.Errorf("cannot read the slots: %w", err)
	}
	o.Refill = j.machine.Refill
	if r, err := j.opened.Record(); err == nil {
		o.LogReadable = true
		o.Armed, o.Failures, o.Pauses, o.Told = r.Armed, r.SlotFailures(), r.Pauses, r.Told
	}
	if l := j.machine.Loader; l != nil {
		o.Hint.Supported = true
		armed, err := l.Get()
		o.Hint.Slot, o.Hint.Known = armed, err == nil
	}
	return o, nil
}

// kernel is what a slot is started from, all of it vouched for by the slot's signed
// manifest but the line that GRUB gives to every slot; running is the file with the line
// that this kernel got.
func (j *job) kernel(slot, running string) (k kexec.Kernel, mf manifest.Manifest, cfg *config.Config, err error) {
	mf, files, err := j.machine.StartFiles(slot)
	if err != nil {
		return k, mf, nil, err
	}
	if uki, ok := files[install.UKI]; ok {
		k, err = kexec.FromUKI(uki)
	} else {
		var line []byte
		line, err = os.ReadFile(running)
		k = kexec.Kernel{Image: files[install.Kernel], Initrd: files[install.Initrd], Cmdline: string(line)}
	}
	if err == nil {
		k.Cmdline, err = kexec.Line(k.Cmdline, slot, j.report.Disk.BootPartition)
	}
	if err == nil {
		cfg, err = built.ConfigIn(k.Initrd)
	}
	return k, mf, cfg, err
}

// startable refuses a slot that PID 1 would not boot when it is started so.
func startable(mf manifest.Manifest, cfg *config.Config, r install.Running) error {
	switch {
	case mf.Name != r.Name:
		return fmt.Errorf("it is for %q, this machine is %q: %w", mf.Name, r.Name, bootset.ErrRefused)
	case mf.SecurityVersion < r.Floor:
		return fmt.Errorf("it has security version %d, and the rollback floor of this machine is %d: %w", mf.SecurityVersion, r.Floor, bootset.ErrRefused)
	case cfg.Trust.Cmdline == config.CmdlineMeasured:
		return fmt.Errorf("it goes by its command line (trust.cmdline: measured), to which kexec has to add the slot: restart the machine: %w", bootset.ErrRefused)
	}
	return nil
}

// opensAlone refuses a start after which the state, which a restart opens by itself, opens
// for a person alone.
func opensAlone(s config.State) error {
	if slices.Contains(s.Unlock, config.UnlockTPM2) && !slices.Contains(s.Unlock, config.UnlockKeyFile) {
		return fmt.Errorf("the TPM opens nothing until the machine restarts, and state.unlock has no key file: that boot waits for a key at the console, or goes on as state.on_failure says (--force starts it all the same; without --start it is only loaded): %w", bootset.ErrRefused)
	}
	return nil
}

// startKexec has systemd end the system in order and start the kernel that is loaded.
func startKexec(ctx context.Context) error {
	if !systemdRuns("/run") {
		return fmt.Errorf("cannot start the kernel that is loaded: systemd does not run here; end the system as its init does for kexec: %w", bootset.ErrRefused)
	}
	if out, err := exec.CommandContext(ctx, "systemctl", "--no-block", "--no-wall", "kexec").CombinedOutput(); err != nil {
		return fmt.Errorf("cannot start the kernel that is loaded: systemctl kexec: %w: %s", err, line(string(out)))
	}
	return nil
}
