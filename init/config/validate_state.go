package config

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"sealroot/state/binds"
	"sealroot/state/layout"
)

func (v *validator) state(c *Config) {
	s := c.State
	v.oneOf("state.create", s.Create, []string{CreateFirstBoot, CreateNever, CreateNone}, nil)
	if s.Create == CreateNone {
		v.stateless(c)
	} else if len(s.Unlock) == 0 {
		v.add("state.unlock", "choose from tpm2, key-file, recovery-key and passphrase, or plain", "missing")
	}
	v.list("state.unlock", s.Unlock, []string{UnlockTPM2, UnlockKeyFile, UnlockRecoveryKey, UnlockPassphrase, UnlockPlain})
	if s.Create == CreateFirstBoot && !s.Plain() && !s.opensAlone() {
		v.add("state.create", "add tpm2 or key-file to state.unlock, or use never and format the volume yourself",
			"first-boot makes a volume that opens by itself, and state.unlock lacks tpm2 and key-file")
	}
	if s.Plain() && len(s.Unlock) > 1 {
		v.add("state.unlock", "leave plain out, or all the others", "plain is a state without encryption: there is nothing to unlock")
	}
	v.keyFile(s)
	v.recovery(c)
	v.list("state.on_failure", s.OnFailure, []string{FailurePrompt, FailureDegraded, FailureHalt, FailureReboot})
	for i, action := range s.OnFailure {
		at := fmt.Sprintf("state.on_failure[%d]", i)
		if action == FailurePrompt && !s.canType() {
			v.add(at, "add recovery-key or passphrase to state.unlock", "prompt has nothing to ask for")
		}
		if action != FailurePrompt && i < len(s.OnFailure)-1 {
			v.add(at, "put it last", "nothing behind %.40s is ever reached", action)
		}
	}
	v.degradedUnlock(c)
	v.oneOf("state.fsck", s.Fsck, []string{FsckNo, FsckAuto}, nil)
	v.oneOf("state.filesystem", s.Filesystem, []string{"ext4", "btrfs"}, nil)
	v.oneOf("state.partition_filesystem", s.PartitionFilesystem, []string{"ext4", "btrfs"}, nil)
	if s.PartitionFilesystem == "btrfs" && slices.Contains(s.TPM2.PCRs, 5) {
		v.add("state.partition_filesystem", "leave 5 out of state.tpm2.pcrs, or use ext4", "btrfs, which the first boot makes, and that changes PCR 5")
	}
	v.oneOf("state.auto_resize", s.AutoResize, []string{AutoResizeOff, AutoResizeGrow, AutoResizeBoth}, nil)
	if s.AutoResize != AutoResizeOff && (s.Plain() || s.Create == CreateNone) {
		v.add("state.auto_resize", "leave it out", "set, but there is no volume to resize")
	}
	v.oneOf("state.reset", s.Reset, []string{ResetAuthenticated, ResetPresence, ResetNever}, nil)
	if s.Reset == ResetPresence && (s.Plain() || s.Create != CreateFirstBoot) {
		v.add("state.reset", "leave it out", "physical-presence, but without state.create first-boot and encryption there is no reset")
	}
	v.device(s)
	v.oneOf("etc", string(c.Etc), []string{string(EtcOverlay), string(EtcVolatile), string(EtcReadOnly)}, nil)
}

func (v *validator) device(s State) {
	v.oneOf("state.device", s.Device, []string{DeviceOversized, DeviceClassic}, nil)
	switch {
	case s.Device != DeviceClassic:
	case s.Plain() || s.Create == CreateNone:
		v.add("state.device", "leave it out", "classic, but there is no volume")
	case s.AutoResize != AutoResizeOff && !s.ManageKey:
		v.add("state.auto_resize", "set state.manage_key: true, or leave one of them out",
			"set, but with state.device classic each resize takes a key of the volume, and the service has none")
	}
}

// degradedUnlock refuses the key where no voucher would ever be made.
func (v *validator) degradedUnlock(c *Config) {
	const path = "state.degraded_unlock"
	switch s := c.State; {
	case !s.DegradedUnlock:
	case !slices.Contains(s.OnFailure, FailureDegraded):
		v.add(path, "add degraded to state.on_failure, or leave it out", "set, but state.on_failure lacks degraded")
	case !s.can(UnlockTPM2):
		v.add(path, "add tpm2 to state.unlock, or leave it out", "set, but state.unlock lacks tpm2")
	case c.Trust.RollbackFloor:
		v.add(path, "leave one of them out", "set, but with trust.rollback_floor the boot after a degraded one asks for a key")
	}
}

