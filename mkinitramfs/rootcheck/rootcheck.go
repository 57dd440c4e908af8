// Package rootcheck tells what in a root file system will hurt once it is an
// immutable image: what every machine would share, what works against PID 1, and
// what is missing. The verdict is a pure function of a Tree.
package rootcheck

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"

	"sealroot/init/config"
)

// Severity tells what breaks an image from what will only hurt.
type Severity string

const (
	// Error: the image cannot be made, or does not boot.
	Error Severity = "error"
	// Warning: it boots, and something in it will not do what it should.
	Warning Severity = "warning"
)

// Finding is one thing in a root that will hurt.
type Finding struct {
	Severity Severity `json:"severity"`
	Rule     string   `json:"rule"` // its name in Rules
	Path     string   `json:"path"` // in the root, absolute
	What     string   `json:"what"`
	Remedy   string   `json:"remedy"`
}

// String is the finding as a line for a person.
func (f Finding) String() string {
	return fmt.Sprintf("%s: %s (%s): %s; %s", f.Severity, f.Path, f.Rule, f.What, f.Remedy)
}

// Want is what a root is judged for.
type Want struct {
	Config *config.Config // the image's; nil for none
	Kernel string         // release whose modules the root must hold; "" for any
	Init   string         // the real init; "" for /sbin/init
	Layers []Layer        // images of the configuration's layers, as far as they are there
	// BootKernel is the release of the kernel that starts the image; "" for any.
	BootKernel string
	// Built means that the builder has added what it adds to every root.
	Built  bool
	Ignore []string // names of rules that are not asked
}

// rule is one question.
type rule struct {
	name, about string
	ask         func(*verdict)
}

// rules is the table of all questions.
func rules() []rule {
	return []rule{
		{"archive", "entries of the tar or files of the folder that no image can be made of", func(*verdict) {}},
		{"init", "the program that PID 1 hands over to", (*verdict).init},
		{"directories", "/etc, /home and /var", (*verdict).directories},
		{"mount-points", "where PID 1 and the kernel's file systems are mounted", (*verdict).mountPoints},
		{"binds", "targets of the configuration's binds", (*verdict).binds},
		{"modules", "modules of the kernel", (*verdict).modules},
		{"merged-usr", "/bin, /sbin and /lib as links into /usr", (*verdict).mergedUsr},
		{"os-release", "which product the image is", (*verdict).osRelease},
		{LayersRule, "layers of the configuration that are not for this root, or spoil it", (*verdict).layers},
		{"machine-id", "the identity of a machine", (*verdict).machineID},
		{"ssh-host-keys", "SSH host keys", (*verdict).sshHostKeys},
		{"random-seed", "random seeds", (*verdict).randomSeed},
		{"identity", "other names and secrets that are one machine's", (*verdict).identity},
		{"fstab", "mounts that work against PID 1, or wait for a disk", (*verdict).fstab},
		{"size", "content that every machine copies", (*verdict).size},
		{"units", "the command sealroot and its units", (*verdict).units},
		{"hooks", "the image's hooks for commit and rollback", (*verdict).hooks},
		{"resolv-conf", "/etc/resolv.conf", (*verdict).resolvConf},
		{"mtab", "/etc/mtab", (*verdict).mtab},
		{"tmp", "a writable /tmp", (*verdict).tmp},
		{"var-run", "/var/run and /var/lock", (*verdict).varRun},
		{"world-writable", "files of /etc that everybody may change", (*verdict).worldWritable},
		{"setuid", "set-user-ID programs where they have no effect", (*verdict).setuid},
		{"devices", "device nodes", (*verdict).devices},
		{"container", "traces of a container", (*verdict).container},
		{"fsck", "e2fsck and btrfs for state.fsck", (*verdict).fsck},
		{"owner", "system directories that belong to a user", (*verdict).owner},
	}
}

// Rules returns the names of all rules and what each is about, in a fixed order.
func Rules() (names, about []string) {
	for _, r := range rules() {
		names, about = append(names, r.name), append(about, r.about)
	}
	return names, about
}

// perRule bounds how many findings one rule may list.
const perRule = 10

// Judge lists what will hurt, errors first, then by path. Equal trees give equal
// lists.
func Judge(t *Tree, w Want) []Finding {
	if w.Config == nil {
		w.Config = &config.Config{}
	}
	w.Init = cmp.Or(w.Init, "/sbin/init")
	var found []Finding
	for _, r := range rules() {
		if slices.Contains(w.Ignore, r.name) {
			continue
		}
		v := verdict{t: t, w: w, rule: r.name}
		if w.Config.Root.Usr() {
			v.t = t.asUsr()
		}
		for _, f := range t.met {
			if f.Rule == r.name {
				v.found = append(v.found, f)
			}
		}
		r.ask(&v)
		found = append(found, shorten(v.found)...)
	}
	sortFindings(found)
	return found
}

// Errors counts the findings that are errors.
func Errors(found []Finding) int {
	n := 0
	for _, f := range found {
		if f.Severity == Error {
			n++
		}
	}
	return n
}

func sortFindings(found []Finding) {
	slices.SortStableFunc(found, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.What, b.What))
	})
}

// shorten keeps the first findings of a rule, errors before warnings, and says
// how many there are.
func shorten(found []Finding) []Finding {
	sortFindings(found)
	if len(found) > perRule {
		more := len(found) - perRule
		found = found[:perRule]
		found[perRule-1].What += fmt.Sprintf(" (and %d more such findings)", more)
	}
	return found
}

// finding makes one that can be printed: names in a root may hold anything.
func finding(s Severity, rule, name, remedy, format string, args ...any) Finding {
	printable := func(s string) string {
		return strings.Map(func(r rune) rune {
			if !unicode.IsPrint(r) {
				return '?'
			}
			return r
		}, s)
	}
	return Finding{s, rule, printable(path.Join("/", name)), printable(fmt.Sprintf(format, args...)), printable(remedy)}
}

// verdict is what a rule works with.
type verdict struct {
	t     *Tree
	w     Want
	rule  string
	found []Finding
}

func (v *verdict) add(s Severity, name, remedy, format string, args ...any) {
	v.found = append(v.found, finding(s, v.rule, name, remedy, format, args...))
}

func (v *verdict) error(name, remedy, format string, args ...any) {
	v.add(Error, name, remedy, format, args...)
}

func (v *verdict) warn(name, remedy, format string, args ...any) {
	v.add(Warning, name, remedy, format, args...)
}
