package modules

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"sealroot/init/config"
	"sealroot/mount/kmod"
)

const release = "6.1.0-test"

// fakeTree writes a module directory of a made-up kernel and returns its root.
func fakeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, "lib/modules", release, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func noDepmod(context.Context, string, string) error { return errors.New("depmod was run") }

// tree is a tree in which every line of the four files matters to some test.
func tree(t *testing.T) *Tree {
	t.Helper()
	root := fakeTree(t, map[string]string{
		"modules.dep": `# comment
kernel/dm-verity.ko: kernel/dm-mod.ko kernel/dm-bufio.ko
kernel/dm-mod.ko:
kernel/dm-bufio.ko: kernel/dm-mod.ko
kernel/dm-crypt.ko: kernel/dm-mod.ko
kernel/virtio_blk.ko: kernel/virtio.ko
kernel/virtio.ko:
kernel/xts.ko:
kernel/ecb.ko:
kernel/aesni-intel.ko: kernel/cryptd.ko
kernel/cryptd.ko:
kernel/sha256-ssse3.ko:
kernel/loop1.ko: kernel/loop2.ko
kernel/loop2.ko: kernel/loop1.ko
kernel/broken.ko: kernel/absent.ko
kernel/plainmod.ko.xz:
`,
		"modules.builtin": "kernel/fs/ext4/ext4.ko\nkernel/crypto/aes-generic.ko\n",
		"modules.alias":   "alias virtio:d00000002v* virtio_blk\nalias cpu:type:x86,ven*fam*mod*:feature:*0099* aesni_intel\nalias crypto-aes aesni_intel\nalias aes aesni_intel\n",
		"modules.softdep": "softdep xts pre: ecb\nsoftdep dm_crypt pre: aes post: nothing\n",
	})
	tr, err := Open(t.Context(), root, release, noDepmod)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func names(l List) []string {
	var out []string
	for _, m := range l.Modules {
		out = append(out, string(m.Group)+":"+m.Name)
	}
	return out
}

func TestClosure(t *testing.T) {
	for _, tc := range []struct {
		name  string
		wants []Want
		want  []string
	}{
		{"dependencies_come_first", []Want{{"dm_verity", kmod.GroupRoot, false}}, []string{"root:dm_mod", "root:dm_bufio", "root:dm_verity"}},
		{"each_module_once", []Want{{"dm_verity", kmod.GroupRoot, false}, {"dm-bufio", kmod.GroupRoot, false}}, []string{"root:dm_mod", "root:dm_bufio", "root:dm_verity"}},
		{"built_in_is_left_out", []Want{{"ext4", kmod.GroupState, false}}, nil},
		{"optional_and_absent_is_left_out", []Want{{"nvme", kmod.GroupDriver, true}}, nil},
		{"soft_dependency_by_name", []Want{{"xts", kmod.GroupState, false}}, []string{"state:ecb", "state:xts"}},
		{"soft_dependency_by_alias", []Want{{"dm_crypt", kmod.GroupState, false}}, []string{"driver:cryptd", "driver:aesni_intel", "state:dm_mod", "state:dm_crypt"}},
		{"driver_needs_a_device", []Want{{"virtio_blk", kmod.GroupDriver, false}}, []string{"driver:virtio", "driver:virtio_blk"}},
		{"driver_without_alias_is_loaded_at_once", []Want{{"cryptd", kmod.GroupDriver, false}}, []string{"base:cryptd"}},
		{"asked_for_by_name_wins_over_modalias", []Want{{"virtio_blk", kmod.GroupDriver, false}, {"virtio", kmod.GroupRoot, false}}, []string{"root:virtio", "driver:virtio_blk"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := tree(t).Closure(tc.wants)
			if err != nil {
				t.Fatal(err)
			}
			if got := names(l); !slices.Equal(got, tc.want) {
				t.Errorf("Closure = %v, want %v", got, tc.want)
			}
			for i, m := range l.Modules {
				for _, d := range m.Deps {
					if d >= i {
						t.Errorf("%s (%d) stands before its dependency %d", m.Name, i, d)
					}
				}
			}
		})
	}
}

func TestClosureErrors(t *testing.T) {
	for _, tc := range []struct {
		name, module string
		want         error
	}{
		{"required_and_absent", "nvme", ErrNoModule},
		{"dependency_absent", "broken", ErrNoModule},
		{"circle", "loop1", ErrFormat},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := tree(t).Closure([]Want{{tc.module, kmod.GroupRoot, false}})
			if !errors.Is(err, tc.want) {
				t.Errorf("Closure(%s) = %v, want %v", tc.module, err, tc.want)
			}
			if l.Modules != nil || l.Release != "" {
				t.Errorf("Closure(%s) returned a list with an error", tc.module)
			}
		})
	}
}

