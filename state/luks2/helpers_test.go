package luks2

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	testUUID = "6f0d3c1e-7a51-4c0b-9d0e-1c2b3a495867"
	testSize = 32 << 20
)

// testRand is a repeatable stream of bytes.
type testRand struct{ state uint64 }

func (r *testRand) Read(b []byte) (int, error) {
	for i := range b {
		r.state = r.state*6364136223846793005 + 1442695040888963407
		b[i] = byte(r.state >> 56)
	}
	return len(b), nil
}

func testKey() []byte {
	key := make([]byte, 64)
	(&testRand{state: 1}).Read(key)
	return key
}

// memDisk is a disk in memory.
type memDisk struct{ b []byte }

func newMemDisk() *memDisk { return &memDisk{make([]byte, testSize)} }

func (d *memDisk) ReadAt(b []byte, off int64) (int, error) {
	return bytes.NewReader(d.b).ReadAt(b, off)
}

func (d *memDisk) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || int(off)+len(b) > len(d.b) {
		return 0, io.ErrShortWrite
	}
	return copy(d.b[off:], b), nil
}

func (d *memDisk) Sync() error { return nil }

// file stores the disk for another project's tool.
func (d *memDisk) file(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, d.b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// written makes a volume with passphrase "secret" in keyslot 0.
func written(t testing.TB) (*memDisk, *Header) {
	t.Helper()
	rand := &testRand{state: 2}
	h := must[*Header](t)(Format(FormatParams{UUID: testUUID, Label: "sealroot-state", VolumeKey: testKey(), Rand: rand}))
	h = must[*Header](t)(h.AddKeyslot(0, testKey(), []byte("secret"), RandomSecretKDF(), rand))
	d := newMemDisk()
	return d, must[*Header](t)(WriteNew(d, h, rand))
}

// cryptsetup runs the judge; its exit status is returned when it ran.
func cryptsetup(t *testing.T, stdin string, args ...string) (string, int) {
	t.Helper()
	cmd := exec.Command("cryptsetup", args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("cryptsetup (package cryptsetup-bin): %v", err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// opens lets cryptsetup try a passphrase.
func opens(t *testing.T, path, passphrase string, args ...string) bool {
	t.Helper()
	out, code := cryptsetup(t, passphrase, append([]string{"open", "--test-passphrase", "--key-file", "-", path}, args...)...)
	if code != 0 && code != 2 { // 2: no key with this passphrase
		t.Fatalf("cryptsetup open: exit status %d: %s", code, out)
	}
	return code == 0
}

// edit changes the JSON of both copies by fn (on decoded values) and makes the
// checksums right again: what an attacker does.
func edit(t testing.TB, d *memDisk, fn func(doc map[string]any)) {
	t.Helper()
	h := must[diskCopy](t)(readCopy(d, 0, magicPrimary, testSize))
	var doc map[string]any
	if err := json.Unmarshal(h.json, &doc); err != nil {
		t.Fatal(err)
	}
	fn(doc)
	editText(t, d, func([]byte) []byte { return must[[]byte](t)(json.Marshal(doc)) })
}

// editText changes the text of the JSON of both copies.
func editText(t testing.TB, d *memDisk, fn func(text []byte) []byte) {
	t.Helper()
	for _, c := range []struct {
		offset uint64
		magic  string
	}{{0, magicPrimary}, {minHeaderBytes, magicSecond}} {
		h := must[diskCopy](t)(readCopy(d, c.offset, c.magic, testSize))
		h.json = fn(bytes.Clone(h.json))
		d.WriteAt(h.encode(c.offset, c.magic, make([]byte, hdrSaltBytes)), int64(c.offset))
	}
}

// at walks down a decoded document: at(doc, "keyslots", "0", "kdf").
func at(doc map[string]any, path ...string) map[string]any {
	for _, p := range path {
		doc = doc[p].(map[string]any)
	}
	return doc
}