// stateless refuses what only a volume could honour.
func (v *validator) stateless(c *Config) {
	for _, k := range []struct {
		path string
		set  bool
	}{
		{"state.unlock", len(c.State.Unlock) > 0},
		{"state.recovery", c.State.Recovery != RecoveryNone},
		{"state.on_failure", len(c.State.OnFailure) > 0},
		{"state.manage_key", c.State.ManageKey},
		{"binds.unencrypted", len(c.Binds.Unencrypted) > 0},
		{"binds.extra", len(c.Binds.Extra) > 0},
	} {
		if k.set {
			v.add(k.path, "leave it out", "set, but state.create is none: everything is in memory")
		}
	}
}

// maxEscrow bounds the certificates that a recovery key is encrypted to.
const maxEscrow = 8

func (v *validator) recovery(c *Config) {
	s := c.State
	choices := []string{RecoveryShow, RecoveryLater, RecoveryEscrow, RecoveryNone}
	v.certificates("state.escrow", s.Escrow)
	switch {
	case s.Recovery == RecoveryEscrow && len(s.Escrow) == 0:
		v.add("state.escrow", "name the certificate of whoever keeps the recovery keys", "missing: state.recovery is escrow")
	case s.Recovery != RecoveryEscrow && len(s.Escrow) > 0:
		v.add("state.escrow", "leave it out, or set state.recovery: escrow", "set, but state.recovery is not escrow")
	case len(s.Escrow) > maxEscrow:
		v.add("state.escrow", "", "%d certificates; at most %d are taken", len(s.Escrow), maxEscrow)
	}
	if s.Recovery == "" && c.Build == Production {
		v.add("state.recovery", "choose "+orList(choices), "a production build must say what happens to the recovery key")
		return
	}
	v.oneOf("state.recovery", s.Recovery, choices, nil)
	if s.Create == CreateNone {
		return // see stateless
	}
	enrols := s.Recovery == RecoveryShow || s.Recovery == RecoveryLater || s.Recovery == RecoveryEscrow
	if enrols && !s.can(UnlockRecoveryKey) {
		v.add("state.recovery", "add recovery-key to state.unlock, or use none",
			"%s makes a key that state.unlock does not accept", s.Recovery)
	}
	if s.Recovery == RecoveryLater && !s.opensAlone() {
		v.add("state.recovery", "add tpm2 or key-file to state.unlock, or use show",
			"later keeps the only key inside the volume that it opens")
	}
	if enrols && s.Create == CreateNever {
		v.add("state.recovery", "use none, and enrol a key on the running system",
			"%s makes a key when the volume is created, and state.create is never", s.Recovery)
	}
}

// policy holds the rules of the table of boot paths: what a TPM policy means
// depends on who measures the initramfs.
func (v *validator) policy(c *Config) {
	t := c.State.TPM2
	if !c.State.can(UnlockTPM2) {
		if t.Policy != "" || len(t.PCRs) > 0 || t.PublicKey != "" || len(t.PreviousKeys) > 0 || t.PIN || t.AllowUncapped || t.WithoutMeasuredBoot != "" {
			v.add("state.tpm2", "add tpm2 to state.unlock, or leave state.tpm2 out", "set, but state.unlock lacks tpm2")
		}
		return
	}
	if strings.HasPrefix(t.Policy, "signed-pcr11") && !t.Signed() {
		v.add("state.tpm2.policy", "choose signed-pcr11+7 (Secure Boot) or signed-pcr11+4",
			"PCR 11 is zero under any system that is not a UKI: whoever boots one can replay it and use the public signature")
	} else {
		v.oneOf("state.tpm2.policy", t.Policy, []string{PolicySignedPCR11And7, PolicySignedPCR11And4, PolicyPCRs}, nil)
	}
	if t.Signed() {
		if c.Boot.Loader == LoaderGRUB {
			v.add("state.tpm2.policy", "use boot.loader: uki, or policy pcrs",
				"%s needs a UKI: GRUB measures nothing into PCR 11", t.Policy)
		}
		if len(t.PCRs) > 0 {
			v.add("state.tpm2.pcrs", "use policy pcrs, or leave pcrs out", "%s has its PCRs in its name", t.Policy)
		}
	} else if t.PublicKey != "" {
		v.add("state.tpm2.public_key", "leave it out", "only signed policies have a key")
	}
	if c.Boot.Loader == LoaderSystemdBoot && (t.Policy == PolicySignedPCR11And4 || slices.Contains(t.PCRs, 12)) {
		// boot.c of systemd 252 measures the options of every entry, a UKI's too
		v.add("state.tpm2.policy", "use boot.loader: uki, or signed-pcr11+7 with Secure Boot",
			"it holds PCR 12, and systemd-boot measures each UKI's command line there: no load options could not be told from some")
	}
	if n := len(t.PreviousKeys); n > maxPreviousKeys || n > 0 && t.Policy != PolicySignedPCR11And7 {
		v.add("state.tpm2.previous_public_keys", "leave keys out", "%d keys; at most %d are taken, and only with %s", n, maxPreviousKeys, PolicySignedPCR11And7)
	}
	v.pcrs(c)
	v.measuredBoot(c)
}

