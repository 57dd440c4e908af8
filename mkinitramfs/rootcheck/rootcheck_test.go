package rootcheck

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
)

func dir() File           { return File{Mode: fs.ModeDir | 0o755} }
func link(to string) File { return File{Mode: fs.ModeSymlink | 0o777, Link: to} }
func program() File       { return File{Mode: 0o755, Size: 1 << 20} }
func text(content string) File {
	return File{Mode: 0o644, Size: int64(len(content)), Text: []byte(content)}
}

// files are changes of a root; a File without anything takes one away.
type files map[string]File

// sound is a root that nothing is wrong with, for kernel 6.1.0 and image kiosk 1.
func sound() files {
	f := files{
		"bin": link("usr/bin"), "sbin": link("usr/sbin"), "lib": link("usr/lib"),
		"usr/sbin/init": link("/lib/systemd/systemd"), "usr/lib/systemd/systemd": program(),
		"usr/bin/sealroot": program(), "usr/bin/env": program(), "usr/sbin/e2fsck": program(),
		"usr/lib/os-release": text("ID=debian\nIMAGE_ID=kiosk\nIMAGE_VERSION=1\n"), "etc/os-release": link("../usr/lib/os-release"),
		"usr/lib/modules/6.1.0/modules.dep": text("x"),
		"etc/machine-id":                    text(""), "etc/fstab": text("# nothing\n"), "etc/mtab": link("../proc/self/mounts"),
		"etc/resolv.conf": link("/run/NetworkManager/resolv.conf"), "etc/shadow": {Mode: 0o640, Size: 10},
		"var/run": link("/run"), "var/lib/dbus/machine-id": link("/etc/machine-id"),
		"etc/systemd/system/tmp.mount": text("[Mount]"), "etc/systemd/system/local-fs.target.wants/tmp.mount": link("../tmp.mount"),
	}
	for _, d := range strings.Fields("dev etc home proc run state sys tmp usr var") {
		f[d] = dir()
	}
	for _, u := range unitsOfSealroot() {
		f["usr/lib/systemd/system/"+u.name] = text("[Unit]")
		f["usr/lib/systemd/system/"+u.by+"/"+u.name] = link("../" + u.name)
	}
	return f
}

func (f files) with(changes files) files {
	f = maps.Clone(f)
	for name, file := range changes {
		if file.Mode == 0 && file.Size == 0 {
			delete(f, name)
		} else {
			f[name] = file
		}
	}
	return f
}

func kiosk(edit func(*config.Config)) Want {
	c := config.Config{Name: "kiosk", Version: "1", Boot: config.Boot{Store: config.StoreGPT}}
	if edit != nil {
		edit(&c)
	}
	return Want{Config: &c, Kernel: "6.1.0"}
}

func linked(at, to string) Want {
	return kiosk(func(c *config.Config) { c.Binds.Symlinks = []config.Symlink{{At: at, To: to}} })
}

// layered wants an image with a layer, whose own has that file system and extension-release.
func layered(filesystem, release, onFailure string) Want {
	w := kiosk(func(c *config.Config) { c.Layers = []config.Layer{{Name: "tools", OnFailure: onFailure}} })
	w.BootKernel = w.Kernel
	w.Layers = []Layer{{Name: "tools", Image: "tools.raw", Filesystem: filesystem}}
	if release != "" {
		w.Layers[0].Release = []byte(release)
	}
	return w
}

// misfit is a finding about that layer.
func misfit(severity string) string {
	return severity + " /usr/lib/extension-release.d/extension-release.tools (layers)"
}

func by(w Want, l Layer) Want {
	w.Layers[0].Others, w.Layers[0].Err = l.Others, l.Err
	return w
}

func withoutLayers(w Want) Want { w.Layers = nil; return w }

func usrLayer(w Want) Want { w.Config.Root.Source = config.SourceUsrVerity; return w }

func forAny(w Want) Want { w.BootKernel = ""; return w }

