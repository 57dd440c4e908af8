package machine

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/mount"
	"sealroot/sealroot/bootset"
	"sealroot/slots/efi"
	slotesp "sealroot/slots/esp"
	"sealroot/slots/guid"
)

// grubEditenv runs GRUB's own tool on the file.
func grubEditenv(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("grub-editenv", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("grub-editenv %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestGrubDefault(t *testing.T) {
	esp := newFolder(t, map[string][]byte{"sealroot/x": nil})
	env := filepath.Join(esp.dir, slotesp.Grubenv)
	grubEditenv(t, env, "create")
	grubEditenv(t, env, "set", "sealroot_default=a", "sealroot_once=b", "mine=kept")
	g := grubDefault{esp}
	if right, err := g.IsDefault("b"); right || err != nil {
		t.Errorf("IsDefault(b) = %v, %v; want false, nil", right, err)
	}
	if err := g.SetDefault("b"); err != nil {
		t.Fatal(err)
	}
	if right, err := g.IsDefault("b"); !right || err != nil {
		t.Errorf("IsDefault(b) = %v, %v; want true, nil", right, err)
	}
	got := strings.Fields(grubEditenv(t, env, "list"))
	slices.Sort(got)
	if want := []string{"mine=kept", "sealroot_default=b", "sealroot_once=b"}; !slices.Equal(got, want) {
		t.Errorf("grub-editenv lists %v, want %v", got, want)
	}
	if err := os.WriteFile(env, []byte("rubbish"), 0o644); err != nil {
		t.Fatal(err)
	}
	if right, err := g.IsDefault("b"); right || err == nil {
		t.Errorf("a ruined file: IsDefault(b) = %v, %v; want false and an error", right, err)
	}
	if err := os.Remove(env); err != nil {
		t.Fatal(err)
	}
	if right, err := g.IsDefault("b"); !right || err != nil {
		t.Errorf("a disk without GRUB: IsDefault(b) = %v, %v; want true, nil", right, err)
	}
}

// vars are EFI variables in memory, by name.
type vars map[string][]byte

func (v vars) Read(name, _ string) ([]byte, error) {
	b, ok := v[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return b, nil
}
func (v vars) Write(name, _ string, _ uint32, b []byte) error { v[name] = b; return nil }
func (v vars) Delete(name, _ string) error                    { delete(v, name); return nil }
func (v vars) List(string) (names []string, err error) {
	for name := range v {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

func TestBootOrder(t *testing.T) {
	id, err := guid.Parse("c0ffee00-0000-4000-8000-000000000000")
	if err != nil {
		t.Fatal(err)
	}
	other, err := guid.Parse("c0ffee00-0000-4000-8000-000000000001")
	if err != nil {
		t.Fatal(err)
	}
	v := vars{"Boot0000": []byte("somebody's"), "BootOrder": {0, 0}}
	b := bootOrder{efi.Hint{Vars: v, ESP: efi.Partition{Number: 2, Start: 4096, Size: 8192, UUID: id}}}
	want := func(slot string, right bool) {
		t.Helper()
		if got, err := b.IsDefault(slot); got != right || err != nil {
			t.Errorf("IsDefault(%s) = %v, %v; want %v, nil", slot, got, err, right)
		}
	}
	want("a", false)
	for _, slot := range []string{"a", "b"} {
		if err := b.SetDefault(slot); err != nil {
			t.Fatal(err)
		}
	}
	want("a", false)
	want("b", true)
	if got := v["BootOrder"]; !slices.Equal(got, []byte{2, 0, 1, 0, 0, 0}) {
		t.Errorf("BootOrder is %v, want b, a, somebody's", got)
	}
	// the entry is of a disk that was cloned or replaced
	b.hint.ESP.UUID = other
	want("b", false)
	delete(v, "Boot0002")
	want("b", false)
	delete(v, "BootOrder")
	want("b", false)
}

// busy is a mount table that refuses as Linux does.
type busy struct {
	mount.Mounter // nil: nothing else is called
	ours          bool
	systems       bool
	trace         *[]string
}

func (b *busy) Mount(p mount.Point) error {
	ro := p.Flags&unix.MS_RDONLY != 0
	if b.ours || ro && b.systems {
		*b.trace = append(*b.trace, "busy")
		return &os.PathError{Op: "mount", Path: p.Where, Err: unix.EBUSY}
	}
	*b.trace = append(*b.trace, map[bool]string{true: "ro", false: "rw"}[ro])
	return nil
}

func (b *busy) Unmount(string) error {
	if !b.ours {
		return unix.EINVAL
	}
	b.ours = false
	*b.trace = append(*b.trace, "unmount")
	return nil
}

func TestMounter(t *testing.T) {
	for _, c := range []struct {
		name  string
		table busy
		flags uintptr
		want  string
	}{
		{"free", busy{}, unix.MS_RDONLY, "ro"},
		{"left_by_a_killed_command", busy{ours: true}, unix.MS_RDONLY, "busy unmount ro"},
		{"mounted_by_the_system", busy{systems: true}, unix.MS_RDONLY, "busy rw"},
		{"mounted_by_the_system_and_left", busy{systems: true, ours: true}, unix.MS_RDONLY, "busy unmount busy rw"},
		{"for_writing", busy{systems: true}, 0, "rw"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var trace []string
			c.table.trace = &trace
			if err := (mounter{&c.table}).Mount(mount.Point{Where: "/run/x", Flags: c.flags}); err != nil {
				t.Errorf("Mount() = %v, want nil", err)
			}
			if got := strings.Join(trace, " "); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestPresent(t *testing.T) {
	esp := newFolder(t, map[string][]byte{"full": []byte("x"), "empty": nil})
	for _, c := range []struct {
		name string
		want error
	}{{"full", nil}, {"empty", bootset.ErrNoImage}, {"missing", bootset.ErrNoImage}} {
		if err := present(esp.dir, []string{"full", c.name}); !errors.Is(err, c.want) {
			t.Errorf("%s: got error %v, want %v", c.name, err, c.want)
		}
	}
}
