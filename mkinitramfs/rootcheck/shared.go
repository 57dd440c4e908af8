package rootcheck

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// What an image holds, every machine has, and who has one machine knows it of all.

func (v *verdict) machineID() {
	const etc, dbus = "etc/machine-id", "var/lib/dbus/machine-id"
	id := strings.TrimSpace(string(v.t.files[etc].Text))
	switch {
	case id == "uninitialized" && v.w.Built && !v.w.Config.KeepsEtc():
		v.warn(etc, "leave it out of --extra", "uninitialized, and no change to /etc outlives a boot: each one would be a first boot")
	case id == "" || id == "uninitialized":
	case v.w.Built: // --extra has one
		v.warn(etc, "leave it out of --extra", "filled: every machine gets the same identity, and DHCP addresses")
	default:
		v.warn(etc, "nothing to do for sealroot-mkinitramfs disk and parts, which empty it; other builders: truncate -s0 it", "filled: every machine gets the same identity, and DHCP addresses")
	}
	if _, there := v.t.files[etc]; !there || id == "uninitialized" {
		v.firstBoot(etc)
	}
	if f := v.t.files[dbus]; f.Mode.IsRegular() && len(f.Text) > 0 {
		v.warn(dbus, "ln -sf /etc/machine-id it", "a file with an identity: every machine gets the same")
	}
}

// firstBoot is asked where a machine has one: nobody may be at the machine whose first boot asks and waits for the answer
// (systemd-firstboot.service(8)).
func (v *verdict) firstBoot(id string) {
	const unit = "systemd-firstboot.service"
	if v.w.Config.KeepsEtc() && v.enabled(unit, "sysinit.target.wants") {
		v.warn(id, "systemctl --root=ROOT mask "+unit+", or give it what is missing; an empty file makes no boot a first one",
			"not there or uninitialized: the first boot of each machine asks on the console for a locale, a time zone and root's password where they are missing, and waits")
	}
}

func (v *verdict) sshHostKeys() {
	for _, name := range v.t.glob("etc/ssh/ssh_host_*_key") {
		if v.t.files[name].Size > 0 {
			v.warn(name, "delete ssh_host_*, and make them at the first boot (`ssh-keygen -A` in a unit before ssh.service)",
				"every machine has this key: whoever has one machine, or the image, can pass for all")
		}
	}
}

func (v *verdict) randomSeed() {
	for _, name := range []string{"var/lib/systemd/random-seed", "var/lib/urandom/random-seed", "var/lib/random-seed", "boot/loader/random-seed"} {
		if v.t.files[name].Size > 0 {
			v.warn(name, "delete it", "every machine starts with this seed, which the image's readers know")
		}
	}
}

func (v *verdict) identity() {
	for _, i := range []struct{ pattern, what string }{
		{"var/lib/systemd/credential.secret", "the key of systemd's credentials"},
		{"var/lib/NetworkManager/secret_key", "the key that IPv6 addresses are made from"},
		{"var/lib/NetworkManager/*.lease", "a DHCP lease of the build machine"},
		{"var/lib/dhcp/*.leases", "DHCP leases of the build machine"},
		{"var/lib/cloud/data/instance-id", "the identity of a cloud instance"},
		{"etc/hostid", "the host ID of ZFS and others"},
		{"etc/ssl/private/ssl-cert-snakeoil.key", "a secret TLS key"},
		{"etc/wireguard/*.conf", "a secret WireGuard key"},
		{"root/.ssh/id_*", "a secret SSH key"},
		{"root/.bash_history", "what was typed on the build machine"},
	} {
		for _, name := range v.t.glob(i.pattern) {
			if v.t.files[name].Size > 0 && !strings.HasSuffix(name, ".pub") {
				v.warn(name, "delete it, and have each machine make its own", "%s: every machine gets the same, and the image's readers know it", i.what)
			}
		}
	}
	const iscsi = "etc/iscsi/initiatorname.iscsi"
	for line := range strings.Lines(string(v.t.files[iscsi].Text)) {
		if strings.HasPrefix(line, "InitiatorName=") {
			v.warn(iscsi, "put the line GenerateName=yes there", "every machine gets the same iSCSI name")
		}
	}
}

