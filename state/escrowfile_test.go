package state_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"sealroot/state"
)

func TestWriteEscrow(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(path string) error // what anybody may have put there
		want    error
	}{
		{"nothing_there", func(string) error { return nil }, nil},
		{"left_over", func(p string) error { return os.WriteFile(p, []byte("of a volume without a name"), 0o600) }, nil},
		{"symlink", func(p string) error { return os.Symlink(filepath.Join(filepath.Dir(p), "target"), p) }, nil},
		{"fifo", func(p string) error { return syscall.Mkfifo(p, 0o600) }, nil},
		{"directory", func(p string) error { return os.Mkdir(p, 0o700) }, syscall.EISDIR},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, err := os.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			path := filepath.Join(dir.Name(), state.EscrowName)
			if err := tt.prepare(path); err != nil {
				t.Fatal(err)
			}
			if err := state.WriteEscrow(dir, []byte("message")); !errors.Is(err, tt.want) {
				t.Fatalf("WriteEscrow() = %v, want %v", err, tt.want)
			}
			if has := state.HasEscrow(dir); has != (tt.want == nil) {
				t.Errorf("HasEscrow() = %t", has)
			}
			names, err := os.ReadDir(dir.Name())
			if err != nil || len(names) != 1 {
				t.Errorf("left there: %v, %v; want one file", names, err)
			}
			if tt.want != nil {
				return
			}
			if text, err := os.ReadFile(path); err != nil || string(text) != "message" {
				t.Errorf("the file holds %q, %v", text, err)
			}
		})
	}
}
