package etcmerge

import (
	"slices"
	"strconv"
	"strings"
	"testing"
)

func lines(l ...string) []byte {
	if len(l) == 0 {
		return []byte{}
	}
	return []byte(strings.Join(l, "\n") + "\n")
}

const (
	root   = "root:x:0:0:root:/root:/bin/bash"
	daemon = "daemon:x:1:1::/:/usr/sbin/nologin"
	anna   = "anna:x:1000:1000:Anna:/home/anna:/bin/bash"
	pg     = "postgres:x:117:120::/var/lib/postgresql:/bin/bash"
)

func TestAccountsOfOneFile(t *testing.T) {
	for _, tt := range []struct {
		name, file           string
		base, image, machine []byte
		want                 []byte
		conflict             string // part of the only one; "" for none
	}{
		{"nothing_changed", "passwd", lines(root), lines(root), lines(root), lines(root), ""},
		{"image_alone", "passwd", lines(root, daemon), lines(daemon, root, pg), lines(root, daemon), lines(daemon, root, pg), ""},
		{"machine_alone", "passwd", lines(root), lines(root), []byte(root + "\n\n# x\n" + anna), []byte(root + "\n\n# x\n" + anna), ""},
		{"both_added", "passwd", lines(root), lines(root, pg), lines(root, anna), lines(root, anna, pg), ""},
		{"both_added_the_same", "passwd", lines(root), lines(root, pg, daemon), lines(pg, root), lines(pg, root, daemon), ""},
		{"image_removed", "passwd", lines(root, daemon), lines(root), lines(root, daemon, anna), lines(root, anna), ""},
		{"image_removed_what_the_machine_changed", "passwd", lines(root, daemon), lines(root), lines(root, daemon+"x"), lines(root, daemon+"x"), "daemon: the image removed it"},
		{"machine_removed", "passwd", lines(root, daemon), lines(root, daemon, pg), lines(root), lines(root, pg), ""},
		{"machine_removed_what_the_image_changed", "passwd", lines(root, daemon), lines(root, daemon+"x"), lines(root), lines(root), "daemon: the machine removed it"},
		{"fields", "passwd", lines(root), lines("root:x:0:0:Admin:/root:/bin/bash"), lines("root:x:0:0:root:/root:/bin/zsh"), lines("root:x:0:0:Admin:/root:/bin/zsh"), ""},
		{"same_field", "passwd", lines(root), lines("root:x:0:0:root:/root:/bin/sh"), lines("root:x:0:0:root:/root:/bin/zsh"), lines("root:x:0:0:root:/root:/bin/zsh"), "both changed field 7"},
		{"image_changes_a_number", "passwd", lines(root, pg), lines(root, strings.Replace(pg, "117", "118", 1)), lines(root, pg, anna), lines(root, pg, anna), "number 118 and the machine 117"},
		{"other_fields", "passwd", lines(root), lines("root:x"), lines(root, anna), lines(root, anna), "different fields"},
		{"user_has_the_number", "passwd", lines(root), lines(root, pg), lines(root, "bob:x:117:117::/home/bob:/bin/sh"),
			lines(root, "bob:x:117:117::/home/bob:/bin/sh", strings.Replace(pg, "117", "999", 1)), "number 117 in the image and 999 here, where bob has 117"},
		{"user_has_the_number_with_zeros", "passwd", lines(root), lines(root, pg), lines(root, "bob:x:00117:117::/home/bob:/bin/sh"),
			lines(root, "bob:x:00117:117::/home/bob:/bin/sh", strings.Replace(pg, "117", "999", 1)), "where bob has 117"},
		{"a_line_of_nis_has_the_number", "passwd", lines(root), lines(root, pg), lines(root, "+bob:x:117:117:::"),
			lines(root, strings.Replace(pg, "117", "999", 1), "+bob:x:117:117:::"), "where +bob has 117"},
		{"number_that_is_freed", "passwd", lines(root, "old:x:117:120::/:"), lines(root, pg), lines(root, "old:x:117:120::/:", anna), lines(root, anna, pg), ""},
		{"number_that_an_image_user_was_given", "passwd", lines(root, daemon), lines(root, daemon, pg), lines(root, strings.Replace(daemon, ":1:", ":117:", 1)),
			lines(root, strings.Replace(daemon, ":1:", ":117:", 1), strings.Replace(pg, "117", "999", 1)), "where daemon has 117"},
		{"two_names_of_one_number_in_the_image", "passwd", lines(root), lines(root, "toor:x:0:0::/:"), lines(root, anna), lines(root, anna, "toor:x:0:0::/:"), ""},
		{"lines_that_are_none", "passwd", lines(root), lines(root, pg), lines("# mine", root, "", "+::::::"), lines("# mine", root, "", pg, "+::::::"), ""},
		{"twice", "passwd", lines(root), lines(root, pg), lines(root, "root:x:0:0:other:/:"), lines(root, "root:x:0:0:other:/:", pg), ""},
		{"twice_and_removed_by_the_image", "passwd", lines(root, daemon), lines(root), lines(root, daemon, "daemon:x:0:0::/:"), lines(root, daemon, "daemon:x:0:0::/:"), "daemon: the image removed it"},
		{"no_file_in_the_image", "passwd", lines(root), nil, lines(root, anna), lines(root, anna), ""},

		{"members", "group", lines("adm:x:4:a,b"), lines("adm:x:4:a,b,syslog"), lines("adm:x:4:b,anna"), lines("adm:x:4:b,anna,syslog"), ""},
		{"members_that_the_image_removed", "group", lines("adm:x:4:a,b"), lines("adm:x:4:b"), lines("adm:x:4:a,b,anna"), lines("adm:x:4:b,anna"), ""},
		{"administrators", "gshadow", lines("adm:!:a:a"), lines("adm:!:a,i:a,i"), lines("adm:!:a,m:a,m"), lines("adm:!:a,m,i:a,m,i"), ""},
		{"password", "shadow", lines("root:*:1:0::::: "), lines("root:*:2:0::::: "), lines("root:$y$secret:1:0::::: "), lines("root:$y$secret:2:0::::: "), ""},
		{"ranges", "subuid", lines("a:100000:65536"), lines("a:100000:65536", "i:300000:10"), lines("a:100000:65536", "a:200000:65536"), lines("a:100000:65536", "a:200000:65536", "i:300000:10"), ""},
		{"ranges_that_overlap", "subuid", lines(), lines("i:165535:10"), lines("anna:100000:65536"), lines("anna:100000:65536"), "overlaps that of anna"},
		{"ranges_side_by_side", "subgid", lines(), lines("i:165536:10"), lines("anna:100000:65536"), lines("anna:100000:65536", "i:165536:10"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var base, image, machine Files
			base.set(tt.file, tt.base)
			image.set(tt.file, tt.image)
			machine.set(tt.file, tt.machine)
			got, conflicts := Accounts(base, image, machine)
			if string(got.get(tt.file)) != string(tt.want) {
				t.Errorf("\n%swant\n%s", got.get(tt.file), tt.want)
			}
			switch {
			case tt.conflict == "" && len(conflicts) > 0, tt.conflict != "" && (len(conflicts) != 1 || !strings.Contains(conflicts[0].What, tt.conflict) || conflicts[0].Path != tt.file):
				t.Errorf("conflicts %v, want one with %q", conflicts, tt.conflict)
			}
			for _, c := range conflicts {
				if strings.Contains(c.What, "secret") {
					t.Errorf("conflict with a password: %v", c)
				}
			}
		})
	}
}

