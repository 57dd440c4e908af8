package hostile

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	luks "github.com/anatol/luks.go"
	"golang.org/x/sys/unix"

	"sealroot/state/luks2"
)

// What PID 1 may spend on a header that it refuses.
const (
	maxTime      = time.Second
	maxMemoryKiB = 64 << 10
)

// childVariable makes this test program the child that reads one volume, and
// says by which reader.
const childVariable = "SEALROOT_TEST_READ"

func TestMain(m *testing.M) {
	if reader := os.Getenv(childVariable); reader != "" {
		child(reader, os.Args[1])
		return
	}
	os.Exit(m.Run())
}

// child reads a volume as PID 1 would, which is a process of its own too, and
// prints what came of it, the processor time of the whole child, and its peak
// memory.
func child(reader, path string) {
	outcome := "accepted"
	var err error
	switch reader {
	case "ours":
		err = open(path, false)
	case "ours+unlock":
		err = open(path, true)
	case "luks.go":
		err = openByLibrary(path)
	}
	if err != nil {
		outcome = err.Error()
	}
	fmt.Printf("%s\n%d\n%d\n", strconv.Quote(outcome), processorTime(), peakKiB())
}

// processorTime is what this process took of a processor: other than by the
// clock, a busy machine does not count.
func processorTime() time.Duration {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(unix.TimevalToNsec(usage.Utime) + unix.TimevalToNsec(usage.Stime))
}

func open(path string, unlock bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h, err := luks2.Read(f, info.Size())
	if err == nil && unlock {
		_, err = h.Unlock(0, []byte(Passphrase))
	}
	return err
}

// openByLibrary opens without any check of ours.
func openByLibrary(path string) error {
	d, err := luks.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	_, err = d.UnsealVolume(0, []byte(Passphrase))
	return err
}

// peakKiB is VmHWM of proc(5).
func peakKiB() int {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(text, []byte("\nVmHWM:"))
	number, _, _ := bytes.Cut(rest, []byte(" kB\n"))
	n, err := strconv.Atoi(string(bytes.TrimSpace(number)))
	if err != nil {
		return 0
	}
	return n
}

type result struct {
	outcome string
	took    time.Duration
	peakKiB int
}

// read runs a child; a panic or a hang fails.
func read(t *testing.T, reader, path string) result {
	t.Helper()
	cmd := exec.Command("timeout", "60", os.Args[0], path)
	cmd.Env = append(os.Environ(), childVariable+"="+reader)
	out, err := cmd.CombinedOutput()
	lines := strings.Split(string(out), "\n")
	if err != nil || len(lines) < 3 {
		t.Fatalf("%s on %s: %v\n%.2000s", reader, filepath.Base(path), err, out)
	}
	outcome, err := strconv.Unquote(lines[0])
	took, err2 := strconv.ParseInt(lines[1], 10, 64)
	peak, err3 := strconv.Atoi(lines[2])
	if err := errors.Join(err, err2, err3); err != nil || peak == 0 {
		t.Fatalf("%s: %v\n%.2000s", reader, err, out)
	}
	return result{outcome, time.Duration(took), peak}
}

// file writes an image to a file that vanishes with the test.
func file(t *testing.T, img Image) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "volume.img")
	if err := img.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestRefused: each case, for its own reason, and what it costs to refuse it.
func TestRefused(t *testing.T) {
	names := map[string]bool{}
	var slowest, largest result
	good := must[Image](t)(Good())
	for _, c := range Cases() {
		t.Run(c.Name, func(t *testing.T) {
			if names[c.Name] || strings.ContainsAny(c.Name, "/ ") || c.Reason == "" {
				t.Errorf("bad name or no reason")
			}
			names[c.Name] = true
			img := must[Image](t)(c.Make(good))
			h, err := luks2.Read(img, img.Size)
			if h != nil || !errors.Is(err, c.Want) || !strings.Contains(err.Error(), c.Reason) {
				t.Fatalf("got a header: %v, %v; want %v: %s", h != nil, err, c.Want, c.Reason)
			}
			if len(err.Error()) > 300 || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r == 0x7f || r == '\u202e' }) {
				t.Errorf("message of %d bytes is not fit for a log: %q", len(err.Error()), err)
			}
			r := read(t, "ours", file(t, img))
			if r.outcome != err.Error() {
				t.Errorf("from a file: %s", r.outcome)
			}
			if r.took >= maxTime || r.peakKiB > maxMemoryKiB {
				t.Errorf("refused after %v with a peak of %d KiB, want at most %v and %d", r.took, r.peakKiB, maxTime, maxMemoryKiB)
			}
			if r.took > slowest.took {
				slowest = r
			}
			if r.peakKiB > largest.peakKiB {
				largest = r
			}
		})
	}
	if len(names) < 120 {
		t.Errorf("%d cases, want at least 120", len(names))
	}
	t.Logf("%d cases; slowest %v, largest %d KiB", len(names), slowest.took, largest.peakKiB)
}

