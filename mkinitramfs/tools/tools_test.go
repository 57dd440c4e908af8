package tools

import (
	"errors"
	"os"
	"path/filepath"
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
