package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"sealroot/verity/osrelease"
)

// Validate checks a configuration that has its defaults. It returns nil or
// every *Problem it found, joined: values that nobody knows, values that this
// version cannot do yet (refused by name: an image must not look as if it had
// them), and choices that contradict each other.
func (c *Config) Validate() error {
	var v validator
	v.identity(c)
	v.boot(c)
	v.root(c)
	v.trust(c)
	v.state(c)
	v.policy(c)
	v.binds(c)
	v.overlays(c)
	v.modules(c)
	return errors.Join(v.problems...)
}

// validator gathers problems.
type validator struct {
	problems []error
}

func (v *validator) add(path, remedy, format string, args ...any) {
	v.problems = append(v.problems, &Problem{Path: path, Reason: fmt.Sprintf(format, args...), Remedy: remedy})
}

// oneOf checks a single choice: supported ones pass, planned ones are refused
// by name, others are unknown.
func (v *validator) oneOf(path, got string, supported, planned []string) {
	switch {
	case slices.Contains(supported, got):
	case got == "":
		v.add(path, "choose "+orList(supported), "missing")
	case slices.Contains(planned, got):
		v.add(path, "supported: "+strings.Join(supported, ", "), "%s is not supported by this version", got)
	default:
		v.add(path, "choose "+orList(supported), "%.40q is unknown", got)
	}
}

// list checks that each entry is one of known and stands there once.
func (v *validator) list(path string, got, known []string) {
	for i, s := range got {
		at := fmt.Sprintf("%s[%d]", path, i)
		if slices.Contains(got[:i], s) {
			v.add(at, "", "%.40q is given twice", s)
		} else if !slices.Contains(known, s) {
			v.add(at, "choose "+orList(known), "%.40q is unknown", s)
		}
	}
}

func (v *validator) identity(c *Config) {
	// os-release(5) allows these characters in IMAGE_ID, which name must equal.
	if !wordOf(c.Name, 64, "abcdefghijklmnopqrstuvwxyz0123456789._-") {
		v.add("name", "use lower-case letters, digits, '.', '_' and '-'", "%.80q is not a name", c.Name)
	}
	if !wordOf(c.Version, 64, letters+"._-~^+") {
		v.add("version", "use letters, digits and . _ - ~ ^ +", "%.80q is not a version", c.Version)
	}
	if c.SecurityVersion < 0 || c.SecurityVersion > osrelease.MaxSecurityVersion {
		v.add("security_version", "count from 0 upwards", "%d is out of range", c.SecurityVersion)
	}
	v.oneOf("build", string(c.Build), []string{string(Production), string(Development)}, nil)
}

func (v *validator) root(c *Config) {
	r := c.Root
	v.oneOf("root.source", r.Source, []string{SourceVerity, SourceUsrVerity},
		[]string{"image-file", "ostree", "container", "plain"})
	v.partitions(c)
	v.oneOf("root.filesystem", r.Filesystem, []string{"squashfs", "erofs"}, nil)
	v.oneOf("root.on_corruption", r.OnCorruption, []string{"eio", "restart", "panic"}, nil)
	if (r.OnCorruption == "restart" || r.OnCorruption == "panic") && !c.Boot.Recount {
		v.add("root.on_corruption", "use eio, or set boot.recount: true",
			"%s without boot.recount would restart a damaged committed slot for ever", r.OnCorruption)
	}
	v.verity(r.Verity)
	v.measurePCR(c)
	v.rollbackFloor(c)
	v.layers(c)
}

func (v *validator) verity(t Verity) {
	v.oneOf("root.verity.algorithm", t.Algorithm, []string{"sha256", "sha512"}, nil)
	for _, size := range []struct {
		key   string
		bytes int
	}{{"data_block_size", t.DataBlockSize}, {"hash_block_size", t.HashBlockSize}} {
		// 4096 is the page size of x86-64, and the kernel takes no more.
		if size.bytes < 512 || size.bytes > 4096 || size.bytes&(size.bytes-1) != 0 {
			v.add("root.verity."+size.key, "choose 512, 1024, 2048 or 4096", "%d is no block size", size.bytes)
		}
	}
	if t.TreeAtMiB < 0 || t.TreeAtMiB > 1<<20 {
		v.add("root.verity.tree_at_mib", "choose 1 to 1048576, at least the size of the image", "%d is out of range", t.TreeAtMiB)
	}
	if t.FECRoots != 0 && (t.FECRoots < 2 || t.FECRoots > 24) {
		v.add("root.verity.fec_roots", "choose 2 to 24", "%d is out of range", t.FECRoots)
	}
	if t.FECRoots != 0 && t.DataBlockSize != t.HashBlockSize {
		v.add("root.verity.fec_roots", "leave it out, or make the block sizes equal", "the kernel repairs only where data and hash blocks have one size")
	}
}

// ModuleSets are the names that may stand in modules.sets.
func ModuleSets() []string { return []string{"virtio", "nvme", "usb", "ahci", "tpm", "watchdog"} }

func (v *validator) modules(c *Config) {
	v.list("modules.sets", c.Modules.Sets, ModuleSets())
	for i, name := range c.Modules.Add {
		if !wordOf(name, 64, letters+"_-") {
			v.add(fmt.Sprintf("modules.add[%d]", i), "give the name that modprobe knows, without .ko", "%.80q is not a module name", name)
		}
	}
}

// validateEmbedded checks what holds only inside an initramfs.
func (c *Config) validateEmbedded() error {
	var v validator
	v.embeddedTrust(c)
	v.embeddedLayers(c)
	// A release is at most 64 bytes (uname(2)); it becomes part of a path.
	if k := c.Kernel; k != nil && (!wordOf(k.Release, 64, letters+"._-+~") || strings.HasPrefix(k.Release, ".")) {
		v.add("kernel.release", "", "%.80q is not a kernel release", k.Release)
	}
	return errors.Join(v.problems...)
}

const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

// wordOf tells whether s is 1 to limit bytes, all of them out of chars.
func wordOf(s string, limit int, chars string) bool {
	return s != "" && len(s) <= limit && strings.Trim(s, chars) == ""
}
