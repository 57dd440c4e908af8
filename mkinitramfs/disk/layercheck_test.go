package disk

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/mkinitramfs/initramfs"
	"sealroot/mkinitramfs/layer"
	"sealroot/mkinitramfs/modules"
	"sealroot/mkinitramfs/rootcheck"
	"sealroot/mkinitramfs/tools"
)

// fitting is the extension-release that the images of these tests have, but for what makes
// a case.
func fitting(with ...string) map[string]string {
	vars := map[string]string{"ID": "debian"}
	for i := 0; i < len(with); i += 2 {
		vars[with[i]] = with[i+1]
	}
	return vars
}

// madeLayer makes the image of a layer.
func madeLayer(t *testing.T, b *Builder, name, filesystem string, vars map[string]string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "layer.raw")
	if _, err := b.Layer(t.Context(), LayerInput{Name: name, Tree: layerTree(t), Filesystem: filesystem, For: vars, Output: out}); err != nil {
		t.Fatal(err)
	}
	return out
}

// packedLayer makes one of a tree as it is, by other programs than the builder's.
func packedLayer(t *testing.T, b *Builder, filesystem, tree string) string {
	t.Helper()
	dir := t.TempDir()
	paths := [3]string{filepath.Join(dir, "data"), filepath.Join(dir, "tree"), filepath.Join(dir, "layer.raw")}
	make := exec.Command("mksquashfs", tree, paths[0], "-quiet", "-no-progress", "-comp", "xz")
	if filesystem == erofs {
		make = exec.Command("mkfs.erofs", paths[0], tree)
	}
	if out, err := make.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var f [3]*os.File
	for i, path := range paths {
		var err error
		if f[i], err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			t.Fatal(err)
		}
		defer f[i].Close()
	}
	packed, err := b.protectLayer(SlotInput{Config: &config.Config{Name: "layer"}}, f[0], f[1])
	if err == nil {
		err = layer.Pack(f[2], packed)
	}
	if err != nil {
		t.Fatal(err)
	}
	return paths[2]
}

