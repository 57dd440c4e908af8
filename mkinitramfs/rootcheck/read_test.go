package rootcheck

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/mount"
)

// pack makes a tar; the content of a file is its name.
func pack(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(h.Name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func reg(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }
func lnk(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}
}
func hard(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to, Mode: 0o644}
}

func TestReadTar(t *testing.T) {
	for _, tt := range []struct {
		name    string
		headers []tar.Header
		found   string // severity path; "" for nothing
		text    string
	}{
		{"plain", []tar.Header{reg("./etc/fstab"), hard("./etc/two", "./etc/fstab"), lnk("lib", "usr/lib")}, "", ""},
		{"above_the_root", []tar.Header{reg("../x")}, "error /", `"../x" leads out`},
		{"above_and_back", []tar.Header{reg("a/../b")}, "", ""},
		{"absolute", []tar.Header{reg("/etc/x"), reg("/etc/y")}, "warning /", "2 entries"},
		{"hard_link_to_nothing", []tar.Header{hard("x", "y"), reg("y")}, "error /x", `"y"`},
		{"hard_link_out_of_the_root", []tar.Header{hard("x", "../../etc/passwd")}, "error /x", "no file"},
		{"below_a_link", []tar.Header{lnk("lib", "usr/lib"), reg("lib/x"), reg("lib/y")}, "error /lib", `a link to "usr/lib"`},
		{"below_a_file", []tar.Header{reg("lib"), reg("lib/x")}, "error /lib", "a file"},
		{"a_directory_and_a_link", []tar.Header{{Typeflag: tar.TypeDir, Name: "lib/", Mode: 0o755}, lnk("lib", "usr/lib")}, "error /lib", "something else"},
		{"an_escape_sequence", []tar.Header{hard("\x1b[2J\nx", "y")}, "error /?[2J?x", "no file"},
		{"twice", []tar.Header{reg("x"), reg("./x")}, "warning /x", "twice"},
		{"a_directory_twice", []tar.Header{{Typeflag: tar.TypeDir, Name: "x/"}, {Typeflag: tar.TypeDir, Name: "x"}}, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tree, err := ReadTar(bytes.NewReader(pack(t, tt.headers...)), nil)
			if err != nil {
				t.Fatal(err)
			}
			met := tree.met
			if tt.found == "" && len(met) == 0 {
				return
			}
			if len(met) != 1 || fmt.Sprintf("%s %s", met[0].Severity, met[0].Path) != tt.found || !strings.Contains(met[0].What, tt.text) || met[0].Remedy == "" {
				t.Fatalf("%v, want %q with %q", met, tt.found, tt.text)
			}
			var told bool
			for _, f := range Judge(tree, Want{}) {
				told = told || f == met[0]
			}
			if !told {
				t.Error("the verdict does not tell it")
			}
		})
	}
}

func TestReadTarKeepsWhatRulesRead(t *testing.T) {
	tree, err := ReadTar(bytes.NewReader(pack(t, reg("etc/fstab"), reg("etc/hosts"), hard("etc/b", "etc/fstab"),
		tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666}, tar.Header{Typeflag: tar.TypeReg, Name: "usr/bin/su", Mode: 0o4755, Uid: 7})), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, ok := range map[string]bool{
		"the text of fstab":      string(tree.files["etc/fstab"].Text) == "etc/fstab",
		"no text of others":      tree.files["etc/hosts"].Text == nil,
		"the size of others":     tree.files["etc/hosts"].Size == 9,
		"a directory in between": tree.isDir("usr"),
		"two names of one file":  tree.files["etc/b"].same && !tree.files["etc/fstab"].same,
		"a device":               tree.files["dev/null"].Mode&fs.ModeDevice != 0,
		"set-user-ID":            tree.files["usr/bin/su"].Mode&fs.ModeSetuid != 0,
		"an owner":               tree.files["usr/bin/su"].UID == 7,
	} {
		if !ok {
			t.Errorf("the tree has not %s", name)
		}
	}
	renamed, err := ReadTar(bytes.NewReader(pack(t, reg("lib/x"), hard("y", "lib/x"))), func(name string) string { return "usr/" + name })
	if err != nil || !renamed.has("usr/lib/x") || !renamed.files["usr/y"].same || len(renamed.met) > 0 {
		t.Errorf("an image of /usr: %v, %v", renamed, err)
	}
	if tree, err := ReadTar(strings.NewReader("no tar at all, but more than a block of it"+strings.Repeat(".", 600)), nil); err == nil || tree != nil {
		t.Errorf("no tar: %v, %v", tree, err)
	}
}

