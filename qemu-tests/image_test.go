package qemutests

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/qemu-tests/machine"
)

// Root is the root file system that a slot holds.
type Root string

// The roots.
const (
	Probe        Root = "probe"    // one static program: up in seconds, for what the slots do
	Debian       Root = "debian"   // Debian 12 with systemd and the judges' tools
	Services     Root = "services" // Debian with nginx, PostgreSQL and the user alice
	ServicesNext Root = "next"     // Services with memcached, which brings a system user
)

// Image describes a disk as `sealroot-mkinitramfs disk` makes it. Equal images
// are built once and kept in build/images/.
type Image struct {
	// Config is a file of mkinitramfs/yamlconfig/testdata without its suffix:
	// "bios" (the default) or "uki".
	Config string
	// Loader is "" for what Config says, "grub-efi" (Config "bios", started by
	// UEFI firmware) or "systemd-boot" (Config "uki", with that loader).
	Loader string
	// Store is boot.store of the configuration, "gpt" by default.
	Store string
	// Edit replaces text of the configuration: pairs of old and new.
	Edit []string
	Root Root
	// Kernel is a series, "6.1" by default.
	Kernel string
	// Cmdline is added to "console=ttyS0".
	Cmdline string
	// Extra are files that are added to the root: path and content.
	Extra map[string]string
	// Commit adds the units that check and commit the slot once the system is up (Debian).
	Commit bool
	// SecureBoot signs the kernel images with the snakeoil key.
	SecureBoot bool
	// Uncapped takes an init that leaves the TPM open: the control of tests that
	// show why it is closed.
	Uncapped bool
	// Unpinned takes an init that unlocks whatever volume the TPM has a key for.
	Unpinned bool
	// Init is the path of another init than build/init.
	Init string
	// Tree is another tree of sources, with its programs in its build/, whose
	// sealroot-mkinitramfs, init and configuration make the image.
	Tree string
	// Disk are further flags of the disk command.
	Disk []string
	// Sealroot is the path of another command sealroot for the running system.
	Sealroot string
	// Compress makes the root's squashfs and the initramfs as the product does. Else they
	// are compressed little: a hundred images would cost ten minutes of a processor.
	Compress bool
	// Keys is the name of another key folder than that of all test images.
	Keys string
	// B is what slot b holds, nil for an empty slot.
	B *SlotB
}

// SlotB is the image in slot b.
type SlotB struct {
	Mode   string // "trial" (the default) or "good"
	Root   Root   // as in slot a when empty
	Kernel string // as in slot a when empty
	// Edit replaces text of the configuration, after that of slot a.
	Edit []string
}

// Build returns a copy of the image that belongs to the test.
func (im Image) Build(t *testing.T) *Disk {
	t.Helper()
	im = im.whole()
	cached := filepath.Join(buildDir, "images", im.Config+"-"+string(im.Root)+"-"+im.key(t)+".img")
	once(t, cached, func(path string) { im.make(t, path) })
	return (&Disk{Path: cached}).Copy(t)
}

// whole fills in what is left out.
func (im Image) whole() Image {
	config := "bios"
	if im.Loader == "systemd-boot" {
		config = "uki"
	}
	im.Config = orDefault(im.Config, config)
	im.Root = orDefault(im.Root, Probe)
	im.Kernel = orDefault(im.Kernel, "6.1")
	if b := im.B; b != nil {
		im.B = &SlotB{orDefault(b.Mode, "trial"), orDefault(b.Root, im.Root), orDefault(b.Kernel, im.Kernel), b.Edit}
	}
	return im
}

// Parts returns a tar with the image as `sealroot install` takes it. B is not
// used. The tar is shared: it is for reading only.
func (im Image) Parts(t *testing.T) string {
	t.Helper()
	im = im.whole()
	im.B = nil
	cached := filepath.Join(buildDir, "images", im.Config+"-"+string(im.Root)+"-"+im.key(t)+".parts.tar")
	once(t, cached, func(path string) {
		// The name decides what is written: a tar, or a directory.
		unfinished := strings.TrimSuffix(path, ".tmp") + ".tmp.tar"
		im.mkinitramfs(t, "parts", "-o", unfinished)
		if err := os.Rename(unfinished, path); err != nil {
			t.Fatal(err)
		}
	})
	return cached
}

