package osrelease

import "strings"

// KernelKey is the variable of a layer with kernel modules: the release of the kernel
// that they are for.
const KernelKey = "SEALROOT_KERNEL"

// LayersKey is the variable of a root that layers come over: which ones, as
// config.Config.LayerSet has it. An initramfs with others is not this root's.
const LayersKey = "SEALROOT_LAYERS"

// anyID as ID of a layer goes with every system (os-release(5), extension-release).
const anyID = "_any"

// ExtensionPath is the file inside a layer that says what it is made for.
func ExtensionPath(layer string) string {
	return "usr/lib/extension-release.d/extension-release." + layer
}

// Extends tells whether a layer with this extension-release goes on a root with that
// os-release, under a kernel of this release, by systemd-sysext(8)'s rules: ID is the
// root's or "_any"; SYSEXT_LEVEL is the root's where the layer has one, else VERSION_ID
// where the layer has that. KernelKey is ours.
func (r Release) Extends(root Release, kernel string) bool {
	switch {
	case r.Kernel != "" && r.Kernel != kernel:
		return false
	case r.ID == anyID:
		return true
	case r.ID == "" || r.ID != root.ID:
		return false
	case r.SysextLevel != "":
		return r.SysextLevel == root.SysextLevel
	}
	return r.VersionID == "" || r.VersionID == root.VersionID
}

// System is what decides in Extends, in words.
func (r Release) System(kernel string) string {
	var w []string
	for _, v := range []struct{ name, value string }{
		{"ID", r.ID}, {"VERSION_ID", r.VersionID}, {"SYSEXT_LEVEL", r.SysextLevel}, {"kernel", kernel},
	} {
		if v.value != "" {
			w = append(w, v.name+" "+v.value)
		}
	}
	if len(w) == 0 {
		return "nothing that is named"
	}
	return strings.Join(w, ", ")
}
