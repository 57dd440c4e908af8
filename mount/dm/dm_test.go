package dm

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anatol/devmapper.go"
	"golang.org/x/sys/unix"
)

// fake is a device mapper that writes down what it is asked for.
type fake struct {
	steps []string
	table devmapper.Table
	fail  map[string]error // by operation
	busy  int              // how often Remove says EBUSY first
	// unknown are options of verity that this kernel does not have.
	unknown []string
	swaps   []error // what Swap says, in turn
}

func (f *fake) step(op, format string, args ...any) error {
	f.steps = append(f.steps, op+" "+fmt.Sprintf(format, args...))
	return f.fail[op]
}

func (f *fake) Create(name, uuid string) error { return f.step("create", "%s %s", name, uuid) }
func (f *fake) Load(name string, flags uint32, table devmapper.Table) error {
	if v, ok := table.(devmapper.VerityTable); ok {
		for _, word := range v.Params {
			if slices.Contains(f.unknown, word) {
				return unix.EINVAL
			}
		}
	}
	f.table = table
	return f.step("load", "%s %d", name, flags)
}
func (f *fake) Resume(name string) error { return f.step("resume", "%s", name) }
func (f *fake) Swap(name string) error {
	err := f.step("swap", "%s", name)
	if len(f.swaps) > 0 {
		err, f.swaps = f.swaps[0], f.swaps[1:]
	}
	return err
}
func (f *fake) Clear(name string) error { return f.step("clear", "%s", name) }
func (f *fake) Remove(name string) error {
	if f.busy > 0 {
		f.busy--
		_ = f.step("busy", "%s", name)
		return unix.EBUSY
	}
	return f.step("remove", "%s", name)
}
func (f *fake) Info(name string) (*devmapper.DeviceInfo, error) {
	return &devmapper.DeviceInfo{DevNo: unix.Mkdev(253, 3)}, f.step("info", "%s", name)
}
func (f *fake) Status(name string, flags uint32) ([]Status, error) {
	return []Status{{Type: "verity", Text: "V"}}, f.step("status", "%s %d", name, flags)
}

// control has a node for the fake's device when node is set.
func control(t *testing.T, f *fake, node bool) (Control, *int) {
	t.Helper()
	sleeps := new(int)
	c := Control{kernel: f, dev: t.TempDir(), sleep: func(time.Duration) { *sleeps++ }}
	if node {
		if err := unix.Mknod(filepath.Join(c.dev, "dm-3"), unix.S_IFBLK|0o600, int(unix.Mkdev(253, 3))); err != nil {
			t.Fatalf("mknod (run as root): %v", err)
		}
	}
	return c, sleeps
}

func goodVerity() VerityTarget {
	return VerityTarget{
		DataDevice: "254:2", HashDevice: "254:3", DataBlockSize: 4096, HashBlockSize: 4096,
		DataBlocks: 256, HashStart: 1, Algorithm: "sha256",
		RootHash: bytes.Repeat([]byte{0xab}, 32), Salt: []byte{1, 2}, OnCorruption: CorruptionPanic,
	}
}

func goodCrypt() CryptTarget {
	return CryptTarget{Device: "7:0", OffsetBytes: 16 << 20, LengthBytes: 64 << 20, SectorSize: 4096, Encryption: "aes-xts-plain64", KeyBytes: 64}
}

func TestVerity(t *testing.T) {
	f := &fake{}
	c, sleeps := control(t, f, true)
	d, err := c.Verity("sealroot-root", "CRYPT-VERITY-x", goodVerity())
	if err != nil {
		t.Fatal(err)
	}
	if want := (Device{Name: "sealroot-root", Path: filepath.Join(c.dev, "dm-3"), Major: 253, Minor: 3, ErrorsToo: true}); d != want {
		t.Errorf("got %+v, want %+v", d, want)
	}
	want := []string{"create sealroot-root CRYPT-VERITY-x", "load sealroot-root 1", "resume sealroot-root", "info sealroot-root"}
	if !slices.Equal(f.steps, want) {
		t.Errorf("got %q, want %q", f.steps, want)
	}
	if *sleeps != 0 {
		t.Errorf("slept %d times although the node was there", *sleeps)
	}
	wantTable := devmapper.VerityTable{
		Length: 1 << 20, HashType: 1, DataDevice: "254:2", HashDevice: "254:3",
		DataBlockSize: 4096, HashBlockSize: 4096, NumDataBlocks: 256, HashStartBlock: 1,
		Algorithm: "sha256", Digest: strings.Repeat("ab", 32), Salt: "0102",
		Params: []string{"2", "panic_on_corruption", "panic_on_error"},
	}
	if !reflect.DeepEqual(f.table, wantTable) {
		t.Errorf("table\ngot:  %+v\nwant: %+v", f.table, wantTable)
	}
}

