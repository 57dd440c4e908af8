package qemutests

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Kernel is a Debian kernel in the cache.
type Kernel struct {
	Dir     string // holds lib/modules/<release>
	Image   string
	Release string
}

// loaded are the modules that machines with another root than Debian can load, by the beginning
// of their path. All of Debian's are 70 MB, which would be compressed for every
// image, and hashed and copied by guests.
var loaded = []string{
	"arch/x86/crypto/", "block/", "crypto/", "lib/",
	"drivers/ata/", "drivers/block/loop", "drivers/block/virtio_blk", "drivers/char/",
	"drivers/hid/hid.ko", "drivers/hid/hid-generic", "drivers/hid/usbhid/", "drivers/i2c/", "drivers/input/",
	"drivers/md/dm-bufio", "drivers/md/dm-crypt", "drivers/md/dm-mod", "drivers/md/dm-verity", "drivers/mfd/",
	"drivers/nvme/common/", "drivers/nvme/host/nvme.ko", "drivers/nvme/host/nvme-core",
	"drivers/scsi/scsi_", "drivers/scsi/sd_mod", "drivers/scsi/virtio_scsi", "drivers/usb/", "drivers/virtio/", "drivers/watchdog/",
	"fs/btrfs/", "fs/efivarfs/", "fs/erofs/", "fs/ext4/", "fs/fat/", "fs/fscache/", "fs/jbd2/", "fs/mbcache", "fs/netfs/", "fs/nls/", "fs/overlayfs/", "fs/squashfs/",
}

// modules is the folder of the modules for a root: Dir for Debian, else one like it
// with the modules in loaded alone.
func (k Kernel) modules(t *testing.T, root Root) string {
	t.Helper()
	if root == Debian {
		return k.Dir
	}
	sum := sha256.Sum256([]byte(strings.Join(loaded, " ")))
	path := filepath.Join(buildDir, "images", "modules-"+k.Release+"-"+hex.EncodeToString(sum[:4]))
	once(t, path, func(path string) {
		tree := filepath.Join("lib/modules", k.Release)
		from, to := os.DirFS(filepath.Join(k.Dir, tree)), filepath.Join(path, tree)
		err := fs.WalkDir(from, ".", func(name string, d fs.DirEntry, err error) error {
			module, isModule := strings.CutPrefix(name, "kernel/")
			if err != nil || d.IsDir() || isModule && !slices.ContainsFunc(loaded, func(begin string) bool { return strings.HasPrefix(module, begin) }) {
				return err
			}
			data, err := fs.ReadFile(from, name)
			writeFile(t, filepath.Join(to, name), data, 0o644)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		tool(t, "depmod", "-b", path, k.Release)
	})
	return path
}

// kernel returns the newest kernel of a series: "6.1" or "6.12".
func kernel(t *testing.T, series string) Kernel {
	t.Helper()
	dir := script(t, "kernel", series)
	return Kernel{Dir: dir, Image: filepath.Join(dir, "vmlinuz"), Release: filepath.Base(dir)}
}

// script runs one of scripts/ and returns the path that it prints.
func script(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(scriptsDir, name), args...)
	var messages bytes.Buffer
	cmd.Stderr = &messages
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("scripts/%s %s: %v\n%s", name, strings.Join(args, " "), err, &messages)
	}
	return strings.TrimSpace(string(output))
}

// once makes what path names, under a lock so that tests at the same time (and
// other runs of these tests) make it once. build writes to the path it is given,
// which is renamed when it is whole.
func once(t *testing.T, path string, build func(path string)) {
	t.Helper()
	lock := openLock(t, strings.ReplaceAll(filepath.Base(path), "/", "-"))
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		return
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	unfinished := path + ".tmp"
	if err := os.RemoveAll(unfinished); err != nil {
		t.Fatal(err)
	}
	build(unfinished)
	if err := os.Rename(unfinished, path); err != nil {
		t.Fatal(err)
	}
}

// probe builds the probe and returns its path.
func probe(t *testing.T) string { return goBuild(t, "./probe") }

// taggedInit builds an init without one of its defences: "uncapped" leaves the TPM
// open, "unpinned" does not ask whose volume it unlocks, "loud" leaves SysRq on,
// "followslinks" follows the links of a state.
func taggedInit(t *testing.T, tag string) string { return goBuild(t, "-tags="+tag, "../init") }

// goBuild builds a static program and returns its path.
func goBuild(t *testing.T, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	args = append([]string{"build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", path}, args...)
	cmd := exec.Command(filepath.Join(scriptsDir, "go"), args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, output)
	}
	return path
}

// goBuildReplaced builds a static program of a tree some of whose files are others, or
// are there besides; by their paths in the tree.
func goBuildReplaced(t *testing.T, pkg string, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	replaced := map[string]string{}
	for name, text := range files {
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "-"))
		writeFile(t, file, []byte(text), 0o644)
		replaced[absolute(t, filepath.Join(rootDir, name))] = file
	}
	text, err := json.Marshal(map[string]any{"Replace": replaced})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	writeFile(t, overlay, text, 0o644)
	return goBuild(t, "-overlay="+overlay, pkg)
}

// probeTar writes the tar of a root whose init is the probe.
func probeTar(t *testing.T, path string) {
	t.Helper()
	program, err := os.ReadFile(probe(t))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, data string) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"dev", "etc", "home", "home/user", "proc", "run", "state", "sys", "tmp",
		"usr", "usr/bin", "usr/lib", "usr/sbin", "var", "var/lib"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}, "")
	}
	for _, dir := range []string{"bin", "lib", "sbin"} {
		add(tar.Header{Typeflag: tar.TypeSymlink, Name: dir, Linkname: "usr/" + dir, Mode: 0o777}, "")
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "usr/lib/os-release", Mode: 0o644}, "ID=probe\nNAME=\"sealroot's probe\"\n")
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "etc/os-release", Linkname: "../usr/lib/os-release", Mode: 0o777}, "")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/from-image", Mode: 0o644}, "etc of the image\n")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "var/lib/from-image", Mode: 0o640, Uid: 7, Gid: 8}, "var of the image\n")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "usr/sbin/init", Mode: 0o755}, string(program))
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "usr/sbin/modprobe", Linkname: "init", Mode: 0o777}, "")
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "usr/sbin/reboot", Linkname: "init", Mode: 0o777}, "")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