func TestJudge(t *testing.T) {
	gone := File{}
	asks := files{
		"etc/machine-id": text("uninitialized\n"), "usr/lib/systemd/system/systemd-firstboot.service": text("[Unit]"),
		"usr/lib/systemd/system/sysinit.target.wants/systemd-firstboot.service": link("../systemd-firstboot.service"),
	}
	extra := func(to string) func(*config.Config) {
		return func(c *config.Config) { c.Binds.Extra = []config.ExtraBind{{From: "encrypted/x", To: to}} }
	}
	seeded := func(to, seed string) func(*config.Config) {
		return func(c *config.Config) { extra(to)(c); c.Binds.Extra[0].Seed = seed }
	}
	usr := func(c *config.Config) { c.Root.Source = config.SourceUsrVerity }
	built := func(w Want) Want { w.Built = true; return w }
	any := kiosk(nil)
	any.Kernel = ""
	circle := files{"usr/sbin/init": link("init2"), "usr/sbin/init2": link("init")}
	for _, tt := range []struct {
		name   string
		want   Want
		change files
		found  string // severity path (rule), a part of the text; "" for nothing
		text   string
	}{
		{"sound", kiosk(nil), nil, "", ""},
		{"sound_without_configuration", Want{}, nil, "", ""},
		{"sound_usr", kiosk(usr), nil, "", ""},
		{"usr_needs_no_mount_points", kiosk(usr), files{"dev": gone, "state": gone, "home": gone, "opt/x": text("x")}, "", ""},

		{"init_missing", Want{Ignore: []string{"tmp"}}, files{"usr/sbin/init": gone}, "error /sbin/init (init)", "/usr/sbin/init, which is not in the root"},
		{"init_missing_in_itself", Want{Ignore: []string{"tmp", "merged-usr"}}, files{"usr/sbin/init": gone, "sbin": dir()}, "error /sbin/init (init)", "missing"},
		{"init_link_leads_nowhere", Want{Ignore: []string{"tmp"}}, files{"usr/lib/systemd/systemd": gone}, "error /sbin/init (init)", "/usr/lib/systemd/systemd, which is not in the root"},
		// The host has it, and the root has not.
		{"init_link_leads_to_the_host", Want{Ignore: []string{"tmp"}}, files{"usr/sbin/init": link("/bin/sh")}, "error /sbin/init (init)", "/usr/bin/sh, which is not in the root"},
		{"init_above_the_root_stays_inside", Want{Ignore: []string{"tmp", "units"}}, files{"usr/sbin/init": link("../../../../usr/bin/sealroot")}, "", ""},
		{"init_in_a_circle", Want{Ignore: []string{"tmp", "units"}}, circle, "error /sbin/init (init)", "circle"},
		{"init_not_executable", kiosk(nil), files{"usr/lib/systemd/systemd": {Mode: 0o644, Size: 1}}, "error /sbin/init (init)", "mode 0644"},
		{"init_is_a_device", kiosk(nil), files{"usr/lib/systemd/systemd": {Mode: fs.ModeNamedPipe | 0o755}}, "error /sbin/init (init)", "a special file"},
		{"init_of_no_bytes", kiosk(nil), files{"usr/lib/systemd/systemd": {Mode: 0o755}}, "error /sbin/init (init)", "empty"},
		{"init_is_a_directory", Want{Ignore: []string{"tmp", "units"}}, files{"usr/sbin/init": dir()}, "error /sbin/init (init)", "a directory"},
		{"other_init", Want{Init: "/usr/bin/sealroot", Ignore: []string{"tmp", "units"}}, files{"usr/sbin/init": gone}, "", ""},

		{"home_missing", kiosk(nil), files{"home": gone}, "error /home (directories)", "missing"},
		{"var_is_a_link", Want{Ignore: []string{"var-run", "machine-id"}}, files{"var": link("usr/var"), "var/run": gone, "var/lib/dbus/machine-id": gone}, "error /var (directories)", `a link to "usr/var"`},

		{"mount_points_missing", kiosk(nil), files{"state": gone, "dev": gone}, "warning /dev (mount-points)", "/dev, /state"},
		{"mount_points_are_the_builders", built(kiosk(nil)), files{"state": gone}, "", ""},
		{"mount_point_is_a_link", kiosk(nil), files{"proc": link("x")}, "error /proc (mount-points)", `a link to "x"`},

		{"bind_target_missing", kiosk(extra("/srv/data")), nil, "warning /srv/data (binds)", "/srv is missing"},
		{"overlay_target_missing", kiosk(func(c *config.Config) { c.Overlays = []config.Overlay{{Path: "/srv/data", Upper: config.UpperMemory}} }), nil, "warning /srv/data (binds)", "/srv is missing"},
		{"bind_target_there", kiosk(extra("/srv/data")), files{"srv/data": dir()}, "", ""},
		{"bind_target_made_at_boot", kiosk(extra("/var/lib/db")), nil, "", ""},
		{"bind_target_in_etc", kiosk(extra("/etc/db")), nil, "", ""},
		{"overlay_over_nothing", kiosk(func(c *config.Config) {
			c.Overlays = []config.Overlay{{Path: "/var/lib/pkg", Upper: config.UpperPerSlot}}
		}), nil, "warning /var/lib/pkg (binds)", "nothing there"},
		{"overlay_below_var", kiosk(func(c *config.Config) {
			c.Overlays = []config.Overlay{{Path: "/var/lib/dbus", Upper: config.UpperPerSlot}}
		}), nil, "", ""},
		{"seed_overlay_over_nothing", kiosk(seeded("/var/lib/pkg", config.SeedOverlay)), nil, "warning /var/lib/pkg (binds)", "nothing there"},
		{"overlay_over_a_user's", kiosk(func(c *config.Config) {
			c.Overlays = []config.Overlay{{Path: "/var/lib/pkg", Upper: config.UpperPerSlot}}
		}), files{"var/lib/pkg": dir(), "var/lib/pkg/db": {Mode: fs.ModeDir | 0o700, UID: 103}}, "warning /var/lib/pkg/db (binds)", "user 103"},
		{"overlay_over_a_fixed_user's", kiosk(func(c *config.Config) {
			c.Overlays = []config.Overlay{{Path: "/var/lib/pkg", Upper: config.UpperPerSlot}}
		}), files{"var/lib/pkg": dir(), "var/lib/pkg/db": {Mode: fs.ModeDir | 0o700, UID: 13}}, "", ""},
		{"seed_tmpfiles_like_a_user's", kiosk(seeded("/var/lib/pkg", config.SeedTmpfiles)), files{"var/lib/pkg": {Mode: fs.ModeDir | 0o700, UID: 103},
			"usr/lib/tmpfiles.d/pkg.conf": text("d /var/lib/pkg/db\n")}, "warning /var/lib/pkg (binds)", "user 103"},
		{"seed_tmpfiles", kiosk(seeded("/var/lib/pkg", config.SeedTmpfiles)), files{"usr/lib/tmpfiles.d/pkg.conf": text("# it\nd /var/lib/pkg/db 0700 - - -\n")}, "", ""},
		{"seed_tmpfiles_of_etc", kiosk(seeded("/var/lib/pkg", config.SeedTmpfiles)), files{"etc/tmpfiles.d/pkg.conf": text("d \"%S/pkg\" 0700 - - -\n")}, "", ""},
		{"seed_tmpfiles_that_nobody_makes", kiosk(seeded("/var/lib/pkg", config.SeedTmpfiles)), files{"usr/lib/tmpfiles.d/pkg.conf": text("d /var/lib/pkg2\n#d /var/lib/pkg\nz /var/lib/pkg\nr /var/lib/pkg/x\n")}, "warning /var/lib/pkg (binds)", "stays empty"},
		{"bind_target_in_read_only_etc", kiosk(func(c *config.Config) { extra("/etc/db")(c); c.Etc = config.EtcReadOnly }), nil, "warning /etc/db (binds)", "missing"},
		{"bind_target_over_a_link", kiosk(extra("/var/run/x")), nil, "warning /var/run/x (binds)", "follows none"},
		{"bind_target_is_a_file", kiosk(extra("/usr/bin/sealroot")), nil, "warning /usr/bin/sealroot (binds)", "a file"},
		{"unencrypted_bind_target", kiosk(func(c *config.Config) { c.Binds.Unencrypted = []string{"/media"} }), nil, "warning /media (binds)", "missing"},
		{"unencrypted_over_an_overlay", kiosk(func(c *config.Config) {
			c.Binds.Unencrypted, c.Overlays = []string{"/srv"}, []config.Overlay{{Path: "/srv/app", Upper: config.UpperMemory}}
		}), files{"srv": dir(), "srv/app": dir()}, "warning /srv (binds)", "would hide the overlay over /srv/app"},
		{"unencrypted_in_an_overlay", kiosk(func(c *config.Config) {
			c.Binds.Unencrypted, c.Overlays = []string{"/srv/data"}, []config.Overlay{{Path: "/srv", Upper: config.UpperMemory}}
		}), files{"srv": dir(), "srv/data": dir()}, "", ""},
		{"bind_target_of_a_root_in_memory", kiosk(func(c *config.Config) { usr(c); extra("/data")(c) }), nil, "", ""},

		{"no_modules_at_all", any, files{"usr/lib/modules/6.1.0/modules.dep": gone}, "warning /usr/lib/modules (modules)", "no kernel modules"},
		{"no_modules_for_the_kernel", kiosk(nil), files{"usr/lib/modules/6.1.0/modules.dep": gone, "usr/lib/modules/6.2/modules.dep": text("x")}, "error /usr/lib/modules/6.1.0 (modules)", "no modules for kernel 6.1.0"},
		{"modules_without_depmod", any, files{"usr/lib/modules/6.2/a.ko": text("x")}, "warning /usr/lib/modules/6.2 (modules)", "modules.dep"},

		{"bin_not_merged", kiosk(nil), files{"bin": dir()}, "warning /bin (merged-usr)", "/bin"},
		{"modules_of_a_lib_of_its_own", any, files{"lib": dir(), "lib/systemd/systemd": program(), "usr/lib/modules/6.1.0/modules.dep": gone, "lib/modules/6.1.0/modules.dep": text("x")}, "warning /lib (merged-usr)", "/usr/lib only"},
		{"merged_link_leads_nowhere", kiosk(nil), files{"lib64": link("usr/lib64")}, "warning /lib64 (merged-usr)", "nowhere"},

		{"no_os_release", kiosk(nil), files{"usr/lib/os-release": gone, "etc/os-release": gone}, "warning /usr/lib/os-release (os-release)", "missing"},
		{"os_release_of_etc_alone", kiosk(nil), files{"usr/lib/os-release": gone, "etc/os-release": text("IMAGE_ID=kiosk\nIMAGE_VERSION=1\n")}, "", ""},
		{"os_release_twice", kiosk(nil), files{"etc/os-release": text("ID=x\n")}, "warning /etc/os-release (os-release)", "a file of its own"},
		{"os_release_with_a_bad_line", kiosk(nil), files{"usr/lib/os-release": text("ID=x\nnonsense\n")}, "error /usr/lib/os-release (os-release)", "line 2"},
		{"no_image_id", kiosk(nil), files{"usr/lib/os-release": text("IMAGE_VERSION=1\n")}, "warning /usr/lib/os-release (os-release)", "no IMAGE_ID"},
		{"no_image_version", Want{}, files{"usr/lib/os-release": text("IMAGE_ID=x\n")}, "warning /usr/lib/os-release (os-release)", "no IMAGE_VERSION"},
		{"image_id_of_another", kiosk(nil), files{"usr/lib/os-release": text("IMAGE_ID=tv\nIMAGE_VERSION=1\n")}, "warning /usr/lib/os-release (os-release)", `IMAGE_ID is "tv", that of the configuration "kiosk"`},
		{"image_version_of_another", kiosk(nil), files{"usr/lib/os-release": text("IMAGE_ID=kiosk\nIMAGE_VERSION=2\n")}, "warning /usr/lib/os-release (os-release)", "IMAGE_VERSION"},

		{"tmp_is_in_memory", kiosk(func(c *config.Config) { c.Binds.Tmpfs = []config.Tmpfs{{To: "/tmp"}} }), files{"usr/share/systemd/tmp.mount": gone, "etc/systemd/system/local-fs.target.wants/tmp.mount": gone}, "", ""},
		{"link_in_a_read_only_place", linked("/opt/x", "/var/x"), files{"opt": dir()}, "warning /opt/x (binds)", "read-only root"},
		{"link_at_the_top", linked("/x", "/var/x"), nil, "warning /x (binds)", "read-only root"},
		{"link_that_the_root_has", linked("/opt/x", "/var/x"), files{"opt": dir(), "opt/x": link("/var/x")}, "", ""},
		{"link_that_the_root_has_to_elsewhere", linked("/opt/x", "/var/x"), files{"opt": dir(), "opt/x": link("/var/y")}, "warning /opt/x (binds)", "each one warns"},
		{"link_in_place_of_a_file", linked("/var/x", "/srv"), files{"var/x": text("x")}, "warning /var/x (binds)", "a file"},
		{"link_in_var", linked("/var/x", "/srv"), nil, "", ""},
		{"link_in_etc", linked("/etc/x", "/srv"), nil, "", ""},
		{"link_in_a_read_only_etc", kiosk(func(c *config.Config) {
			c.Etc, c.Binds.Symlinks = config.EtcReadOnly, []config.Symlink{{At: "/etc/x", To: "/srv"}}
		}), nil, "warning /etc/x (binds)", "read-only root"},
		{"link_in_an_overlay", kiosk(func(c *config.Config) {
			c.Overlays = []config.Overlay{{Path: "/opt", Upper: config.UpperMemory}}
			c.Binds.Symlinks = []config.Symlink{{At: "/opt/x", To: "/srv"}}
		}), files{"opt": dir()}, "", ""},
		{"tmpfs_without_place", kiosk(func(c *config.Config) { c.Binds.Tmpfs = []config.Tmpfs{{To: "/scratch"}} }), nil, "warning /scratch (binds)", ""},
		{"machine_id_filled", kiosk(nil), files{"etc/machine-id": text("0123\n")}, "warning /etc/machine-id (machine-id)", "same identity"},
		{"machine_id_filled_by_extra", built(kiosk(nil)), files{"etc/machine-id": text("0123\n")}, "warning /etc/machine-id (machine-id)", "same identity"},
		{"machine_id_uninitialized", kiosk(nil), files{"etc/machine-id": text("uninitialized\n")}, "", ""},
		{"machine_id_uninitialized_by_extra", built(kiosk(nil)), files{"etc/machine-id": text("uninitialized\n")}, "", ""},
		{"machine_id_uninitialized_at_every_boot", built(kiosk(func(c *config.Config) { c.Etc = config.EtcVolatile })), files{"etc/machine-id": text("uninitialized\n")}, "warning /etc/machine-id (machine-id)", "each one would be a first boot"},
		{"first_boot_asks", kiosk(nil), asks, "warning /etc/machine-id (machine-id)", "asks on the console"},
		{"first_boot_asks_where_there_is_no_file", kiosk(nil), func() files { f := asks.with(nil); f["etc/machine-id"] = gone; return f }(), "warning /etc/machine-id (machine-id)", "asks on the console"},
		{"first_boot_is_masked", kiosk(nil), asks.with(files{"etc/systemd/system/systemd-firstboot.service": link("/dev/null")}), "", ""},
		{"no_first_boot", kiosk(nil), asks.with(files{"etc/machine-id": text("")}), "", ""},
		{"machine_id_of_dbus", kiosk(nil), files{"var/lib/dbus/machine-id": text("0123\n")}, "warning /var/lib/dbus/machine-id (machine-id)", "same"},

		{"ssh_host_key", kiosk(nil), files{"etc/ssh/ssh_host_ed25519_key": text("x"), "etc/ssh/ssh_host_ed25519_key.pub": text("x")}, "warning /etc/ssh/ssh_host_ed25519_key (ssh-host-keys)", "every machine"},
		{"random_seed", kiosk(nil), files{"var/lib/systemd/random-seed": text("x")}, "warning /var/lib/systemd/random-seed (random-seed)", "seed"},
		{"credential_secret", kiosk(nil), files{"var/lib/systemd/credential.secret": text("x")}, "warning /var/lib/systemd/credential.secret (identity)", "credentials"},
		{"dhcp_lease", kiosk(nil), files{"var/lib/dhcp/dhclient.eth0.leases": text("x")}, "warning /var/lib/dhcp/dhclient.eth0.leases (identity)", "DHCP"},
		{"iscsi_name", kiosk(nil), files{"etc/iscsi/initiatorname.iscsi": text("# x\nInitiatorName=iqn.x\n")}, "warning /etc/iscsi/initiatorname.iscsi (identity)", "iSCSI"},
		{"iscsi_name_generated", kiosk(nil), files{"etc/iscsi/initiatorname.iscsi": text("GenerateName=yes\n")}, "", ""},
		{"secret_ssh_key", kiosk(nil), files{"root/.ssh/id_rsa": text("x"), "root/.ssh/id_rsa.pub": text("x")}, "warning /root/.ssh/id_rsa (identity)", "SSH key"},

		{"fstab_root", kiosk(nil), files{"etc/fstab": text("UUID=1 / ext4 errors=remount-ro 0 1\n")}, "warning /etc/fstab (fstab)", "mounts /:"},
		{"fstab_var_of_a_disk", kiosk(nil), files{"etc/fstab": text("/dev/sda2 /var ext4\n")}, "error /etc/fstab (fstab)", "mounts /var from /dev/sda2"},
		{"fstab_var_of_memory", kiosk(nil), files{"etc/fstab": text("tmpfs /var/ tmpfs\n")}, "warning /etc/fstab (fstab)", "mounts /var over"},
		{"fstab_home_where_there", kiosk(nil), files{"etc/fstab": text("LABEL=home /home ext4 nofail\n")}, "warning /etc/fstab (fstab)", "mounts /home over"},
		{"fstab_swap", kiosk(nil), files{"etc/fstab": text("UUID=2 none swap sw 0 0\n")}, "warning /etc/fstab (fstab)", "swap"},
		{"fstab_other_disk", kiosk(nil), files{"etc/fstab": text("UUID=3 /srv/my\\040data ext4 defaults\n")}, "warning /etc/fstab (fstab)", "/srv/my data"},
		{"fstab_nofail", kiosk(nil), files{"srv": dir(), "etc/fstab": text("UUID=3 /srv ext4 nofail\nproc /proc proc defaults\ntmpfs /run/x tmpfs\nUUID=4 /boot ext4 noauto\n")}, "", ""},
		{"fstab_mount_point_missing", kiosk(nil), files{"etc/fstab": text("server:/x /srv/x nfs defaults\n")}, "warning /etc/fstab (fstab)", "cannot be made"},

		{"var_large", kiosk(nil), files{"var/lib/docker/overlay/x": {Mode: 0o644, Size: 80 << 20}, "var/cache/apt/y": {Mode: 0o644, Size: 9 << 20}}, "warning /var (size)", "89 MiB, mostly /var/lib/docker (80 MiB), /var/cache/apt (9 MiB)"},
		{"home_large", kiosk(nil), files{"home/user/x": {Mode: 0o644, Size: 64 << 20}}, "warning /home (size)", "64 MiB"},
		{"one_file_with_two_names", kiosk(nil), files{"var/x": {Mode: 0o644, Size: 60 << 20}, "var/y": {Mode: 0o644, Size: 60 << 20, same: true}}, "", ""},

		{"no_command", kiosk(nil), files{"usr/bin/sealroot": gone}, "warning /usr/bin/sealroot (units)", "never committed"},
		{"no_systemd", kiosk(nil), files{"usr/sbin/init": program()}, "warning /sbin/init (units)", "not systemd"},
		{"unit_not_enabled", kiosk(nil), files{"usr/lib/systemd/system/multi-user.target.wants/sealroot-commit.service": gone}, "warning /usr/lib/systemd/system/sealroot-commit.service (units)", "committed"},
		{"unit_not_there", kiosk(nil), files{"usr/lib/systemd/system/sealroot-deadline.timer": gone}, "warning /usr/lib/systemd/system/sealroot-deadline.timer (units)", "trial"},
		{"unit_masked", kiosk(nil), files{"etc/systemd/system/sealroot-check.service": link("/dev/null")}, "warning /usr/lib/systemd/system/sealroot-check.service (units)", "check"},
		{"unit_enabled_in_etc", kiosk(nil), files{"usr/lib/systemd/system/multi-user.target.wants/sealroot-commit.service": gone, "etc/systemd/system/multi-user.target.wants/sealroot-commit.service": link("/usr/lib/systemd/system/sealroot-commit.service")}, "", ""},
		{"unit_of_what_is_not_configured", kiosk(nil), files{"usr/lib/systemd/system/sealroot-replicate.service": gone, "usr/lib/systemd/system/sealroot-degraded.target": gone}, "", ""},
		{"unit_of_what_is_configured", kiosk(func(c *config.Config) { c.Boot.Replicate = []string{"commit"} }), files{"usr/lib/systemd/system/sealroot-replicate.service": gone}, "warning /usr/lib/systemd/system/sealroot-replicate.service (units)", "replicate"},
		{"unit_of_the_volume", kiosk(nil), files{"usr/lib/systemd/system/sealroot-state.service": gone}, "warning /usr/lib/systemd/system/sealroot-state.service (units)", "auto_resize"},
		{"unit_of_no_volume", kiosk(func(c *config.Config) { c.State.Create = config.CreateNone }), files{"usr/lib/systemd/system/sealroot-state.service": gone}, "", ""},
		{"unit_of_hooks", kiosk(nil), files{"usr/lib/systemd/system/sealroot-post-rollback.service": gone, "usr/lib/sealroot/hooks/post-rollback.d/10-db": program()}, "warning /usr/lib/systemd/system/sealroot-post-rollback.service (units)", "never run"},
		{"hook", kiosk(nil), files{"usr/lib/sealroot/hooks/pre-commit.d/10-db": program(), "usr/lib/sealroot/hooks/pre-commit.d/20-x": link("10-db")}, "", ""},
		{"hook_not_executable", kiosk(nil), files{"usr/lib/sealroot/hooks/pre-commit.d/10-db": text("#!/bin/sh")}, "warning /usr/lib/sealroot/hooks/pre-commit.d/10-db (hooks)", "not executable"},
		{"hook_for_everybody", kiosk(nil), files{"usr/lib/sealroot/hooks/pre-commit.d/10-db": {Mode: 0o775, Size: 1}}, "warning /usr/lib/sealroot/hooks/pre-commit.d/10-db (hooks)", "others than root"},
		{"hook_of_a_user", kiosk(nil), files{"usr/lib/sealroot/hooks/pre-commit.d/10-db": {Mode: 0o755, UID: 5, Size: 1}}, "warning /usr/lib/sealroot/hooks/pre-commit.d/10-db (hooks)", "others than root"},
		{"hook_of_another_name", kiosk(nil), files{"usr/lib/sealroot/hooks/pre-commit.d/10-db.sh": program()}, "warning /usr/lib/sealroot/hooks/pre-commit.d/10-db.sh (hooks)", "other signs"},
		{"hook_leads_nowhere", kiosk(nil), files{"usr/lib/sealroot/hooks/pre-commit.d/10-db": link("gone")}, "warning /usr/lib/sealroot/hooks/pre-commit.d/10-db (hooks)", "a link to"},
		{"unit_of_no_hooks", kiosk(nil), files{"usr/lib/systemd/system/sealroot-post-rollback.service": gone}, "", ""},
		{"units_of_a_fixed_store", kiosk(func(c *config.Config) { c.Boot.Store = config.StoreFixed }), files{"usr/lib/systemd/system/sealroot-commit.service": gone}, "", ""},

		{"resolv_conf_leads_nowhere", kiosk(nil), files{"etc/resolv.conf": link("../var/lib/x/resolv.conf")}, "warning /etc/resolv.conf (resolv-conf)", "not in the root"},
		{"resolv_conf_without_resolved", kiosk(nil), files{"etc/resolv.conf": link("../run/systemd/resolve/stub-resolv.conf")}, "warning /etc/resolv.conf (resolv-conf)", "systemd-resolved"},
		{"resolv_conf_with_resolved", kiosk(nil), files{"etc/resolv.conf": link("../run/systemd/resolve/stub-resolv.conf"), "usr/lib/systemd/systemd-resolved": program()}, "", ""},
		{"resolv_conf_of_the_builder", kiosk(nil), files{"etc/resolv.conf": text("search x\nnameserver 10.0.0.1\n")}, "warning /etc/resolv.conf (resolv-conf)", "10.0.0.1"},
		{"no_resolv_conf", kiosk(nil), files{"etc/resolv.conf": gone}, "", ""},
		{"mtab", kiosk(nil), files{"etc/mtab": text("/dev/sda1 / ext4 rw 0 0\n")}, "warning /etc/mtab (mtab)", "for ever"},
		{"tmp_not_mounted", kiosk(nil), files{"etc/systemd/system/local-fs.target.wants/tmp.mount": gone}, "warning /tmp (tmp)", "read-only"},
		{"tmp_mount_masked", kiosk(nil), files{"etc/systemd/system/tmp.mount": link("/dev/null")}, "warning /tmp (tmp)", "read-only"},
		{"tmp_of_fstab", kiosk(nil), files{"etc/systemd/system/tmp.mount": gone, "etc/fstab": text("tmpfs /tmp tmpfs\n")}, "", ""},
		{"tmp_of_an_overlay", kiosk(func(c *config.Config) { c.Overlays = []config.Overlay{{Path: "/tmp", Upper: config.UpperMemory}} }), files{"etc/systemd/system/tmp.mount": gone}, "", ""},
		{"root_in_memory", kiosk(func(c *config.Config) {
			c.Overlays = []config.Overlay{{Path: config.WholeRoot, Upper: config.UpperMemory}}
			c.Binds.Tmpfs = []config.Tmpfs{{To: "/not/there"}}
		}), files{"etc/systemd/system/tmp.mount": gone}, "", ""},
		{"tmp_of_a_bind", kiosk(extra("/tmp")), files{"etc/systemd/system/tmp.mount": gone}, "", ""},
		{"tmp_in_memory", kiosk(usr), files{"etc/systemd/system/tmp.mount": gone}, "", ""},
		{"var_run", kiosk(nil), files{"var/run": dir()}, "warning /var/run (var-run)", "earlier boots"},
		{"etc_for_everybody", kiosk(nil), files{"etc/x": {Mode: 0o666, Size: 1}}, "warning /etc/x (world-writable)", "0666"},
		{"shadow_for_everybody", kiosk(nil), files{"etc/shadow": {Mode: 0o644, Size: 1}}, "warning /etc/shadow (world-writable)", "passwords"},
		{"setuid_in_home", kiosk(nil), files{"home/x": {Mode: fs.ModeSetuid | 0o755, Size: 1}}, "warning /home/x (setuid)", "no effect"},
		{"setuid_in_usr", kiosk(nil), files{"usr/bin/su": {Mode: fs.ModeSetuid | 0o755, Size: 1}}, "", ""},
		{"device", kiosk(nil), files{"usr/lib/x/null": {Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666}, "dev/null": {Mode: fs.ModeDevice | 0o666}}, "warning /usr/lib/x/null (devices)", "nodev"},
		{"container", kiosk(nil), files{".dockerenv": {Mode: 0o644}}, "warning /.dockerenv (container)", "container"},
		{"whiteout", kiosk(nil), files{"usr/bin/.wh.x": {Mode: 0o644}}, "warning /usr/bin/.wh.x (container)", "whiteout"},
		{"no_e2fsck", kiosk(func(c *config.Config) { c.State.Fsck = config.FsckAuto }), files{"usr/sbin/e2fsck": gone}, "warning /usr/sbin/e2fsck (fsck)", "repairs nothing"},
		{"no_btrfs", kiosk(func(c *config.Config) { c.State.Fsck, c.State.Filesystem = config.FsckAuto, "btrfs" }), nil, "warning /usr/bin/btrfs (fsck)", "superblock was mended"},
		{"btrfs", kiosk(func(c *config.Config) { c.State.Fsck, c.State.Filesystem = config.FsckAuto, "btrfs" }), files{"usr/bin/btrfs": program()}, "", ""},
		{"owner", kiosk(nil), files{"usr": {Mode: fs.ModeDir | 0o755, UID: 1000}, "var": {Mode: fs.ModeDir | 0o755, UID: 1000}}, "warning /usr (owner)", "user 1000"},

		{"layer", layered("squashfs", "ID=debian\n", config.LayerStop), nil, "", ""},
		{"layer_of_any_system", layered("squashfs", "ID=_any\n", config.LayerStop), nil, "", ""},
		{"layer_with_the_root_s_version", layered("squashfs", "ID=debian\nVERSION_ID=12\n", config.LayerStop), files{"usr/lib/os-release": text("ID=debian\nVERSION_ID=12\nIMAGE_ID=kiosk\nIMAGE_VERSION=1\n")}, "", ""},
		{"layer_of_another_version", layered("squashfs", "ID=debian\nVERSION_ID=13\n", config.LayerStop), files{"usr/lib/os-release": text("ID=debian\nVERSION_ID=12\nIMAGE_ID=kiosk\nIMAGE_VERSION=1\n")}, misfit("error"), "tools.raw, is for ID debian, VERSION_ID 13, and this is ID debian, VERSION_ID 12, kernel 6.1.0: no boot"},
		{"layer_of_another_system", layered("squashfs", "ID=fedora\n", config.LayerStop), nil, misfit("error"), "is for ID fedora"},
		{"layer_of_another_kernel", layered("squashfs", "ID=debian\nSEALROOT_KERNEL=6.1.1\n", config.LayerStop), nil, misfit("error"), "kernel 6.1.1, and this is ID debian, kernel 6.1.0"},
		{"layer_of_this_kernel", layered("squashfs", "ID=debian\nSEALROOT_KERNEL=6.1.0\n", config.LayerStop), nil, "", ""},
		{"layer_of_another_architecture", layered("squashfs", "ID=debian\nARCHITECTURE=arm64\n", config.LayerStop), nil, misfit("error"), "architecture arm64, and this is ID debian, architecture x86-64"},
		{"layer_that_is_left_out", layered("squashfs", "ID=fedora\n", config.LayerSkip), nil, misfit("warning"), "each boot leaves it out"},
		{"layer_of_another_file_system", layered("erofs", "ID=debian\n", config.LayerStop), nil, misfit("error"), "has erofs, and the configuration means squashfs"},
		{"layer_without_file_system", layered("unknown", "ID=debian\n", config.LayerStop), nil, misfit("error"), "neither squashfs nor erofs"},
		{"layer_for_nothing", layered("squashfs", "", config.LayerStop), nil, misfit("error"), "does not have it"},
		{"layer_of_nothing", layered("squashfs", "VERSION_ID=12\n", config.LayerStop), nil, misfit("error"), "is for VERSION_ID 12"},
		{"layer_by_another_name", by(layered("squashfs", "", config.LayerStop), Layer{Others: []string{"tool"}}), nil, misfit("error"), "calls itself tool"},
		{"layer_that_PID_1_does_not_understand", layered("squashfs", "ID\n", config.LayerStop), nil, misfit("error"), "line 1"},
		{"layer_that_is_not_there", by(layered("squashfs", "", config.LayerStop), Layer{Err: fs.ErrNotExist}), nil, misfit("warning"), "cannot be judged"},
		{"layer_with_a_hash_alone", withoutLayers(layered("squashfs", "", config.LayerStop)), nil, "", ""},
		{"layer_over_usr", usrLayer(layered("squashfs", "ID=fedora\n", config.LayerStop)), nil, misfit("error"), "is for ID fedora"},
		{"layer_for_any_kernel", forAny(layered("squashfs", "ID=debian\nSEALROOT_KERNEL=6.1.1\n", config.LayerStop)), nil, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tree := NewTree(sound().with(tt.change))
			found := Judge(tree, tt.want)
			if tt.found == "" {
				if len(found) > 0 {
					t.Errorf("%v, want nothing", found)
				}
				return
			}
			if len(found) != 1 {
				t.Fatalf("%v, want one finding", found)
			}
			f := found[0]
			if got := fmt.Sprintf("%s %s (%s)", f.Severity, f.Path, f.Rule); got != tt.found || !strings.Contains(f.What, tt.text) || f.Remedy == "" {
				t.Errorf("%q: %+v, want %q with %q and a remedy", got, f, tt.found, tt.text)
			}
			tt.want.Ignore = append(tt.want.Ignore, f.Rule)
			if found := Judge(tree, tt.want); len(found) > 0 {
				t.Errorf("without rule %s: %v", f.Rule, found)
			}
		})
	}
}