// key is a digest of everything that the image is made of.
func (im Image) key(t *testing.T) string {
	t.Helper()
	sum := sha256.New()
	description := im
	// What these hold counts, not where they are.
	description.Init, description.Tree, description.Sealroot = "", "", ""
	if err := json.NewEncoder(sum).Encode(description); err != nil {
		t.Fatal(err)
	}
	files := []string{im.program("init"), im.program("sealroot"), im.program("sealroot-mkinitramfs"), im.configFile(), "image_test.go", filepath.Join(toolsDir, "sqfstar")}
	if im.Init != "" {
		files = append(files, im.Init)
	}
	if im.Sealroot != "" {
		files = append(files, im.Sealroot)
	}
	if im.Commit {
		units, err := filepath.Glob(filepath.Join(rootDir, "sealroot/units/*"))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, units...)
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(sum, f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	sum.Write(probeSources(t))
	// Their names hold their versions.
	io.WriteString(sum, kernel(t, im.Kernel).modules(t, im.Root)+rootTar(t, im.Root))
	if im.B != nil {
		io.WriteString(sum, kernel(t, im.B.Kernel).modules(t, im.B.Root)+rootTar(t, im.B.Root))
	}
	return hex.EncodeToString(sum.Sum(nil))[:16]
}

func (im Image) configFile() string {
	return filepath.Join(orDefault(im.Tree, rootDir), "mkinitramfs/yamlconfig/testdata", im.Config+".yaml")
}

// program is the path of a program in build/ of the image's tree.
func (im Image) program(name string) string {
	if im.Tree == "" {
		return filepath.Join(buildDir, name)
	}
	return filepath.Join(im.Tree, "build", name)
}

// packer is the sealroot-mkinitramfs that makes the image.
func (im Image) packer(t *testing.T) string {
	t.Helper()
	program := im.program("sealroot-mkinitramfs")
	if im.Compress || im.Tree != "" {
		return program
	}
	sum := sha256.Sum256(readFile(t, program))
	quick := filepath.Join(buildDir, "images", "quick-mkinitramfs-"+hex.EncodeToString(sum[:6]))
	once(t, quick, func(path string) {
		const file, best = "mkinitramfs/initramfs/initramfs.go", "zstd.SpeedBestCompression"
		text := string(readFile(t, filepath.Join(rootDir, file)))
		if strings.Count(text, best) != 1 {
			t.Fatalf("%s does not compress with %s", file, best)
		}
		built := goBuildReplaced(t, "../mkinitramfs", map[string]string{file: strings.Replace(text, best, "zstd.SpeedDefault", 1)})
		writeFile(t, path, readFile(t, built), 0o755)
	})
	return quick
}

// make runs sealroot-mkinitramfs disk.
func (im Image) make(t *testing.T, path string) {
	t.Helper()
	args := append([]string{"-o", path}, im.Disk...)
	if b := im.B; b != nil {
		k := kernel(t, b.Kernel)
		other := im
		other.Edit = slices.Concat(im.Edit, b.Edit)
		args = append(args, "--slot-b", b.Mode, "--slot-b-rootfs", rootTar(t, b.Root),
			"--slot-b-kernel", k.Image, "--slot-b-modules-dir", k.modules(t, b.Root), "--slot-b-config", other.config(t))
	}
	im.mkinitramfs(t, "disk", args...)
}

// mkinitramfs runs a command of sealroot-mkinitramfs for what slot a holds.
func (im Image) mkinitramfs(t *testing.T, command string, more ...string) {
	t.Helper()
	k := kernel(t, im.Kernel)
	args := append([]string{command, "--config", im.config(t), "--keys", keyFolder(t, im.Keys),
		"--rootfs", rootTar(t, im.Root), "--kernel", k.Image, "--modules-dir", k.modules(t, im.Root),
		"--extra", im.extraDir(t), "--init", im.program("init"),
		// A kernel that hangs answers SysRq with what it is doing (see hang_test.go).
		"--cmdline", strings.TrimSpace("console=ttyS0 sysrq_always_enabled " + im.Cmdline)}, more...)
	if im.Uncapped {
		args = append(args, "--init", taggedInit(t, "uncapped"))
	}
	if im.Unpinned {
		args = append(args, "--init", taggedInit(t, "unpinned"))
	}
	if im.Init != "" {
		args = append(args, "--init", im.Init)
	}
	if im.SecureBoot {
		args = append(args, "--secureboot-key", snakeoilKey(t), "--secureboot-cert", machine.SnakeoilCert)
	}
	cmd := exec.Command(im.packer(t), args...)
	if !im.Compress {
		tools, err := filepath.Abs(toolsDir)
		if err != nil {
			t.Fatal(err)
		}
		cmd.Env = append(os.Environ(), "PATH="+tools+":"+os.Getenv("PATH"))
	}
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, output)
	}
}

