package disk

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/mkinitramfs/layer"
	"sealroot/mkinitramfs/layer/over"
	"sealroot/mkinitramfs/rootcheck"
)

// usersTree is a tree as a user makes one: files of every kind, all of them the user's.
func usersTree(t *testing.T) string {
	t.Helper()
	dir := layerTree(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	err := errors.Join(os.Symlink("../bin -> x", at("usr/a -> b")), os.Symlink("tool", at("usr/bin/link")), os.WriteFile(at("usr/two\nlines"), nil, 0o600),
		unix.Mkfifo(at("usr/fifo"), 0o600), unix.Mknod(at("usr/gone"), unix.S_IFCHR, 0), unix.Mknod(at("usr/block"), unix.S_IFBLK|0o600, 0x1203), os.Mkdir(at("usr/tmp"), 0o755))
	for _, name := range []string{"usr/bin/tool", "usr/bin", "usr/tmp", "usr", "etc/tool.conf", "etc", "usr/a -> b", "usr/two\nlines"} {
		err = errors.Join(err, os.Lchown(at(name), 1000, 1001))
	}
	err = errors.Join(err, os.Chmod(at("usr/bin/tool"), fs.ModeSetuid|0o755), os.Chmod(at("usr/tmp"), fs.ModeSticky|0o777))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// readBack is what an image of a layer has.
func readBack(t *testing.T, b *Builder, image string) *rootcheck.Tree {
	t.Helper()
	layers, err := ReadLayers(t.Context(), b.Tools, &config.Config{Layers: []config.Layer{{Name: "tools", Image: image}}}, "", "")
	if err != nil || len(layers) != 1 || layers[0].Err != nil || layers[0].Files == nil {
		t.Fatalf("%+v, %v", layers, err)
	}
	return layers[0].Files
}

// What is read of an image is what the tree had, of each file system.
func TestFilesOfALayer(t *testing.T) {
	b, _ := builder(t)
	tree := usersTree(t)
	want, err := rootcheck.ReadDir(tree)
	if err != nil {
		t.Fatal(err)
	}
	for _, filesystem := range []string{squashfs, erofs} {
		got := readBack(t, b, packedLayer(t, b, filesystem, tree))
		for _, dir := range []string{".", "etc", "usr", "usr/bin"} {
			here, _ := want.Children(dir)
			if there, _ := got.Children(dir); filesystem == erofs && !slices.Equal(here, there) { // which misreads no newline and no arrow
				t.Errorf("%s: %s has %q, want %q", filesystem, dir, there, here)
			}
			for _, name := range here {
				name = filepath.Join(dir, name)
				if filesystem == squashfs && strings.ContainsAny(name, "\n>") {
					continue
				}
				is, err := got.Entry(name)
				if e, _ := want.Entry(name); err != nil || is != e {
					t.Errorf("%s: %s is %+v, %v, want %+v", filesystem, name, is, err, e)
				}
			}
		}
	}
}

// The files of a folder become root's, with the modes that they have, which is said where
// they were others'; a tar says whose they are. An access list goes, for it names users too.
func TestOwnersOfALayer(t *testing.T) {
	b, _ := builder(t)
	b.Time = time.Unix(1700000000, 0)
	tree := usersTree(t)
	acl := []byte("\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x07\x00\xe8\x03\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff")
	if err := unix.Lsetxattr(filepath.Join(tree, "usr"), "system.posix_acl_access", acl, 0); err != nil {
		t.Log("no access lists here:", err)
	}
	packed := filepath.Join(t.TempDir(), "tree.tar")
	if out, err := exec.Command("tar", "-C", tree, "-cf", packed, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := errors.Join(os.Chown(filepath.Join(tree, "usr/bin/tool"), 0, 0), os.Chmod(filepath.Join(tree, "usr/bin/tool"), fs.ModeSetuid|0o755)); err != nil {
		t.Fatal(err)
	}
	for _, filesystem := range []string{squashfs, erofs} {
		for source, uid := range map[string]int{tree: 0, packed: 1000} {
			var log bytes.Buffer
			b.Log = &log
			out := filepath.Join(t.TempDir(), "tools.raw")
			if _, err := b.Layer(t.Context(), LayerInput{Name: "tools", Tree: source, Filesystem: filesystem, For: fitting(), Output: out}); err != nil {
				t.Fatal(err)
			}
			says := "warning: layer tools: files that are neither root's nor yours become root's: 7, such as /etc of 1000:1001; "
			if told := strings.Contains(log.String(), says); told != (source == tree) || strings.Count(log.String(), "warning") > 1 {
				t.Errorf("%s of %s: it says %q", filesystem, filepath.Base(source), log.String())
			}
			files := readBack(t, b, out)
			for name, want := range map[string]over.Entry{
				".": {Mode: fs.ModeDir | 0o755}, "etc": {Mode: fs.ModeDir | 0o755, UID: uid}, "usr/bin": {Mode: fs.ModeDir | 0o755, UID: uid},
				"usr/bin/tool": {Mode: fs.ModeSetuid | 0o755, UID: uid}, "usr/tmp": {Mode: fs.ModeDir | fs.ModeSticky | 0o777, UID: uid},
				"usr/lib/extension-release.d/extension-release.tools": {Mode: 0o644},
			} {
				if want.GID = 0; want.UID != 0 {
					want.GID = 1001
				}
				is, err := files.Entry(name)
				if err != nil || is != want {
					t.Errorf("%s of %s: %s is %+v, %v, want %+v", filesystem, filepath.Base(source), name, is, err, want)
				}
			}
		}
	}
	var plain bytes.Buffer
	if err := copyLayer(tree, tar.NewWriter(&plain), LayerInput{Name: "tools", For: fitting()}, b); err != nil || strings.Contains(plain.String(), "posix_acl") {
		t.Errorf("copyLayer: %v, or an access list stays", err)
	}
}

// A program that is setuid or setgid for somebody else never becomes one for root.
func TestSetIDOfAFolder(t *testing.T) {
	b, _ := builder(t)
	for name, tt := range map[string]struct {
		uid, gid int
		mode     fs.FileMode
		refused  bool
	}{
		"at":           {1, 1, fs.ModeSetuid | fs.ModeSetgid | 0o755, true},
		"setuid":       {1, 0, fs.ModeSetuid | 0o755, true},
		"crontab":      {0, 102, fs.ModeSetgid | 0o755, true},
		"other_group":  {0, 102, fs.ModeSetuid | 0o750, false},
		"other_user":   {1, 0, fs.ModeSetgid | 0o755, false},
		"root's":       {0, 0, fs.ModeSetuid | fs.ModeSetgid | 0o755, false},
		"without_bits": {1, 1, 0o755, false},
	} {
		tree := layerTree(t)
		tool := filepath.Join(tree, "usr/bin/tool")
		// Of a directory the bit says whose group what is made there has.
		if err := errors.Join(os.Chown(tool, tt.uid, tt.gid), os.Chmod(tool, tt.mode), os.Chown(filepath.Dir(tool), 0, 50), os.Chmod(filepath.Dir(tool), fs.ModeSetgid|0o755)); err != nil {
			t.Fatal(err)
		}
		err := copyLayer(tree, tar.NewWriter(io.Discard), LayerInput{Name: "tools", For: fitting()}, b)
		if refused := errors.Is(err, ErrRoot) && strings.Contains(err.Error(), "/usr/bin/tool root's") && strings.Contains(err.Error(), "as a tar"); refused != tt.refused || !refused && err != nil {
			t.Errorf("%s: %v, want it refused %v", name, err, tt.refused)
		}
	}
	// Who builds may be anybody.
	own := folderOwners{uid: 1000, gid: 1001}
	for _, h := range []tar.Header{{Uid: 1000, Gid: 1001}, {Uid: 0, Gid: 1001}, {Uid: 1000, Gid: 0}, {Uid: 1001, Gid: 1000}} {
		h.Typeflag, h.Mode = tar.TypeReg, 0o6755
		if others := h.Uid == 1001; (own.toRoot(&h) != nil) != others || !others && h.Uid+h.Gid != 0 {
			t.Errorf("of 1000:1001 a file becomes %d:%d, or is refused: %v", h.Uid, h.Gid, !others)
		}
	}
}

// A build refuses a layer that would take a directory of its root away or give it to a
// user, whatever its on_failure; read out of images of each file system.
func TestBuildComparesTheFilesOfLayers(t *testing.T) {
	const ownRelease = "usr/lib/extension-release.d/extension-release.tools"
	for name, tt := range map[string]struct {
		tree            string
		with            string // a further file
		refused, warned string // "" for not
	}{
		"good":   {layerTree(t), "usr/share/tool", "", ""},
		"user's": {usersTree(t), "usr/share/tool", "/etc (layers): layer tools", ""},
		"lib":    {layerTree(t), "lib/tool.so", "/lib (layers): layer tools", ""},
		"driver": {layerTree(t), "usr/lib/modules/" + release + "/updates/x.ko", "", "warning: /usr/lib/modules/" + release + " (layers): layer tools"},
	} {
		for _, file := range []string{tt.with, ownRelease} {
			at := filepath.Join(tt.tree, file)
			if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte("ID=_any\n"), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		for _, filesystem := range []string{squashfs, erofs} {
			t.Run(name+"_"+filesystem, func(t *testing.T) {
				log, err := judgedRoot(t, bootable("init"), func(b *Builder, in *SlotInput) {
					in.Config.Layers = []config.Layer{{Name: "tools", Filesystem: filesystem, OnFailure: config.LayerSkip, Image: packedLayer(t, b, filesystem, tt.tree)}}
					if err := layer.FillIn(in.Config, "/"); err != nil {
						t.Fatal(err)
					}
				})
				if refused := errors.Is(err, ErrRoot) && strings.Contains(err.Error(), tt.refused); refused != (tt.refused != "") || err != nil && tt.refused == "" {
					t.Errorf("%v, want it refused for %q", err, tt.refused)
				}
				if warned := strings.Contains(log, "(layers)"); tt.refused == "" && warned != (tt.warned != "") || !strings.Contains(log, tt.warned) {
					t.Errorf("it says\n%swant %q", log, tt.warned)
				}
			})
		}
	}
}

// An image that an ordinary user makes has root's top directory, and is the same as root's:
// a machine's root would be that user's else, by the image or by a layer over it.
func TestTopOfASquashfs(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o777), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	var images [2][]byte
	for i, uid := range []uint32{0, 1000} {
		image := filepath.Join(dir, fmt.Sprint(uid))
		command := append(sqfstar(int(uid)), image)
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
		cmd.Stdin = bytes.NewReader(tarOf(t, mergedRoot()))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		out, err := exec.Command("unsquashfs", "-lln", image).Output()
		if first, _, _ := strings.Cut(string(out), "\n"); err != nil || !strings.HasPrefix(first, "drwxr-xr-x 0/0 ") {
			t.Errorf("made by user %d: %q, %v; want the top directory root's", uid, first, err)
		}
		images[i] = fileBytes(t, image)
	}
	if !bytes.Equal(images[0], images[1]) {
		t.Error("what another user makes differs")
	}
}