func TestListIsWhatTheContractSays(t *testing.T) {
	l, err := tree(t).Closure([]Want{{"virtio_blk", kmod.GroupDriver, false}})
	if err != nil {
		t.Fatal(err)
	}
	text, err := l.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	m := got["modules"].([]any)[1].(map[string]any)
	if m["name"] != "virtio_blk" || m["path"] != "/usr/lib/modules/"+release+"/kernel/virtio_blk.ko" || m["group"] != "driver" {
		t.Errorf("module = %v", m)
	}
	if d := m["deps"].([]any); len(d) != 1 || d[0] != float64(0) {
		t.Errorf("deps = %v, want [0]", d)
	}
	if a := m["aliases"].([]any); len(a) != 1 || a[0] != "virtio:d00000002v*" {
		t.Errorf("aliases = %v", a)
	}
}

func TestHostileDepFileIsRefused(t *testing.T) {
	root := fakeTree(t, map[string]string{"modules.dep": "kernel/a.ko: ../../../../etc/shadow\n"})
	if _, err := Open(t.Context(), root, release, noDepmod); !errors.Is(err, ErrFormat) {
		t.Errorf("Open = %v, want ErrFormat", err)
	}
}

func TestLocate(t *testing.T) {
	root := fakeTree(t, map[string]string{"modules.dep": ""})
	dir := filepath.Join(root, "lib/modules", release)
	for _, d := range []string{root, filepath.Dir(dir), dir} {
		if got, err := Locate(d, release); err != nil || got != dir {
			t.Errorf("Locate(%s) = %q, %v; want %q", d, got, err, dir)
		}
	}
	if _, err := Locate(root, "6.2"); !errors.Is(err, ErrNoTree) {
		t.Errorf("Locate of another release = %v, want ErrNoTree", err)
	}
}

func TestDepmodRunsOnATreeWithoutModulesDep(t *testing.T) {
	root := fakeTree(t, map[string]string{"kernel/a.ko": "module", "modules.order": ""})
	fake := func(_ context.Context, base, rel string) error {
		dir := filepath.Join(base, "lib/modules", rel)
		if _, err := os.Stat(filepath.Join(dir, "kernel/a.ko")); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "modules.dep"), []byte("kernel/a.ko:\n"), 0o644)
	}
	tr, err := Open(t.Context(), root, release, fake)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Closure([]Want{{"a", kmod.GroupRoot, false}}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(root, "lib/modules", release, "modules.dep")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the tree itself was changed")
	}
}