// What the kernel gets, word for word as dmsetup table prints it.
func TestVerityTableLine(t *testing.T) {
	const head = "0 128 verity 1 254:1 254:2 4096 4096 16 1 sha256 1111111111111111111111111111111111111111111111111111111111111111 "
	const parity = "use_fec_from_device 254:2 fec_roots 2 fec_blocks 17 fec_start 2"
	for _, tt := range []struct {
		policy OnCorruption
		salt   []byte
		fec    VerityFEC
		want   string
	}{
		{CorruptionEIO, nil, VerityFEC{}, "-"},
		{CorruptionEIO, []byte{0xab, 0xcd}, VerityFEC{}, "abcd"},
		{CorruptionRestart, []byte{0xab, 0xcd}, VerityFEC{}, "abcd 2 restart_on_corruption restart_on_error"},
		{CorruptionPanic, []byte{0xab, 0xcd}, VerityFEC{}, "abcd 2 panic_on_corruption panic_on_error"},
		{CorruptionEIO, nil, VerityFEC{Roots: 2, Blocks: 17, Start: 2}, "- 8 " + parity},
		{CorruptionRestart, nil, VerityFEC{Roots: 2, Blocks: 17, Start: 2}, "- 10 restart_on_corruption restart_on_error " + parity},
	} {
		f := &fake{}
		c, _ := control(t, f, true)
		d, err := c.Verity("x", "", VerityTarget{
			DataDevice: "254:1", HashDevice: "254:2", DataBlockSize: 4096, HashBlockSize: 4096, DataBlocks: 16, HashStart: 1,
			Algorithm: "sha256", RootHash: bytes.Repeat([]byte{0x11}, 32), Salt: tt.salt, OnCorruption: tt.policy, FEC: tt.fec,
		})
		if got := line(f.table); err != nil || got != head+tt.want || d.Repairs != (tt.fec.Roots > 0) {
			t.Errorf("got %q, %+v, %v; want %q", got, d, err, head+tt.want)
		}
	}
}

// line writes a table as devmapper.go gives it to the kernel.
func line(table devmapper.Table) string {
	v, ok := table.(devmapper.VerityTable)
	if !ok {
		return ""
	}
	words := []any{v.Start / devmapper.SectorSize, v.Length / devmapper.SectorSize, "verity", v.HashType, v.DataDevice, v.HashDevice,
		v.DataBlockSize, v.HashBlockSize, v.NumDataBlocks, v.HashStartBlock, v.Algorithm, v.Digest, v.Salt}
	for _, p := range v.Params {
		words = append(words, p)
	}
	return strings.TrimSuffix(fmt.Sprintln(words...), "\n")
}

// A kernel without DM_VERITY_FEC opens the image all the same: it is whole, and
// only not repaired. The policy is kept.
func TestVerityWithoutRepair(t *testing.T) {
	for _, tt := range []struct {
		policy    OnCorruption
		unknown   []string // beside parity
		want      []string
		errorsToo bool
	}{
		{CorruptionEIO, nil, nil, false},
		{CorruptionRestart, nil, []string{"2", "restart_on_corruption", "restart_on_error"}, true},
		{CorruptionRestart, []string{"restart_on_error"}, []string{"1", "restart_on_corruption"}, false},
	} {
		f := &fake{unknown: append([]string{"use_fec_from_device"}, tt.unknown...)}
		c, _ := control(t, f, true)
		v := goodVerity()
		v.OnCorruption, v.FEC = tt.policy, VerityFEC{Roots: 2, Blocks: 260, Start: 4}
		d, err := c.Verity("x", "", v)
		if err != nil || d.Repairs || d.ErrorsToo != tt.errorsToo {
			t.Errorf("%s without %q: got %+v, %v; want ErrorsToo %v and no repair", tt.policy, f.unknown, d, err, tt.errorsToo)
			continue
		}
		if got := f.table.(devmapper.VerityTable).Params; !slices.Equal(got, tt.want) {
			t.Errorf("%s without %q: got options %q, want %q", tt.policy, f.unknown, got, tt.want)
		}
	}
	// one that only knows no restart_on_error repairs
	f := &fake{unknown: []string{"panic_on_error"}}
	c, _ := control(t, f, true)
	v := goodVerity()
	v.FEC = VerityFEC{Roots: 2, Blocks: 260, Start: 4}
	if d, err := c.Verity("x", "", v); err != nil || !d.Repairs || d.ErrorsToo {
		t.Errorf("got %+v, %v; want a device that repairs", d, err)
	}
}

