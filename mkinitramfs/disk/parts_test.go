package disk

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sealroot/init/config"
	"sealroot/mkinitramfs/rootcheck"
	"sealroot/slots/manifest"
	"sealroot/verity/signature"
)

// readTar returns the files of a tar and their order.
func readTar(t *testing.T, text []byte) (order []string, files map[string][]byte) {
	t.Helper()
	files = map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(text)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return order, files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		order = append(order, h.Name)
	}
}

func TestPartsPerLoader(t *testing.T) {
	for _, tc := range []struct {
		loader config.Loader
		order  string
	}{
		{config.LoaderGRUB, "manifest.json manifest.sig root.verity-sig root.verity root.squashfs vmlinuz initrd"},
		{config.LoaderUKI, "manifest.json manifest.sig root.verity-sig root.verity root.squashfs sealroot.efi"},
		{config.LoaderSystemdBoot, "manifest.json manifest.sig root.verity-sig root.verity root.squashfs sealroot.efi"},
	} {
		t.Run(string(tc.loader), func(t *testing.T) {
			b, in := builder(t)
			b.Signing.Secure = nil // its signatures hold their time
			in.Config.Boot.Loader = tc.loader
			in.Config.SecurityVersion, in.Config.Root.Verity.TreeAtMiB = 4, 64
			var out bytes.Buffer
			if err := b.WriteParts(t.Context(), in, "-", &out); err != nil {
				t.Fatal(err)
			}
			order, files := readTar(t, out.Bytes())
			if got := strings.Join(order, " "); got != tc.order {
				t.Errorf("the tar holds %s, want %s", got, tc.order)
			}
			checkSet(t, b, tc.loader, files)

			// A folder holds the same, and so does a second tar.
			dir := filepath.Join(t.TempDir(), "set")
			if err := b.WriteParts(t.Context(), in, dir, nil); err != nil {
				t.Fatal(err)
			}
			entries, err := os.ReadDir(dir)
			if err != nil || len(entries) != len(files) {
				t.Errorf("the folder holds %v (%v), want %v", entries, err, order)
			}
			for name, want := range files {
				if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s differs between tar and folder (%v)", name, err)
				}
			}
			time.Sleep(1100 * time.Millisecond) // a present time anywhere would show
			file := filepath.Join(t.TempDir(), "set.tar")
			for range 2 { // the second one replaces the first
				if err := b.WriteParts(t.Context(), in, file, nil); err != nil {
					t.Fatal(err)
				}
			}
			if again, err := os.ReadFile(file); err != nil || !bytes.Equal(again, out.Bytes()) {
				t.Errorf("a second tar from the same inputs differs (%v)", err)
			}
		})
	}
}

// checkSet checks the manifest as an installation does, and that it tells the
// truth about the files.
func checkSet(t *testing.T, b *Builder, loader config.Loader, files map[string][]byte) {
	t.Helper()
	signer, err := signature.ParseCertificate(b.Signing.ImageCert.Raw)
	if err != nil {
		t.Fatal(err)
	}
	certs := []*signature.Certificate{signer}
	m, _, err := manifest.Open(files[manifest.File], files[manifest.SignatureFile], certs)
	if err != nil {
		t.Fatal(err)
	}
	if m.Name != "kiosk" || m.Version != "1" || m.SecurityVersion != 4 || m.KernelRelease != release || len(m.Parts) != len(files)-2 {
		t.Errorf("manifest = %+v", m)
	}
	if want := (manifest.Layout{Loader: string(loader), Store: "gpt", Partitions: "labels", TreeAtMiB: 64, Filesystem: "squashfs"}); m.Layout == nil || *m.Layout != want {
		t.Errorf("layout %+v, want %+v", m.Layout, want)
	}
	if m.System == nil || m.System.ID == "" {
		t.Errorf("system %+v, want that of the root's os-release", m.System)
	}
	for _, p := range m.Parts {
		if content := files[p.File]; int64(len(content)) != p.Size || sha256.Sum256(content) != p.SHA256 {
			t.Errorf("the manifest is wrong about %+v", p)
		}
	}
	sig, err := signature.Parse(files["root.verity-sig"])
	if err != nil {
		t.Fatal(err)
	}
	hash, _, err := signature.Verify(sig, certs)
	if err != nil || !bytes.Equal(hash, m.RootHash) {
		t.Errorf("root hash %x is signed (%v), the manifest has %x", hash, err, m.RootHash)
	}
	dir := t.TempDir()
	for _, name := range []string{"root.squashfs", "root.verity"} {
		if err := os.WriteFile(filepath.Join(dir, name), files[name], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "veritysetup", "verify", filepath.Join(dir, "root.squashfs"), filepath.Join(dir, "root.verity"), hex.EncodeToString(m.RootHash))
}

func TestPartsLeaveNothingBehind(t *testing.T) {
	b, in := builder(t)
	dir := t.TempDir()
	taken := filepath.Join(dir, "taken")
	if err := os.Mkdir(taken, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := b.WriteParts(t.Context(), in, taken, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("WriteParts to a folder that is there = %v, want ErrExist", err)
	}
	in.ModulesDir = "" // and the root has none
	for _, out := range []string{filepath.Join(dir, "set"), filepath.Join(dir, "set.tar")} {
		if err := b.WriteParts(t.Context(), in, out, nil); !errors.Is(err, ErrRoot) {
			t.Errorf("WriteParts = %v, want ErrRoot", err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("failed builds left %v (%v)", entries, err)
	}
}

func TestWarnsOfCertificateDates(t *testing.T) {
	b, in := builder(t)
	b.Ignore, _ = rootcheck.Rules()
	for _, tc := range []struct {
		name string
		now  time.Time
		want string
	}{
		{"in_time", time.Now(), ""},
		{"expired", time.Now().AddDate(40, 0, 0), "image.crt of " + b.Signing.Dir + " expired on "},
		{"not_yet_valid", time.Now().AddDate(-1, 0, 0), "image.crt of " + b.Signing.Dir + " is not valid before "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var log bytes.Buffer
			b.Log, b.Now = &log, tc.now
			if err := b.WriteParts(t.Context(), in, filepath.Join(t.TempDir(), "set"), nil); err != nil {
				t.Fatal(err)
			}
			warnings := slices.DeleteFunc(strings.Split(log.String(), "\n"), func(l string) bool { return !strings.HasPrefix(l, "warning: ") })
			if tc.want == "" && len(warnings) > 0 || tc.want != "" && (len(warnings) != 1 || !strings.Contains(warnings[0], tc.want)) {
				t.Errorf("warnings are %q, want %q", warnings, tc.want)
			}
		})
	}
}
