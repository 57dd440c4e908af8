package config

import (
	"fmt"
	"slices"
	"strings"

	"sealroot/verity"
)

// Role is what a certificate may sign. It is also the name of the folder below
// CertificatesDir that holds the certificates of the role.
type Role string

// The roles. What a slot's image is signed by is RoleRoot or RoleUsr, as Root.Source
// says, and neither vouches for the other.
const (
	RoleRoot  Role = "root"
	RoleUsr   Role = "usr"
	RoleLayer Role = "layer"
	RoleDev   Role = "dev" // either, in development builds
)

// CertificatesDir holds a folder for each role in the initramfs.
const CertificatesDir = "/etc/verity.d"

// Roles lists all roles.
func Roles() []Role { return []Role{RoleRoot, RoleUsr, RoleLayer, RoleDev} }

// Certificates are the certificate files of a role, as Trust names them.
func (t Trust) Certificates(r Role) []string {
	switch r {
	case RoleRoot:
		return t.Root
	case RoleUsr:
		return t.Usr
	case RoleLayer:
		return t.Layer
	case RoleDev:
		return t.Dev
	}
	return nil
}

// RootRoles are the roles whose certificates vouch for the images of the slots: that
// of Root.Source, never those of layers, and those for development only in a
// development build.
func (c *Config) RootRoles() []Role {
	var roles []Role
	if role := c.Root.ImageRole(); len(c.Trust.Certificates(role)) > 0 {
		roles = append(roles, role)
	}
	if c.Build == Development && len(c.Trust.Dev) > 0 {
		roles = append(roles, RoleDev)
	}
	return roles
}

// LayerRoles are the roles whose certificates vouch for layers that the running system
// adds: those for development only in a development build.
func (c *Config) LayerRoles() []Role {
	var roles []Role
	if len(c.Trust.Layer) > 0 {
		roles = append(roles, RoleLayer)
	}
	if c.Build == Development && len(c.Trust.Dev) > 0 {
		roles = append(roles, RoleDev)
	}
	return roles
}

// trust checks what vouches for a root.
func (v *validator) trust(c *Config) {
	t := c.Trust
	if len(c.RootRoles()) == 0 {
		role := string(c.Root.ImageRole())
		v.add("trust."+role, "name the certificate that `mkinitramfs keys` made", "no certificate: no %s could ever be verified", role)
	}
	for _, role := range Roles() {
		v.certificates("trust."+string(role), t.Certificates(role))
	}
	for i, file := range t.Usr {
		if slices.Contains(t.Root, file) {
			v.add(fmt.Sprintf("trust.usr[%d]", i), "sign with a key for each role", "%.80q vouches for roots as well: nothing would tell one from a /usr", file)
		}
	}
	if c.Build != Development && len(t.Dev) > 0 {
		v.add("trust.dev", "leave it out, or set build: development", "a %s build accepts no development image", c.Build)
	}
	if h := c.Root.Hash; h != "" && h != HashEmbed && !verity.IsRootHash(h) {
		v.add("root.hash", "use "+HashEmbed+", or a root hash of 64 or 128 digits in lower-case hex", "%.140q is no root hash", h)
	}
	v.oneOf("trust.cmdline", t.Cmdline, []string{"ignore", CmdlineMeasured}, nil)
	if t.Cmdline == CmdlineMeasured {
		v.measuredCmdline(c)
	}
}

// measuredCmdline: somebody has to vouch for the line.
func (v *validator) measuredCmdline(c *Config) {
	switch t := c.State.TPM2; {
	case c.Boot.Loader == LoaderGRUB:
		v.add("trust.cmdline", "use ignore, or boot.loader: uki", "GRUB makes the command line out of files that nobody signed")
	case !t.Signed() && !slices.Contains(t.PCRs, 12):
		v.add("trust.cmdline", "use ignore, or a policy that holds PCR 12: signed-pcr11+4, or signed-pcr11+7 with Secure Boot",
			"nothing would show that load options replaced the command line")
	}
}

func (v *validator) certificates(path string, files []string) {
	for i, file := range files {
		at := fmt.Sprintf("%s[%d]", path, i)
		if slices.Contains(files[:i], file) {
			v.add(at, "", "%.80q is given twice", file)
		}
		if !strings.HasSuffix(file, ".crt") || strings.ContainsRune(file, 0) {
			v.add(at, "give it a name that ends in .crt", "%.80q is not the name of a certificate file", file)
		}
	}
}

// embeddedTrust checks the names that certificates have inside an initramfs:
// those that vouch for a slot's image come to lie in one folder of the running system,
// and those for layers that are added.
func (v *validator) embeddedTrust(c *Config) {
	ofImages := c.Trust.Certificates(c.Root.ImageRole())
	for _, role := range Roles() {
		files := c.Trust.Certificates(role)
		for i, name := range files {
			at := fmt.Sprintf("trust.%s[%d]", role, i)
			if strings.ContainsRune(name, '/') {
				v.add(at, "", "%.80q is not a base name", name)
			}
			if slices.Contains(files[:i], name) || role == RoleDev && (slices.Contains(ofImages, name) || slices.Contains(c.Trust.Layer, name)) {
				v.add(at, "rename one of the files", "%.80q is given twice", name)
			}
		}
	}
	v.embeddedFiles("state.escrow", c.State.Escrow)
	v.embeddedFiles("state.tpm2.previous_public_keys", c.State.TPM2.PreviousKeys)
	if c.Root.Hash == HashEmbed {
		v.add("root.hash", "build with the command disk or parts, or give the root hash itself", "no image is built here whose root hash could be embedded")
	}
	if c.Trust.Cmdline == CmdlineMeasured && (c.Kernel == nil || c.Kernel.Cmdline == "") {
		v.add("trust.cmdline", "build with the command disk or parts", "no kernel image is built here whose command line could be embedded")
	}
}

// embeddedFiles is for a list of files that come to lie in one folder.
func (v *validator) embeddedFiles(path string, files []string) {
	for i, name := range files {
		at := fmt.Sprintf("%s[%d]", path, i)
		if strings.ContainsRune(name, '/') {
			v.add(at, "", "%.80q is not a base name", name)
		}
		if slices.Contains(files[:i], name) {
			v.add(at, "rename one of the files", "%.80q is given twice", name)
		}
	}
}
