package disk

import (
	"errors"
	"fmt"

	"sealroot/init/config"
	"sealroot/slots"
	"sealroot/slots/bls"
	"sealroot/slots/esp"
	"sealroot/slots/gpt"
	"sealroot/slots/grubenv"
)

// SlotState is how a slot begins its life.
type SlotState string

// The states of a slot on a new disk.
const (
	Good  SlotState = "good"  // committed
	Trial SlotState = "trial" // started at the first boot, and to be committed by it
	Off   SlotState = "off"   // there, and not to be started
)

// firstState decides how the slots begin: a is committed; b is empty or as asked.
func firstState(hasB bool, state SlotState, tries int) ([]slots.Slot, error) {
	a, b := slots.Slot{Name: "a", Priority: 1, Successful: true}, slots.Slot{Name: "b"}
	switch {
	case !hasB, state == Off:
	case state == Good:
		a.Priority, b.Priority, b.Successful = 2, 1, true
	case state == Trial:
		b.Priority, b.Tries = 2, tries
	default:
		return nil, fmt.Errorf("cannot begin slot b as %q, only good, trial or off: %w", state, ErrOptions)
	}
	return []slots.Slot{a, b}, nil
}

// kept is the first state of the slots in the form of the store.
type kept struct {
	attr     map[string]gpt.Attributes // partition label → its bits
	counters map[string]esp.Counter    // slot → counter in the name of its UKI
	files    map[string]content        // on the ESP
}

// oneBoot are the variables in grubenv, beside the one-shot, that last for one
// boot: GRUB clears them at the next.
func oneBoot(store config.Store) []string {
	if store == config.StoreGrubenvDarch {
		return []string{grubenv.FellBack}
	}
	return nil
}

// keep writes the first state down for the store.
func keep(boot config.Boot, n gpt.Naming, list []slots.Slot) (kept, error) {
	k := kept{attr: map[string]gpt.Attributes{}, files: map[string]content{}}
	for i := range list {
		if boot.Recount && list[i].Successful {
			list[i].Tries = boot.Tries // as a commit leaves it
		}
	}
	if boot.NewGUIDs == config.NewGUIDsFirstBoot {
		k.attr[gpt.LabelLog] = gpt.Fresh
	}
	switch boot.Store {
	case config.StoreGPT:
		var none gpt.Attributes
		for _, s := range list {
			k.attr[n.Label(s.Name, gpt.Data)] = none.WithSlot(s.Priority, s.Tries, s.Successful)
		}
	case config.StoreBLS:
		counters, text, err := bls.Initial(list)
		if err != nil {
			return kept{}, err
		}
		k.counters, k.files[esp.Slots] = counters, content{data: text}
	}
	if boot.Loader == config.LoaderGRUB {
		env, err := firstEnv(boot.Store, list)
		if err != nil {
			return kept{}, err
		}
		k.files[esp.Grubenv] = content{data: env}
	}
	return k, nil
}

// firstEnv is the grubenv of a new disk.
func firstEnv(store config.Store, list []slots.Slot) ([]byte, error) {
	env := grubenv.New()
	var err error
	for _, s := range list {
		switch s.State() {
		case slots.Trial:
			err = errors.Join(err, env.Set(grubenv.Once, s.Name))
		case slots.Committed:
			if d, _ := slots.Default(list); d == s {
				err = errors.Join(err, env.Set(grubenv.Default, s.Name))
			}
		}
	}
	switch store {
	case config.StoreGrubenvDarch:
		err = grubenv.Darch.Write(env, list)
	case config.StoreGrubenvRAUC:
		err = grubenv.RAUC.Write(env, list)
	}
	if err != nil {
		return nil, err
	}
	return env.Encode()
}