// config writes the edited configuration and returns its path.
func (im Image) config(t *testing.T) string {
	t.Helper()
	config, err := os.ReadFile(im.configFile())
	if err != nil {
		t.Fatal(err)
	}
	text := string(config)
	for i := 0; i+1 < len(im.edits()); i += 2 {
		old, replacement := im.edits()[i], im.edits()[i+1]
		if !strings.Contains(text, old) {
			t.Fatalf("%s.yaml has no %q to replace", im.Config, old)
		}
		text = strings.ReplaceAll(text, old, replacement)
	}
	path := filepath.Join(t.TempDir(), "config.yaml")
	writeFile(t, path, []byte(text), 0o644)
	return path
}

// edits are the pairs of Edit, after those that Loader and Store stand for.
func (im Image) edits() []string {
	var edits []string
	if im.Loader == "systemd-boot" {
		edits = append(edits, "loader: uki", "loader: systemd-boot")
	}
	if im.Store != "" {
		edits = append(edits, "store: gpt", "store: "+im.Store)
	}
	return append(edits, im.Edit...)
}

// extraDir is a folder with the files that are added to the root.
func (im Image) extraDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	program, err := os.ReadFile(orDefault(im.Sealroot, im.program("sealroot")))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "usr/bin/sealroot"), program, 0o755)
	if im.Root != Probe {
		if err := machine.AddAgent(dir); err != nil {
			t.Fatal(err)
		}
	}
	if im.Commit {
		tool(t, filepath.Join(rootDir, "sealroot/units/install"), dir, filepath.Join(buildDir, "sealroot"))
	}
	if im.Root != Probe {
		im.patientSystemd(t, dir)
	}
	for name, content := range im.Extra {
		if target, ok := strings.CutPrefix(content, linkTo); ok {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(content, "#!") || strings.HasPrefix(content, "\x7fELF") {
			mode = 0o755
		}
		writeFile(t, filepath.Join(dir, name), []byte(content), mode)
	}
	return dir
}

// patientSystemd gives units and devices as long as a busy host may take, where systemd has
// 90 s, and what ends the machine nearly as long as a test waits for that.
func (im Image) patientSystemd(t *testing.T, dir string) {
	t.Helper()
	writeFile(t, filepath.Join(dir, "usr/lib/systemd/system.conf.d/50-slow.conf"),
		[]byte("[Manager]\nDefaultTimeoutStartSec=10min\nDefaultDeviceTimeoutSec=10min\nDefaultTimeoutStopSec=3min\n"), 0o644)
	for name := range im.Extra {
		if strings.Contains(name, "/sealroot-exit.service.d/") {
			return // as that test has it
		}
	}
	if im.Commit {
		writeFile(t, filepath.Join(dir, "usr/lib/systemd/system/sealroot-exit.service.d/50-slow.conf"), []byte("[Service]\nTimeoutStopSec=3min\n"), 0o644)
	}
}

// linkTo begins what Image.Extra has for a symbolic link, before its target.
const linkTo = "-> "

func writeFile(t *testing.T, path string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
}

// rootTar returns the tar of a root.
func rootTar(t *testing.T, root Root) string {
	t.Helper()
	switch root {
	case Debian:
		return script(t, "debian-root", "--test-tools")
	case Services:
		return script(t, "debian-services")
	case ServicesNext:
		return script(t, "debian-services", "--next")
	}
	sum := sha256.Sum256(probeSources(t))
	path := filepath.Join(buildDir, "images", "probe-"+hex.EncodeToString(sum[:6])+".tar")
	once(t, path, func(path string) { probeTar(t, path) })
	return path
}

// probeSources is what the probe is made of; the packages that it uses are in sealroot, too.
func probeSources(t *testing.T) []byte {
	t.Helper()
	names, err := filepath.Glob("probe/*.go")
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	for _, name := range append(names, "sources_test.go", filepath.Join(buildDir, "sealroot")) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text...)
	}
	return all
}

// keysDir returns the keys of all test images.
func keysDir(t *testing.T) string {
	t.Helper()
	return keyFolder(t, "")
}

// keyFolder returns other keys by their name.
func keyFolder(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(buildDir, "test-keys")
	if name != "" {
		path += "-" + name
	}
	once(t, path, func(path string) {
		tool(t, filepath.Join(buildDir, "sealroot-mkinitramfs"), "keys", "-name", orDefault(name, "sealroot"), path)
	})
	return path
}

// snakeoilKey returns Debian's Secure Boot test key without its passphrase.
func snakeoilKey(t *testing.T) string {
	t.Helper()
	path := filepath.Join(buildDir, "test-keys-snakeoil.key")
	once(t, path, func(path string) {
		tool(t, "openssl", "pkey", "-in", machine.SnakeoilKey, "-passin", "pass:snakeoil", "-out", path)
	})
	return path
}

func orDefault[T comparable](v, byDefault T) T {
	var zero T
	if v == zero {
		return byDefault
	}
	return v
}
