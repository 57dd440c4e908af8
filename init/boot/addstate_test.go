package boot

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/slots"
	"sealroot/state"
	"sealroot/state/layout"
)

// A partition is not added where that would shut the volume out at the next boot,
// nor where nobody can say whether there was one.
func TestMayAddState(t *testing.T) {
	for _, tt := range []struct {
		name   string
		state  config.State
		want   string // in the error; "": it may
		reason slots.Reason
	}{
		{"key_file", config.State{Unlock: []string{config.UnlockKeyFile}}, "", ""},
		{"table_sealed_to", config.State{TPM2: config.TPM2{PCRs: []int{4, 5, 12}}}, "PCR 5", ""},
		{"no_tpm_to_ask", config.State{Unlock: []string{config.UnlockTPM2}}, "cannot ask the TPM", slots.TPM},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := testBoot(&person{}, tt.state)
			err := b.mayAdd(t.Context())
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("mayAdd() = %v, want %q", err, tt.want)
			}
			if _, reason := classOf(err); tt.reason != "" && reason != tt.reason {
				t.Errorf("reason %s, want %s", reason, tt.reason)
			}
		})
	}
}

// The mark "unfinished" is one bit of the table: a partition with a state in it is not
// made anew by it.
func TestUnfinishedHoldsNoState(t *testing.T) {
	for name, empty := range map[string]bool{"": true, "lost+found": true, layout.Provisioned: false, layout.Image: false, layout.ImageSubvolume: false, layout.Volume: false} {
		dir := openTestDir(t)
		if err := os.MkdirAll(filepath.Join(dir.Name(), name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := holdsNoState(dir); (err == nil) != empty || err != nil && !strings.Contains(err.Error(), name) {
			t.Errorf("with %q: %v, want it to be made anew: %v", name, err, empty)
		}
	}
}

// Nor is one made anew that does not mount, unless nothing ever mounted it.
func TestUnfinishedThatDoesNotMount(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "partition"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(256 << 20); err != nil {
		t.Fatal(err)
	}
	if err := state.WriteFilesystem(f, state.Ext4, rand.Reader); err != nil {
		t.Fatal(err)
	}
	if err := neverMounted(f, unix.EUCLEAN); err != nil {
		t.Errorf("as it was written: %v", err)
	}
	if _, err := f.WriteAt([]byte{1}, 1024+0x34); err != nil { // s_mnt_count
		t.Fatal(err)
	}
	if err := neverMounted(f, unix.EUCLEAN); !errors.Is(err, state.ErrNotEmpty) || !errors.Is(err, unix.EUCLEAN) {
		t.Errorf("mounted once: %v, want %v and why it does not mount", err, state.ErrNotEmpty)
	}
}
