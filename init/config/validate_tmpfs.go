package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"sealroot/state/binds"
)

// bindOptions are the options that a mount of the configuration may have.
func bindOptions() []string {
	return []string{"nosuid", "nodev", "noexec", "nosymfollow", "ro", "noatime"}
}

// tmpfs checks the directories in memory; targets are those of binds.
func (v *validator) tmpfs(c *Config, targets []string) {
	for _, o := range c.DirectoryOverlays() {
		targets = append(targets, o.Path)
	}
	for i, t := range c.Binds.Tmpfs {
		at := fmt.Sprintf("binds.tmpfs[%d]", i)
		if !isTarget(t.To) || binds.OfImage(t.To) {
			v.add(at+".to", "give a directory of the root such as /srv/scratch", "%.80q cannot be in memory", t.To)
		}
		if slices.ContainsFunc(targets, func(to string) bool { return binds.Within(to, t.To) }) {
			v.add(at+".to", "leave it out here or there", "%.80q would hide what another key has there", t.To)
		}
		targets = append(targets, t.To)
		if t.SizeMiB < 0 || t.SizeMiB > 1<<20 {
			v.add(at+".size_mib", "choose 1 to 1048576", "%d is out of range", t.SizeMiB)
		}
		if mode, err := strconv.ParseUint(t.Mode, 8, 12); t.Mode != "" && (err != nil || mode > 0o1777) {
			v.add(at+".mode", "give it in octal, such as 1777", "%.20q is no mode", t.Mode)
		}
		v.list(at+".options", t.Options, bindOptions())
	}
}

// symlinks checks links: where they lie, not where they lead.
func (v *validator) symlinks(list []Symlink) {
	for i, l := range list {
		at := fmt.Sprintf("binds.symlinks[%d]", i)
		if !isTarget(l.At) || binds.OfImage(l.At) {
			v.add(at+".at", "give a place that is written to, such as /srv/www", "%.80q cannot be a link", l.At)
		}
		if slices.ContainsFunc(list[:i], func(o Symlink) bool { return o.At == l.At }) {
			v.add(at+".at", "", "%.80q is given twice", l.At)
		}
		if l.To == "" || len(l.To) > 1023 || strings.ContainsAny(l.To, "\x00\n") {
			v.add(at+".to", "say where it leads", "%.80q is no path", l.To)
		}
	}
}