// The kernel is given what it knows of the policy, never one that ignores.
func TestVerityOnCorruption(t *testing.T) {
	both := []string{"restart_on_error", "panic_on_error"}
	for _, tt := range []struct {
		policy    OnCorruption
		unknown   []string // to the kernel
		want      []string
		errorsToo bool
	}{
		{CorruptionEIO, nil, nil, false},
		{CorruptionRestart, nil, []string{"2", "restart_on_corruption", "restart_on_error"}, true},
		{CorruptionRestart, both, []string{"1", "restart_on_corruption"}, false},
		{CorruptionPanic, nil, []string{"2", "panic_on_corruption", "panic_on_error"}, true},
		{CorruptionPanic, both, []string{"1", "panic_on_corruption"}, false},
	} {
		f := &fake{unknown: tt.unknown}
		c, _ := control(t, f, true)
		v := goodVerity()
		v.OnCorruption = tt.policy
		d, err := c.Verity("x", "", v)
		if err != nil || d.ErrorsToo != tt.errorsToo {
			t.Errorf("%s without %q: got %+v, %v, want ErrorsToo %v", tt.policy, tt.unknown, d, err, tt.errorsToo)
			continue
		}
		if got := f.table.(devmapper.VerityTable).Params; !slices.Equal(got, tt.want) {
			t.Errorf("%s without %q: got options %q, want %q", tt.policy, tt.unknown, got, tt.want)
		}
	}
	// A kernel that does not know the policy itself gets no device without it.
	f := &fake{unknown: append(both, "restart_on_corruption")}
	c, _ := control(t, f, true)
	v := goodVerity()
	v.OnCorruption = CorruptionRestart
	if d, err := c.Verity("x", "", v); !errors.Is(err, unix.EINVAL) || d != (Device{}) || f.steps[len(f.steps)-1] != "remove x" {
		t.Errorf("got %+v, %v after %q, want %v and the device removed", d, err, f.steps, unix.EINVAL)
	}
}

func TestCrypt(t *testing.T) {
	f := &fake{}
	c, _ := control(t, f, true)
	if _, err := c.Crypt("sealroot-state", "CRYPT-LUKS2-x", goodCrypt(), "sealroot:1234"); err != nil {
		t.Fatal(err)
	}
	if want := "load sealroot-state 0"; f.steps[1] != want {
		t.Errorf("got %q, want %q", f.steps[1], want)
	}
	readOnly := goodCrypt()
	readOnly.ReadOnly = true
	other := &fake{}
	c, _ = control(t, other, true)
	if _, err := c.Crypt("sealroot-state", "CRYPT-LUKS2-x", readOnly, "sealroot:1234"); err != nil || other.steps[1] != "load sealroot-state 1" {
		t.Errorf("read-only: %v, %q", err, other.steps)
	}
	want := devmapper.CryptTable{
		Length: 64 << 20, BackendDevice: "7:0", BackendOffset: 16 << 20,
		Encryption: "aes-xts-plain64", KeyID: ":64:logon:sealroot:1234", SectorSize: 4096,
	}
	if !reflect.DeepEqual(f.table, want) {
		t.Errorf("table\ngot:  %+v\nwant: %+v", f.table, want)
	}
}

