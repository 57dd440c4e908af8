package explain

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/slots"
	"sealroot/state/layout"
)

// whyLayers says what lies over the image.
func whyLayers(c config.Config) string {
	if c.Root.Usr() {
		return "the /usr of each layer of the configuration lies over the image"
	}
	return "layers of the configuration lie over the image"
}

const whyMachineID = "the machine's identity, which the volume keeps, if there is one: /etc does not"

const whyTmpfs = "binds.tmpfs names it: begins empty at each boot"

const machineID = "/etc/machine-id"

const volume = layout.State + "/" + layout.Volume

// Running explains the boot that the report is of, by the configuration that it had.
func Running(r report.Report, c config.Config) Explanation {
	e := Explanation{Schema: Schema, Slot: r.Slot.Name, Image: r.Root.ImageID + " " + r.Root.ImageVersion}
	for _, m := range r.Mounts {
		e.Mounts = append(e.Mounts, Mount{Where: m.Where, What: m.What, Type: m.Type, Options: m.Options, Why: whyMounted(m, r, c)})
	}
	e.layers(r, c)
	there := func(where string) bool {
		return slices.ContainsFunc(r.Mounts, func(m report.Mount) bool { return m.Where == where })
	}
	for _, o := range c.Overlays {
		if !there(o.Path) {
			e.note("%s is not writable, though overlays of the configuration names it", o.Path)
		}
	}
	for _, b := range c.Binds.Extra {
		if !there(b.To) {
			e.note("%s is not bound, though binds.extra of the configuration names it", b.To)
		}
	}
	for _, t := range c.Binds.Tmpfs {
		if !there(t.To) {
			e.note("%s is not in memory, though binds.tmpfs of the configuration names it", t.To)
		}
	}
	for _, w := range r.Warnings {
		e.note("PID 1 warned: %s", w)
	}
	return e
}

func whyMounted(m report.Mount, r report.Report, c config.Config) string {
	switch {
	case m.Where == "/" && m.Type == "tmpfs":
		return "root.source is " + c.Root.Source + ": the root around /usr is made in memory at each boot"
	case m.Where == "/" && m.Type == "overlay" && c.RootInMemory():
		return whyRoot(c, r.LayerList != "")
	case (m.Where == "/" || m.Where == "/usr") && m.Type == "overlay":
		return whyStacked(c, r.LayerList != "")
	case m.Where == "/" || m.Where == "/usr" && m.Type != "bind":
		return whyImage(r)
	case m.Where == layout.State && m.Type == "tmpfs":
		return "there is no state partition that could be used: " + whyMemory(r)
	case m.Where == layout.State:
		return "the state partition of the boot disk " + r.Disk.Device + "; anybody may have written it, so nothing there runs or leads elsewhere"
	case m.Where == volume:
		return whyVolume(r)
	case m.Where == machineID:
		return whyMachineID
	case m.Where == "/etc" && r.EtcInMemory:
		return "etc is overlay: the image's, with the changes in " + volume + "/etc; what is changed in this boot is in memory, and gone after it"
	case m.Type == "tmpfs" && slices.ContainsFunc(c.Binds.Tmpfs, func(t config.Tmpfs) bool { return t.To == m.Where }):
		return whyTmpfs
	case m.Where == "/etc":
		return whyEtc(c.Etc, inMemory(r))
	case m.Type == "overlay":
		return whyOverlay(m.Where, c, inMemory(r))
	case m.Type == "bind":
		return whyBind(strings.TrimPrefix(m.What, layout.State+"/"), m.Where, c)
	}
	return "PID 1 has mounted it"
}

// whyStacked is for layers alone, whyRoot for a root that is written to as well.
func whyStacked(c config.Config, changed bool) string {
	if changed {
		return whyLayers(c) + ", and what this machine changed about them (sealroot layer list)"
	}
	return whyLayers(c)
}

func whyRoot(c config.Config, changed bool) string {
	why := "overlays names it: the image's, and what is changed is in memory, a quarter of it at most, until the next restart"
	if changed || len(c.Layers) > 0 {
		why += "; " + whyStacked(c, changed)
	}
	return why
}

