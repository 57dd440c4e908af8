package explain

import (
	"slices"
	"strings"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/state/binds"
	"sealroot/state/layout"
)

// flags that PID 1 gives (docs/operators.md).
func boundFlags(where string) []string {
	switch where {
	case "/opt", "/usr/local", "/var":
		return []string{"nodev"}
	}
	return []string{"nosuid", "nodev"}
}

func unencryptedFlags(where string) []string {
	flags := []string{"nosuid", "nodev", "nosymfollow"}
	if where != "/home" {
		flags = append(flags, "noexec")
	}
	return flags
}

// flags leaves out what is there twice.
func flags(list []string) (once []string) {
	for _, o := range list {
		if !slices.Contains(once, o) {
			once = append(once, o)
		}
	}
	return once
}

// Plan explains the boots of a slot that holds an image with that configuration, as far
// as it decides; what the machine's state decides is said as such.
func Plan(slot string, c config.Config) Explanation {
	e := Explanation{Schema: Schema, Plan: true, Slot: slot, Image: c.Name + " " + c.Version}
	e.planRoot(slot, c)
	e.planState(c)
	e.planLayers(slot, c)
	e.planEtc(c)
	e.planOverlays(c, false)
	e.planByName(c)
	e.planOverlays(c, true)
	e.planExtra(c)
	for _, t := range c.Binds.Tmpfs {
		e.add(Mount{Where: t.To, What: "tmpfs", Type: "tmpfs", Options: flags(append([]string{"nosuid", "nodev"}, t.Options...)), Why: whyTmpfs})
	}
	for _, l := range c.Binds.Symlinks {
		e.note("%s is made a link to %s, where nothing is", l.At, l.To)
	}
	if !c.KeepsEtc() {
		e.add(Mount{Where: machineID, What: report.Dir + "/machine-id", Type: "bind", Options: []string{"ro", "nosuid", "nodev", "noexec"}, Why: whyMachineID})
	}
	return e
}

func (e *Explanation) add(m Mount) { e.Mounts = append(e.Mounts, m) }

// imagePlace is where the image of the slot is, and its layers over it.
func imagePlace(c config.Config) string {
	if c.Root.Usr() {
		return "/usr"
	}
	return "/"
}

func (e *Explanation) planRoot(slot string, c config.Config) {
	part := "root-" + slot
	if c.Root.Usr() {
		part = "usr-" + slot
		e.add(Mount{Where: "/", What: "rootfs", Type: "tmpfs", Options: []string{"nosuid", "nodev"},
			Why: whyMounted(report.Mount{Where: "/", Type: "tmpfs"}, report.Report{}, c)})
	}
	var certificates []string
	for _, role := range c.RootRoles() {
		certificates = append(certificates, c.Trust.Certificates(role)...)
	}
	by := "a certificate of the initramfs: " + strings.Join(certificates, ", ")
	if c.Root.Hash != "" {
		by = "root.hash of the configuration"
	} else if c.Trust.Cmdline == config.CmdlineMeasured {
		by += "; or the measured command line of the unified kernel image"
	}
	e.add(Mount{Where: imagePlace(c), What: part + " behind dm-verity", Type: c.Root.Filesystem, Options: []string{"ro", "nodev"},
		Why:       "the image of the slot; its root hash is vouched for by " + by,
		DependsOn: "whether slot " + slot + " is the one to run (sealroot status --disk), and passes the check of its signature"})
}

func (e *Explanation) planLayers(slot string, c config.Config) {
	var names []string
	for _, l := range c.Layers {
		names = append(names, l.Name)
		e.note("layer %s: %s; for a root and kernel as its extension-release says; %s", l.Name, sourceOf(l, slot), withoutLayer(l.OnFailure))
	}
	if len(c.LayersAllowed) > 0 {
		e.note("root may add layers on the machine, over %s and the layers of the configuration, in an overlay: sealroot layer list tells there what it has; layers_allowed: %s", imagePlace(c), strings.Join(c.LayersAllowed, ", "))
	}
	if len(names) == 0 && !c.RootInMemory() {
		return
	}
	m := Mount{Where: imagePlace(c), What: "overlay", Type: "overlay", Options: []string{"ro", "nodev"}, Why: whyLayers(c)}
	if c.RootInMemory() {
		m.Options, m.Why = []string{"nodev"}, whyRoot(c, false)
	}
	if len(names) > 0 {
		m.Why, m.DependsOn = m.Why+": "+strings.Join(names, ", "), "whether the machine has them"
	}
	e.add(m)
}

