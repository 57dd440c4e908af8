package state

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/state/ext4"
	"sealroot/state/luks2"
)

// kernelLike keeps the open file as a loop device does: what was done to its lock
// counts until the device is gone.
type kernelLike struct {
	kept  *os.File
	inner string // file in place of the decrypted device
}

func (k *kernelLike) Loop(img *os.File) (Device, error) {
	fd, err := unix.FcntlInt(img.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	k.kept = os.NewFile(uintptr(fd), "loop")
	return sizedLoop{fakeLoop{k.kept}, 128 << 20}, err
}

type sizedLoop struct {
	fakeLoop
	size int64
}

func (l sizedLoop) Size() int64   { return l.size }
func (l sizedLoop) Remove() error { return l.File.Close() }

func (k *kernelLike) Crypt(string, luks2.CryptTarget, Device, []byte) (Device, error) {
	f, err := os.OpenFile(k.inner, os.O_RDWR, 0)
	return sizedLoop{fakeLoop{f}, 112 << 20}, err
}

// imageIn makes an encrypted.img that the passphrase "pw" opens.
func imageIn(t *testing.T, dir string) {
	t.Helper()
	key := make([]byte, 64)
	rand.Read(key) // never fails
	h, err := luks2.Format(luks2.FormatParams{UUID: "11111111-2222-4333-8444-555555555555", VolumeKey: key, Rand: rand.Reader})
	if err == nil {
		h, err = h.AddKeyslot(0, key, []byte("pw"), luks2.RandomSecretKDF(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, ImageName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_, err = luks2.WriteNew(f, h, rand.Reader)
	if err := errors.Join(err, f.Truncate(128<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestOpenVolumeLeavesTheHeaderToOthers: while the volume is open, for as long as
// the machine runs, sealroot and cryptsetup can change its header.
func TestOpenVolumeLeavesTheHeaderToOthers(t *testing.T) {
	dir := t.TempDir()
	imageIn(t, dir)
	k := &kernelLike{inner: filepath.Join(dir, "inner")}
	inner, err := os.Create(k.inner)
	if err == nil {
		err = errors.Join(inner.Truncate(112<<20), ext4.WriteTemplate(inner, [16]byte{1}, [16]byte{2}), inner.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var inUse error
	v, err := Open(d, k, Oversized, func(l *LockedVolume) ([]byte, error) {
		// Control: while it is being opened nobody else may change it.
		ctx, cancel := context.WithTimeout(context.Background(), 120*time.Millisecond)
		defer cancel()
		_, inUse = OpenHeader(ctx, d, true)
		return l.Header.Unlock(0, []byte("pw"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if !errors.Is(inUse, ErrInUse) || !errors.Is(inUse, context.DeadlineExceeded) {
		t.Errorf("while it is opened: %v, want ErrInUse at the deadline", inUse)
	}
	v.image.Close() // as at the exec of the real init: only the device keeps the file
	v.image = nil
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	f, err := OpenHeader(ctx, d, true)
	if err != nil {
		t.Fatalf("the header cannot be changed while the volume is open: %v", err)
	}
	if _, err := OpenImage(d); !errors.Is(err, ErrInUse) {
		t.Errorf("a second writer gets %v, want ErrInUse", err)
	}
	// Control: cryptsetup honours the lock that we hold now.
	add := func(limit string) ([]byte, error) {
		cmd := exec.Command("timeout", limit, "cryptsetup", "luksAddKey", "--batch-mode", "--key-file=-", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000",
			filepath.Join(dir, ImageName), "/etc/hostname")
		cmd.Stdin = strings.NewReader("pw")
		return cmd.CombinedOutput()
	}
	if out, err := add("1"); err == nil {
		t.Errorf("cryptsetup changes the header beside us: %s", out)
	}
	f.Close()
	if out, err := add("120"); err != nil {
		t.Errorf("cryptsetup luksAddKey while the volume is open: %v: %s", err, out)
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
}

// TestOpenHeaderRefusesWhatIsNoImage: what was put in the file's place is not
// opened, and readers share the lock.
func TestOpenHeaderRefusesWhatIsNoImage(t *testing.T) {
	dir := t.TempDir()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx := context.Background()
	if _, err := OpenHeader(ctx, d, false); !errors.Is(err, ErrNoImage) {
		t.Errorf("nothing there: %v, want ErrNoImage", err)
	}
	path := filepath.Join(dir, ImageName)
	if err := os.Symlink("/etc/passwd", path); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenHeader(ctx, d, false); !errors.Is(err, ErrNotImage) {
		t.Errorf("a symbolic link: %v, want ErrNotImage", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	imageIn(t, dir)
	for range 2 {
		f, err := OpenHeader(ctx, d, false)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
}
