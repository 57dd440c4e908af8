package disk

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/mkinitramfs/rootcheck"
)

// judgedRoot builds the parts of a root and returns what is said of it.
func judgedRoot(t *testing.T, root []entry, edit func(*Builder, *SlotInput)) (string, error) {
	t.Helper()
	b, in := builder(t)
	var log bytes.Buffer
	b.Log = &log
	in.Rootfs = filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(in.Rootfs, tarOf(t, root), 0o600); err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(b, &in)
	}
	_, err := b.buildParts(t.Context(), in, t.TempDir())
	return log.String(), err
}

func TestBuildJudgesTheImage(t *testing.T) {
	extra := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(extra, "etc"), 0o755),
		os.WriteFile(filepath.Join(extra, "etc/fstab"), []byte("/dev/sda1 /var ext4\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	withKey := append(bootable("init"), entry{"etc/ssh/ssh_host_rsa_key", "key", 0, ""})
	withoutInit := slices.DeleteFunc(bootable("init"), func(e entry) bool { return e.name == "sbin/init" })
	merged := []entry{
		{"usr/", "", tar.TypeDir, ""}, {"usr/lib/", "", tar.TypeDir, ""}, {"usr/sbin/", "", tar.TypeDir, ""},
		{"usr/lib/os-release", "ID=x\n", 0, ""}, {"lib", "", tar.TypeSymlink, "usr/lib"}, {"sbin", "", tar.TypeSymlink, "usr/sbin"},
		{"etc/hostname", "x\n", 0, ""}, {"usr/sbin/other", "", tar.TypeSymlink, "init"}, {"usr/sbin/init", "init", 0, ""},
	}
	asUsr := func(_ *Builder, in *SlotInput) {
		in.Config.Root.Source, in.Config.Trust = config.SourceUsrVerity, config.Trust{Usr: []string{"image.crt"}}
	}
	for _, tt := range []struct {
		name    string
		root    []entry
		edit    func(*Builder, *SlotInput)
		warning string // "" for that of the key not being there
		refused string
	}{
		{"warning", withKey, nil, "warning: /etc/ssh/ssh_host_rsa_key (ssh-host-keys)", ""},
		{"warning_left_out", withKey, func(b *Builder, _ *SlotInput) { b.Ignore = []string{"ssh-host-keys"} }, "", ""},
		// What the builder corrects is nobody's concern.
		{"what_the_builder_adds", bootable("init"), nil, "", ""},
		{"no_init", withoutInit, nil, "", "/sbin/init (init)"},
		{"no_init_left_out", withoutInit, func(b *Builder, _ *SlotInput) { b.Ignore = []string{"init"} }, "", ""},
		{"another_init", withoutInit, func(_ *Builder, in *SlotInput) {
			in.Config.Trust.Cmdline, in.Cmdline = "measured", "init=/bin/ping"
		}, "", ""},
		{"another_init_that_is_not_honoured", withoutInit, func(_ *Builder, in *SlotInput) { in.Cmdline = "init=/bin/ping" }, "", "/sbin/init (init)"},
		{"usr", merged, asUsr, "", ""},
		{"usr_without_init", merged[:len(merged)-1], asUsr, "", "/sbin/init (init)"},
		{"extra_counts", bootable("init"), func(_ *Builder, in *SlotInput) { in.Extra = extra }, "", "/etc/fstab (fstab)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log, err := judgedRoot(t, tt.root, tt.edit)
			if tt.refused == "" && err != nil || tt.refused != "" && (!errors.Is(err, ErrRoot) || !strings.Contains(err.Error(), tt.refused)) {
				t.Errorf("%v, want %q", err, tt.refused)
			}
			if !strings.Contains(log, tt.warning) || tt.warning == "" && strings.Contains(log, "ssh_host") {
				t.Errorf("it says\n%swant %q", log, tt.warning)
			}
			for _, said := range []string{"(machine-id)", "(mount-points)", "no IMAGE_ID"} {
				if strings.Contains(log, said) {
					t.Errorf("%q is about what the builder corrects:\n%s", said, log)
				}
			}
		})
	}
}

// TestReadTree: a folder and each kind of tar of it are the same root.
func TestReadTree(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(plain, tarOf(t, slices.DeleteFunc(bootable("init"), func(e entry) bool { return e.kind == tar.TypeChar })), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "tar", "-xf", plain, "-C", dir, "--no-same-owner")
	packed := filepath.Join(t.TempDir(), "root.tar")
	run(t, "tar", "-C", dir, "--numeric-owner", "-cf", packed, ".")
	text, err := os.ReadFile(packed)
	if err != nil {
		t.Fatal(err)
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, err = z.Write(text)
	if err := errors.Join(err, z.Close(), os.WriteFile(packed+".gz", zipped.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, compress := range []string{"xz", "zstd"} {
		if out, err := exec.Command(compress, "-q", "-k", packed).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", compress, err, out)
		}
	}
	var want []rootcheck.Finding
	for _, source := range []string{dir, packed, packed + ".gz", packed + ".xz", packed + ".zst", "-"} {
		tree, err := ReadTree(source, bytes.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v", source, err)
		}
		found := rootcheck.Judge(tree, rootcheck.Want{})
		if want == nil {
			want = found
		}
		if len(found) == 0 || !slices.Equal(found, want) {
			t.Errorf("%s: %v, the folder has %v", source, found, want)
		}
	}
	if _, err := ReadTree(dir+"/missing", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no root: %v", err)
	}
}