// maxPreviousKeys bounds the keys of the PCR policy that count beside the present one.
const maxPreviousKeys = 4

func (v *validator) pcrs(c *Config) {
	pcrs := c.State.TPM2.PCRs
	for i, pcr := range pcrs {
		at := fmt.Sprintf("state.tpm2.pcrs[%d]", i)
		switch {
		case pcr < 0 || pcr > 15:
			// 16 and 23 can be reset by anybody, 17 to 22 belong to a dynamic launch.
			v.add(at, "choose from 0 to 15", "PCR %d says nothing about this boot", pcr)
		case slices.Contains(pcrs[:i], pcr):
			v.add(at, "", "PCR %d is given twice", pcr)
		default:
			v.measuredStore(c, at, pcr)
		}
	}
}

// measuredBoot asks for the named exception exactly when nobody vouches for the
// initramfs that gets the key.
func (v *validator) measuredBoot(c *Config) {
	const path = "state.tpm2.tpm_without_measured_boot"
	t := c.State.TPM2
	var reason string
	switch {
	case c.Boot.Loader == LoaderGRUB:
		reason = "with boot.loader grub nobody measures the initramfs that the TPM gives the key to"
	case t.Policy == PolicyPCRs && !slices.Contains(t.PCRs, 4) && !slices.Contains(t.PCRs, 7):
		reason = "state.tpm2.pcrs holds neither PCR 4 nor PCR 7, so any system gets the key"
	case t.Policy == PolicyPCRs && !t.LiteralBacked(true):
		reason = "state.tpm2.pcrs holds PCR 4 without 12, so other load options, such as a root shell, get the key (add 12)"
	}
	switch {
	case t.WithoutMeasuredBoot != "" && t.WithoutMeasuredBoot != AcceptTheft:
		v.add(path, "the only value is "+AcceptTheft, "%.60q is unknown", t.WithoutMeasuredBoot)
	case reason != "" && t.WithoutMeasuredBoot != "" && t.PINStandsIn(c.Boot.Loader):
		v.add(path, "leave it out, or the PIN", "not needed: the TPM asks for a PIN")
	case reason != "" && t.WithoutMeasuredBoot == "" && !t.PINStandsIn(c.Boot.Loader):
		v.add(path, "use a UKI with a signed policy, with grub set state.tpm2.pin, unlock by recovery-key or passphrase, or accept it: "+AcceptTheft,
			"missing: %s: who can write to the disk can read the state", reason)
	case reason == "" && t.WithoutMeasuredBoot != "":
		v.add(path, "leave it out", "not needed: the boot path vouches for the initramfs")
	}
}

// unencryptedBelow lists where the directories of the unencrypted side may be
// bound. Whoever edits the disk writes them, so that root must never run or
// obey what lies there.
func unencryptedBelow() []string {
	return []string{"/home", "/srv", "/media", "/mnt", "/var/log", "/var/tmp"}
}

func (v *validator) binds(c *Config) {
	for i, target := range c.Binds.Unencrypted {
		at := fmt.Sprintf("binds.unencrypted[%d]", i)
		if !mayBeUnencrypted(target) {
			v.add(at, "choose "+orList(unencryptedBelow())+" or what is below them",
				"%.80q from the unencrypted side could give root's rights to who edits the disk", target)
		}
		if slices.Contains(c.Binds.Unencrypted[:i], target) {
			v.add(at, "", "%.80q is given twice", target)
		}
	}
	var targets []string
	for i, b := range c.Binds.Extra {
		at := fmt.Sprintf("binds.extra[%d]", i)
		v.extraBind(at, b, c.Binds.Unencrypted)
		if slices.Contains(targets, b.To) {
			v.add(at+".to", "", "%.80q is given twice", b.To)
		}
		if upperUsed(b, c.Binds.Extra[:i]) {
			v.add(at+".from", "give the overlay a name of its own", "%.80q has another use", b.From)
		}
		targets = append(targets, b.To)
	}
	v.tmpfs(c, append(targets, c.Binds.Unencrypted...))
	v.symlinks(c.Binds.Symlinks)
}

