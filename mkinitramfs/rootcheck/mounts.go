package rootcheck

import (
	"io/fs"
	"path"
	"slices"
	"strings"
)

// fstabLine is one entry of an fstab (man fstab).
type fstabLine struct {
	source, where, kind string
	options             []string
}

// parseFstab reads an fstab. Lines that are no entries are passed over.
func parseFstab(text []byte) []fstabLine {
	var list []fstabLine
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) < 3 || strings.HasPrefix(words[0], "#") {
			continue
		}
		e := fstabLine{source: words[0], where: path.Clean(unescapeFstab(words[1])), kind: words[2]}
		if len(words) > 3 {
			e.options = strings.Split(words[3], ",")
		}
		list = append(list, e)
	}
	return list
}

// unescapeFstab undoes the octal escapes of getmntent(3) in a path.
func unescapeFstab(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func (e fstabLine) has(option string) bool { return slices.Contains(e.options, option) }

// needsDisk tells whether the boot waits for a disk to appear.
func (e fstabLine) needsDisk() bool {
	if e.has("noauto") || e.has("nofail") || e.has("x-systemd.automount") {
		return false
	}
	for _, prefix := range []string{"UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "ID=", "/dev/"} {
		if strings.HasPrefix(e.source, prefix) {
			return true
		}
	}
	return false
}

func (v *verdict) fstab() {
	const name = "etc/fstab"
	_, f, err := v.t.file(name)
	if err != nil {
		return
	}
	const remedy = "delete the line; PID 1 mounts what the configuration says"
	for _, e := range parseFstab(f.Text) {
		switch {
		case e.where == "/":
			v.warn(name, remedy, "it mounts /: systemd remounts the root as the line says, which a read-only root refuses, and may wait for %s", e.source)
		case slices.Contains([]string{"/etc", "/home", "/state", "/usr", "/var"}, e.where) && e.needsDisk():
			v.error(name, remedy, "it mounts %s from %s over what PID 1 has mounted there; without that disk the boot ends in emergency mode", e.where, e.source)
		case slices.Contains([]string{"/etc", "/home", "/state", "/usr", "/var"}, e.where):
			v.warn(name, remedy, "it mounts %s over what PID 1 has mounted there", e.where)
		case e.kind == "swap" && e.needsDisk():
			v.warn(name, "delete the line, or add nofail", "it waits for the swap space %s, which a machine with this image may not have", e.source)
		case e.needsDisk():
			v.warn(name, "add nofail, or delete the line", "it mounts %s from %s: a machine without that disk ends in emergency mode", e.where, e.source)
		case path.IsAbs(e.where) && !e.has("noauto") && !v.writable(topOf(e.where)) && topOf(e.where) != "run" && topOf(e.where) != "dev" && !v.t.has(e.where[1:]):
			v.warn(name, "mkdir it in the root", "it mounts %s, which is missing, and cannot be made in a read-only root", e.where)
		}
	}
}

func topOf(where string) string {
	top, _, _ := strings.Cut(strings.TrimPrefix(where, "/"), "/")
	return top
}

// resolvConf: the network's name servers are known on the machine only.
func (v *verdict) resolvConf() {
	const name = "etc/resolv.conf"
	f, ok := v.t.files[name]
	if !ok {
		return
	}
	if f.Mode.Type() == fs.ModeSymlink {
		target := f.Link
		if !path.IsAbs(target) {
			target = path.Join("/etc", target)
		}
		resolved := strings.HasPrefix(target, "/run/systemd/resolve/")
		switch {
		case resolved && !v.t.has("usr/lib/systemd/systemd-resolved") && !v.t.has("lib/systemd/systemd-resolved"):
			v.warn(name, "install systemd-resolved, or delete the link", "it leads to %s, which systemd-resolved makes, and the root has none", f.Link)
		case !strings.HasPrefix(target, "/run/") && !v.t.has(name):
			v.warn(name, "delete the link, or make it lead into /run", "it leads to %s, which is not in the root", f.Link)
		}
		return
	}
	for line := range strings.Lines(string(f.Text)) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "nameserver" {
			v.warn(name, "delete it (debootstrap and containers copy that of the build machine), or make it a link into /run", "every machine asks the name server %s", words[1])
			return
		}
	}
}

func (v *verdict) mtab() {
	const name = "etc/mtab"
	if f, ok := v.t.files[name]; ok && f.Mode.Type() != fs.ModeSymlink {
		v.warn(name, "ln -sf ../proc/self/mounts it", "%s, which shows the mounts of the build machine for ever", v.t.kind(name))
	}
}

// tmp: a root that is read-only needs something mounted there.
func (v *verdict) tmp() {
	if v.w.Config.Root.Usr() || v.w.Config.RootInMemory() || !v.systemd() || !v.t.isDir("tmp") && v.t.has("tmp") {
		return
	}
	for _, b := range v.w.Config.Binds.Extra {
		if b.To == "/tmp" {
			return
		}
	}
	for _, t := range v.w.Config.Binds.Tmpfs {
		if t.To == "/tmp" {
			return
		}
	}
	for _, o := range v.w.Config.Overlays {
		if o.Path == "/tmp" {
			return
		}
	}
	if _, f, err := v.t.file("etc/fstab"); err == nil {
		for _, e := range parseFstab(f.Text) {
			if e.where == "/tmp" {
				return
			}
		}
	}
	if !v.enabled("tmp.mount", "local-fs.target.wants") {
		v.warn("tmp", "systemctl --root=ROOT enable tmp.mount (Debian 12: copy /usr/share/systemd/tmp.mount to /etc/systemd/system first)", "nothing mounts a file system there, and the root is read-only: no program can make a temporary file")
	}
}

// varRun: /var outlives a boot, /run does not.
func (v *verdict) varRun() {
	for _, l := range []struct{ name, to string }{{"var/run", "/run"}, {"var/lock", "/run/lock"}} {
		if v.t.isDir(l.name) {
			v.warn(l.name, "ln -s "+l.to+" in its place", "a directory: on the encrypted volume it keeps PID files, sockets and locks of earlier boots")
		}
	}
}
