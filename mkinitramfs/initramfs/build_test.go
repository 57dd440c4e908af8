package initramfs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"sealroot/init/config"
)

// A minimal init is only packed for what it can do.
func TestMinimalInit(t *testing.T) {
	builds := map[string][]byte{}
	for name, tags := range map[string]string{"whole": "", "minimal": "minimal"} {
		out := filepath.Join(t.TempDir(), "init")
		cmd := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-tags="+tags, "-o", out, "sealroot/init")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, text)
		}
		var err error
		if builds[name], err = os.ReadFile(out); err != nil {
			t.Fatal(err)
		}
	}
	if whole, small := len(builds["whole"]), len(builds["minimal"]); small >= whole {
		t.Errorf("the minimal init has %d bytes, the whole one %d", small, whole)
	}
	for _, c := range []struct {
		name, init string
		boot       config.Boot
		want       error
	}{
		{"minimal_gpt", "minimal", config.Boot{Store: config.StoreGPT, Loader: config.LoaderUKI}, nil},
		{"minimal_darch", "minimal", config.Boot{Store: config.StoreGrubenvDarch, Loader: config.LoaderGRUB}, ErrInput},
		{"minimal_systemd_boot", "minimal", config.Boot{Store: config.StoreGPT, Loader: config.LoaderSystemdBoot}, ErrInput},
		{"whole_darch", "whole", config.Boot{Store: config.StoreGrubenvDarch, Loader: config.LoaderGRUB}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := checkBuild(builds[c.init], &config.Config{Boot: c.boot}); !errors.Is(err, c.want) {
				t.Errorf("got error %v, want %v", err, c.want)
			}
		})
	}
	if err := checkBuild([]byte("#!/bin/sh\n"), &config.Config{}); err != nil {
		t.Errorf("a script as init: %v", err)
	}
}