// TestAccountsTogether: a new daemon of the image beside a human of the machine's who
// has its numbers.
func TestAccountsTogether(t *testing.T) {
	base := Files{Passwd: lines(root), Shadow: lines("root:*:1"), Group: lines("root:x:0:"), Gshadow: lines("root:*::")}
	image := Files{Passwd: lines(root, pg), Shadow: lines("root:*:1", "postgres:!:1"), Group: lines("root:x:0:", "postgres:x:120:"), Gshadow: lines("root:*::", "postgres:!::")}
	machine := Files{Passwd: lines(root, anna), Shadow: lines("root:$y$secret:1", "anna:$y$secret:2"), Group: lines("root:x:0:", "team:x:120:anna"), Gshadow: lines("root:*::", "team:!::anna")}
	got, conflicts := Accounts(base, image, machine)
	want := Files{
		Passwd:  lines(root, anna, "postgres:x:117:999::/var/lib/postgresql:/bin/bash"),
		Shadow:  lines("root:$y$secret:1", "anna:$y$secret:2", "postgres:!:1"),
		Group:   lines("root:x:0:", "team:x:120:anna", "postgres:x:999:"),
		Gshadow: lines("root:*::", "team:!::anna", "postgres:!::"),
	}
	for _, name := range AccountFiles() {
		if string(got.get(name)) != string(want.get(name)) {
			t.Errorf("%s\n%swant\n%s", name, got.get(name), want.get(name))
		}
	}
	if len(conflicts) != 1 || conflicts[0].Path != "group" {
		t.Errorf("conflicts %v, want that of the group's number", conflicts)
	}

	// The group of the new user is away, and its number somebody else's.
	base.Group, image.Group = lines("root:x:0:", "postgres:x:120:"), lines("root:x:0:", "postgres:x:120:", "more:x:5:")
	base.Gshadow = image.Gshadow
	got, conflicts = Accounts(base, image, machine)
	if strings.Contains(string(got.Passwd)+string(got.Shadow), "postgres") || len(conflicts) != 1 || !strings.Contains(conflicts[0].What, "left out: its group 120") {
		t.Errorf("%s%v, want no user postgres and to know why", got.Passwd, conflicts)
	}
}