// Another init is told all that the units would do for it.
func TestCallsOfAnotherInit(t *testing.T) {
	remedy := func(edit func(*config.Config)) string {
		t.Helper()
		found := Judge(NewTree(sound().with(files{"usr/sbin/init": program()})), kiosk(edit))
		if len(found) != 1 {
			t.Fatalf("%v, want one finding", found)
		}
		return found[0].Remedy
	}
	const balance, deadline = "`sealroot state balance --watch --configured`", "/run/sealroot/trial or /run/sealroot/layers-trial"
	for _, want := range []string{"`sealroot record`", "`sealroot post-rollback`", balance, "`sealroot check --commit`", "`sealroot deadline`", deadline} {
		if got := remedy(nil); !strings.Contains(got, want) {
			t.Errorf("%q, want %s in it", got, want)
		}
	}
	if got := remedy(func(c *config.Config) { c.State.Create, c.Boot.Store = config.CreateNone, config.StoreFixed }); strings.Contains(got, balance) || strings.Contains(got, deadline) {
		t.Errorf("without a volume and with one slot: %q", got)
	}
}

// TestEveryRuleIsTested: the cases above have a finding of each rule.
func TestEveryRuleIsTested(t *testing.T) {
	source, err := os.ReadFile("rootcheck_test.go")
	if err != nil {
		t.Fatal(err)
	}
	names, about := Rules()
	for i, name := range names {
		if name != archiveRule && !strings.Contains(string(source), "("+name+")\"") || about[i] == "" {
			t.Errorf("no case of rule %s, or no word about it", name)
		}
	}
}

