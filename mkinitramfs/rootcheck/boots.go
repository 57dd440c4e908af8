package rootcheck

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"sealroot/init/config"
	"sealroot/state/binds"
	"sealroot/verity/osrelease"
)

// init: PID 1 refuses an image without a program to hand over to.
func (v *verdict) init() {
	const remedy = "install an init (Debian: package systemd-sysv), or name another with init= and trust.cmdline: measured"
	at, f, err := v.t.file(strings.TrimPrefix(v.w.Init, "/"))
	switch {
	case errors.Is(err, errLinks):
		v.error(v.w.Init, remedy, "its links lead in a circle")
	case err != nil && path.Join("/", at) == v.w.Init:
		v.error(v.w.Init, remedy, "missing")
	case err != nil:
		v.error(v.w.Init, remedy, "it leads to /%s, which is not in the root", at)
	case !f.Mode.IsRegular():
		v.error(v.w.Init, remedy, "no program: /%s is %s", at, v.t.kind(at))
	case f.Mode.Perm()&0o111 == 0:
		v.error(v.w.Init, "chmod 0755 it", "/%s has mode %04o and cannot be executed", at, f.Mode.Perm())
	case f.Size == 0:
		v.error(v.w.Init, remedy, "/%s is empty", at)
	}
}

// directories: PID 1 mounts over them, and follows no link there.
func (v *verdict) directories() {
	for _, name := range []string{"etc", "home", "var"} {
		if !v.t.isDir(name) {
			v.error(name, "make it a directory", "PID 1 mounts over it and needs a directory; it is %s", v.t.kind(name))
		}
	}
}

// mountPoints: the root is read-only, nobody can make them later.
func (v *verdict) mountPoints() {
	var missing []string
	for _, name := range []string{"dev", "proc", "run", "state", "sys"} {
		if _, ok := v.t.files[name]; !ok {
			missing = append(missing, "/"+name)
		} else if !v.t.isDir(name) {
			v.error(name, "make it an empty directory", "PID 1 mounts over it and needs a directory; it is %s", v.t.kind(name))
		}
	}
	if len(missing) > 0 && !v.w.Built {
		v.warn(missing[0], "nothing to do for sealroot-mkinitramfs disk and parts, which add them; other builders: mkdir", "missing: %s", strings.Join(missing, ", "))
	}
}

// binds, and overlays: PID 1 makes no directory in a read-only root, and follows no link.
func (v *verdict) binds() {
	c := v.w.Config
	targets := slices.Clone(c.Binds.Unencrypted)
	for _, b := range c.Binds.Extra {
		targets = append(targets, b.To)
		switch b.Seed {
		case config.SeedOverlay:
			v.lower(b.To)
		case config.SeedTmpfiles:
			v.tmpfiles(b.To)
		}
	}
	for _, o := range c.DirectoryOverlays() {
		targets = append(targets, o.Path)
		v.lower(o.Path)
		for _, to := range c.Binds.Unencrypted {
			if binds.Within(o.Path, to) {
				v.warn(strings.TrimPrefix(to, "/"), "leave it out of binds.unencrypted, or list a place that is not over the overlay", "what the unencrypted side has for %s would hide the overlay over %s: no boot binds it, and each one where it is there warns", to, o.Path)
			}
		}
	}
	for _, t := range c.Binds.Tmpfs {
		targets = append(targets, t.To)
	}
	for _, to := range targets {
		v.bind(strings.TrimPrefix(to, "/"))
	}
	for _, l := range c.Binds.Symlinks {
		v.symlink(l, targets)
	}
}

// symlink: PID 1 makes one where a boot can write and nothing is, and else warns in each
// boot; targets are what is mounted over the root.
func (v *verdict) symlink(l config.Symlink, targets []string) {
	name := strings.TrimPrefix(l.At, "/")
	f, there := v.t.files[name]
	switch {
	case slices.ContainsFunc(targets, func(to string) bool { return strings.HasPrefix(l.At, to+"/") }):
	case there && (f.Mode.Type() != fs.ModeSymlink || f.Link != l.To):
		v.warn(name, "delete it in the root, or leave the link out of binds.symlinks", "binds.symlinks makes a link to %s there, and it is %s: no boot makes the link, and each one warns", l.To, v.t.kind(name))
	case !there && !v.writable(topOf(l.At)):
		v.warn(name, "make the link in the root (--extra), or have overlays or binds.tmpfs make the place writable", "binds.symlinks makes a link there, in a read-only root: no boot makes it, and each one warns")
	}
}