// A user or group that the image removed is judged by both files that it is in, and
// both lines stay or go.
func TestAccountsOfTwoFiles(t *testing.T) {
	const admin = "admin:x:1000:1000::/home/admin:/bin/bash"
	all := func(passwd, shadow, group, gshadow string) Files {
		return Files{Passwd: lines(root, passwd), Shadow: lines("root:*:1", shadow), Group: lines("root:x:0:", group), Gshadow: lines("root:*::", gshadow)}
	}
	base := all(admin, "admin:!:1", "admin:x:1000:", "admin:!::")
	image := Files{Passwd: lines(root), Shadow: lines("root:*:1"), Group: lines("root:x:0:", "new:x:5:"), Gshadow: lines("root:*::", "new:!::")}
	for _, tt := range []struct {
		name        string
		machine     Files
		user, group bool // stay
	}{
		{"password", all(admin, "admin:$y$secret:2", "admin:x:1000:", "admin:!::"), true, false},
		{"shell", all(strings.Replace(admin, "bash", "zsh", 1), "admin:!:1", "admin:x:1000:", "admin:!::"), true, false},
		{"password_twice", all(admin, "admin:!:1\nadmin:$y$secret:2", "admin:x:1000:", "admin:!::"), true, false},
		{"member", all(admin, "admin:!:1", "admin:x:1000:anna", "admin:!::"), false, true},
		{"administrator", all(admin, "admin:!:1", "admin:x:1000:", "admin:!:anna:"), false, true},
		{"nothing", all(admin, "admin:!:1", "admin:x:1000:", "admin:!::\nteam:!::"), false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, conflicts := Accounts(base, image, tt.machine)
			for _, name := range []string{"passwd", "shadow", "group", "gshadow"} {
				stays := tt.user
				if strings.HasPrefix(name, "g") {
					stays = tt.group
				}
				mine, here := entries(parse(tt.machine.get(name), byName))["admin"].text, entries(parse(got.get(name), byName))["admin"].text
				if stays && here != mine || !stays && here != "" {
					t.Errorf("%s has %q of %q, want it to stay: %v", name, here, mine, stays)
				}
			}
			for _, c := range conflicts {
				if tt.name == "nothing" || !strings.HasPrefix(c.What, "admin: the image removed it") {
					t.Errorf("conflict %v", c)
				}
			}
			if tt.name != "nothing" && len(conflicts) != 2 {
				t.Errorf("%d conflicts, want one for each file: %v", len(conflicts), conflicts)
			}
		})
	}
}