// Layers of each file system, made by the builder and by others, are compared with the
// root: what PID 1 would not use is told, of a layer that stops the boot as an error.
func TestLayersAreForTheRoot(t *testing.T) {
	b, in := builder(t)
	tree := rootcheck.NewTree(map[string]rootcheck.File{"usr/lib/os-release": {Mode: 0o644, Text: []byte("ID=debian\nVERSION_ID=12\n")}})
	linked, other := layerTree(t), layerTree(t)
	const folder = "usr/lib/extension-release.d/extension-release."
	for _, l := range []struct{ tree, to, text string }{{linked, "real", "ID=fedora\n"}, {other, "other", "ID=debian\n"}} {
		if err := errors.Join(os.MkdirAll(filepath.Join(l.tree, filepath.Dir(folder)), 0o755), os.WriteFile(filepath.Join(l.tree, folder+l.to), []byte(l.text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("extension-release.real", filepath.Join(linked, folder+"tools")), exec.Command("mkfifo", filepath.Join(other, folder+"tools")).Run()); err != nil {
		t.Fatal(err)
	}
	for _, filesystem := range []string{squashfs, erofs} {
		for _, tt := range []struct {
			name  string
			image string
			layer config.Layer // what it is beside that
			says  string       // "" for nothing
		}{
			{"good", madeLayer(t, b, "tools", filesystem, fitting("VERSION_ID", "12", "SEALROOT_KERNEL", release)), config.Layer{}, ""},
			{"another_version", madeLayer(t, b, "tools", filesystem, fitting("VERSION_ID", "13")), config.Layer{}, "is for ID debian, VERSION_ID 13, and this is ID debian, VERSION_ID 12"},
			{"another_system", madeLayer(t, b, "tools", filesystem, fitting("ID", "fedora")), config.Layer{From: config.LayerFromPartition}, "is for ID fedora"},
			{"another_kernel", madeLayer(t, b, "tools", filesystem, fitting("SEALROOT_KERNEL", "6.1.0-other")), config.Layer{}, "kernel 6.1.0-other, and this is ID debian, VERSION_ID 12, kernel " + release},
			{"another_architecture", madeLayer(t, b, "tools", filesystem, fitting("ARCHITECTURE", "arm64")), config.Layer{}, "architecture arm64"},
			{"another_name", madeLayer(t, b, "tool", filesystem, fitting()), config.Layer{}, "calls itself tool"},
			{"no_release", packedLayer(t, b, filesystem, layerTree(t)), config.Layer{}, "does not have it"},
			{"no_usr", packedLayer(t, b, filesystem, filepath.Join(layerTree(t), "etc")), config.Layer{}, "does not have it"},
			{"release_by_a_link", packedLayer(t, b, filesystem, linked), config.Layer{}, "is for ID fedora"},
			{"no_plain_file", packedLayer(t, b, filesystem, other), config.Layer{}, "calls itself other"},
			{"another_file_system", madeLayer(t, b, "tools", filesystem, fitting()), config.Layer{Filesystem: map[string]string{squashfs: erofs, erofs: squashfs}[filesystem]}, "has " + filesystem},
		} {
			for onFailure, severity := range map[string]rootcheck.Severity{config.LayerStop: rootcheck.Error, config.LayerSkip: rootcheck.Warning} {
				t.Run(filesystem+"_"+tt.name+"_"+onFailure, func(t *testing.T) {
					cfg := *in.Config
					l := tt.layer
					l.Name, l.OnFailure, l.Image = "tools", onFailure, filepath.Base(tt.image)
					if l.Filesystem == "" {
						l.Filesystem = filesystem
					}
					cfg.Layers = []config.Layer{l}
					near := t.TempDir()
					layers, err := ReadLayers(t.Context(), b.Tools, &cfg, filepath.Dir(tt.image), near)
					if left, _ := os.ReadDir(near); err != nil || len(layers) != 1 || layers[0].Err != nil || len(left) > 0 {
						t.Fatalf("%+v, %v, %d files left", layers, err, len(left))
					}
					names, _ := rootcheck.Rules()
					found := rootcheck.Judge(tree, rootcheck.Want{Config: &cfg, Layers: layers, BootKernel: release, Ignore: without(names, rootcheck.LayersRule)})
					if tt.says == "" {
						if len(found) > 0 {
							t.Errorf("%v, want nothing", found)
						}
						return
					}
					if len(found) != 1 || found[0].Severity != severity || !strings.Contains(found[0].What, tt.says) || !strings.Contains(found[0].What, tt.image) || found[0].Remedy == "" {
						t.Errorf("%v, want one %s with %q, the file and a remedy", found, severity, tt.says)
					}
				})
			}
		}
	}
}

// A build refuses a layer that its image would stop at and warns of one that it would
// leave out; rule layers asks no such thing when it is left out.
func TestBuildComparesLayersWithTheRoot(t *testing.T) {
	for _, tt := range []struct {
		name      string
		onFailure string
		ignore    []string
		refused   bool
		warned    bool
	}{
		{"stop", config.LayerStop, nil, true, false},
		{"skip", config.LayerSkip, nil, false, true},
		{"stop_left_out", config.LayerStop, []string{rootcheck.LayersRule}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log, err := judgedRoot(t, bootable("init"), func(b *Builder, in *SlotInput) {
				b.Ignore = tt.ignore
				in.Config.Layers = []config.Layer{{Name: "tools", OnFailure: tt.onFailure, Image: madeLayer(t, b, "tools", squashfs, fitting("SEALROOT_KERNEL", "6.1.0-other"))}}
				if err := layer.FillIn(in.Config, "/"); err != nil {
					t.Fatal(err)
				}
			})
			const what = "/usr/lib/extension-release.d/extension-release.tools (layers): layer tools, "
			if refused := errors.Is(err, ErrRoot) && strings.Contains(err.Error(), what) && strings.Contains(err.Error(), "6.1.0-other"); refused != tt.refused || err != nil != tt.refused {
				t.Errorf("%v, want it refused: %v", err, tt.refused)
			}
			if warned := strings.Contains(log, "warning: "+what); warned != tt.warned {
				t.Errorf("it says\n%swant a warning: %v", log, tt.warned)
			}
		})
	}
}

// What cannot be read says so and is nobody's error; a program that is missing is.
func TestLayersThatCannotBeRead(t *testing.T) {
	b, in := builder(t)
	cut := madeLayer(t, b, "tools", squashfs, fitting())
	text := fileBytes(t, cut)
	copy(text[1<<20+40:], bytes.Repeat([]byte{0xff}, 40)) // of a superblock that begins as it should
	if err := os.WriteFile(cut, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, image := range map[string]string{"missing": "/nonexistent.raw", "no_image": in.Kernel, "damaged": cut} {
		cfg := config.Config{Layers: []config.Layer{{Name: "tools", Image: image}}}
		layers, err := ReadLayers(t.Context(), b.Tools, &cfg, "", "")
		if err != nil || len(layers) != 1 || layers[0].Err == nil || (name == "missing") != errors.Is(layers[0].Err, fs.ErrNotExist) {
			t.Errorf("%s: %+v, %v", name, layers, err)
		}
	}
	cfg := config.Config{Layers: []config.Layer{{Name: "tools", Image: madeLayer(t, b, "tools", squashfs, fitting())}}}
	t.Setenv("PATH", t.TempDir())
	if layers, err := ReadLayers(t.Context(), tools.Runner{}, &cfg, "", ""); !errors.Is(err, tools.ErrMissing) || layers != nil {
		t.Errorf("without unsquashfs: %+v, %v; want %v", layers, err, tools.ErrMissing)
	}
}

// A builder without root rights gets into what is taken out of an image, and removes it.
func TestDirectoriesOfALayerAreOpenedUp(t *testing.T) {
	top := t.TempDir()
	shut := []string{filepath.Join(top, "usr"), filepath.Join(top, "usr/lib")}
	if err := os.MkdirAll(shut[1], 0o755); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	if err := errors.Join(os.Chmod(other, 0o755), os.Symlink(other, filepath.Join(top, "link")), os.Chmod(shut[1], 0o555), os.Chmod(shut[0], 0)); err != nil {
		t.Fatal(err)
	}
	if err := openUp(top); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{shut[0]: 0o700, shut[1]: 0o700, other: 0o755} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %o", path, info.Mode(), err, want)
		}
	}
}

// An initramfs that is made alone is for a root that is named, or for any.
func TestCheckLayers(t *testing.T) {
	b, in := builder(t)
	for _, tt := range []struct {
		name, root, kernel string
		vars               map[string]string
		want               error
	}{
		{"good", in.Rootfs, release, fitting(), nil},
		{"another_root", in.Rootfs, release, fitting("ID", "fedora"), ErrRoot},
		{"any_root", "", release, fitting("ID", "fedora"), nil},
		{"another_kernel", "", release, fitting("SEALROOT_KERNEL", "6.1.0-other"), ErrRoot},
		{"no_root", "/nonexistent", release, fitting(), fs.ErrNotExist},
	} {
		cfg := config.Config{Layers: []config.Layer{{Name: "tools", Image: madeLayer(t, b, "tools", squashfs, tt.vars)}}}
		var log bytes.Buffer
		if err := CheckLayers(t.Context(), b.Tools, &cfg, tt.root, tt.kernel, &log); !errors.Is(err, tt.want) || log.Len() > 0 {
			t.Errorf("%s: %v, want %v; it says %q", tt.name, err, tt.want, log.String())
		}
	}
}

// A kernel without the file system of a layer makes no initramfs.
func TestKernelWithoutTheFileSystemOfALayer(t *testing.T) {
	b, in := builder(t)
	in.Config.Layers = []config.Layer{{Name: "tools", Hash: strings.Repeat("0a", 32), Filesystem: erofs}}
	dep := filepath.Join(in.ModulesDir, "lib/modules", release, "modules.dep")
	if err := os.WriteFile(dep, bytes.Replace(fileBytes(t, dep), []byte("kernel/erofs.ko:\n"), nil, 1), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := initramfs.Gather(t.Context(), initramfs.Sources{
		Config: in.Config, ConfigDir: in.ConfigDir, KeysDir: b.Signing.Dir, Init: b.Init, ModulesDir: in.ModulesDir, Release: release, Depmod: b.depmod,
	})
	if !errors.Is(err, modules.ErrNoModule) || !strings.Contains(err.Error(), "layer tools") {
		t.Errorf("%v, want %v and the layer's name", err, modules.ErrNoModule)
	}
}

// without is a list without one of its words.
func without(list []string, word string) []string {
	return slices.DeleteFunc(list, func(one string) bool { return one == word })
}
