package tools

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestMissingProgramNamesItsPackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Runner{}.Find("sqfstar")
	if !errors.Is(err, ErrMissing) {
		t.Fatalf("Find(sqfstar) = %v, want ErrMissing", err)
	}
	if !strings.Contains(err.Error(), "squashfs-tools") {
		t.Errorf("error %q does not name the package squashfs-tools", err)
	}
}

func TestFindLooksIntoExtraDirs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "mke2fs")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", t.TempDir())
	got, err := Runner{Dirs: []string{dir}}.Find("mke2fs")
	if err != nil || got != path {
		t.Errorf("Find(mke2fs) = %q, %v; want %q", got, err, path)
	}
}

func TestUnknownProgramIsRefused(t *testing.T) {
	if _, err := New().Find("sh"); err == nil {
		t.Error("Find(sh) accepted a program that is not in the table")
	}
}

func TestFailedRunShowsOutput(t *testing.T) {
	err := New().Run(t.Context(), nil, "mke2fs", "-t", "ext4", "/nonexistent/image")
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/image") {
		t.Errorf("Run(mke2fs) = %v, want an error with the program's own words", err)
	}
}

// What others preload and what a user sets stays.
func TestOutsideFakeroot(t *testing.T) {
	in := []string{"PATH=/bin", "FAKEROOTKEY=7", "FAKEROOTUID=0", "FAKED_MODE=unknown-is-root", "LD_PRELOAD=libfakeroot-sysv.so:/a/libeatmydata.so /b/libfakeroot-tcp.so", "A=FAKEROOTKEY=7", "FAKEROOTDONTTRYCHOWN=1"}
	want := []string{"PATH=/bin", "LD_PRELOAD=/a/libeatmydata.so", "A=FAKEROOTKEY=7", "FAKEROOTDONTTRYCHOWN=1"}
	if got := outsideFakeroot(in); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
