package machine

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/slots/live"
	"sealroot/slots/manifest"
)

func TestChosen(t *testing.T) {
	byLoader := report.Report{BootPath: "unmeasured", Slot: report.Slot{Loaded: "a"}, Disk: report.Disk{FoundBy: "loader"}}
	direct := report.Report{BootPath: "unmeasured", Disk: report.Disk{FoundBy: "only-candidate"}}
	byUKI := report.Report{BootPath: "uki", Disk: report.Disk{FoundBy: "loader"}}
	for _, c := range []struct {
		name string
		boot report.Report
		text string // of the configuration; "" for none
		want live.Choice
	}{
		{"old_init_grub", byLoader, "", live.Choice{Store: "gpt", Loader: "grub", UEFI: true}},
		{"old_init_uki", byUKI, "", live.Choice{Store: "gpt", Loader: "uki", UEFI: true}},
		{"old_init_direct", direct, "", live.Choice{Store: "gpt", Loader: "grub", UEFI: true, Direct: true}},
		{"configured", byLoader, `{"boot": {"loader": "grub", "store": "grubenv-rauc"}}`, live.Choice{Store: "grubenv-rauc", Loader: "grub", UEFI: true}},
		{"systemd_boot", byUKI, `{"boot": {"loader": "systemd-boot", "store": "bls"}}`, live.Choice{Store: "bls", Loader: "systemd-boot", UEFI: true}},
		{"discoverable", byUKI, `{"boot": {"loader": "uki", "store": "fixed"}, "root": {"partitions": "discoverable"}}`,
			live.Choice{Store: "fixed", Loader: "uki", UEFI: true, Discoverable: true}},
		{"newer_configuration", byUKI, `{"boot": {"loader": "uki", "moon": 7}, "sun": 1}`, live.Choice{Store: "gpt", Loader: "uki", UEFI: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.json")
			if c.text != "" {
				if err := os.WriteFile(path, []byte(c.text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			cfg, err := readConfig(path)
			if err != nil {
				t.Fatal(err)
			}
			if got := chosen(cfg.WithDefaults(), c.boot, firmware{true, true}); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
	// without variables a kernel from the disk looks like one loaded directly
	for _, c := range []struct {
		loader config.Loader
		fw     firmware
		want   bool
	}{
		{config.LoaderUKI, firmware{true, false}, false}, {config.LoaderSystemdBoot, firmware{true, false}, false},
		{config.LoaderUKI, firmware{true, true}, true}, {config.LoaderUKI, firmware{}, true}, {config.LoaderGRUB, firmware{true, false}, true},
	} {
		if got := chosen(config.Config{Boot: config.Boot{Loader: c.loader}}, direct, c.fw).Direct; got != c.want {
			t.Errorf("%s on %+v: loaded directly: %v, want %v", c.loader, c.fw, got, c.want)
		}
	}
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readConfig(path); err == nil {
		t.Error("a configuration that cannot be read was taken for none")
	}
	long := append([]byte("{}"), bytes.Repeat([]byte(" "), maxConfig)...)
	if err := os.WriteFile(path, long, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readConfig(path); err == nil {
		t.Error("a configuration that was cut short was taken for a whole one")
	}
}

func TestRefill(t *testing.T) {
	for _, c := range []struct {
		name string
		boot config.Boot
		want int
	}{
		{"not_counted", config.Boot{Tries: 5}, 0},
		{"counted", config.Boot{Tries: 5, Recount: true}, 5},
		{"default", config.Boot{Recount: true}, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := refill(config.Config{Boot: c.boot}.WithDefaults()); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}

// TestVersionOf: the file is on a file system that is anybody's.
func TestVersionOf(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"rubbish": []byte("1.0\n"), "empty": nil, "huge": make([]byte, manifest.MaxSize+10),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("rubbish", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		want error
	}{
		{"rubbish", manifest.ErrFormat}, {"empty", manifest.ErrFormat}, {"huge", manifest.ErrFormat},
		{"pipe", manifest.ErrFormat}, {"link", unix.ELOOP}, {"missing", fs.ErrNotExist},
	} {
		t.Run(c.name, func(t *testing.T) {
			if v, err := versionOf(filepath.Join(dir, c.name)); v != "" || !errors.Is(err, c.want) {
				t.Errorf("got %q, %v; want an error %v", v, err, c.want)
			}
		})
	}
}
