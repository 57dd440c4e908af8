package grubenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// grub-editenv reads what the store writes, and what it changes is read.
func TestSlotsJudgeGrubEditenv(t *testing.T) {
	path := filepath.Join(t.TempDir(), "grubenv")
	edit := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("grub-editenv", append([]string{path}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("grub-editenv %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	edit("create")
	edit("set", "mine=a b\\c", "BOOT_VERSION=B", "BOOT_VERIFIED=false", "BOOT_COUNT=9")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := Store{File: f, Scheme: Darch, Names: names()}
	check := func(want string) {
		t.Helper()
		if got, err := s.Load(); err != nil || short(got) != want {
			t.Errorf("got %s, %v, want %s", short(got), err, want)
		}
	}
	check("a:1:0:1 b:2:1:0")
	if err := s.Save(long(t, "a:4:0:1 b:9:3:0")); err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(edit("list")), "\n")
	slices.Sort(got)
	want := []string{"BOOT_COUNT=7", "BOOT_VERIFIED=false", "BOOT_VERSION=B", "mine=a b\\c", "sealroot_slots=a:4:0:1,b:9:3:0"}
	if !slices.Equal(got, want) {
		t.Errorf("grub-editenv lists %q, want %q", got, want)
	}
	edit("set", "mine=longer than before")
	check("a:4:0:1 b:9:3:0")
	edit("unset", "BOOT_VERIFIED")
	check("a:1:0:1 b:2:0:1")
	edit("unset", "BOOT_VERSION")
	check("a:2:0:1 b:1:0:0")
}