// lower: an overlay is over something, also where directories can be made at boot.
func (v *verdict) lower(to string) {
	name := strings.TrimPrefix(to, "/")
	if v.writable(topOf(to)) && !v.w.Config.Root.Usr() && !v.t.has(name) {
		v.warn(name, "mkdir it in the root", "the configuration makes an overlay of it, and the root has nothing there")
	}
	v.owners(name, false)
}

// owners: users of an image get their numbers when it is built, and on the machine one
// of them may be somebody else's. The merge of /etc changes that by name in /var; below
// an overlay the image stays as it is.
func (v *verdict) owners(to string, itself bool) {
	const dynamic = 100 // below are numbers that distributions give for good
	for _, name := range v.t.order {
		if uid := v.t.files[name].UID; uid >= dynamic && (name == to || !itself && strings.HasPrefix(name, to+"/")) {
			v.warn(name, "give it to root there, or have tmpfiles.d give it to the user by name", "it belongs to user %d of the image, who may be another one on a machine", uid)
			return
		}
	}
}

// tmpfiles: what begins empty is filled by somebody.
func (v *verdict) tmpfiles(to string) {
	v.owners(strings.TrimPrefix(to, "/"), true)
	for _, pattern := range []string{"usr/lib/tmpfiles.d/*.conf", "etc/tmpfiles.d/*.conf"} {
		for _, name := range v.t.glob(pattern) {
			if tmpfilesMakes(v.t.files[name].Text, to) {
				return
			}
		}
	}
	v.warn(strings.TrimPrefix(to, "/"), "add a line to a file of /usr/lib/tmpfiles.d, or use seed: once",
		"its seed is tmpfiles, and no line of tmpfiles.d makes anything there: it stays empty")
}

// tmpfilesMakes tells whether a line of a tmpfiles.d file (tmpfiles.d(5)) makes a
// directory or something in it.
func tmpfilesMakes(text []byte, dir string) bool {
	specifiers := strings.NewReplacer("%%", "%", "%S", "/var/lib", "%C", "/var/cache", "%L", "/var/log", "%V", "/var/tmp", "%h", "/root")
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) < 2 || !strings.ContainsRune("fFwdDvqQpLcbC", rune(words[0][0])) {
			continue
		}
		if at := path.Clean(specifiers.Replace(strings.Trim(words[1], `"`))); at == dir || strings.HasPrefix(at, dir+"/") {
			return true
		}
	}
	return false
}

func (v *verdict) bind(to string) {
	top, _, _ := strings.Cut(to, "/")
	at := ""
	for part := range strings.SplitSeq(to, "/") {
		at = path.Join(at, part)
		switch f, ok := v.t.files[at]; {
		case !ok && v.writable(top):
			return // made at boot
		case !ok:
			v.warn(to, "mkdir it in the root", "the configuration binds over it; /%s is missing, and cannot be made in a read-only root", at)
			return
		case f.Mode.Type() == fs.ModeSymlink:
			v.warn(to, "give the bind the directory's own path", "the configuration binds over it; /%s is %s, and PID 1 follows none", at, v.t.kind(at))
			return
		case !f.Mode.IsDir():
			v.warn(to, "make it a directory", "the configuration binds over it; /%s is %s", at, v.t.kind(at))
			return
		}
	}
}

// writable tells whether directories can be made below a directory of the root.
func (v *verdict) writable(top string) bool {
	switch top {
	case "home", "var":
		return true
	case "etc":
		return v.w.Config.Etc != config.EtcReadOnly
	}
	return v.w.Config.RootInMemory() || v.w.Config.Root.Usr() && top != "usr"
}

func (v *verdict) modules() {
	const modules = "usr/lib/modules"
	where := modules
	if !v.t.has(modules) && v.t.isDir("lib/modules") {
		where = "lib/modules" // /usr is not merged
	}
	where, err := v.t.resolve(where)
	release := v.w.Kernel
	if release != "" {
		where = path.Join(where, release)
		_, err = v.t.resolve(where)
	}
	switch {
	case v.w.Built && release == "":
	case err != nil && release != "":
		v.error(path.Join(modules, release), "install the kernel's package, or give `disk` and `parts` --modules-dir", "no modules for kernel %s: initramfs and running system need them", release)
	case err != nil:
		v.warn(modules, "install a kernel's package, or give `disk` and `parts` --modules-dir, which adds them", "no kernel modules")
	case release != "":
		v.depmod(where)
	default:
		for _, name := range v.t.names(where) {
			if path.Dir(name) == where && v.t.isDir(name) {
				v.depmod(name)
			}
		}
	}
}