func TestReadDir(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"etc/fstab": "tmpfs /tmp tmpfs\n", "var/x": "12345"} {
		if err := os.MkdirAll(filepath.Join(dir, path.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(os.Symlink("/etc", filepath.Join(dir, "host")), os.Link(filepath.Join(dir, "var/x"), filepath.Join(dir, "var/y")),
		os.Symlink("/etc/os-release", filepath.Join(dir, "etc/os-release")))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := tree.names("host"); len(got) != 1 || tree.files["host"].Link != "/etc" {
		t.Errorf("the link out of the root: %v", got)
	}
	if tree.files["etc/os-release"].Text != nil {
		t.Error("the host's os-release was read")
	}
	if x, y := tree.files["var/x"], tree.files["var/y"]; x.same || !y.same || x.Size != 5 || x.Mode != 0o640 {
		t.Errorf("two names of a file: %+v, %+v", x, y)
	}
	if string(tree.files["etc/fstab"].Text) != "tmpfs /tmp tmpfs\n" {
		t.Errorf("fstab: %q", tree.files["etc/fstab"].Text)
	}
	if _, err := ReadDir(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// TestResolveAsTheKernel: the judge is openat2(2) with RESOLVE_IN_ROOT.
func TestResolveAsTheKernel(t *testing.T) {
	dir := t.TempDir()
	links := map[string]string{
		"sbin": "usr/sbin", "usr/sbin/init": "/lib/systemd/systemd", "lib": "usr/lib", "a": "b", "b": "a", "up": "../../../../etc",
		"usr/up": "../../etc/../usr/./lib", "root": "/", "nowhere": "/no/where", "dots": "usr/lib/../..", "out": "/etc/passwd",
	}
	for name, to := range links {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, path.Dir(name)), 0o755), os.Symlink(to, filepath.Join(dir, name))); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"usr/lib/systemd/systemd", "etc/hosts"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, path.Dir(name)), 0o755), os.WriteFile(filepath.Join(dir, name), nil, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	root, err := mount.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, name := range []string{"sbin/init", "usr/sbin/init", "a", "b/x", "up/hosts", "usr/up/systemd", "root/root/etc/hosts", "nowhere", "dots/etc", "out",
		"../../etc/hosts", "etc/../usr", "missing", "", "etc/hosts"} {
		at, err := tree.resolve(name)
		f, kernelErr := mount.OpenBeneath(root, name, unix.O_PATH, mount.InRoot)
		want := ""
		if kernelErr == nil {
			real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
			top, err := filepath.EvalSymlinks(dir)
			if err != nil {
				t.Fatal(err)
			}
			want = strings.TrimPrefix(strings.TrimPrefix(real, top), "/")
		}
		switch {
		case kernelErr == nil && (err != nil || at != want):
			t.Errorf("%q: %q, %v; the kernel has %q", name, at, err, want)
		case errors.Is(kernelErr, unix.ENOENT) != errors.Is(err, fs.ErrNotExist), errors.Is(kernelErr, unix.ELOOP) != errors.Is(err, errLinks):
			t.Errorf("%q: %q, %v; the kernel has %v", name, at, err, kernelErr)
		}
	}
}

func FuzzReadTar(f *testing.F) {
	f.Add(pack(f, reg("etc/fstab"), lnk("sbin/init", "../a"), lnk("a", "sbin/init"), hard("b", "etc/fstab"), reg("/x"), reg("a/y")))
	f.Add(pack(f, tar.Header{Typeflag: tar.TypeReg, Name: "usr/lib/os-release", Mode: 0o7777, PAXRecords: map[string]string{"path": "../x"}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		tree, err := ReadTar(bytes.NewReader(data), nil)
		if err != nil {
			if tree != nil {
				t.Error("an error and a tree")
			}
			return
		}
		for name := range tree.files {
			if !fs.ValidPath(strings.ToValidUTF8(name, "?")) || name == "." {
				t.Errorf("name %q", name)
			}
		}
		for _, found := range Judge(tree, kiosk(nil)) {
			if found.What == "" || found.Remedy == "" || !strings.HasPrefix(found.Path, "/") {
				t.Errorf("half a finding: %+v", found)
			}
		}
	})
}

func FuzzFstab(f *testing.F) {
	f.Add([]byte("UUID=1 / ext4 defaults 0 1\n# x\n/dev/x /a\\040b swap nofail,x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, e := range parseFstab(data) {
			if e.source == "" || e.where == "" || e.kind == "" {
				t.Errorf("half an entry: %+v", e)
			}
		}
	})
}
