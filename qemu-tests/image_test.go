package qemutests

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/qemu-tests/machine"
)

// Root is the root file system that a slot holds.
type Root string

// The two roots.
const (
	Probe  Root = "probe"  // one static program: up in seconds, for what the slots do
	Debian Root = "debian" // Debian 12 with systemd and the judges' tools
)

// Image describes a disk as `sealroot-mkinitramfs disk` makes it. Equal images
// are built once and kept in build/images/.
type Image struct {
	// Config is a file of mkinitramfs/yamlconfig/testdata without its suffix:
	// "bios" (the default) or "uki".
	Config string
	// Edit replaces text of the configuration: pairs of old and new.
	Edit []string
	Root Root
	// Kernel is a series, "6.1" by default.
	Kernel string
	// Cmdline is added to "console=ttyS0".
	Cmdline string
	// Extra are files that are added to the root: path and content.
	Extra map[string]string
	// Commit adds the unit that commits the slot once the system is up (Debian).
	Commit bool
	// SecureBoot signs the kernel images with the snakeoil key.
	SecureBoot bool
	// Uncapped takes an init that leaves the TPM open: the control of tests that
	// show why it is closed.
	Uncapped bool
	// B is what slot b holds, nil for an empty slot.
	B *SlotB
}

// SlotB is the image in slot b.
type SlotB struct {
	Mode   string // "trial" (the default) or "good"
	Root   Root   // as in slot a when empty
	Kernel string // as in slot a when empty
}

// Build returns a copy of the image that belongs to the test.
func (im Image) Build(t *testing.T) *Disk {
	t.Helper()
	im.Config = orDefault(im.Config, "bios")
	im.Root = orDefault(im.Root, Probe)
	im.Kernel = orDefault(im.Kernel, "6.1")
	if b := im.B; b != nil {
		im.B = &SlotB{orDefault(b.Mode, "trial"), orDefault(b.Root, im.Root), orDefault(b.Kernel, im.Kernel)}
	}
	cached := filepath.Join(buildDir, "images", im.Config+"-"+string(im.Root)+"-"+im.key(t)+".img")
	once(t, cached, func(path string) { im.make(t, path) })
	disk := &Disk{Path: filepath.Join(t.TempDir(), "disk.img")}
	tool(t, "cp", "--sparse=always", "--reflink=auto", cached, disk.Path)
	return disk
}

// key is a digest of everything that the image is made of.
func (im Image) key(t *testing.T) string {
	t.Helper()
	sum := sha256.New()
	if err := json.NewEncoder(sum).Encode(im); err != nil {
		t.Fatal(err)
	}
	files := []string{
		filepath.Join(buildDir, "init"), filepath.Join(buildDir, "sealroot"),
		filepath.Join(buildDir, "sealroot-mkinitramfs"), im.configFile(), "image_test.go",
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
	io.WriteString(sum, kernel(t, im.Kernel).Dir+rootTar(t, im.Root))
	if im.B != nil {
		io.WriteString(sum, kernel(t, im.B.Kernel).Dir+rootTar(t, im.B.Root))
	}
	return hex.EncodeToString(sum.Sum(nil))[:16]
}

func (im Image) configFile() string {
	return filepath.Join(rootDir, "mkinitramfs/yamlconfig/testdata", im.Config+".yaml")
}

// make runs sealroot-mkinitramfs disk.
func (im Image) make(t *testing.T, path string) {
	t.Helper()
	config, err := os.ReadFile(im.configFile())
	if err != nil {
		t.Fatal(err)
	}
	text := string(config)
	for i := 0; i+1 < len(im.Edit); i += 2 {
		if !strings.Contains(text, im.Edit[i]) {
			t.Fatalf("%s.yaml has no %q to replace", im.Config, im.Edit[i])
		}
		text = strings.ReplaceAll(text, im.Edit[i], im.Edit[i+1])
	}
	configPath := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(configPath, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}

	k := kernel(t, im.Kernel)
	args := []string{"disk", "-o", path, "--config", configPath, "--keys", keysDir(t),
		"--rootfs", rootTar(t, im.Root), "--kernel", k.Image, "--modules-dir", k.Dir,
		"--extra", im.extraDir(t),
		"--cmdline", strings.TrimSpace("console=ttyS0 " + im.Cmdline)}
	if b := im.B; b != nil {
		k := kernel(t, b.Kernel)
		args = append(args, "--slot-b", b.Mode, "--slot-b-rootfs", rootTar(t, b.Root),
			"--slot-b-kernel", k.Image, "--slot-b-modules-dir", k.Dir, "--slot-b-config", configPath)
	}
	if im.Uncapped {
		args = append(args, "--init", uncappedInit(t))
	}
	if im.SecureBoot {
		args = append(args, "--secureboot-key", snakeoilKey(t), "--secureboot-cert", machine.SnakeoilCert)
	}
	cmd := exec.Command(filepath.Join(buildDir, "sealroot-mkinitramfs"), args...)
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, output)
	}
}

// extraDir is a folder with the files that are added to the root.
func (im Image) extraDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	program, err := os.ReadFile(filepath.Join(buildDir, "sealroot"))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "usr/bin/sealroot"), program, 0o755)
	if im.Root == Debian {
		if err := machine.AddAgent(dir); err != nil {
			t.Fatal(err)
		}
	}
	if im.Commit {
		tool(t, filepath.Join(rootDir, "sealroot/units/install"), dir, filepath.Join(buildDir, "sealroot"))
	}
	for name, content := range im.Extra {
		writeFile(t, filepath.Join(dir, name), []byte(content), 0o644)
	}
	return dir
}

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
	if root == Debian {
		return script(t, "debian-root", "--test-tools")
	}
	sum := sha256.Sum256(probeSources(t))
	path := filepath.Join(buildDir, "images", "probe-"+hex.EncodeToString(sum[:6])+".tar")
	once(t, path, func(path string) { probeTar(t, path) })
	return path
}

// probeSources is what the probe is made of.
func probeSources(t *testing.T) []byte {
	t.Helper()
	names, err := filepath.Glob("probe/*.go")
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	for _, name := range append(names, "sources_test.go") {
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
	path := filepath.Join(buildDir, "test-keys")
	once(t, path, func(path string) { tool(t, filepath.Join(buildDir, "sealroot-mkinitramfs"), "keys", path) })
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