// TestGoodIsAccepted is the control: the header that all cases are made from,
// also when it went through the same changes of place and size.
func TestGoodIsAccepted(t *testing.T) {
	good := must[Image](t)(Good())
	if again := must[Image](t)(Good()); !bytes.Equal(good.Head, again.Head) {
		t.Error("every call makes another one")
	}
	rebuilt := newVolume(good)
	large := newVolume(good)
	large.grow(4<<20, func(text []byte) []byte { return text })
	redone := newVolume(good)
	document(func(object) {})(redone)
	discard := newVolume(good)
	set("flags", []any{"allow-discards"}, "config")(discard)
	for name, img := range map[string]Image{
		"good": good, "rebuilt": rebuilt.image(), "large": large.image(), "redone": redone.image(), "flag": discard.image(),
	} {
		path := file(t, img)
		for _, reader := range []string{"ours+unlock", "luks.go"} {
			if r := read(t, reader, path); r.outcome != "accepted" || r.peakKiB > maxMemoryKiB {
				t.Errorf("%s by %s: %s, peak %d KiB", name, reader, r.outcome, r.peakKiB)
			}
		}
		if out, err := cryptsetup(Passphrase, "open", "--test-passphrase", "--key-file", "-", path); err != nil {
			t.Errorf("%s: cryptsetup: %v: %s", name, err, out)
		}
	}
}

func cryptsetup(stdin string, args ...string) (string, error) {
	cmd := exec.Command("timeout", append([]string{"60", "cryptsetup"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestWithoutTheDefence: what luks.go, which validates little, opens with the
// right passphrase. These headers are attacks, not damage.
func TestWithoutTheDefence(t *testing.T) {
	stolen := map[string]bool{}
	for _, name := range []string{
		"null_cipher", "null_cipher_by_crypto_api", "cipher_ecb", "cipher_with_table_fields", "key_long_s", "segments_crypt_and_linear",
		"data_in_header", "digest_empty", "newer_primary_null_cipher", "uuid_with_space",
	} {
		stolen[name] = true
	}
	good := must[Image](t)(Good())
	for _, c := range Cases() {
		if !stolen[c.Name] {
			continue
		}
		delete(stolen, c.Name)
		if r := read(t, "luks.go", file(t, must[Image](t)(c.Make(good)))); r.outcome != "accepted" {
			t.Errorf("%s: luks.go says %s", c.Name, r.outcome)
		}
	}
	if len(stolen) > 0 {
		t.Errorf("no such cases: %v", stolen)
	}
}

// TestCostIsSeen: the control of the measurement. A key derivation within the
// bounds shows in the peak, so one beyond them would have.
func TestCostIsSeen(t *testing.T) {
	v := newVolume(must[Image](t)(Good()))
	set("kdf", object{"type": "argon2id", "time": 1, "memory": 128 << 10, "cpus": 1, "salt": base(32)}, "keyslots", "0")(v)
	path := file(t, v.image())
	if r := read(t, "ours", path); r.outcome != "accepted" || r.peakKiB > maxMemoryKiB {
		t.Errorf("reading alone: %s, peak %d KiB", r.outcome, r.peakKiB)
	}
	r := read(t, "ours+unlock", path)
	if !strings.Contains(r.outcome, "wrong passphrase") || r.peakKiB < 128<<10 {
		t.Errorf("unlocking: %s, peak %d KiB, want the 128 MiB of the key derivation", r.outcome, r.peakKiB)
	}
	set("kdf", object{"type": "pbkdf2", "hash": "sha512", "iterations": 3_000_000, "salt": base(32)}, "keyslots", "0")(v)
	if r := read(t, "ours+unlock", file(t, v.image())); !strings.Contains(r.outcome, "wrong passphrase") || r.took < maxTime {
		t.Errorf("unlocking: %s after %v, want the time of the key derivation", r.outcome, r.took)
	}
}

// TestChecksumsAreRight: a case whose refusal is not that there is no header
// has right checksums in both copies, or one that is named torn.
func TestChecksumsAreRight(t *testing.T) {
	good := must[Image](t)(Good())
	for _, c := range Cases() {
		if c.Want == luks2.ErrNotLUKS2 {
			continue
		}
		img := must[Image](t)(c.Make(good))
		right := 0
		for offset := int64(0); offset <= 4<<20; offset = max(16<<10, 2*offset) {
			bin := make([]byte, binaryBytes)
			img.ReadAt(bin, offset)
			if magic := string(bin[:4]); magic != "LUKS" && magic != "SKUL" {
				continue
			}
			area := make([]byte, binary.BigEndian.Uint64(bin[8:])-binaryBytes)
			img.ReadAt(area, offset+binaryBytes)
			want := bytes.Clone(bin[448:480])
			clear(bin[448:512])
			h := sha256.New()
			h.Write(bin)
			h.Write(area)
			if bytes.Equal(h.Sum(nil), want) {
				right++
			}
		}
		alone := strings.Contains(c.Name, "torn") || strings.Contains(c.Name, "alone_at") || c.Name == "device_ends_behind_primary"
		if right != 2 && !(alone && right == 1) {
			t.Errorf("%s: %d copies with a right checksum", c.Name, right)
		}
	}
}
