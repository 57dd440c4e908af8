package initramfs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sealroot/init/config"
	"sealroot/mkinitramfs/keys"
	"sealroot/mkinitramfs/keys/keystest"
	"sealroot/mount/kmod"
)

const release = "6.1.0-test"

// testConfig is the smallest configuration that can be embedded.
func testConfig() *config.Config {
	c := config.Config{
		Name: "test", Version: "1", Build: config.Production,
		Boot:    config.Boot{Loader: config.LoaderUKI, Store: config.StoreGPT, Tries: 3},
		Trust:   config.Trust{Root: []string{"image.crt"}},
		State:   config.State{Create: "first-boot", Recovery: "later", Unlock: []string{"tpm2", "recovery-key"}, TPM2: config.TPM2{Policy: "signed-pcr11+7", PublicKey: "pcr.pub"}},
		Modules: config.Modules{Sets: []string{"virtio"}},
	}.WithDefaults()
	return &c
}

// sources writes the parts of an initramfs, with a made-up kernel.
func sources(t *testing.T) Sources {
	t.Helper()
	dir := t.TempDir()
	keyDir := filepath.Join(dir, "keys")
	keystest.Write(t, keyDir)
	needed := []string{"dm_verity", "squashfs", "overlay", "loop", "dm_crypt", "ext4", "vfat", "virtio_blk"}
	files := map[string]string{"init": "static program", "modules/" + release + "/modules.alias": "alias virtio:d00000002v* virtio_blk\n"}
	dep := ""
	for _, m := range needed {
		dep += "kernel/" + m + ".ko:\n"
		files["modules/"+release+"/kernel/"+m+".ko"] = "module " + m
	}
	files["modules/"+release+"/modules.dep"] = dep
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Sources{
		Config: testConfig(), ConfigDir: keyDir, Init: filepath.Join(dir, "init"),
		ModulesDir: filepath.Join(dir, "modules"), Release: release,
		Depmod: func(context.Context, string, string) error { return errors.New("depmod was run") },
	}
}

func build(t *testing.T, s Sources, c Compression) []byte {
	t.Helper()
	in, err := Gather(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	records, err := Records(in)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Write(&out, records, c); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestEqualInputsGiveEqualBytes(t *testing.T) {
	s := sources(t)
	first := build(t, s, Zstd)
	// Time stamps of the sources must not show.
	if err := os.Chtimes(s.Init, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, build(t, s, Zstd)) {
		t.Error("two builds of equal inputs differ")
	}
	// And the comparison can fail.
	if err := os.WriteFile(s.Init, []byte("another program"), 0o644); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(first, build(t, s, Zstd)) {
		t.Error("builds with different inits are equal")
	}
}

// TestArchiveAsOthersReadIt unpacks with zstd and bsdcpio.
func TestArchiveAsOthersReadIt(t *testing.T) {
	cmd := exec.Command("sh", "-c", "zstd -dc | bsdcpio -i --quiet -m")
	cmd.Dir, cmd.Stdin = t.TempDir(), bytes.NewReader(build(t, sources(t), Zstd))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot unpack: %v: %s", err, out)
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(cmd.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if info, err := os.Stat(filepath.Join(cmd.Dir, "init")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("init: %v, %v; want mode 755", info, err)
	}
	cfg, err := config.Parse(read("etc/sealroot/config.json"))
	if err != nil {
		t.Fatalf("PID 1 would refuse its configuration: %v", err)
	}
	if cfg.Kernel == nil || cfg.Kernel.Release != release {
		t.Errorf("kernel = %+v, want release %s", cfg.Kernel, release)
	}
	list, err := kmod.Parse(read("etc/sealroot/modules.json"))
	if err != nil {
		t.Fatalf("PID 1 would refuse its module list: %v", err)
	}
	for _, m := range list.Modules {
		if got, want := string(read(m.Path)), "module "+m.Name; got != want {
			t.Errorf("%s = %q, want %q", m.Path, got, want)
		}
	}
	if !strings.Contains(string(read("etc/verity.d/root/image.crt")), "CERTIFICATE") {
		t.Error("no certificate for root images")
	}
	if !strings.Contains(string(read("etc/sealroot/pcr-public.pem")), "PUBLIC KEY") {
		t.Error("no public key of the PCR policy")
	}
	if !strings.Contains(string(read("etc/initrd-release")), "ID=sealroot") {
		t.Error("initrd-release does not say whose initramfs this is")
	}
}

func TestGatherErrors(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Sources)
		want   error
	}{
		{"init_missing", func(s *Sources) { s.Init += "x" }, os.ErrNotExist},
		{"certificate_missing", func(s *Sources) { s.Config.Trust.Root = []string{"other.crt"} }, os.ErrNotExist},
		{"certificate_is_a_key", func(s *Sources) { s.Config.Trust.Root = []string{"image.key"} }, keys.ErrFormat},
		{"policy_key_missing", func(s *Sources) { s.Config.State.TPM2.PublicKey = "other.pub" }, os.ErrNotExist},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := sources(t)
			tc.change(&s)
			in, err := Gather(t.Context(), s)
			if !errors.Is(err, tc.want) {
				t.Errorf("Gather = %v, want %v", err, tc.want)
			}
			if in.Init != nil || in.Config != nil {
				t.Error("Gather returned parts with an error")
			}
		})
	}
}

func TestRecordsWithoutCertificateFailClosed(t *testing.T) {
	in, err := Gather(t.Context(), sources(t))
	if err != nil {
		t.Fatal(err)
	}
	in.Certificates = nil
	if _, err := Records(in); !errors.Is(err, ErrInput) {
		t.Errorf("Records = %v, want ErrInput", err)
	}
}

func TestUnknownCompression(t *testing.T) {
	if err := Write(&bytes.Buffer{}, nil, "lzma"); !errors.Is(err, ErrInput) {
		t.Errorf("Write = %v, want ErrInput", err)
	}
}