// The table of a device in use is loaded first and then exchanged in one call; whatever
// goes wrong, the device is not left suspended, and no table waits for the next resume.
func TestRecrypt(t *testing.T) {
	const load, swap, clear, resume = "load x 0", "swap x", "clear x", "resume x"
	for name, tt := range map[string]struct {
		fail  map[string]error
		swaps []error
		want  []string
		err   error
	}{
		"done":        {want: []string{load, swap}},
		"interrupted": {swaps: []error{unix.EINTR, unix.EINVAL, nil}, want: []string{load, swap, load, swap, load, swap}},
		"no_load":     {fail: map[string]error{"load": unix.EINVAL}, want: []string{load, clear, resume}, err: unix.EINVAL},
		"no_swap":     {swaps: []error{unix.ENOMEM}, want: []string{load, swap, clear, resume}, err: unix.ENOMEM},
		"for_ever": {fail: map[string]error{"swap": unix.EINTR}, err: unix.EINTR,
			want: append(slices.Repeat([]string{load, swap}, 8), clear, resume)},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{fail: tt.fail, swaps: tt.swaps}
			c, _ := control(t, f, false)
			err := c.Recrypt("x", goodCrypt(), "sealroot:1234")
			if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) || !slices.Equal(f.steps, tt.want) {
				t.Errorf("got %v after %q, want %v after %q", err, f.steps, tt.err, tt.want)
			}
		})
	}
	f := &fake{}
	c, _ := control(t, f, false)
	bad := goodCrypt()
	bad.LengthBytes = 5
	if err := c.Recrypt("x", bad, "sealroot:1234"); !errors.Is(err, ErrTarget) || len(f.steps) != 0 {
		t.Errorf("got %v after %q, want %v and no step", err, f.steps, ErrTarget)
	}
}

func TestVerityTargetFailsClosed(t *testing.T) {
	tests := []struct {
		name   string
		change func(*VerityTarget)
	}{
		{"sha1", func(v *VerityTarget) { v.Algorithm, v.RootHash = "sha1", make([]byte, 20) }},
		{"no_algorithm", func(v *VerityTarget) { v.Algorithm = "" }},
		{"short_root_hash", func(v *VerityTarget) { v.RootHash = v.RootHash[:31] }},
		{"no_root_hash", func(v *VerityTarget) { v.RootHash = nil }},
		{"long_salt", func(v *VerityTarget) { v.Salt = make([]byte, 257) }},
		{"path_as_device", func(v *VerityTarget) { v.DataDevice = "/dev/vda2" }},
		{"words_in_device", func(v *VerityTarget) { v.HashDevice = "254:3 4096" }},
		{"odd_block_size", func(v *VerityTarget) { v.DataBlockSize = 4095 }},
		{"huge_block_size", func(v *VerityTarget) { v.HashBlockSize = 1 << 20 }},
		{"no_blocks", func(v *VerityTarget) { v.DataBlocks = 0 }},
		{"too_many_blocks", func(v *VerityTarget) { v.DataBlocks = 1 << 63 }},
		{"no_answer_to_corruption", func(v *VerityTarget) { v.OnCorruption = "" }},
		{"ignored_corruption", func(v *VerityTarget) { v.OnCorruption = "ignore_corruption" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := &fake{}
			c, _ := control(t, f, false)
			v := goodVerity()
			tt.change(&v)
			d, err := c.Verity("x", "", v)
			if !errors.Is(err, ErrTarget) || d != (Device{}) || len(f.steps) != 0 {
				t.Errorf("got %+v, %v after %q, want %v and no step", d, err, f.steps, ErrTarget)
			}
		})
	}
}

func TestCryptTargetFailsClosed(t *testing.T) {
	tests := []struct {
		name   string
		change func(*CryptTarget)
		key    string
	}{
		{"null_cipher", func(c *CryptTarget) { c.Encryption = "cipher_null-ecb" }, "a:b"},
		{"words_in_cipher", func(c *CryptTarget) { c.Encryption = "aes-xts-plain64 00" }, "a:b"},
		{"path_as_device", func(c *CryptTarget) { c.Device = "/dev/loop0" }, "a:b"},
		{"short_key", func(c *CryptTarget) { c.KeyBytes = 16 }, "a:b"},
		{"sector_size", func(c *CryptTarget) { c.SectorSize = 0 }, "a:b"},
		{"length", func(c *CryptTarget) { c.LengthBytes = 4097 }, "a:b"},
		{"no_length", func(c *CryptTarget) { c.LengthBytes = 0 }, "a:b"},
		{"offset", func(c *CryptTarget) { c.OffsetBytes = 1 }, "a:b"},
		{"no_description", func(*CryptTarget) {}, ""},
		{"words_in_description", func(*CryptTarget) {}, "a:b 0 7:0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := &fake{}
			c, _ := control(t, f, false)
			target := goodCrypt()
			tt.change(&target)
			d, err := c.Crypt("x", "", target, tt.key)
			if !errors.Is(err, ErrTarget) || d != (Device{}) || len(f.steps) != 0 {
				t.Errorf("got %+v, %v after %q, want %v and no step", d, err, f.steps, ErrTarget)
			}
		})
	}
}

