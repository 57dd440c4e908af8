package etc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// owns gives files of an image to a user and group.
func (w *world) owns(id string, number int, names ...string) {
	w.t.Helper()
	for _, name := range names {
		must(w.t, os.Lchown(filepath.Join(w.image(id), name), number, number))
	}
}

// lines checks lines of the list of /etc.
func (w *world) lines(id string, want ...string) {
	w.t.Helper()
	list := "\n" + w.list(id)
	for _, line := range want {
		if !strings.Contains(list, "\n"+line) {
			w.t.Errorf("no line %q in%s", line, list)
		}
	}
}

// What the image's /etc has for a user that got another number here belongs to that user,
// also when the image changes it later; what the machine did to it stays.
func TestFilesFollowTheirUser(t *testing.T) {
	w := newWorld(t)
	const root, group = "root:x:0:0::/root:/bin/sh\n", "root:x:0:\n"
	postgres := map[string]string{
		"passwd": root + "postgres:x:103:103::/:/bin/sh\n", "group": group + "postgres:x:103:\n",
		"pg/pg_hba.conf": "local\n", "pg/kept": "k\n", "pg/link": "->kept", "pg/setuid": "s\n",
	}
	w.files(v1, map[string]string{"passwd": root, "group": group})
	for _, id := range []string{v2, v3} {
		w.files(id, postgres)
		w.owns(id, 103, "pg", "pg/pg_hba.conf", "pg/kept", "pg/link", "pg/setuid")
	}
	put(t, w.image(v3), map[string]string{"pg/pg_hba.conf": "local v3\n", "pg/new": "n\n"})
	w.owns(v3, 103, "pg/new")
	for id, mode := range map[string]uint32{v2: 0o640, v3: 0o600} {
		must(t, unix.Chmod(filepath.Join(w.image(id), "pg/pg_hba.conf"), mode))
		must(t, unix.Chmod(filepath.Join(w.image(id), "pg/setuid"), 0o4755))
		must(t, unix.Chmod(filepath.Join(w.image(id), "pg"), 0o2750))
	}
	w.booted(v1)
	w.shell(v1, "echo collector:x:103:103::/:/bin/sh >>passwd; echo collector:x:103: >>group; echo mine >mine; chown 103:103 mine")
	w.booted(v2)
	w.lines(v2, "pg 42750 999:999\n", `pg/pg_hba.conf 100640 999:999 "local\n"`, "pg/kept 100644 999:999", "pg/link 120777 999:999 -> kept", "pg/setuid 100755 999:999", "mine 100644 103:103")
	if d, err := Compare(w.volume); err != nil || strings.Join(d.Changed, " ") != "group passwd" {
		t.Errorf("changed against the image is %q, %v", d.Changed, err)
	}
	// Merged again, with what is in /etc now, and what the image changed.
	w.shell(v2, "chmod 600 pg/kept")
	if r := w.booted(v3); len(r.Conflicts) != 2 { // the numbers, in passwd and group, as before
		t.Errorf("conflicts %q", r.Conflicts)
	}
	w.lines(v3, "pg 42750 999:999\n", `pg/pg_hba.conf 100600 999:999 "local v3\n"`, "pg/kept 100600 999:999", "pg/new 100644 999:999", "mine 100644 103:103")
	// Back to the image without the user, and to that with it. One that the machine added is
	// gone by then: what it had stays with its number.
	w.shell(v3, "echo guest:x:1500:1500::/: >>passwd; echo g >guest; chown 1500:1500 guest")
	w.booted(v1)
	w.lines(v1, "mine 100644 103:103", "guest 100644 1500:1500")
	w.shell(v1, "sed -i /guest/d passwd")
	w.booted(v3)
	w.lines(v3, `pg/pg_hba.conf 100600 999:999 "local v3\n"`, "pg/kept 100600 999:999", "pg/new 100644 999:999", "guest 100644 1500:1500")
}

// Two users change numbers from one build of an image to the next, on a machine that has
// changed nothing: each file stays that of its user, also one that no merge changes.
func TestFilesFollowUsersThatSwap(t *testing.T) {
	w := newWorld(t)
	for id, numbers := range map[string][2]string{v1: {"101", "102"}, v2: {"102", "101"}, v3: {"101", "102"}} {
		nginx, postgres := numbers[0], numbers[1]
		w.files(id, map[string]string{
			"passwd": "root:x:0:0::/:\nnginx:x:" + nginx + ":" + nginx + "::/:\npostgres:x:" + postgres + ":" + postgres + "::/:\n",
			"group":  "root:x:0:\nnginx:x:" + nginx + ":\npostgres:x:" + postgres + ":\n",
			"nginx":  "n\n", "postgres": "p\n",
		})
		n := map[string]int{"101": 101, "102": 102}
		w.owns(id, n[nginx], "nginx")
		w.owns(id, n[postgres], "postgres")
	}
	for _, id := range []string{v1, v2, v3} {
		w.booted(id)
		w.lines(id, "nginx 100644 101:101", "postgres 100644 102:102")
	}
	if left := entries(t, filepath.Join(w.volume, "etc")); len(left) > 0 {
		t.Errorf("with the numbers of before the layer has %q", left)
	}
}
