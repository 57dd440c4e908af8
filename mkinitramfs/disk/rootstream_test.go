package disk

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sealroot/mkinitramfs/modules"
	"sealroot/verity/osrelease"
)

const release = "6.1.0-test"

// entry is one file of a test root.
type entry struct {
	name, content string
	kind          byte // 0: regular file
	link          string
}

// tarOf makes a tar of a root.
func tarOf(t *testing.T, entries []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: 0o750, Uid: 7, Gid: 8, Uname: "somebody",
			ModTime: time.Unix(1000, 0), Size: int64(len(e.content))}
		if e.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if e.name == "bin/ping" {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02"}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// file is a file of a filtered root.
type file struct {
	header  *tar.Header
	content string
}

func filter(t *testing.T, in []byte, edit rootEdit) (map[string]file, error) {
	t.Helper()
	var out bytes.Buffer
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(in)), nil }
	if _, err := filterRoot(open, tar.NewWriter(&out), edit); err != nil {
		return nil, err
	}
	files := map[string]file{}
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(h.Name, "/")
		if _, ok := files[name]; ok {
			t.Errorf("%s is in the image twice", name)
		}
		files[name] = file{h, string(content)}
	}
}

func mergedRoot() []entry {
	return []entry{
		{"./", "", tar.TypeDir, ""},
		{"./usr/lib/os-release", "ID=debian\nIMAGE_ID=old\nNAME=\"Debian\"\n", 0, ""},
		{"./lib", "", tar.TypeSymlink, "usr/lib"},
		{"./etc/machine-id", "0123456789abcdef", 0, ""},
		{"./etc/hostname", "old", 0, ""},
		{"./tmp/", "", tar.TypeDir, ""},
		{"bin/ping", "program", 0, ""},
		{"bin/ping4", "", tar.TypeLink, "./bin/ping"},
		{"dev/null", "", tar.TypeChar, ""},
	}
}

// bootable is a root that PID 1 takes, with this program as its init.
func bootable(init string) []entry {
	return append(mergedRoot(), entry{"home/", "", tar.TypeDir, ""}, entry{"var/", "", tar.TypeDir, ""}, entry{"sbin/init", init, 0, ""})
}

// A root that says its first boot is to make its ID, by machine-id(5), says so in the image
// too, where that boot can keep it. What has an ID loses it and says nothing.
func TestMachineIDOfTheImage(t *testing.T) {
	without := slices.DeleteFunc(mergedRoot(), func(e entry) bool { return e.name == "./etc/machine-id" })
	with := func(id string) []entry { return append(slices.Clone(without), entry{"etc/machine-id", id, 0, ""}) }
	for _, tt := range []struct {
		name string
		root []entry
		usr  bool
		want string
	}{
		{"filled", mergedRoot(), false, ""},
		{"empty", with(""), false, ""},
		{"uninitialized", with(uninitialized), false, uninitialized},
		{"uninitialized_without_newline", with("uninitialized"), false, uninitialized},
		{"missing", without, false, uninitialized},
		{"link", append(slices.Clone(without), entry{"etc/machine-id", "", tar.TypeSymlink, "/run/machine-id"}), false, ""},
		{"usr_of_a_root", append(usrRoot(), entry{"etc/machine-id", uninitialized, 0, ""}), true, ""}, // the factory's is filled
	} {
		for _, firstBoot := range []bool{true, false} {
			at, want := "etc/machine-id", tt.want
			if tt.usr {
				at = "share/factory/etc/machine-id"
			}
			if !firstBoot {
				want = ""
			}
			files, err := filter(t, tarOf(t, tt.root), rootEdit{release: release, usr: tt.usr, firstBoot: firstBoot})
			if f := files[at]; err != nil || f.header == nil || f.content != want || f.header.Mode != 0o444 {
				t.Errorf("%s, first boot %v: %q, %v, want %q", tt.name, firstBoot, f.content, err, want)
			}
		}
	}
}

