package rootcheck

import (
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"sealroot/init/config"
)

// stacked judges layers of these files over a root, from the lowest up, by the rule alone.
func stacked(root files, source string, layers ...files) []string {
	w := kiosk(func(c *config.Config) { c.Root.Source = source })
	w.BootKernel = w.Kernel
	for i, f := range layers {
		name := string(rune('a' + i))
		w.Config.Layers = append(w.Config.Layers, config.Layer{Name: name, Filesystem: "squashfs", OnFailure: config.LayerSkip})
		w.Layers = append(w.Layers, Layer{Name: name, Image: name + ".raw", Filesystem: "squashfs", Release: []byte("ID=debian\n"), Files: NewTree(f)})
	}
	names, _ := Rules()
	w.Ignore = slices.DeleteFunc(names, func(name string) bool { return name == LayersRule })
	var said []string
	for _, f := range Judge(NewTree(root), w) {
		said = append(said, f.String())
	}
	return said
}

// A layer that takes a directory of the root away, or gives it to a user, is an error also
// where a boot could go on without the layer: it would not.
func TestLayersOverTheRoot(t *testing.T) {
	owned := func(mode fs.FileMode, uid, gid int) File {
		return File{Mode: fs.ModeDir | mode, UID: uid, GID: gid}
	}
	plain := config.SourceVerity
	for _, tt := range []struct {
		name, source string
		root, layer  files
		want         []string // beginnings
	}{
		{"nothing", plain, nil, files{"usr/bin/tool": program(), "usr/share/tool": owned(0o700, 7, 7), "etc/tool.conf": text("")}, nil},
		{"lib", plain, nil, files{"lib/x86_64-linux-gnu/libtool.so": program()}, []string{`error: /lib (layers): layer a, a.raw, has a directory over a link to "usr/lib" of the root, which is gone then, with all that is reached through it; move what the layer has there below /usr/lib`}},
		{"bin_and_sbin", plain, nil, files{"bin/tool": program(), "sbin/tool": program()}, []string{"error: /bin (layers)", "error: /sbin (layers)"}},
		{"link_for_etc", plain, nil, files{"etc": link("usr/etc")}, []string{"error: /etc (layers): layer a, a.raw, has a link to \"usr/etc\" over a directory"}},
		{"owner", plain, nil, files{"etc/systemd/system": owned(0o755, 1000, 1000), "usr": owned(0o755, 0, 1000)}, []string{
			"error: /etc/systemd/system (layers): layer a, a.raw, gives the root's directory of owner 0:0, mode 0755 another owner or mode, 1000:1000, mode 0755, and lets others than root write there",
			"warning: /usr (layers): layer a, a.raw, gives",
		}},
		{"top", plain, nil, files{".": owned(0o777, 0, 0)}, []string{"error: / (layers)"}},
		{"not_of_usr", config.SourceUsrVerity, nil, files{"etc": owned(0o777, 7, 7), "lib/x": program(), "usr/share/factory/x": program()}, nil},
		{"usr", config.SourceUsrVerity, nil, files{"usr/lib": link("elsewhere")}, []string{"error: /usr/lib (layers)"}},
		{"factory", config.SourceUsrVerity, files{"usr/share": dir(), "etc/systemd": dir()}, files{"usr/share/factory/etc/systemd": owned(0o755, 1000, 0)}, []string{"error: /usr/share/factory/etc/systemd (layers)"}},
	} {
		said := stacked(sound().with(tt.root), tt.source, tt.layer)
		if len(said) != len(tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, said, tt.want)
			continue
		}
		for i, want := range tt.want {
			if !strings.HasPrefix(said[i], want) {
				t.Errorf("%s: %q, want %q", tt.name, said[i], want)
			}
		}
	}
}

// One index counts of all that are stacked: what it does not name nobody loads.
func TestDriverLayers(t *testing.T) {
	const dir = "usr/lib/modules/6.1.0/"
	root := sound().with(files{dir + "modules.dep": text("kernel/a.ko.xz:\nkernel/b.ko: kernel/a.ko.xz\n"), dir + "kernel/a.ko.xz": program(), dir + "kernel/b.ko": program()})
	index := func(names ...string) File { return text(strings.Join(names, ":\n") + ":\n") }
	driver := files{dir + "updates/x.ko": program()}
	for _, tt := range []struct {
		name   string
		layers []files
		want   []string // parts of the warnings
	}{
		{"none", []files{{"usr/bin/tool": program()}}, nil},
		{"no_index", []files{driver}, []string{"/usr/lib/modules/6.1.0 (layers): layer a, a.raw, has modules and no modules.dep, and the root's lacks updates/x.ko: modprobe"}},
		{"compressed", []files{{dir + "updates/x.ko.zst": program(), dir + "updates/y.ko.gz": program()}}, []string{"lacks updates/x.ko.zst and 1 more"}},
		{"own_index", []files{driver.with(files{dir + "modules.dep": index("updates/x.ko")})}, []string{"/usr/lib/modules/6.1.0/modules.dep (layers): that of layer a, a.raw, lies over the root's and lacks kernel/a.ko.xz and 1 more"}},
		{"whole_index", []files{driver.with(files{dir + "modules.dep": index("kernel/a.ko.xz", "kernel/b.ko", "updates/x.ko")})}, nil},
		{"in_place", []files{{dir + "kernel/b.ko": program()}}, nil},
		{"not_merged", []files{{"lib/modules/6.1.0/x.ko": program()}}, []string{"error: /lib (layers)", "lacks x.ko:"}},
		{"another_kernel", []files{{"usr/lib/modules/6.2/x.ko": program()}}, nil},
		{"two_indexes", []files{
			driver.with(files{dir + "modules.dep": index("kernel/a.ko.xz", "kernel/b.ko", "updates/x.ko")}),
			{dir + "updates/y.ko": program(), dir + "modules.dep": index("kernel/a.ko.xz", "kernel/b.ko", "updates/y.ko")},
		}, []string{"layer a, a.raw, has modules that the topmost modules.dep, of layer b, lacks, updates/x.ko"}},
		{"one_index_of_two", []files{driver, {dir + "modules.dep": index("kernel/a.ko.xz", "kernel/b.ko", "updates/x.ko")}}, nil},
	} {
		said := stacked(root, config.SourceVerity, tt.layers...)
		if len(said) != len(tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, said, tt.want)
			continue
		}
		for i, want := range tt.want {
			if !strings.Contains(said[i], want) {
				t.Errorf("%s: %q, want %q", tt.name, said[i], want)
			}
		}
	}
}

// The indexes are read out of the tree that was taken out of the image; a name that is no
// file in the image is none.
func TestReadLayer(t *testing.T) {
	const index, release = "usr/lib/modules/6.1.0/modules.dep", "usr/lib/extension-release.d/extension-release.tools"
	out := fstest.MapFS{index: {Data: []byte("a.ko:\n")}, release: {Data: []byte("ID=debian\n")}}
	for mode, want := range map[fs.FileMode]string{0o644: "ID=debian\n", fs.ModeNamedPipe: ""} {
		l := Layer{Name: "tools", Files: NewTree(map[string]File{index: {Mode: 0o644}, release: {Mode: mode}})}
		if err := l.Read(out); err != nil || string(l.Release) != want || !driversOf(l.Files)["6.1.0"].index["a.ko"] {
			t.Errorf("%v: %v, %q, %v", mode, err, l.Release, driversOf(l.Files))
		}
	}
}
