package state

import (
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state/luks2"
)

// A journal that cannot be replayed keeps nobody from reading the volume; one that is to be
// writable is not mounted without it, but where there was no room to reserve what it spans.
// One that does not settle becomes read-only.
func TestMount(t *testing.T) {
	full := errors.New("full")
	h, err := luks2.Format(luks2.FormatParams{UUID: uuidText([16]byte{1}), VolumeKey: make([]byte, 64), SectorSize: BlockSize, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name      string
		readOnly  error
		unsettled error
		cut       bool   // it does not settle
		fail      []bool // what Mount does, one after the other
		steps     string // rw, ro, or none of the journal; - for Unmount
		// What comes of it.
		err, unreplayed bool
		endsReadOnly    bool
	}{
		{name: "writable", steps: "rw"},
		{name: "writable_fails", fail: []bool{true}, steps: "rw", err: true},
		{name: "read_only", readOnly: full, steps: "ro", endsReadOnly: true},
		{name: "read_only_without_replay", readOnly: full, fail: []bool{true}, steps: "ro none", unreplayed: true, endsReadOnly: true},
		{name: "nothing_helps", readOnly: full, fail: []bool{true, true}, steps: "ro none", err: true, endsReadOnly: true},
		{name: "no_room", unsettled: full, fail: []bool{true}, steps: "rw ro", endsReadOnly: true},
		{name: "no_room_at_all", unsettled: full, fail: []bool{true, true}, steps: "rw ro none", unreplayed: true, endsReadOnly: true},
		{name: "no_room_and_broken", unsettled: full, fail: []bool{true, true, true}, steps: "rw ro none", err: true, endsReadOnly: true},
		{name: "does_not_settle", cut: true, steps: "rw - ro", endsReadOnly: true},
		{name: "does_not_settle_nor_replay", cut: true, fail: []bool{false, true}, steps: "rw - ro none", unreplayed: true, endsReadOnly: true},
	} {
		for _, kind := range []Filesystem{Ext4, Btrfs} {
			if tt.cut && kind == Btrfs {
				continue // Settle has nothing to do
			}
			t.Run(tt.name+"_"+string(kind), func(t *testing.T) {
				inside, err := os.Create(filepath.Join(t.TempDir(), "inside"))
				if err != nil {
					t.Fatal(err)
				}
				defer inside.Close()
				if err := errors.Join(inside.Truncate(256<<20), WriteFilesystem(inside, kind, rand.Reader)); err != nil {
					t.Fatal(err)
				}
				sb, err := ReadSuperblock(inside)
				if err != nil {
					t.Fatal(err)
				}
				v := &Volume{Header: h, ReadOnly: tt.readOnly, Unsettled: tt.unsettled, Superblock: sb, crypt: plainDevice{inside, 256 << 20}}
				if tt.cut {
					v.crypt = plainDevice{inside, 1 << 20}
				}
				var steps []string
				mounted := 0
				err = v.Mount(nil, Mounting{
					Mount: func(device string, f Filesystem, options []string) (*os.File, error) {
						if device != inside.Name() || f != kind || options[0] != kind.MountOptions()[0] {
							t.Errorf("%s of %s with %q", f, device, options)
						}
						// Where it has to hold, nothing is written that nobody has asked for.
						if got := slices.Contains(options, "noinit_itable"); got != (kind == Ext4 && tt.unsettled != nil) {
							t.Errorf("options %q", options)
						}
						step := "rw"
						if slices.Contains(options, "ro") {
							step = "ro"
						}
						if slices.Contains(options, kind.NoReplay()) {
							if step != "ro" {
								t.Error("a volume is writable beside its journal")
							}
							step = "none"
						}
						tries := slices.DeleteFunc(slices.Clone(steps), func(s string) bool { return s == "-" })
						steps = append(steps, step)
						if n := len(tries); n < len(tt.fail) && tt.fail[n] {
							return nil, unix.EIO
						}
						mounted++
						return os.Open(t.TempDir())
					},
					Unmount: func() error { steps = append(steps, "-"); mounted--; return nil },
				})
				if got := strings.Join(steps, " "); got != tt.steps || (err != nil) != tt.err || err != nil && !errors.Is(err, unix.EIO) || (mounted == 1) == tt.err {
					t.Errorf("steps %s, want %s; error %v, want %v; mounted %d", got, tt.steps, err, tt.err, mounted)
				}
				if (v.ReadOnly != nil) != tt.endsReadOnly || (v.Unreplayed != nil) != tt.unreplayed || tt.unsettled != nil && !errors.Is(v.ReadOnly, full) {
					t.Errorf("read-only: %v, unreplayed: %v; want %v, %v", v.ReadOnly, v.Unreplayed, tt.endsReadOnly, tt.unreplayed)
				}
			})
		}
	}
}

// The options are those that the kernel takes: an ext4 whose journal is full of changes, on a
// device that cannot be written to, is mounted with them alone. Nothing can write to the
// device then: it would be beside the journal.
func TestMountWithoutReplay(t *testing.T) {
	dir := t.TempDir()
	disk, copied, where := filepath.Join(dir, "disk"), filepath.Join(dir, "copied"), filepath.Join(dir, "mount")
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v: %s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 64<<20), os.Mkdir(where, 0o700)); err != nil {
		t.Fatal(err)
	}
	run("mkfs.ext4", "-q", disk)
	run("mount", "-o", "loop", disk, where)
	if err := os.WriteFile(filepath.Join(where, "file"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	run("sync", "-f", where)
	run("cp", disk, copied) // as a cut leaves it: the journal has it all
	run("umount", where)
	node := run("losetup", "--find", "--show", copied)
	defer run("losetup", "--detach", node)
	defer run("blockdev", "--setrw", node) // who is given it next finds it as this left it
	device, err := os.Open(node)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	kernel := func(options []string) (*os.File, error) {
		rest := slices.DeleteFunc(slices.Clone(options), func(o string) bool { return o == "ro" })
		if err := unix.Mount(node, where, "ext4", unix.MS_RDONLY, strings.Join(rest, ",")); err != nil {
			return nil, err
		}
		return os.Open(where)
	}
	v := &Volume{ReadOnly: ErrNoRoom, Superblock: Superblock{Type: Ext4}, crypt: plainDevice{device, 64 << 20}}
	err = v.Mount(nil, Mounting{Mount: func(_ string, f Filesystem, options []string) (*os.File, error) {
		if slices.Contains(options, f.NoReplay()) {
			return kernel(options)
		}
		run("blockdev", "--setro", node) // as good as no room for what is written
		defer run("blockdev", "--setrw", node)
		return kernel(options)
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer run("umount", where)
	if v.Unreplayed == nil {
		t.Fatal("control: a journal was replayed on a read-only device")
	}
	if ro := run("blockdev", "--getro", node); ro != "1" {
		t.Errorf("the device can be written to: %s", ro)
	}
}