// upperUsed says that the name of an overlay's changes is that of something else too.
func upperUsed(b ExtraBind, before []ExtraBind) bool {
	if b.Seed == SeedOverlay && slices.Contains([]string{"encrypted/etc", "encrypted/home", "encrypted/var"}, b.From) {
		return true
	}
	return slices.ContainsFunc(before, func(o ExtraBind) bool {
		return (b.Seed == SeedOverlay || o.Seed == SeedOverlay) && overlap(o.From, b.From)
	})
}

// hidesByName says that the directory of the volume in which From lies has the name of a
// place where images have something: those without this bind, to which a failed trial
// comes back, bind it there by its name, and so does this one where From lies deeper.
// Every volume has home and var, where they belong.
func hidesByName(b ExtraBind) bool {
	from, inside := strings.CutPrefix(b.From, layout.Volume+"/")
	top, _, _ := strings.Cut(from, "/")
	if !inside || b.Seed == SeedOverlay || b.unseeded() && (top == "home" || top == "var") {
		return false
	}
	list, bad := binds.Names([]string{top})
	return len(bad) > 0 || slices.ContainsFunc(list, func(named binds.Bind) bool {
		return overlap(named.To, b.To) || binds.Within(named.To, "/etc", "/home", "/media", "/mnt", "/opt", "/root", "/srv", "/tmp", "/usr", "/var")
	})
}

func (b ExtraBind) unseeded() bool { return b.Seed == "" || b.Seed == SeedNone }

func (v *validator) extraBind(at string, b ExtraBind, unencrypted []string) {
	switch {
	case !isSource(b.From):
		v.add(at+".from", "give a path below /state such as encrypted/db", "%.80q cannot be bound", b.From)
	case !strings.HasPrefix(b.From, "encrypted/") && !slices.Contains(unencrypted, b.To):
		v.add(at+".from", "begin it with encrypted/, or list the target in binds.unencrypted",
			"%.80q is on the unencrypted side", b.From)
	}
	switch {
	case !isTarget(b.To):
		v.add(at+".to", "give a directory of the root such as /var/lib/db", "%.80q cannot be bound over", b.To)
	case binds.OfImage(b.To):
		v.add(at+".to", "give /opt or /usr/local, or make a layer of it", "%.80q belongs to the image, which could not start without", b.To)
	}
	if hidesByName(b) {
		v.add(at+".from", "give it a name that is no place, such as encrypted/db.d", "an image that knows nothing of this bind would have %.80q over what it has at the place of that name", b.From)
	}
	if !b.unseeded() {
		v.oneOf(at+".seed", b.Seed, []string{SeedOnce, SeedTmpfiles, SeedOverlay, SeedNone}, nil)
		if remedy := noOverlay(b.To); b.Seed == SeedOverlay && remedy != "" && !binds.OfImage(b.To) {
			v.add(at+".seed", remedy, "%.80q cannot be an overlay", b.To)
		}
		if name, ok := strings.CutPrefix(b.From, "encrypted/"); !ok || strings.Contains(name, "/") {
			v.add(at+".seed", "let from be encrypted/NAME", "%.80q is not directly in the encrypted volume", b.From)
		}
	}
	v.list(at+".options", b.Options, bindOptions())
}

func mayBeUnencrypted(target string) bool {
	return isTarget(target) && binds.Within(target, unencryptedBelow()...)
}

// isSource accepts a clean relative path none of whose parts is hidden, private
// to sealroot or lost+found.
func isSource(p string) bool {
	if !isClean("/"+p) || strings.HasPrefix(p, "/") || p == layout.Volume {
		return false
	}
	for _, part := range strings.Split(p, "/") {
		if part != layout.Volume && binds.NeverBound(part) {
			return false
		}
	}
	return true
}

// isTarget accepts a clean absolute path that is no file system of the kernel's
// and not /etc itself, which the key etc is for.
func isTarget(p string) bool {
	if !isClean(p) || p == "/etc" {
		return false
	}
	return !binds.Reserved(p) && p != "/sysroot" && !strings.HasPrefix(p, "/sysroot/")
}

func isClean(p string) bool {
	return len(p) > 1 && len(p) < 1024 && p[0] == '/' && path.Clean(p) == p && !strings.ContainsAny(p, "\x00\n")
}