func TestFilterRoot(t *testing.T) {
	extra := t.TempDir()
	for name, content := range map[string]string{"etc/hostname": "new", "lib/systemd/system/a.service": "unit"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(extra, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(extra, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filter(t, tarOf(t, mergedRoot()), rootEdit{release: release, extra: extra,
		osRelease: map[string]string{"IMAGE_ID": `"kiosk"`, "IMAGE_VERSION": `"1.2"`, "SEALROOT_SECURITY_VERSION": "4"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"dev", "proc", "run", "state", "sys", "tmp"} {
		if f, ok := files[dir]; !ok || f.header.Typeflag != tar.TypeDir {
			t.Errorf("no mount point %s", dir)
		}
	}
	if f := files["etc/machine-id"]; f.header == nil || f.content != "" {
		t.Errorf("machine-id = %q, want an empty file", f.content)
	}
	if f := files["etc/hostname"]; f.content != "new" || f.header.Uid != 0 {
		t.Errorf("hostname = %q of user %d, want the one of --extra, owned by root", f.content, f.header.Uid)
	}
	if _, ok := files["usr/lib/systemd/system/a.service"]; !ok {
		t.Error("--extra below the link lib → usr/lib is not in usr/lib")
	}
	if f := files["lib"]; f.header.Typeflag != tar.TypeSymlink {
		t.Error("the link lib is gone")
	}
	if f := files["bin/ping"]; f.header.PAXRecords["SCHILY.xattr.security.capability"] != "\x01\x00\x00\x02" || f.header.Uid != 7 || f.header.Uname != "" {
		t.Errorf("bin/ping = %+v: attribute, owner or name is wrong", f.header)
	}
	if f := files["bin/ping4"]; f.header.Typeflag != tar.TypeLink || f.header.Linkname != "bin/ping" {
		t.Errorf("bin/ping4 = %+v, want a hard link to bin/ping", f.header)
	}
	// PID 1 reads os-release: what it reads is what was asked for.
	r, err := osrelease.Parse([]byte(files[osReleasePath].content))
	if err != nil || r.ImageID != "kiosk" || r.ImageVersion != "1.2" || r.SecurityVersion != 4 {
		t.Errorf("os-release = %+v, %v", r, err)
	}
	if !strings.Contains(files[osReleasePath].content, "NAME=\"Debian\"\n") {
		t.Error("other variables of os-release are lost")
	}
}

func TestFilterRootErrors(t *testing.T) {
	for _, tc := range []struct {
		name    string
		entries []entry
		edit    rootEdit
	}{
		{"empty", nil, rootEdit{}},
		{"path_leaves_the_root", []entry{{"../../etc/passwd", "x", 0, ""}}, rootEdit{}},
		{"hard_link_leaves_the_root", []entry{{"a", "", tar.TypeLink, "../b"}}, rootEdit{}},
		{"hard_link_to_a_replaced_file", []entry{{"etc/machine-id", "x", 0, ""}, {"b", "", tar.TypeLink, "etc/machine-id"}}, rootEdit{}},
		{"huge_os_release", []entry{{osReleasePath, strings.Repeat("x", maxSmallFile+1), 0, ""}}, rootEdit{}},
		{"no_modules", mergedRoot(), rootEdit{release: release, needModules: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := filter(t, tarOf(t, tc.entries), tc.edit); !errors.Is(err, ErrRoot) {
				t.Errorf("filterRoot = %v, want ErrRoot", err)
			}
		})
	}
}

func TestModulesOfTheRootAreKept(t *testing.T) {
	keep := t.TempDir()
	root := append(mergedRoot(), entry{"usr/lib/modules/" + release + "/kernel/a.ko", "module", 0, ""})
	files, err := filter(t, tarOf(t, root), rootEdit{release: release, needModules: true, keepModules: keep})
	if err != nil {
		t.Fatal(err)
	}
	if f := files["usr/lib/modules/"+release+"/kernel/a.ko"]; f.content != "module" {
		t.Errorf("module in the image = %q", f.content)
	}
	if got, err := os.ReadFile(filepath.Join(keep, "lib/modules", release, "kernel/a.ko")); err != nil || string(got) != "module" {
		t.Errorf("kept module = %q, %v", got, err)
	}
}

func TestModulesAreAddedWhenTheRootHasNone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), release)
	if err := os.MkdirAll(filepath.Join(dir, "kernel"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kernel/a.ko"), []byte("module"), 0o644); err != nil {
		t.Fatal(err)
	}
	depmod := func(_ context.Context, base, rel string) error {
		return os.WriteFile(filepath.Join(base, "lib/modules", rel, "modules.dep"), []byte("kernel/a.ko:\n"), 0o644)
	}
	tree, err := modules.Open(t.Context(), dir, release, depmod)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filter(t, tarOf(t, mergedRoot()), rootEdit{release: release, needModules: true, addModules: tree})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"kernel/a.ko": "module", "modules.dep": "kernel/a.ko:\n"} {
		if got := files["usr/lib/modules/"+release+"/"+name].content; got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}

func TestDirectoryAndTarGiveTheSameRoot(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"sbin/init", "etc/fstab"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(dir, "sbin/init"), filepath.Join(dir, "sbin/telinit")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sbin/init", filepath.Join(dir, "linuxrc")); err != nil {
		t.Fatal(err)
	}
	names := func(source string) []string {
		r, err := openRoot(source)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		var list []string
		for in := tar.NewReader(r); ; {
			h, err := in.Next()
			if errors.Is(err, io.EOF) {
				return list
			}
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, string(h.Typeflag)+" "+h.Name+" → "+h.Linkname)
		}
	}
	want := names(dir)
	if !slices.Contains(want, "1 sbin/telinit → sbin/init") {
		t.Errorf("the hard link is not kept: %v", want)
	}
	var plain, packed bytes.Buffer
	if err := dirToTar(dir, &plain); err != nil {
		t.Fatal(err)
	}
	w := gzip.NewWriter(&packed)
	_, _ = w.Write(plain.Bytes())
	_ = w.Close()
	for name, content := range map[string][]byte{"plain.tar": plain.Bytes(), "packed.tar.gz": packed.Bytes()} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := names(path); !slices.Equal(got, want) {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
}