func (v *verdict) depmod(dir string) {
	if !v.t.has(dir + "/modules.dep") {
		v.warn(dir, "depmod -b ROOT "+path.Base(dir), "no modules.dep: modprobe and udev find no module there")
	}
}

func (v *verdict) mergedUsr() {
	var separate, dangling []string
	for _, name := range strings.Fields("bin lib lib32 lib64 libx32 sbin") {
		switch {
		case v.t.isDir(name):
			separate = append(separate, "/"+name)
		case v.t.files[name].Mode.Type() == fs.ModeSymlink && !v.t.has(name):
			dangling = append(dangling, "/"+name)
		}
	}
	if len(dangling) > 0 {
		v.warn(dangling[0], "make the directory below /usr", "links into /usr that lead nowhere: %s", strings.Join(dangling, ", "))
	}
	if len(separate) > 0 {
		v.warn(separate[0], "merge /usr (Debian: package usrmerge)", "directories of their own, not links into /usr: %s; systemd does not support that any more, and PID 1 looks for modules in /usr/lib only", strings.Join(separate, ", "))
	}
}

func (v *verdict) osRelease() {
	const name = osrelease.Path
	at, f, err := v.osReleaseFile()
	if err != nil {
		if !v.w.Built {
			v.warn(name, "install the distribution's (Debian: package base-files)", "missing: the image gets one that knows only its name and version")
		}
		return
	}
	r, err := osrelease.Parse(f.Text)
	if err != nil {
		v.error(at, "correct the line", "PID 1 refuses the image: %v", err)
		return
	}
	if etc := v.t.files["etc/os-release"]; etc.Mode.IsRegular() && at == name && string(etc.Text) != string(f.Text) {
		v.warn("etc/os-release", "make it a link to ../usr/lib/os-release", "a file of its own: programs read it first, and will not see IMAGE_ID and IMAGE_VERSION of /%s", name)
	}
	const remedy = "nothing to do for sealroot-mkinitramfs disk and parts, which write it; other builders: set it"
	for _, variable := range []struct{ name, got, want string }{
		{"IMAGE_ID", r.ImageID, v.w.Config.Name}, {"IMAGE_VERSION", r.ImageVersion, v.w.Config.Version},
	} {
		switch {
		case v.w.Built:
		case variable.got == "":
			v.warn(at, remedy, "no %s", variable.name)
		case variable.want != "" && variable.got != variable.want:
			v.warn(at, remedy+"; or is it another root?", "%s is %q, that of the configuration %q", variable.name, variable.got, variable.want)
		}
	}
}

// fsck: PID 1 runs the root's own.
func (v *verdict) fsck() {
	if v.w.Config.State.Fsck != config.FsckAuto {
		return
	}
	if !v.t.has("usr/sbin/e2fsck") && !v.t.has("sbin/e2fsck") {
		v.warn("usr/sbin/e2fsck", "install it (Debian: package e2fsprogs)", "missing: state.fsck: auto repairs nothing")
	}
	if s := v.w.Config.State; (s.Filesystem == "btrfs" || s.PartitionFilesystem == "btrfs") && !v.t.has("usr/bin/btrfs") && !v.t.has("usr/sbin/btrfs") && !v.t.has("sbin/btrfs") {
		v.warn("usr/bin/btrfs", "install it (Debian: package btrfs-progs)", "missing: state.fsck: auto has a volume read-only whose superblock was mended")
	}
}

// systemd tells whether the real init is systemd.
func (v *verdict) systemd() bool {
	at, err := v.t.resolve(strings.TrimPrefix(v.w.Init, "/"))
	return err == nil && path.Base(at) == "systemd"
}

// unit is one of sealroot's, as sealroot/units/install enables it.
type unit struct{ name, by, without string }

func unitsOfSealroot() []unit {
	return []unit{
		{"sealroot-record.service", "sysinit.target.wants", "`sealroot status` has no reports of earlier boots"},
		{"sealroot-deadline.timer", "sysinit.target.wants", "a trial that hangs after the hand-over is never ended"},
		{"sealroot-check.service", "boot-complete.target.requires", "no health check is asked before a commit"},
		{"sealroot-commit.service", "multi-user.target.wants", "no new version is ever committed"},
		{"sealroot-degraded.target", "multi-user.target.wants", "nothing starts what is meant for a degraded boot"},
		{"sealroot-exit.service", "sysinit.target.wants", "file systems below the root may stay mounted when the machine ends"},
		{"sealroot-state.service", "sysinit.target.wants", "space that another program lets the volume's file system take stays unreserved until the next boot, and state.auto_resize does nothing"},
		{"sealroot-replicate.service", "multi-user.target.wants", "boot.replicate does nothing"},
		{"sealroot-post-rollback.service", "basic.target.wants", "its hooks for a rollback never run"},
	}
}

