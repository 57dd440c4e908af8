package qemutests

import (
	"strings"
	"testing"
)

// servicesOf are files that a version of the image for TestRootServices has beside its
// packages.
func servicesOf(version string) map[string]string {
	page := func(port string) string {
		return "server { listen " + port + "; return 200 'version " + version + "\\n'; }\n"
	}
	return map[string]string{
		"etc/nginx/conf.d/image.conf": page("8081"), // only the image changes it
		"etc/nginx/conf.d/both.conf":  page("8082"), // both change it
	}
}

// firstBootOf has an image count first boots, by machine-id(5). Nobody answers the questions
// of systemd-firstboot, and what is enabled stays what the image has.
func firstBootOf(extra map[string]string) map[string]string {
	const dir = "etc/systemd/system/"
	extra["etc/machine-id"] = "uninitialized\n"
	extra[dir+"count.service"] = "[Unit]\nConditionFirstBoot=yes\n[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo one >>/var/lib/first-boots'\n"
	extra[dir+"multi-user.target.d/count.conf"] = "[Unit]\nWants=count.service\n"
	extra[dir+"systemd-firstboot.service"] = ""
	extra["etc/systemd/system-preset/00-image.preset"] = "disable *\n"
	return extra
}

// services has the guest say whether each service is active, and what a client of each
// gets: the row in the database, the page of the machine's, of the image's and of both. UID
// is the number that the machine gave away.
const services = `systemctl is-active nginx postgresql@15-main memcached
su postgres -c "psql -Atc 'select word from kept'"
for port in 8080 8081 8082; do perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new("127.0.0.1:".shift) or exit 1; print $s "GET / HTTP/1.0\r\n\r\n"; @l = <$s>; print $l[-1]' $port; done
cat /home/alice/kept; stat -c %U /home/alice/kept; id -un 1000; id -un UID; getent shadow bob | cut -d: -f2`

// memcacheUID is the number that the next image has for memcached's system user: which one
// its package takes depends on Debian's others.
func memcacheUID(t *testing.T) string {
	t.Helper()
	for line := range strings.Lines(tool(t, "tar", "-xOf", rootTar(t, ServicesNext), "./etc/passwd")) {
		if f := strings.Split(line, ":"); f[0] == "memcache" {
			return f[2]
		}
	}
	t.Fatal("the next image has no user memcache")
	return ""
}

// hooksOf are an image's hooks, which leave word of what they found: the database runs
// before a commit, and no service does when the image is back.
func hooksOf(extra map[string]string) map[string]string {
	const note = `>>/var/lib/hooks; echo "$SEALROOT_EVENT $SEALROOT_FROM_SLOT $SEALROOT_FROM_VERSION $SEALROOT_SLOT $SEALROOT_VERSION" >>/var/lib/hooks` + "\n"
	extra["usr/lib/sealroot/hooks/pre-commit.d/10-note"] = "#!/bin/sh\nsystemctl is-active postgresql@15-main " + note
	extra["usr/lib/sealroot/hooks/post-rollback.d/10-note"] = "#!/bin/sh\nsystemctl is-active postgresql@15-main " + note
	return extra
}

// A Debian machine with a web server, a database and people is updated to an image
// with one more daemon, whose system user has a number that the machine gave away; then
// it goes back. All runs each time, and what people made is there. What dpkg knows is
// what the running image has, and the images' hooks are run in their time. Of all these
// boots one is the machine's first, and it has one identity.
func TestRootServices(t *testing.T) {
	t.Parallel()
	image := Image{Root: Services, Commit: true, Extra: firstBootOf(hooksOf(servicesOf("1"))), Disk: []string{"--root-size", "160M"},
		Edit: []string{"etc: overlay\n", "etc: overlay\noverlays: [{path: /var/lib/dpkg, upper: per-slot}]\n"}}
	next := image.next(t)
	next.Root, next.Extra = ServicesNext, firstBootOf(hooksOf(servicesOf("2")))
	disk := image.Build(t)
	m := NewMachine(t, BIOS, disk).WithTPM().withParts(t, readFile(t, next.Parts(t))).Hold()
	vm := m.Boot()
	id, uid := "", memcacheUID(t)
	up := func(slot string) {
		t.Helper()
		defer func() {
			got := vm.Run("cat /etc/machine-id /var/lib/first-boots")
			if id == "" {
				id = got
			}
			if got != id || !strings.HasSuffix(got, "\none") || len(got) != 36 {
				t.Errorf("identity and first boots are %q, and were %q", got, id)
			}
		}()
		vm.Expect(`slot `+slot+`: starting /sbin/init`, bootTime)
		vm.WaitReady(bootTime)
		checkSystemd(t, vm)
	}
	want := func(memcached, page string) {
		t.Helper()
		got, _ := vm.TryRun(strings.ReplaceAll(services, "UID", uid))
		want := strings.Join([]string{"active", "active", memcached, "a row", "the machine's", "version " + page, "changed here", "a file", "alice", "alice", "collector", "secret"}, "\n")
		if got != want {
			t.Errorf("the services say\n%s\nwant\n%s", got, want)
		}
		if _, status := vm.TryRun("dpkg -s memcached"); (status == 0) != (memcached == "active") {
			t.Errorf("dpkg -s memcached ends with %d, and it is %s", status, memcached)
		}
	}

	up("a")
	vm.Run(`set -e
su postgres -c "psql -qc \"create table kept (word text); insert into kept values ('a row')\""
echo 'a file' >/home/alice/kept; chown alice: /home/alice/kept
useradd -m bob; usermod -p secret bob
useradd --system --uid ` + uid + ` --user-group collector
echo "server { listen 8080; return 200 \"the machine's\n\"; }" >/etc/nginx/conf.d/machine.conf
echo 'server { listen 8082; return 200 "changed here\n"; }' >/etc/nginx/conf.d/both.conf
systemctl reload nginx
sealroot install /dev/vdb`)
	want("inactive", "1")
	vm = vm.offAndOn()
	up("b")
	want("active", "2")
	// The unit has committed the slot. Its daemon has a user, with another number than
	// in the image, and it is told what was not as the image wants it.
	if got := vm.Run("systemctl show -p MainPID --value memcached | xargs ps -o user= -p"); got != "memcache" {
		t.Errorf("memcached runs as %q, want memcache", got)
	}
	// So is the directory that the image has for it in /var, which was filled long ago.
	if got := vm.Run("stat -c '%U %G %a' /var/lib/memcached"); got != "memcache memcache 750" {
		t.Errorf("/var/lib/memcached is of %q, want memcache's", got)
	}
	diff := vm.Run("sealroot etc diff")
	for _, conflict := range []string{"nginx/conf.d/both.conf", "memcache has number " + uid + " in the image and "} {
		if !strings.Contains(diff, conflict) {
			t.Errorf("sealroot etc diff has no %q:\n%s", conflict, diff)
		}
	}
	if got := status(t, vm); len(got.Problems) > 0 {
		t.Errorf("sealroot status has problems: %q", got.Problems)
	}
	vm.Run("su postgres -c \"psql -qc \\\"update kept set word = 'a row of 2'; update kept set word = 'a row'\\\"\"")
	vm.Run("sealroot rollback")
	vm = vm.offAndOn()
	up("a")
	want("inactive", "1")
	if got, want := vm.Run("cat /var/lib/hooks"), "active\npre-commit a 2026.11.1 b 2.next\ninactive\npost-rollback b 2.next a 2026.11.1"; got != want {
		t.Errorf("the hooks say\n%s\nwant\n%s", got, want)
	}
	vm.endsInOrder(disk)
}
