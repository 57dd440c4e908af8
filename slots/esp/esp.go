// Package esp holds the names of sealroot's files on the EFI system partition.
// Paths are relative to its root, with forward slashes, as Linux has them;
// EFIPath writes one as firmware has it. The package makes no system calls.
package esp

import "strings"

// Files that belong to no slot.
const (
	// Grubenv is GRUB's environment block.
	Grubenv = "sealroot/grubenv"
	// Slots is the state of all slots in words (package statetext), beside
	// counters in file names, which cannot express all of it.
	Slots = "sealroot/slots"
	// Fallback is what firmware without boot entries starts.
	Fallback = "EFI/BOOT/BOOTX64.EFI"
	// FallbackTemp is where a new Fallback is written. It is in the same
	// directory, and so in the same sector of it.
	FallbackTemp = "EFI/BOOT/BOOTX64.NEW"
	// SystemdBoot is where systemd-boot updates itself; a copy of it is Fallback.
	SystemdBoot = "EFI/systemd/systemd-bootx64.efi"
	// LoaderConf is the configuration of systemd-boot.
	LoaderConf = "loader/loader.conf"
	// LinuxDir holds the unified kernel images.
	LinuxDir = "EFI/Linux"
)

const (
	prefix = "sealroot-"
	suffix = ".efi"
)

// Dir is the folder of a slot's files other than its unified kernel image.
func Dir(slot string) string { return "sealroot/" + slot }

// Kernel is the kernel that GRUB loads for a slot.
func Kernel(slot string) string { return Dir(slot) + "/vmlinuz" }

// Initrd is the initramfs that GRUB loads for a slot.
func Initrd(slot string) string { return Dir(slot) + "/initrd" }

// Manifest is the signed description of the boot set that a slot holds, and
// ManifestSignature its signature (package manifest).
func Manifest(slot string) string { return Dir(slot) + "/manifest.json" }

// ManifestSignature is beside Manifest.
func ManifestSignature(slot string) string { return Dir(slot) + "/manifest.sig" }

// UKI is a slot's unified kernel image, without a counter in its name.
func UKI(slot string) string { return LinuxDir + "/" + UKIName(slot, Counter{}) }

// UKIName is the name of a slot's unified kernel image in LinuxDir.
func UKIName(slot string, c Counter) string { return prefix + slot + c.String() + suffix }

// ParseUKIName takes the name of a file in LinuxDir apart. FAT keeps letters but
// does not tell upper from lower case. ok is false when it is no slot's image: a
// slot is one letter from a to z. A '+' that no counter follows is somebody
// else's name.
func ParseUKIName(name string) (slot string, c Counter, ok bool) {
	rest := strings.ToLower(name)
	rest, ok = strings.CutSuffix(rest, suffix)
	if !ok {
		return "", Counter{}, false
	}
	if rest, ok = strings.CutPrefix(rest, prefix); !ok {
		return "", Counter{}, false
	}
	slot, count, counted := strings.Cut(rest, "+")
	if len(slot) != 1 || slot[0] < 'a' || slot[0] > 'z' {
		return "", Counter{}, false
	}
	if !counted {
		return slot, Counter{}, true
	}
	if c, ok = ParseCounter(count); !ok {
		return "", Counter{}, false
	}
	return slot, c, true
}

// EFIPath is the path as firmware writes it: from the root, with backslashes.
func EFIPath(path string) string { return `\` + strings.ReplaceAll(path, "/", `\`) }

// SlotOfImage says which slot's unified kernel image a path of the firmware
// names, ignoring case as the firmware does.
func SlotOfImage(efiPath string) (slot string, c Counter, ok bool) {
	dir := EFIPath(LinuxDir) + `\`
	if len(efiPath) < len(dir) || !strings.EqualFold(efiPath[:len(dir)], dir) {
		return "", Counter{}, false
	}
	return ParseUKIName(efiPath[len(dir):])
}

// IsFallback says whether a path of the firmware names Fallback.
func IsFallback(efiPath string) bool { return strings.EqualFold(efiPath, EFIPath(Fallback)) }
