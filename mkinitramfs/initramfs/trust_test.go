package initramfs

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"sealroot/init/config"
	"sealroot/mkinitramfs/keys"
)

// unpack unpacks an archive with bsdcpio and returns the folder.
func unpack(t *testing.T, archive []byte) string {
	t.Helper()
	cmd := exec.Command("bsdcpio", "-i", "--quiet", "-m")
	cmd.Dir, cmd.Stdin = t.TempDir(), bytes.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot unpack: %v: %s", err, out)
	}
	return cmd.Dir
}

// executables lists what could be run out of a folder, or give rights to who
// runs it: nothing but plain files and folders may be there at all.
func executables(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if m := info.Mode(); !m.IsRegular() || m&(0o111|fs.ModeSetuid|fs.ModeSetgid) != 0 {
			name, err := filepath.Rel(dir, path)
			found = append(found, name)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// The kernel obeys rdinit= of whoever writes the command line: in a production
// initramfs there is nothing to run but init, and no shell in a development one.
func TestNothingExecutableButInit(t *testing.T) {
	for _, b := range []config.Build{config.Production, config.Development} {
		s := sources(t)
		s.Config.Build = b
		dir := unpack(t, build(t, s, None))
		if got := executables(t, dir); !slices.Equal(got, []string{"init"}) {
			t.Errorf("%s: executable are %q, want init alone", b, got)
		}
		// The walk finds what it looks for.
		if err := os.Symlink("init", filepath.Join(dir, "sh")); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, "etc/initrd-release"), 0o755); err != nil {
			t.Fatal(err)
		}
		if got := executables(t, dir); len(got) != 3 {
			t.Errorf("control: executable are %q, want three", got)
		}
	}
}

// The certificates of each role lie in a folder of their own.
func TestCertificatesByRole(t *testing.T) {
	s := sources(t)
	cert, err := os.ReadFile(filepath.Join(s.ConfigDir, keys.ImageCert))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"second.crt", "layer.crt", "dev.crt"} {
		if err := os.WriteFile(filepath.Join(s.ConfigDir, name), cert, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.Config.Build = config.Development
	s.Config.Trust = config.Trust{Root: []string{keys.ImageCert, "second.crt"}, Layer: []string{"layer.crt"}, Dev: []string{"dev.crt"}, Cmdline: "ignore"}
	dir := unpack(t, build(t, s, None))
	got, err := filepath.Glob(filepath.Join(dir, "etc/verity.d/*/*"))
	if err != nil {
		t.Fatal(err)
	}
	for i, path := range got {
		got[i], _ = filepath.Rel(filepath.Join(dir, "etc/verity.d"), path)
	}
	if want := []string{"dev/dev.crt", "layer/layer.crt", "root/image.crt", "root/second.crt"}; !slices.Equal(got, want) {
		t.Errorf("certificates %q, want %q", got, want)
	}

	// A development initramfs can do with the role dev alone.
	s.Config.Trust.Root = nil
	build(t, s, None)
	s.Config.Build = config.Production
	in, err := Gather(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Records(in); err == nil {
		t.Error("a production initramfs was made that trusts nobody")
	}
}