func whyImage(r report.Report) string {
	why := map[slots.Why]string{
		slots.BecauseCommitted:  "the committed slot",
		slots.BecauseTrial:      "on trial",
		slots.BecauseFallback:   "another slot should have run",
		slots.BecauseLastResort: "the last resort: no slot counts as good",
	}[slots.Why(r.Slot.Reason)]
	if why == "" {
		why = "chosen as " + r.Slot.Reason
	}
	by := r.Root.HashSource
	if r.Root.Certificate != "" {
		by = "the signature of " + r.Root.Certificate
	}
	return fmt.Sprintf("the image of slot %s (%s); root hash %.16s…, vouched for by %s, and every block checked by dm-verity", r.Slot.Name, why, r.Root.RootHash, by)
}

func whyVolume(r report.Report) string {
	how := ""
	switch r.State.Unlocked {
	case report.UnlockedCreated:
		how = "made in this boot"
	case report.UnlockedTPM2:
		how = "opened by the TPM"
	case report.UnlockedRecoveryKey, report.UnlockedPassphrase, report.UnlockedKeyFile:
		how = "opened with the " + r.State.Unlocked
	case report.UnlockedPlain:
		return "state.unlock is plain: this directory of the state partition, NOT ENCRYPTED"
	default:
		return whyMemory(r) + ": everything is in memory"
	}
	image := layout.Image
	for _, m := range r.Mounts {
		if m.Where == layout.State && m.Type == "btrfs" {
			image = layout.ImageSubvolume + "/" + image
		}
	}
	why := "the encrypted volume of " + layout.State + "/" + image + ", " + how
	if r.Degraded {
		why += ", and not to be written in this boot"
	}
	return why
}

// inMemory: the boot writes nothing to a volume.
func inMemory(r report.Report) bool { return r.Degraded || r.State.Unlocked == report.UnlockedNone }

func whyMemory(r report.Report) string {
	if r.State.Unlocked == report.UnlockedNone {
		return "state.create is none"
	}
	return "the boot is degraded, the state did not open"
}

func whyEtc(mode config.EtcMode, inMemory bool) string {
	switch {
	case mode == config.EtcReadOnly:
		return "etc is read-only: the image's, from its factory"
	case mode == config.EtcVolatile:
		return "etc is volatile: the image's, changes are in memory"
	case inMemory:
		return "etc is overlay: the image's, and changes are in memory, as the state is"
	}
	return "etc is overlay: the image's, changes go to " + volume + "/etc"
}

func whyOverlay(where string, c config.Config, inMemory bool) string {
	changes := func(to string) string {
		if inMemory {
			return ": the image's content, changes are in memory"
		}
		return ": the image's content, changes go to " + to
	}
	for _, o := range c.Overlays {
		if o.Path != where {
			continue
		}
		inMemory = inMemory || o.Upper == config.UpperMemory
		if o.Upper == config.UpperPerSlot {
			return "overlays names it" + changes("the encrypted volume, and only this slot with this image has them")
		}
		return "overlays names it" + changes("the encrypted volume")
	}
	for _, b := range c.Binds.Extra {
		if b.To == where && b.Seed == config.SeedOverlay {
			return "binds.extra names it" + changes("the encrypted volume, by the name "+b.From)
		}
	}
	return "PID 1 has mounted it"
}

// whyBind is for a directory below /state.
func whyBind(from, to string, c config.Config) string {
	for _, b := range c.Binds.Extra {
		if b.From != from || b.To != to {
			continue
		}
		switch b.Seed {
		case config.SeedOnce:
			return "binds.extra names it; filled from the image when it was made"
		case config.SeedTmpfiles:
			return "binds.extra names it; made empty, systemd-tmpfiles fills it at each boot"
		}
		return "binds.extra names it"
	}
	inside := path.Dir(from) == layout.Volume
	switch {
	case inside && (to == "/home" || to == "/var"):
		return "every state has this directory: filled from the image when it was made"
	case inside:
		return "a directory of this name lies in the encrypted volume"
	}
	return "binds.unencrypted allows it: a directory of this name lies on the state partition, where anybody may have written it"
}