// The primary group of a user of the machine's is no group of the image's, also where
// the group itself went, or never was.
func TestPrimaryGroupIsHeld(t *testing.T) {
	const users = "users:x:100:"
	bob := "bob:x:1000:120::/home/bob:/bin/sh"
	for _, tt := range []struct {
		name                 string
		base, image, machine Files
		group                []byte
		conflict             string
	}{
		{"the_group_goes",
			Files{Passwd: lines(root), Group: lines("old:x:120:")}, Files{Passwd: lines(root, pg), Group: lines("postgres:x:120:")}, Files{Passwd: lines(root, bob), Group: lines("old:x:120:")},
			lines("postgres:x:999:"), "where bob has 120"},
		{"there_never_was_one",
			Files{Passwd: lines(root), Group: lines(users)}, Files{Passwd: lines(root), Group: lines(users, "postgres:x:120:")}, Files{Passwd: lines(root, bob), Group: lines(users, "mine:x:5:")},
			lines(users, "mine:x:5:", "postgres:x:999:"), "where bob has 120"},
		{"and_999_is_held_so_too",
			Files{Passwd: lines(root), Group: lines(users)}, Files{Passwd: lines(root), Group: lines(users, "postgres:x:120:")}, Files{Passwd: lines(root, bob, "eve:x:1001:0999::/:"), Group: lines(users, "mine:x:5:")},
			lines(users, "mine:x:5:", "postgres:x:998:"), "where bob has 120"},
		{"the_user_goes_too",
			Files{Passwd: lines(root, bob), Group: lines("old:x:120:")}, Files{Passwd: lines(root), Group: lines("postgres:x:120:")}, Files{Passwd: lines(root, bob, anna), Group: lines("old:x:120:")},
			lines("postgres:x:120:"), ""},
		{"it_is_the_images_user",
			Files{Passwd: lines(root, bob), Group: lines(users)}, Files{Passwd: lines(root, bob), Group: lines(users, "postgres:x:120:")}, Files{Passwd: lines(root, bob, anna), Group: lines(users)},
			lines(users, "postgres:x:120:"), ""},
		{"the_group_stays_and_the_image_has_two",
			Files{Passwd: lines(root), Group: lines(users)}, Files{Passwd: lines(root), Group: lines(users, "staff:x:100:")}, Files{Passwd: lines(root, strings.Replace(bob, "120", "100", 1)), Group: lines(users, "mine:x:5:")},
			lines(users, "mine:x:5:", "staff:x:100:"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, conflicts := Accounts(tt.base, tt.image, tt.machine)
			if string(got.Group) != string(tt.group) {
				t.Errorf("\n%swant\n%s", got.Group, tt.group)
			}
			if tt.conflict == "" && len(conflicts) > 0 || tt.conflict != "" && (len(conflicts) != 1 || !strings.Contains(conflicts[0].What, tt.conflict)) {
				t.Errorf("conflicts %v, want one with %q", conflicts, tt.conflict)
			}
			if tt.name == "the_group_goes" && !strings.Contains(string(got.Passwd), "postgres:x:117:999:") {
				t.Errorf("the image's user is not in its group:\n%s", got.Passwd)
			}
		})
	}
}

func TestNoFreeNumber(t *testing.T) {
	machine := []string{root, "bob:x:117:5::/:"}
	for n := minSystem; n <= maxSystem; n++ {
		if n != 117 {
			id := strconv.Itoa(n)
			machine = append(machine, "u"+id+":x:"+id+":5::/:")
		}
	}
	got, conflicts := Accounts(Files{Passwd: lines(root), Shadow: lines("root:*")}, Files{Passwd: lines(root, pg), Shadow: lines("root:*", "postgres:!")}, Files{Passwd: lines(machine...), Shadow: lines("root:x")})
	if strings.Contains(string(got.Passwd)+string(got.Shadow), "postgres") || len(conflicts) != 1 || !strings.Contains(conflicts[0].What, "none below 1000 is free") {
		t.Errorf("%v", conflicts)
	}
}

// checkAccounts holds a merge to what must be true of every one.
func checkAccounts(t *testing.T, base, image, machine Files) {
	t.Helper()
	got, conflicts := Accounts(base, image, machine)
	for _, c := range conflicts {
		if !slices.Contains(AccountFiles(), c.Path) || c.What == "" {
			t.Errorf("conflict %v", c)
		}
	}
	if base.equal(machine) || base.equal(image) {
		return // the other side, whatever it is
	}
	for _, name := range AccountFiles() {
		keyOf := byName
		if strings.HasPrefix(name, "sub") {
			keyOf = byLine
		}
		b, m, g := entries(parse(base.get(name), keyOf)), parse(machine.get(name), keyOf), entries(parse(got.get(name), keyOf))
		i := entries(parse(image.get(name), keyOf))
		for _, l := range m {
			_, inImage := i[l.key]
			switch here, ok := g[l.key]; {
			case l.key == "" && l.text != "" && !strings.Contains("\n"+string(got.get(name)), "\n"+l.text+"\n"):
				t.Errorf("%s: line %q of the machine is lost", name, l.text)
			case l.key == "":
			case !ok && (b[l.key].text != l.text || inImage || twice(m, l)):
				t.Errorf("%s: entry %q of the machine is lost", name, l.text)
			case ok && (name == "passwd" || name == "group") && field(here, idField) != field(l, idField):
				t.Errorf("%s: %q became %q", name, l.text, here.text)
			}
		}
		if name != "passwd" && name != "group" {
			continue
		}
		// Nobody new gets a number that the machine gave to somebody.
		mine := entries(m)
		for key, here := range g {
			if _, there := mine[key]; there || field(here, idField) == "" {
				continue
			}
			for _, l := range m {
				other, inImage := i[l.key]
				_, stays := g[l.key]
				if l.key != "" && stays && number(field(l, idField)) == number(field(here, idField)) && (!inImage || number(field(other, idField)) != number(field(l, idField))) {
					t.Errorf("%s: %q has the number of %q", name, here.text, l.text)
				}
			}
		}
	}
}