func TestNamesThatTheKernelWouldCut(t *testing.T) {
	c, _ := control(t, &fake{}, false)
	for _, name := range []string{"", "a/b", strings.Repeat("n", 128)} {
		if _, err := c.Verity(name, "", goodVerity()); !errors.Is(err, ErrTarget) {
			t.Errorf("name %q: got %v, want %v", name, err, ErrTarget)
		}
	}
	if _, err := c.Verity("x", strings.Repeat("u", 129), goodVerity()); !errors.Is(err, ErrTarget) {
		t.Errorf("UUID: got %v, want %v", err, ErrTarget)
	}
}

func TestAFailedDeviceIsRemoved(t *testing.T) {
	for _, op := range []string{"load", "resume", "info"} {
		f := &fake{fail: map[string]error{op: unix.EIO}}
		c, _ := control(t, f, true)
		d, err := c.Verity("x", "", goodVerity())
		if !errors.Is(err, unix.EIO) || d != (Device{}) {
			t.Errorf("%s: got %+v, %v, want EIO", op, d, err)
		}
		if got := f.steps[len(f.steps)-1]; got != "remove x" {
			t.Errorf("%s: last step %q, want remove", op, got)
		}
	}
}

func TestAnExistingDeviceIsLeftAlone(t *testing.T) {
	f := &fake{fail: map[string]error{"create": unix.EBUSY}}
	c, _ := control(t, f, true)
	if _, err := c.Verity("x", "", goodVerity()); !errors.Is(err, ErrExists) {
		t.Errorf("got %v, want %v", err, ErrExists)
	}
	if want := []string{"create x "}; !slices.Equal(f.steps, want) {
		t.Errorf("got %q, want %q", f.steps, want)
	}
}

func TestNodeOfADeviceThatDoesNotAppear(t *testing.T) {
	f := &fake{}
	c, sleeps := control(t, f, false)
	if _, err := c.Verity("x", "", goodVerity()); !errors.Is(err, ErrNoNode) {
		t.Errorf("got %v, want %v", err, ErrNoNode)
	}
	if *sleeps == 0 || *sleeps > 100 {
		t.Errorf("slept %d times, want some and at most 100", *sleeps)
	}
}

func TestNodeOfAnotherDevice(t *testing.T) {
	f := &fake{}
	c, _ := control(t, f, false)
	if err := unix.Mknod(filepath.Join(c.dev, "dm-3"), unix.S_IFBLK|0o600, int(unix.Mkdev(253, 4))); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Verity("x", "", goodVerity()); !errors.Is(err, ErrNoNode) {
		t.Errorf("got %v, want %v", err, ErrNoNode)
	}
}

func TestRemoveTriesAgain(t *testing.T) {
	f := &fake{busy: 3}
	c, sleeps := control(t, f, false)
	if err := c.Remove("x"); err != nil || *sleeps != 3 {
		t.Errorf("got %v after %d waits, want success after 3", err, *sleeps)
	}
	f = &fake{busy: 1000}
	c, sleeps = control(t, f, false)
	if err := c.Remove("x"); !errors.Is(err, unix.EBUSY) || *sleeps != 19 {
		t.Errorf("got %v after %d waits, want EBUSY after 19", err, *sleeps)
	}
	f = &fake{fail: map[string]error{"remove": unix.ENXIO}}
	c, sleeps = control(t, f, false)
	if err := c.Remove("x"); !errors.Is(err, unix.ENXIO) || *sleeps != 0 {
		t.Errorf("got %v after %d waits, want ENXIO at once", err, *sleeps)
	}
}
