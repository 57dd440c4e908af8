package main

import (
	"fmt"
	"path/filepath"

	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/install"
	"sealroot/sealroot/rollbackfloor"
	"sealroot/slots"
	"sealroot/state/layout"
)

// leveller is a machine that knows the security versions of its slots' images.
type leveller interface {
	// Level goes by the certificates in the folder trust.
	Level(s slots.Slot, r install.Running, trust string) (rollbackfloor.Level, error)
}

// volume is the root of the encrypted volume.
func (e Env) volume() string { return filepath.Join(e.State, layout.Volume) }

// floorNow is the rollback floor that counts or was asked for, whichever is
// higher; 0 on a machine without one.
func (e Env) floorNow(r report.Report) (int, error) {
	if r.Floor == nil {
		return 0, nil
	}
	asked, err := rollbackfloor.Asked(e.volume())
	return max(asked, r.Floor.Value), err
}

// raiseFloor asks for a higher rollback floor where the configuration has one and
// no other slot would be left behind, or all the same with burn. The slot that
// runs is committed. The certificates in the folder trust vouch for images.
func (c *command) raiseFloor(m Machine, r report.Report, list []slots.Slot, trust string, burn bool) error {
	switch {
	case r.Floor == nil && burn:
		return fmt.Errorf("there is no rollback floor to raise (trust.rollback_floor): %w", bootset.ErrRefused)
	case r.Floor == nil:
		return nil
	}
	now, err := c.env.floorNow(r)
	if err != nil {
		return fmt.Errorf("cannot raise the rollback floor: %w", err)
	}
	running := install.Running{RootHash: r.Root.RootHash, SecurityVersion: r.Root.SecurityVersion}
	if loaded, err := m.Loaded(); err != nil {
		return fmt.Errorf("cannot raise the rollback floor: %w", err)
	} else if loaded != "" && loaded != r.Slot.Name && running.SecurityVersion > now {
		text := fmt.Sprintf("the kernel that runs is not that of slot %s; restart into that, and commit again", r.Slot.Name)
		if burn {
			return fmt.Errorf("cannot raise the rollback floor: %s: %w", text, bootset.ErrRefused)
		}
		c.say("the rollback floor stays at %d: %s", now, text)
		return nil
	}
	l, ok := m.(leveller)
	if !ok {
		return fmt.Errorf("cannot raise the rollback floor of this disk: %w", bootset.ErrRefused)
	}
	var others []rollbackfloor.Level
	for _, s := range list {
		if s.Name == r.Slot.Name || running.SecurityVersion <= now {
			continue
		}
		level, err := l.Level(s, running, trust)
		if err != nil {
			return fmt.Errorf("cannot raise the rollback floor: %w", err)
		}
		others = append(others, level)
	}
	p := rollbackfloor.Decide(now, running.SecurityVersion, others, burn)
	for _, h := range p.Holds {
		if p.Ask {
			c.say("slot %s: %s, it will not boot any more", h.Slot, h.Why)
			continue
		}
		c.say("the rollback floor stays at %d: slot %s %s; sealroot replicate frees it, sealroot commit --burn gives that slot up", now, h.Slot, h.Why)
	}
	if !p.Ask {
		return nil
	}
	if err := rollbackfloor.Ask(c.env.volume(), p.Floor); err != nil {
		return err
	}
	c.say("the rollback floor becomes %d at the next boot: older images do not boot any more", p.Floor)
	return nil
}
