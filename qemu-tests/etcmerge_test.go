package qemutests

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// etcOf are files of /etc of an image for TestRootEtcMerge.
func etcOf(b, c, daemon string) map[string]string {
	return map[string]string{
		"etc/a": "a of the image\n", "etc/b": b + "\n", "etc/c": c + "\n", "etc/frozen": "the same in both\n",
		"etc/passwd": "root:x:0:0::/root:/bin/sh\n" + daemon + ":x:998:998::/:/bin/false\n",
		"etc/group":  "root:x:0:\n" + daemon + ":x:998:\n",
		"etc/shadow": "root:*:1::::::\n" + daemon + ":!:1::::::\n",
	}
}

// writableParts are directories that are writable over what the image has.
const writableParts = `etc: overlay
binds:
  extra:
    - {from: encrypted/opt, to: /opt, options: [nodev], seed: overlay}
    - {from: encrypted/spool, to: /srv/spool, seed: tmpfiles}
overlays:
  - {path: /var/lib/pkg, upper: per-slot}
  - {path: /var/lib/shared, upper: encrypted}
`

// In the first boot of another version /etc is merged: what only the machine changed
// is the machine's, what only the image changed the image's, what both changed the
// machine's, and listed; accounts of both are there. Going back brings what the old
// version had, and the changes since. Directories that are writable over what the image
// has show the running image's under the changes, or under those of their slot. The
// images' hooks decide about the commit, and are told of the way back, once: data that the
// new image moved is moved back, to where nothing was added. What was made immutable is that
// under both.
func TestRootEtcMerge(t *testing.T) {
	t.Parallel()
	files := func(version string, of map[string]string) map[string]string {
		for _, name := range []string{"opt/image", "srv/spool/image", "var/lib/pkg/image", "var/lib/pkg/db", "var/lib/shared/image"} {
			of[name] = version + "\n"
		}
		return of
	}
	image := Image{Edit: []string{"etc: overlay\n", writableParts}, Extra: files("1", etcOf("b1", "c1", "one"))}
	image.Extra["var/lib/app/1/factory"] = "as built\n"
	next := image.next(t)
	next.Extra = files("2", etcOf("b2", "c2", "two"))
	next.Extra["etc/new"] = "new in 2\n"
	next.Extra["usr/lib/sealroot/hooks/pre-commit.d/10-ready"] = "#!/sbin/init\nappend /var/lib/hooks asked\ncat /var/lib/ready\n"
	image.Extra["usr/lib/sealroot/hooks/post-rollback.d/10-back"] = "#!/sbin/init\nappend /var/lib/hooks back\nmv /var/lib/app/before-2 /var/lib/app/1\n"
	vm := NewMachine(t, BIOS, image.Build(t)).WithTPM().withParts(t, readFile(t, next.Parts(t))).Boot()
	const uppers = "/state/encrypted/.sealroot/overlays/var-lib-pkg" // one for each slot and image
	has := func(want map[string]string) {
		t.Helper()
		for name, text := range want {
			if !strings.HasPrefix(name, "/") {
				name = "/etc/" + name
			}
			got, status := vm.TryRun("cat " + name) // without the last newline
			if gone := text == ""; gone != (status != 0) || !gone && got != text {
				t.Errorf("%s: status %d, %q, want %q", name, status, got, text)
			}
		}
	}
	frozen := func() {
		t.Helper()
		for _, name := range []string{"frozen", "mine"} {
			if text, status := vm.TryRun("append /etc/" + name + " more"); status == 0 || !strings.Contains(text, "operation not permitted") {
				t.Errorf("/etc/%s is immutable, and a write ends with %d: %s", name, status, text)
			}
		}
	}
	if r := vm.UpIn("a"); len(unexpected(r)) > 0 {
		t.Errorf("the first boot warns: %q", r.Warnings)
	}
	has(map[string]string{"/opt/image": "1", "/srv/spool/image": "", "/var/lib/pkg/image": "1", "/var/lib/pkg/db": "1", "/var/lib/shared/image": "1"})
	where := []string{"/opt overlay rw", "/srv/spool ext4 rw", "/var ext4 rw", "/var/lib/pkg overlay rw", "/var/lib/shared overlay rw"}
	if got := mounts(vm.Run("cat /proc/1/mountinfo")); !containsAll(got, where) || strings.Contains(strings.Join(got, " "), "/overlays") {
		t.Errorf("mounts\n%q, want among them\n%q", got, where)
	}
	if text := vm.Run("sealroot explain"); !strings.Contains(text, "changes go to the encrypted volume, by the name encrypted/opt") || !strings.Contains(text, "only this slot with this image") {
		t.Errorf("sealroot explain:\n%s", text)
	}
	for _, command := range []string{
		"write /etc/a a of the machine", "write /etc/c c of the machine",
		"append /etc/passwd human:x:1000:1000::/home/user:/bin/sh", "append /etc/group human:x:1000:", "append /etc/shadow human:secret:1::::::",
		"chmod 644 /etc/frozen", "chattr i /etc/frozen", "write /etc/mine of the machine", "chattr i /etc/mine", "write /var/lib/app/1/row kept",
		"write /opt/machine of the machine", "write /srv/spool/machine of the machine", "write /var/lib/pkg/db by a", "write /var/lib/shared/machine of the machine",
		"write /var/lib/hooks begin", "sealroot post-rollback", "mkdir " + uppers + "/b-00ff", "sealroot install /dev/vdb",
	} {
		vm.Run(command)
	}
	if got := vm.Run("ls " + uppers); strings.Contains(got, "b-00ff") || !strings.Contains(got, "/a-") {
		t.Errorf("upper layers after install:\n%s", got)
	}
	frozen()
	vm.Reboot()
	r := vm.UpIn("b")
	frozen()
	if !strings.Contains(strings.Join(r.Warnings, "\n"), "1 conflicts, sealroot etc diff") {
		t.Errorf("warnings %q, want one about a conflict", r.Warnings)
	}
	if len(r.EtcConflicts) != 1 || !strings.HasPrefix(r.EtcConflicts[0], "c: ") {
		t.Errorf("boot.json names the conflicts %q, want that of c", r.EtcConflicts)
	}
	has(map[string]string{
		"a": "a of the machine", "b": "b2", "c": "c of the machine", "new": "new in 2",
		"passwd": "root:x:0:0::/root:/bin/sh\nhuman:x:1000:1000::/home/user:/bin/sh\ntwo:x:998:998::/:/bin/false",
		"group":  "root:x:0:\nhuman:x:1000:\ntwo:x:998:",
		"shadow": "root:*:1::::::\nhuman:secret:1::::::\ntwo:!:1::::::",
	})
	var result struct {
		Data struct {
			Conflicts []struct {
				Path     string `json:"path"`
				ImageHas string `json:"image_has"`
			} `json:"conflicts"`
			Changed []string `json:"changed"`
		} `json:"data"`
	}
	text := vm.Run("sealroot etc diff --json")
	fits(t, "result", text)
	if err := json.Unmarshal([]byte(text), &result); err != nil || len(result.Data.Conflicts) != 1 || result.Data.Conflicts[0].Path != "c" ||
		strings.Join(result.Data.Changed, " ") != "a c frozen group passwd shadow" {
		t.Fatalf("sealroot etc diff: %v: %s", err, text)
	}
	if got := vm.Run("cat " + result.Data.Conflicts[0].ImageHas); got != "c2" {
		t.Errorf("%s: %q, want the image's c", result.Data.Conflicts[0].ImageHas, got)
	}
	has(map[string]string{
		"/opt/image": "2", "/opt/machine": "of the machine", "/srv/spool/image": "", "/srv/spool/machine": "of the machine",
		"/var/lib/pkg/image": "2", "/var/lib/pkg/db": "2", "/var/lib/shared/image": "2", "/var/lib/shared/machine": "of the machine",
	})
	vm.Run("write /var/lib/pkg/db by b")
	vm.Run("sealroot post-rollback")
	if text, status := vm.TryRun("sealroot commit"); status != 3 || !strings.Contains(text, "slot b is not committed: pre-commit hook failed: 10-ready: exit status 1: open /var/lib/ready") {
		t.Errorf("a commit that the image's hook refuses ends with %d: %s", status, text)
	}
	if text := vm.Run("sealroot status"); !strings.Contains(text, "slot b is on trial") {
		t.Errorf("after a refused commit:\n%s", text)
	}
	vm.Run("write /var/lib/ready yes")
	vm.Run("sealroot commit")
	vm.Run("write /etc/later written under 2")
	vm.Run("append /etc/passwd second:x:1001:1001::/:/bin/sh")
	vm.Run("mv /var/lib/app/1 /var/lib/app/before-2")
	vm.Run("sealroot rollback")
	vm.Reboot()
	vm.UpIn("a")
	frozen()
	has(map[string]string{
		"a": "a of the machine", "b": "b1", "c": "c of the machine", "new": "", "later": "written under 2",
		"/opt/image": "1", "/opt/machine": "of the machine", "/var/lib/pkg/image": "1", "/var/lib/pkg/db": "by a",
		"/var/lib/hooks": "begin\nasked\nasked", "/var/lib/app/1/factory": "",
		"passwd": "root:x:0:0::/root:/bin/sh\nhuman:x:1000:1000::/home/user:/bin/sh\nsecond:x:1001:1001::/:/bin/sh\none:x:998:998::/:/bin/false",
	})
	for range 2 {
		vm.Run("sealroot post-rollback")
		has(map[string]string{"/var/lib/hooks": "begin\nasked\nasked\nback", "/var/lib/app/1/factory": "as built", "/var/lib/app/1/row": "kept"})
	}
	vm.PowerOff()
}

func containsAll(list, want []string) bool {
	return !slices.ContainsFunc(want, func(w string) bool { return !slices.Contains(list, w) })
}