func FuzzAccounts(f *testing.F) {
	f.Add(lines(root), lines(root, pg), lines(root, anna), lines("g:x:120:"), lines("g:x:120:a", "h:x:5:"), lines("t:x:120:b", "+:::"))
	f.Add(lines("a:x:1:1"), lines("b:x:1:1"), lines("a:x:1:1", "c:x:117:1", "#"), lines(), lines("a:1:5"), lines("b:1:5"))
	f.Fuzz(func(t *testing.T, b1, i1, m1, b2, i2, m2 []byte) {
		if len(b1)+len(i1)+len(m1)+len(b2)+len(i2)+len(m2) > 4096 {
			return
		}
		checkAccounts(t, Files{Passwd: b1, Group: b2, Shadow: b2}, Files{Passwd: i1, Group: i2, Shadow: i2}, Files{Passwd: m1, Group: m2, Shadow: m2})
		checkAccounts(t, Files{Group: b1, Subuid: b2}, Files{Group: i1, Subuid: i2}, Files{Group: m1, Subuid: m2})
	})
}

// A machine that has changed no account file keeps its numbers all the same: another build
// of an image may have its packages in another order.
func TestUntouchedMachineKeepsItsNumbers(t *testing.T) {
	const root = "root:x:0:0::/root:/bin/sh\n"
	base := Files{
		Passwd: []byte(root + "nginx:x:101:101::/:/bin/false\npostgres:x:102:102::/:/bin/false\n"), Shadow: []byte("nginx:!:1\npostgres:!:1\n"),
		Group: []byte("root:x:0:\nnginx:x:101:\npostgres:x:102:\n"),
	}
	image := Files{
		Passwd: []byte(root + "postgres:x:101:101::/srv:/bin/false\nnginx:x:102:102::/:/bin/false\nredis:x:103:101::/:\n"), Shadow: []byte("postgres:!:2\nnginx:!:1\nredis:!:1\n"),
		Group: []byte("root:x:0:\npostgres:x:101:\nnginx:x:102:redis\n"),
	}
	merged, conflicts := Accounts(base, image, base)
	for name, want := range map[string]string{
		"passwd": root + "nginx:x:101:101::/:/bin/false\npostgres:x:102:102::/srv:/bin/false\nredis:x:103:102::/:\n",
		"group":  "root:x:0:\nnginx:x:101:redis\npostgres:x:102:\n",
		"shadow": "nginx:!:1\npostgres:!:2\nredis:!:1\n",
	} {
		if got := string(merged.get(name)); got != want {
			t.Errorf("%s:\n%swant\n%s", name, got, want)
		}
	}
	if len(conflicts) != 6 { // uid and gid in passwd, gid in group
		t.Errorf("conflicts %q", conflicts)
	}

	// With the same numbers all is the image's, byte for byte; and where only one file has others.
	image.Passwd, image.Group = []byte(root+"# new\npostgres:x:0102:102::/:\nnginx:x:101:101::/:\n"), []byte("postgres:x:102:\nnginx:x:101:\n")
	if merged, conflicts := Accounts(base, image, base); !merged.equal(image) || len(conflicts) > 0 {
		t.Errorf("with the same numbers: %q, %q", merged, conflicts)
	}
	image.Group = []byte("postgres:x:101:\nnginx:x:102:\n")
	if merged, _ := Accounts(base, image, base); string(merged.Group) != "nginx:x:101:\npostgres:x:102:\n" {
		t.Errorf("with other groups: %q", merged.Group)
	}
}