func (e *Explanation) planState(c config.Config) {
	if c.State.Create == config.CreateNone {
		e.planMemory("state.create is none: everything is in memory")
		return
	}
	e.add(Mount{Where: layout.State, What: "partition " + `"state"`, Type: c.State.PartitionFilesystem, Options: []string{"nosuid", "nodev", "noexec", "nosymfollow"},
		Why: "the state partition of the boot disk; anybody may have written it, so nothing there runs or leads elsewhere"})
	image := layout.State + "/" + layout.Image
	if c.State.PartitionFilesystem == "btrfs" {
		image = layout.State + "/" + layout.ImageSubvolume + "/" + layout.Image
	}
	m := Mount{Where: volume, What: image, Type: c.State.Filesystem, Options: []string{"nosuid", "nodev", "noexec"},
		Why:       "the encrypted volume; state.unlock: " + strings.Join(c.State.Unlock, ", ") + deviceText(c.State),
		DependsOn: "whether one of these opens it"}
	if c.State.Plain() {
		m.What, m.Type, m.DependsOn = volume, "bind", ""
		m.Why = "state.unlock is plain: this directory of the state partition, NOT ENCRYPTED"
	}
	if c.State.Create == config.CreateFirstBoot {
		m.Why += "; the first boot of a machine makes it"
	}
	e.add(m)
	e.note("when the state does not open, state.on_failure goes: %s", strings.Join(c.State.OnFailure, ", "))
	if slices.Contains(c.State.OnFailure, config.FailureDegraded) {
		e.note("in a degraded boot a file system in memory is mounted at %s, and all changes are lost with the next restart", volume)
	}
}

// deviceText says so where the devices are no larger than the volume.
func deviceText(s config.State) string {
	if s.Device == config.DeviceClassic {
		return "; its devices end where it ends (state.device: classic)"
	}
	return ""
}

func (e *Explanation) planMemory(why string) {
	for _, where := range []string{layout.State, volume} {
		e.add(Mount{Where: where, What: "tmpfs", Type: "tmpfs", Options: []string{"nosuid", "nodev", "noexec"}, Why: why})
	}
}

func (e *Explanation) planEtc(c config.Config) {
	m := Mount{Where: "/etc", What: "overlay", Type: "overlay", Options: []string{"nosuid", "nodev"}, Why: whyEtc(c.Etc, c.State.Create == config.CreateNone)}
	if c.Etc == config.EtcReadOnly {
		if !c.Root.Usr() {
			e.note("/etc is the image's and read-only: etc is read-only")
			return
		}
		m.What, m.Type, m.Options = "/usr/share/factory/etc", "bind", []string{"ro", "nosuid", "nodev"}
	}
	e.add(m)
}

// planOverlays plans those that lie below /var, or the others.
func (e *Explanation) planOverlays(c config.Config, inVar bool) {
	for _, o := range c.DirectoryOverlays() {
		if strings.HasPrefix(o.Path, "/var/") != inVar {
			continue
		}
		e.add(Mount{Where: o.Path, What: "overlay", Type: "overlay", Options: boundFlags(o.Path), Why: whyOverlay(o.Path, c, false)})
	}
}

func (e *Explanation) planByName(c config.Config) {
	for _, where := range []string{"/home", "/var"} {
		from := layout.Volume + where
		e.add(Mount{Where: where, What: layout.State + "/" + from, Type: "bind", Options: boundFlags(where), Why: whyBind(from, where, c)})
	}
	e.note("each other directory directly in %s is bound where its name says (opt at /opt, my-dir at /my/dir), if that place is there: it depends on what the volume holds", volume)
	for _, where := range c.Binds.Unencrypted {
		if slices.ContainsFunc(c.DirectoryOverlays(), func(o config.Overlay) bool { return binds.Within(o.Path, where) }) {
			e.note("binds.unencrypted has %s, and nothing is bound there: it would hide an overlay", where)
			continue
		}
		name := binds.Escape(where)
		e.add(Mount{Where: where, What: layout.State + "/" + name, Type: "bind", Options: unencryptedFlags(where),
			Why: whyBind(name, where, c), DependsOn: "whether the state partition has such a directory, and the encrypted volume none that it would hide"})
	}
}

func (e *Explanation) planExtra(c config.Config) {
	for _, b := range c.Binds.Extra {
		options := b.Options
		if !strings.HasPrefix(b.From, layout.Volume+"/") {
			options = flags(append(unencryptedFlags(b.To), b.Options...))
		}
		if b.Seed == config.SeedOverlay {
			e.add(Mount{Where: b.To, What: "overlay", Type: "overlay", Options: options, Why: whyOverlay(b.To, c, false)})
			continue
		}
		e.add(Mount{Where: b.To, What: layout.State + "/" + b.From, Type: "bind", Options: options, Why: whyBind(b.From, b.To, c)})
	}
}