// largeTree is how much content of /var or /home is worth a word, in bytes.
const largeTree = 64 << 20

// size: PID 1 copies both into the volume at the first boot; later images do not
// change what is there.
func (v *verdict) size() {
	for _, top := range []string{"var", "home"} {
		total := int64(0)
		parts := map[string]int64{}
		for _, name := range v.t.names(top) {
			f := v.t.files[name]
			if !f.Mode.IsRegular() || f.same {
				continue
			}
			total += f.Size
			words := strings.SplitN(name, "/", 4)
			parts[strings.Join(words[:min(3, len(words))], "/")] += f.Size
		}
		if total >= largeTree {
			v.warn(top, "clean it (Debian: apt-get clean; rm -rf var/lib/apt/lists/* var/log/*), or move what belongs to the image below /usr",
				"%s, mostly %s: the first boot copies it into the encrypted volume, and later images do not change it there", mebibytes(total), largest(parts))
		}
	}
}

func mebibytes(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }

// largest names the three largest of parts.
func largest(parts map[string]int64) string {
	var names []string
	for name := range parts {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if d := parts[b] - parts[a]; d != 0 {
			return int(min(max(d, -1), 1))
		}
		return strings.Compare(a, b)
	})
	var words []string
	for _, name := range names[:min(3, len(names))] {
		words = append(words, fmt.Sprintf("/%s (%s)", name, mebibytes(parts[name])))
	}
	return strings.Join(words, ", ")
}

// worldWritable: the rest of the image is read-only to everybody.
func (v *verdict) worldWritable() {
	for _, name := range v.t.names("etc") {
		if f := v.t.files[name]; f.Mode.Perm()&0o002 != 0 && f.Mode&fs.ModeSticky == 0 && (f.Mode.IsRegular() || f.Mode.IsDir()) {
			v.warn(name, "chmod o-w it", "mode %04o: every user of the machine may change it", f.Mode.Perm())
		}
	}
	if f := v.t.files["etc/shadow"]; f.Mode.Perm()&0o007 != 0 {
		v.warn("etc/shadow", "chmod 0640 it", "mode %04o: every user of the machine may read the passwords", f.Mode.Perm())
	}
}

// setuid: PID 1 mounts both nosuid.
func (v *verdict) setuid() {
	for _, top := range []string{"etc", "home"} {
		for _, name := range v.t.names(top) {
			if f := v.t.files[name]; f.Mode.IsRegular() && f.Mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 && f.Mode.Perm()&0o111 != 0 {
				v.warn(name, "move it below /usr", "set-user-ID or set-group-ID has no effect there: PID 1 mounts /%s nosuid", top)
			}
		}
	}
}

// devices: PID 1 mounts the root nodev.
func (v *verdict) devices() {
	for _, name := range v.t.order {
		if v.t.files[name].Mode&fs.ModeDevice == 0 || strings.HasPrefix(name, "dev/") || isWhiteout(name) {
			continue
		}
		v.warn(name, "have systemd-tmpfiles make it in /dev (type c or b)", "a device node outside of /dev does not work: PID 1 mounts the root nodev")
	}
}

// isWhiteout tells whether a name is one by which layers of containers take a
// file away; the rule container has a word for it.
func isWhiteout(name string) bool { return strings.HasPrefix(path.Base(name), ".wh.") }

func (v *verdict) container() {
	for _, name := range []string{".dockerenv", "run/.containerenv"} {
		if _, ok := v.t.files[name]; ok {
			v.warn(name, "delete it", "systemd and others take the machine for a container, and leave out what one does not need")
		}
	}
	said := 0
	for _, name := range v.t.names("usr") {
		if isWhiteout(name) && said < perRule {
			said++
			v.warn(name, "flatten the container's image first (docker export, umoci unpack)", "a whiteout of one layer: the tar is not the whole root")
		}
	}
}

// owner: a folder that was unpacked without root rights.
func (v *verdict) owner() {
	for _, name := range []string{"etc", "usr", "usr/bin", "usr/lib", "var"} {
		if f := v.t.files[name]; f.UID != 0 {
			v.warn(name, "give the tar itself, or unpack it as root; then its owners count", "it belongs to user %d, who could change the system: sudo, ssh and systemd-tmpfiles refuse that", f.UID)
			return
		}
	}
}
