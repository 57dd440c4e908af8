package qemutests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// PID 1 stays small: one static program of at most 5.5 MB, and with the modules
// for Debian's 6.1 cloud kernel an initramfs of at most 3 MB.
func TestSizes(t *testing.T) {
	t.Parallel()
	const maxInit, maxInitramfs = 5_500_000, 3_000_000
	init := filepath.Join(buildDir, "init")
	if text := tool(t, "file", init); !strings.Contains(text, "statically linked") || !strings.Contains(text, "stripped") {
		t.Errorf("init is not a static, stripped program: %s", text)
	}
	k := kernel(t, "6.1")
	config := filepath.Join(t.TempDir(), "config.yaml")
	text, err := os.ReadFile(Image{Config: "uki"}.configFile())
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, config, text, 0o644)
	initramfs := filepath.Join(t.TempDir(), "initrd")
	tool(t, filepath.Join(buildDir, "sealroot-mkinitramfs"), "-o", initramfs, "--kernel-version", k.Release,
		"--modules-dir", k.Dir, "--config", config, "--keys", keysDir(t))
	for _, f := range []struct {
		path string
		max  int64
	}{{init, maxInit}, {initramfs, maxInitramfs}} {
		info, err := os.Stat(f.path)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes", filepath.Base(f.path), info.Size())
		if info.Size() > f.max {
			t.Errorf("%s has %d bytes, at most %d are wanted", filepath.Base(f.path), info.Size(), f.max)
		}
	}
}