// needed tells whether an image of this configuration needs a unit.
func (v *verdict) needed(u unit) bool {
	switch u.name {
	case "sealroot-record.service", "sealroot-exit.service":
		return true
	case "sealroot-state.service":
		return !v.w.Config.State.Plain() && v.w.Config.State.Create != config.CreateNone
	case "sealroot-replicate.service":
		return len(v.w.Config.Boot.Replicate) > 0
	case "sealroot-post-rollback.service":
		return v.t.isDir("usr/lib/sealroot/hooks/post-rollback.d")
	case "sealroot-degraded.target":
		return slices.Contains(v.w.Config.State.OnFailure, config.FailureDegraded)
	}
	return v.w.Config.Boot.Store != config.StoreFixed // which has nothing to commit
}

func (v *verdict) units() {
	const command = "usr/bin/sealroot"
	const remedy = "sealroot/units/install EXTRA build/sealroot, and give --extra EXTRA to `disk` and `parts`"
	if _, f, err := v.t.file(command); err != nil || f.Mode.Perm()&0o111 == 0 {
		v.warn(command, remedy, "no program sealroot: new versions are never committed, and fall back; nothing can be installed")
		return
	}
	if v.w.Init != "" && v.t.has(strings.TrimPrefix(v.w.Init, "/")) && !v.systemd() {
		v.warn(v.w.Init, v.calls(), "it is not systemd, so that sealroot's units do not run")
		return
	}
	for _, u := range unitsOfSealroot() {
		if v.needed(u) && !v.enabled(u.name, u.by) {
			v.warn("usr/lib/systemd/system/"+u.name, remedy+", or: systemctl --root=ROOT enable "+u.name, "not there, not enabled or masked: %s", u.without)
		}
	}
}

// calls is what another init than systemd has to run in place of the units.
func (v *verdict) calls() string {
	list := "have it run `sealroot record` early, `sealroot post-rollback` before what uses /var"
	if v.needed(unit{name: "sealroot-state.service"}) {
		list += ", `sealroot state balance --watch --configured` from then on"
	}
	if v.needed(unit{name: "sealroot-commit.service"}) {
		list += ", `sealroot check --commit` once the machine is up, and `sealroot deadline` after boot.commit_deadline where /run/sealroot/trial or /run/sealroot/layers-trial is there"
	}
	return list + ", and `sealroot exit-program poweroff` or reboot as the last when the machine ends (docs/operators.md, How the machine ends)"
}

// hooks: one that is not run costs nothing until it would have been needed.
func (v *verdict) hooks() {
	for _, name := range v.t.glob("usr/lib/sealroot/hooks/*.d/*") {
		_, f, err := v.t.file(name)
		switch {
		case err != nil || !f.Mode.IsRegular():
			v.warn(name, "make it an executable file", "%s: no hook, it is not run", v.t.kind(name))
		case f.Mode.Perm()&0o111 == 0:
			v.warn(name, "chmod 0755 it", "it is not executable, and not run")
		case f.UID != 0 || f.Mode.Perm()&0o022 != 0:
			v.warn(name, "chown root it, and chmod 0755", "others than root may change it: it counts as one that failed")
		case strings.Contains(path.Base(name), "."):
			v.warn(name, "name it with letters, digits, _ and -", "its name has other signs, and it is not run")
		}
	}
}

// enabled tells whether systemd starts a unit, as by has it; "" for any target.
func (v *verdict) enabled(name, by string) bool {
	if f, ok := v.t.files["etc/systemd/system/"+name]; ok && (f.Link == "/dev/null" || f.Mode.IsRegular() && f.Size == 0) {
		return false // masked, by either (systemd.unit(5))
	}
	wanted, there := false, false
	for _, dir := range []string{"etc/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"} {
		if at, err := v.t.resolve(dir); err == nil {
			there = there || v.t.has(at+"/"+name)
			f, ok := v.t.files[fmt.Sprintf("%s/%s/%s", at, by, name)]
			wanted = wanted || ok && f.Link != "/dev/null"
		}
	}
	return wanted && there
}
