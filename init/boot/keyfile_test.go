package boot

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sealroot/init/config"
	"sealroot/mount"
	"sealroot/mount/kmod"
	"sealroot/mount/uevent"
	"sealroot/state"
)

func TestReadKeyIn(t *testing.T) {
	good := []byte("0123456789abcdef0123456789abcdef")
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "key")
	for path, content := range map[string][]byte{
		outside: good, filepath.Join(dir, "good"): good, filepath.Join(dir, "longest"): bytes.Repeat(good, 256),
		filepath.Join(dir, "short"): good[1:], filepath.Join(dir, "long"): append(bytes.Repeat(good, 256), 'x'),
		filepath.Join(dir, "zeros"): make([]byte, 64), filepath.Join(dir, "empty"): nil,
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink(outside, filepath.Join(dir, "link")), os.Symlink("good", filepath.Join(dir, "near")),
		syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600), os.Mkdir(filepath.Join(dir, "keys"), 0o700),
		os.Link(filepath.Join(dir, "good"), filepath.Join(dir, "keys/kiosk.key"))); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path string
		want error // nil: it is read
	}{
		{"good", nil}, {"keys/kiosk.key", nil}, {"longest", nil},
		{"short", errKeyFile}, {"long", errKeyFile}, {"zeros", errKeyFile}, {"empty", errKeyFile}, {"keys", errKeyFile}, {"fifo", errKeyFile},
		{"link", mount.ErrUnsafePath}, {"near", mount.ErrUnsafePath}, {"missing", os.ErrNotExist},
	} {
		key, err := readKeyIn(dir, tt.path)
		if !errors.Is(err, tt.want) || (tt.want == nil) != bytes.HasPrefix(key, good) || tt.want != nil && key != nil {
			t.Errorf("%s: %d bytes, %v; want %v", tt.path, len(key), err, tt.want)
		}
	}
}

// A stick that somebody made neither gets its journal replayed nor stops the kernel.
func TestForeignFilesystem(t *testing.T) {
	for kind, options := range map[string][]string{"ext4": {"noload", "errors=continue"}, "vfat": nil} {
		fs := foreignFilesystem(kind, "/dev/sdx1")
		if !slices.Equal(fs.Options, options) || fs.Attr&mount.ReadOnly == 0 || fs.Attr&mount.NoSymfollow == 0 {
			t.Errorf("%s is mounted as %+v, want options %v", kind, fs, options)
		}
	}
}

// silence is a machine in which nothing appears any more.
type silence struct{}

func (silence) Next(ctx context.Context) ([]uevent.Event, error) { <-ctx.Done(); return nil, ctx.Err() }

// A medium that does not come is waited for until the time is over, and said.
func TestKeyFileThatDoesNotCome(t *testing.T) {
	b, _ := testBoot(&person{}, config.State{
		Unlock: []string{config.UnlockKeyFile}, KeyFile: config.KeyFile{Partition: "0e1f0203-0405-4607-8809-0a0b0c0d0e0f", Path: "key"},
	})
	b.events = silence{}
	sys := t.TempDir()
	if err := os.Mkdir(filepath.Join(sys, "bus"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.loader = kmod.NewLoader(kmod.List{}, sys, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	h, _, _ := volume(t)
	if key, err := b.unlock(ctx, h); key != nil || !errors.Is(err, errLocked) {
		t.Fatalf("unlock() = %x, %v, want %v", key, err, errLocked)
	}
	if got := strings.Join(b.report.State.Attempts, "\n"); !strings.Contains(got, "key-file: ") || !strings.Contains(got, "0e1f0203-") {
		t.Errorf("attempts %q, want the partition that did not come", got)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.enrollKeyFile(ctx, h, nil); !errors.Is(err, uevent.ErrTimeout) {
		t.Errorf("enrollKeyFile() = %v, want %v", err, uevent.ErrTimeout)
	}
}

// An encrypted volume is never passed over for a state in the open.
func TestPlainBesideAVolume(t *testing.T) {
	b, _ := testBoot(&person{}, config.State{Create: config.CreateFirstBoot, Unlock: []string{config.UnlockPlain}})
	b.volume.outer = openTestDir(t)
	if err := os.WriteFile(filepath.Join(b.volume.outer.Name(), state.ImageName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.openPlain(t.Context()); !errors.Is(err, errLocked) || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("openPlain() = %v, want %v", err, errLocked)
	}
}
