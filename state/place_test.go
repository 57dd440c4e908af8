package state_test

import (
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/state"
)

// The tools that make file systems say what one looks like.
func TestCheckPlaceFindsFilesystems(t *testing.T) {
	for _, tt := range []struct {
		name string
		mib  int64 // where it begins in the place
		make string
	}{
		{"ext4", 0, "mkfs.ext4 -q -F"}, {"ext2_further_on", 7, "mkfs.ext2 -q -F"}, {"fat32", 0, "mkfs.vfat -F 32"}, {"fat16", 3, "mkfs.vfat -F 16"},
		{"luks2", 255, "cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /etc/hostname"},
		{"luks1", 0, "cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 --key-file /etc/hostname"},
		{"swap", 1, "mkswap"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fs := filepath.Join(t.TempDir(), "fs")
			place, err := os.Create(filepath.Join(t.TempDir(), "place"))
			if err != nil {
				t.Fatal(err)
			}
			defer place.Close()
			if err := os.WriteFile(fs, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{fs, place.Name()} {
				if err := os.Truncate(path, 300<<20); err != nil {
					t.Fatal(err)
				}
			}
			if err := state.CheckPlace(place, 0, 300<<20); err != nil {
				t.Fatalf("CheckPlace() of nothing = %v", err)
			}
			words := strings.Fields(tt.make)
			if out, err := exec.Command(words[0], append(words[1:], fs)...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", tt.make, err, out)
			}
			head := make([]byte, 1<<20)
			f, err := os.Open(fs)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.ReadAt(head, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := place.WriteAt(head, tt.mib<<20); err != nil {
				t.Fatal(err)
			}
			if err := state.CheckPlace(place, 0, 300<<20); !errors.Is(err, state.ErrNotEmpty) {
				t.Errorf("CheckPlace() = %v, want %v", err, state.ErrNotEmpty)
			}
		})
	}
}

// What a disk held before is noise as a rule, and no file system; nor is a place
// too small to be looked at whole.
func TestCheckPlaceTakesNoise(t *testing.T) {
	place, err := os.Create(filepath.Join(t.TempDir(), "place"))
	if err != nil {
		t.Fatal(err)
	}
	defer place.Close()
	noise := make([]byte, 8<<20)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	if _, err := place.WriteAt(noise, 0); err != nil {
		t.Fatal(err)
	}
	if err := state.CheckPlace(place, 0, 8<<20); err != nil {
		t.Errorf("CheckPlace() of noise = %v", err)
	}
	if err := place.Close(); err != nil {
		t.Fatal(err)
	}
	if err := state.CheckPlace(place, 0, 8<<20); err == nil || errors.Is(err, state.ErrNotEmpty) {
		t.Errorf("CheckPlace() of what cannot be read = %v, want the device's error", err)
	}
}

func TestWriteFilesystemJudge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fs")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	if err := state.WriteFilesystem(f, state.Ext4, rand.Reader); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}
