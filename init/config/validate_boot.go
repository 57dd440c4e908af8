package config

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

func (v *validator) boot(c *Config) {
	b := c.Boot
	v.oneOf("boot.loader", string(b.Loader), []string{string(LoaderGRUB), string(LoaderUKI), string(LoaderSystemdBoot)}, nil)
	v.store(b)
	if b.Tries < 1 || b.Tries > 15 {
		v.add("boot.tries", "choose 1 to 15", "%d tries cannot be counted in the partition table", b.Tries)
	}
	if b.Store == StoreGrubenvDarch && b.Tries > 10 {
		v.add("boot.tries", "choose 1 to 10", "BOOT_COUNT of boot.store grubenv-darch counts to 10")
	}
	if d := time.Duration(b.CommitDeadline); d < 10*time.Second || d > 24*time.Hour {
		v.add("boot.commit_deadline", "choose 10s to 24h", "%s is out of range", b.CommitDeadline)
	}
	if b.Recount && b.Store == StoreFixed {
		v.add("boot.recount", "leave it out, or choose another boot.store", "boot.store fixed counts nothing")
	}
	v.replicate(b)
	v.oneOf("boot.new_guids", b.NewGUIDs, []string{NewGUIDsFirstBoot, NewGUIDsNever}, nil)
	if why := c.restsOnGUIDs(); why != "" && b.NewGUIDs == NewGUIDsFirstBoot {
		v.add("boot.new_guids", "use never", "the first boot would change GUIDs that the next one needs: %s", why)
	}
	v.watchdog(b.Watchdog)
}

func (v *validator) replicate(b Boot) {
	for i, when := range b.Replicate {
		at := fmt.Sprintf("boot.replicate[%d]", i)
		v.oneOf(at, when, []string{ReplicateFailedInstall, ReplicateCommit}, nil)
		if slices.Contains(b.Replicate[:i], when) {
			v.add(at, "", "%.60q is given twice", when)
		}
	}
	if len(b.Replicate) > 0 && b.Store == StoreFixed {
		v.add("boot.replicate", "leave it out, or choose another boot.store", "boot.store fixed has one slot")
	}
}

// needsLoader lists the stores that are one loader's own. The others do with
// any: the partition table is nobody's, and a fixed slot needs no store.
func needsLoader(s Store) (Loader, string) {
	switch s {
	case StoreGrubenvDarch, StoreGrubenvRAUC:
		return LoaderGRUB, "it is GRUB's environment block"
	case StoreBLS:
		return LoaderSystemdBoot, "it is the names of the files that systemd-boot counts in"
	case StoreEFI:
		return LoaderUKI, "it is the boot entries of the firmware, which start the slots themselves"
	}
	return "", ""
}

func (v *validator) store(b Boot) {
	all := []string{string(StoreGPT), string(StoreGrubenvDarch), string(StoreGrubenvRAUC), string(StoreBLS), string(StoreEFI), string(StoreFixed)}
	v.oneOf("boot.store", string(b.Store), all, nil)
	known := slices.Contains([]Loader{LoaderGRUB, LoaderUKI, LoaderSystemdBoot}, b.Loader)
	if needed, why := needsLoader(b.Store); known && needed != "" && needed != b.Loader {
		v.add("boot.store", "use gpt, or boot.loader: "+string(needed), "%s does not go with boot.loader %s: %s", b.Store, b.Loader, why)
	}
}

// measuredStore refuses PCRs that a store or loader changes by itself: the next
// boot could not unseal.
func (v *validator) measuredStore(c *Config, at string, pcr int) {
	b := c.Boot
	switch {
	case pcr == 5 && (b.Store == StoreGPT || b.Store == ""):
		v.add(at, "leave PCR 5 out", "PCR 5 holds the partition table, and boot.store gpt changes that with every count")
	case pcr == 1 && b.Loader == LoaderUKI:
		v.add(at, "leave PCR 1 out", "PCR 1 holds the firmware's boot order, and with boot.loader uki a commit changes that")
	}
}

func orList(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}
