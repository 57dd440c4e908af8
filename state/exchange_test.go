package state

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"sealroot/state/luks2"
	"sealroot/state/luks2/hostile"
)

// recorder stands for the kernel: it notes what would be mapped, and with which
// key.
type recorder struct {
	target luks2.CryptTarget
	key    []byte
}

var errRecorded = errors.New("recorded")

type fakeLoop struct{ *os.File }

func (fakeLoop) Path() string   { return "/dev/loop0" }
func (fakeLoop) Number() string { return "7:0" }
func (fakeLoop) Size() int64    { return hostile.DeviceBytes }
func (fakeLoop) Remove() error  { return nil }

func (r *recorder) Loop(img *os.File) (Device, error) { return fakeLoop{img}, nil }

func (r *recorder) Crypt(_ string, target luks2.CryptTarget, _ Device, key []byte) (Device, error) {
	r.target, r.key = target, append([]byte(nil), key...)
	return nil, errRecorded
}

// TestHeaderExchangedAfterItWasRead: whoever exchanges the header in the file
// while the volume key is looked for changes nothing of what is mapped.
func TestHeaderExchangedAfterItWasRead(t *testing.T) {
	good, err := hostile.Good()
	if err != nil {
		t.Fatal(err)
	}
	theirKey := make([]byte, 64)
	rand.Read(theirKey) // never fails
	theirs, err := luks2.Format(luks2.FormatParams{UUID: "11111111-2222-4333-8444-aaaaaaaaaaaa", VolumeKey: theirKey, SectorSize: 512, DataOffset: 8 << 20, Rand: rand.Reader})
	if err == nil {
		theirs, err = theirs.AddKeyslot(0, theirKey, []byte(hostile.Passphrase), luks2.RandomSecretKDF(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), ImageName)
	// open runs Open; exchange does its work when the header was read.
	open := func(exchange func(f *os.File) error) (*recorder, *luks2.Header) {
		t.Helper()
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		r, read := &recorder{}, (*luks2.Header)(nil)
		_, err = Open(dir, r, Oversized, func(l *LockedVolume) ([]byte, error) {
			h := l.Header
			read = h
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err == nil {
				err = errors.Join(exchange(f), f.Close())
			}
			if err != nil {
				return nil, err
			}
			return h.Unlock(0, []byte(hostile.Passphrase))
		})
		if !errors.Is(err, errRecorded) {
			t.Fatal(err)
		}
		return r, read
	}
	if err := good.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	r, h := open(func(f *os.File) error {
		_, err := luks2.WriteNew(f, theirs, rand.Reader)
		return err
	})
	if h.VerifyVolumeKey(r.key) != nil || theirs.VerifyVolumeKey(r.key) == nil {
		t.Error("the volume key is not that of the header that was read")
	}
	want := luks2.CryptTarget{UUID: h.UUID(), Encryption: luks2.Encryption, KeySize: 64, SectorSize: 4096, OffsetBytes: 16 << 20, LengthBytes: 16 << 20}
	if r.target != want {
		t.Errorf("got target %+v, want %+v", r.target, want)
	}
	// Control: what is in the file now is another volume.
	if r, _ := open(func(*os.File) error { return nil }); r.target.OffsetBytes != 8<<20 || theirs.VerifyVolumeKey(r.key) != nil {
		t.Errorf("control: the exchanged header gives %+v", r.target)
	}
}