// TestManyFindings: a rule does not bury the others.
func TestManyFindings(t *testing.T) {
	change := files{"home": {}}
	for i := range 30 {
		change[fmt.Sprintf("etc/ssh/ssh_host_%02d_key", i)] = text("x")
	}
	found := Judge(NewTree(sound().with(change)), kiosk(nil))
	if len(found) != 1+perRule || found[0].Rule != "directories" || Errors(found) != 1 {
		t.Fatalf("%d findings, %d errors, first %v; want %d, the error first", len(found), Errors(found), found[0], 1+perRule)
	}
	if last := found[len(found)-1].What; !strings.Contains(last, "20 more") {
		t.Errorf("%q does not say how many more there are", last)
	}
}

// TestUnitsAsInstalled holds the table to the script that installs the units.
func TestUnitsAsInstalled(t *testing.T) {
	script, err := os.ReadFile("../../sealroot/units/install")
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, m := range regexp.MustCompile(`(?m)^enable (\S+) (\S+)$`).FindAllStringSubmatch(string(script), -1) {
		want = append(want, m[1]+" "+m[2])
	}
	for _, u := range unitsOfSealroot() {
		got = append(got, u.name+" "+u.by)
	}
	slices.Sort(want)
	slices.Sort(got)
	if len(want) == 0 || !slices.Equal(got, want) {
		t.Errorf("%q, the script has %q", got, want)
	}
}
