package osrelease

import "strings"

// KernelKey is the variable of a layer with kernel modules: the release of the kernel
// that they are for.
const KernelKey = "SEALROOT_KERNEL"

// LayersKey is the variable of a root that layers come over: which ones, as
// config.Config.LayerSet has it. An initramfs with others is not this root's.
const LayersKey = "SEALROOT_LAYERS"

// anyValue as ID or ARCHITECTURE of a layer goes with every one (os-release(5), extension-release).
const anyValue = "_any"

// Architecture is the one of all that this project makes and boots, by systemd's name
// (ConditionArchitecture= in systemd.unit(5)).
const Architecture = "x86-64"

// ExtensionPath is the file inside a layer that says what it is made for.
func ExtensionPath(layer string) string {
	return "usr/lib/extension-release.d/extension-release." + layer
}

// Extends tells whether a layer with this extension-release goes on a root with that
// os-release, under a kernel of this release, by systemd-sysext(8)'s rules: ID is the
// root's or "_any"; SYSEXT_LEVEL is the root's where the layer has one, else VERSION_ID
// where the layer has that; ARCHITECTURE, where the layer has one, is Architecture or
// "_any". KernelKey is ours.
func (r Release) Extends(root Release, kernel string) bool {
	switch {
	case r.Kernel != "" && r.Kernel != kernel:
		return false
	case r.Architecture != "" && r.Architecture != anyValue && r.Architecture != Architecture:
		return false
	case r.ID == anyValue:
		return true
	case r.ID == "" || r.ID != root.ID:
		return false
	case r.SysextLevel != "":
		return r.SysextLevel == root.SysextLevel
	}
	return r.VersionID == "" || r.VersionID == root.VersionID
}

// Versus is what decides in Extends, of the layer and of the system that it is to go on, in
// words.
func (r Release) Versus(root Release, kernel string) (layer, system string) {
	root.Architecture = ""
	if r.Architecture != "" {
		root.Architecture = Architecture
	}
	root.Kernel = kernel
	return r.words(), root.words()
}

func (r Release) words() string {
	var w []string
	for _, v := range []struct{ name, value string }{
		{"ID", r.ID}, {"VERSION_ID", r.VersionID}, {"SYSEXT_LEVEL", r.SysextLevel}, {"architecture", r.Architecture}, {"kernel", r.Kernel},
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