func TestReadModuleDecompresses(t *testing.T) {
	content := bytes.Repeat([]byte("module code "), 1000)
	var gz, x, z bytes.Buffer
	w := gzip.NewWriter(&gz)
	_, _ = w.Write(content)
	_ = w.Close()
	xw, err := xz.NewWriter(&x)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = xw.Write(content)
	_ = xw.Close()
	zw, err := zstd.NewWriter(&z)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = zw.Write(content)
	_ = zw.Close()
	root := fakeTree(t, map[string]string{
		"modules.dep": "", "a.ko": string(content), "a.ko.gz": gz.String(), "a.ko.xz": x.String(), "a.ko.zst": z.String(), "a.ko.lz": "?",
	})
	tr, err := Open(t.Context(), root, release, noDepmod)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.ko", "a.ko.gz", "a.ko.xz", "a.ko.zst"} {
		if got, err := tr.ReadModule(name); err != nil || !bytes.Equal(got, content) {
			t.Errorf("ReadModule(%s) = %d bytes, %v; want %d", name, len(got), err, len(content))
		}
	}
	if _, err := tr.ReadModule("a.ko.lz"); !errors.Is(err, ErrFormat) {
		t.Errorf("ReadModule(a.ko.lz) = %v, want ErrFormat", err)
	}
}

func TestFor(t *testing.T) {
	cfg := &config.Config{Modules: config.Modules{Sets: []string{"virtio"}, Add: []string{"my-driver"}}}
	wants, err := For(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := wants[0].Name; got != "sha256_ssse3" {
		t.Errorf("first module is %s, want the hash accelerator", got)
	}
	if !slices.Contains(wants, Want{"my_driver", kmod.GroupDriver, false}) {
		t.Error("modules.add is not wanted, or not required")
	}
	cfg.Layers = []config.Layer{{Name: "a"}, {Name: "b", Filesystem: "erofs"}, {Name: "c", Filesystem: "erofs"}, {Name: "d", Filesystem: "squashfs"}}
	if wants, err = For(cfg); err != nil {
		t.Fatal(err)
	}
	named := map[string]int{}
	for _, w := range wants {
		named[w.Name]++
	}
	if named["erofs"] != 1 || named["squashfs"] != 1 {
		t.Errorf("erofs is wanted %d times for layers, squashfs %d times for the root; want once each", named["erofs"], named["squashfs"])
	}
	for _, tt := range []struct {
		inside, around string
		want           bool
	}{{"", "", false}, {"btrfs", "", true}, {"ext4", "btrfs", true}, {"btrfs", "btrfs", true}} {
		cfg.State.Filesystem, cfg.State.PartitionFilesystem = tt.inside, tt.around
		wants, err := For(cfg)
		if got := slices.Contains(wants, Want{"btrfs", kmod.GroupState, false}); err != nil || got != tt.want || !slices.Contains(wants, Want{"ext4", kmod.GroupState, false}) {
			t.Errorf("filesystem %q in %q: btrfs is wanted: %v, %v", tt.inside, tt.around, got, err)
		}
	}
	cfg.Modules.Sets = []string{"floppy"}
	if _, err := For(cfg); !errors.Is(err, ErrUnknownSet) {
		t.Errorf("For(floppy) = %v, want ErrUnknownSet", err)
	}
	for _, name := range config.ModuleSets() {
		if _, ok := set(name); !ok {
			t.Errorf("a configuration may name %s, which is no set", name)
		}
	}
}

// FuzzParse holds that no content of depmod's files makes the reader panic, and
// that every module of a closure stands behind what it needs.
func FuzzParse(f *testing.F) {
	f.Add("kernel/a.ko: kernel/b.ko\nkernel/b.ko:\n", "alias pci:v* a\n", "softdep a pre: b\n")
	f.Fuzz(func(t *testing.T, dep, alias, soft string) {
		tr := &Tree{Release: release, meta: map[string][]byte{
			"modules.dep": []byte(dep), "modules.alias": []byte(alias), "modules.softdep": []byte(soft), "modules.builtin": {},
		}}
		if tr.parse() != nil {
			return
		}
		var wants []Want
		for name := range tr.files {
			wants = append(wants, Want{name, kmod.GroupRoot, false})
		}
		l, err := tr.Closure(wants)
		if err != nil && l.Modules != nil {
			t.Error("a list with an error")
		}
		for i, m := range l.Modules {
			for _, d := range m.Deps {
				if d >= i {
					t.Errorf("%s stands before its dependency", m.Name)
				}
			}
		}
	})
}
