package machine

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"golang.org/x/sys/unix"

	"sealroot/mount"
	"sealroot/mount/blockdev"
	"sealroot/sealroot/bootset"
	"sealroot/slots"
	"sealroot/slots/efi"
	slotesp "sealroot/slots/esp"
	"sealroot/slots/gpt"
	"sealroot/slots/guid"
	"sealroot/slots/live"
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
	reads         int // how often a reader is still there
	trace         *[]string
}

func (b *busy) Mount(p mount.Point) error {
	ro := p.Flags&unix.MS_RDONLY != 0
	if b.reads--; b.ours || ro && b.systems || b.reads >= 0 {
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
		{"for_writing_beside_a_reader", busy{reads: 2}, 0, "busy busy rw"},
		{"left_and_not_ours", busy{ours: true}, unix.MS_RDONLY, "busy busy error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var trace []string
			c.table.trace = &trace
			err := (mounter{&c.table, c.name != "left_and_not_ours"}).Mount(mount.Point{Where: "/run/x", Flags: c.flags})
			if err != nil {
				trace = append(trace, "error")
			}
			if got := strings.Join(trace, " "); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// left are the mounts of killed readers, which keep others from mounting.
type left struct {
	mount.Mounter // nil: nothing else is called
	at            []string
}

func (l *left) Mount(mount.Point) error {
	if len(l.at) > 0 {
		return unix.EBUSY
	}
	return nil
}

func (l *left) Unmount(where string) error {
	i := slices.Index(l.at, where)
	if i < 0 {
		return unix.EINVAL
	}
	l.at = slices.Delete(l.at, i, i+1)
	return nil
}

// A writer is not held up by a reader that was killed; one that lives is left
// alone.
func TestMountOfADeadReader(t *testing.T) {
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	where := filepath.Join(t.TempDir(), "esp")
	place := func(pid int) string {
		path := fmt.Sprintf("%s-%d", where, pid)
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	lives, died := place(os.Getpid()), place(dead.Process.Pid)
	table := &left{at: []string{died}}
	if err := (mounter{table, true}).Mount(mount.Point{Where: where}); err != nil {
		t.Errorf("beside a dead reader: %v", err)
	}
	if _, err := os.Stat(died); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the dead reader's folder: got error %v, want that it is gone", err)
	}
	table.at = []string{lives}
	if (mounter{table, true}).undoDead(where) || len(table.at) != 1 {
		t.Error("the mount of a reader that lives was undone")
	}
	table.at = []string{place(dead.Process.Pid)}
	if err := (mounter{table, false}).Mount(mount.Point{Where: where, Flags: unix.MS_RDONLY}); !errors.Is(err, unix.EBUSY) {
		t.Errorf("without the lock: got error %v, want %v", err, unix.EBUSY)
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

func TestImageOf(t *testing.T) {
	name := func(c slotesp.Counter) string { return slotesp.LinuxDir + "/" + slotesp.UKIName("b", c) }
	plain, three, none := slotesp.Counter{}, slotesp.Counting(3, 0), slotesp.Counting(0, 3)
	for _, c := range []struct {
		name  string
		files []slotesp.Counter
		want  slotesp.Counter
	}{
		{"none", nil, plain},
		{"one", []slotesp.Counter{three}, three},
		{"a_cut_rename_left_two", []slotesp.Counter{three, none}, none},
		{"a_cut_commit_left_two", []slotesp.Counter{plain, three}, three},
	} {
		files := map[string][]byte{slotesp.UKI("a"): nil, "EFI/Linux/other.efi": nil}
		for _, f := range c.files {
			files[name(f)] = nil
		}
		if got, err := imageOf(newFolder(t, files).dir, "b"); err != nil || got != name(c.want) {
			t.Errorf("%s: imageOf() = %s, %v; want %s", c.name, got, err, name(c.want))
		}
	}
}

// TestLoadedFallback: EFI/BOOT/BOOTX64.EFI was started, and that is a copy of
// some slot's image or of none.
func TestLoadedFallback(t *testing.T) {
	for _, c := range []struct{ name, a, b, started, want string }{
		{"other_slot", "old", "new", "old", "a"},
		{"running_slot", "old", "new", "new", "b"},
		{"copies", "same", "same", "same", "b"},
		{"none", "old", "new", "GRUB", "?"},
	} {
		esp := newFolder(t, map[string][]byte{slotesp.UKI("a"): []byte(c.a), slotesp.UKI("b"): []byte(c.b), slotesp.Fallback: []byte(c.started)})
		if got, err := loadedFallback(esp, "b"); err != nil || got != c.want {
			t.Errorf("%s: loadedFallback() = %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

// opened is the loader that live opens for a disk with an ESP and two slots.
func opened(t *testing.T, loader string, v vars) slots.Loader {
	t.Helper()
	table := &gpt.Table{SectorSize: 512, Partitions: []gpt.Partition{
		{Number: 1, First: 8, Last: 15, UUID: guid.Must(efi.Systemd), Name: gpt.LabelESP},
		{Number: 2, First: 16, Last: 23, Name: "root-a"},
		{Number: 3, First: 24, Last: 31, Name: "root-b"},
	}}
	d := &live.Disk{Table: table}
	for _, p := range table.Partitions {
		d.Block.Partitions = append(d.Block.Partitions, blockdev.Partition{Number: p.Number, Start: table.Offset(p), Size: table.Size(p)})
	}
	k, err := d.Open(live.Choice{Loader: loader, UEFI: v != nil}, live.ESP{Disk: d}, v)
	if err != nil {
		t.Fatal(err)
	}
	return k.Loader
}

// TestPlaces: what a commit sets, by the loader, with and without variables of the
// firmware.
func TestPlaces(t *testing.T) {
	image := map[string][]byte{slotesp.UKI("b"): uki(t, "b"), slotesp.Fallback: uki(t, "a")}
	conf := map[string][]byte{slotesp.UKI("b"): nil, slotesp.Fallback: []byte("systemd-boot"), slotesp.LoaderConf: []byte("timeout 0\ndefault sealroot-a[+.]*\n")}
	for _, c := range []struct {
		name    string
		loader  string
		vars    vars
		files   map[string][]byte
		changed string
	}{
		{"uki", live.LoaderUKI, vars{}, image, "the firmware's boot order, " + slotesp.Fallback},
		{"uki_without_variables", live.LoaderUKI, nil, image, slotesp.Fallback},
		{"systemd_boot", live.LoaderSystemdBoot, vars{}, conf, live.LoaderSystemdBoot + ", " + slotesp.LoaderConf},
		{"systemd_boot_without_variables", live.LoaderSystemdBoot, nil, conf, slotesp.LoaderConf},
	} {
		t.Run(c.name, func(t *testing.T) {
			esp := newFolder(t, c.files)
			var changed []string
			l := bootset.Loader{Places: places(c.loader, opened(t, c.loader, c.vars), esp), Changed: func(p, _ string) { changed = append(changed, p) }}
			for range 2 { // the second time there is nothing to do
				if err := l.SetDefault("b"); err != nil {
					t.Fatal(err)
				}
			}
			if got := strings.Join(changed, ", "); got != c.changed {
				t.Errorf("changed %s, want %s", got, c.changed)
			}
			if first, err := l.IsDefault("b"); !first || err != nil {
				t.Errorf("IsDefault(b) = %v, %v", first, err)
			}
			if first, err := l.IsDefault("a"); first || err != nil {
				t.Errorf("IsDefault(a) = %v, %v", first, err)
			}
			if c.files[slotesp.LoaderConf] != nil {
				if got := string(esp.read(t, slotesp.LoaderConf)); got != "timeout 0\ndefault sealroot-b[+.]*\n" {
					t.Errorf("loader.conf is %q", got)
				}
			}
		})
	}
}

// What systemd-boot starts is what its variable names, and without one the file.
func TestSystemdBootStarts(t *testing.T) {
	for _, c := range []struct{ name, variable, want string }{
		{"variable", "sealroot-a[+.]*", "a"},
		{"by_bootctl", "sealroot-a.efi", "a"},
		{"no_variable", "", "b"},
		{"of_nobody", "windows.conf", "b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := vars{}
			if c.variable != "" {
				v["LoaderEntryDefault"] = loaderText(c.variable)
			}
			esp := newFolder(t, map[string][]byte{slotesp.LoaderConf: []byte("default sealroot-b[+.]*\n")})
			l := bootset.Loader{Places: places(live.LoaderSystemdBoot, opened(t, live.LoaderSystemdBoot, v), esp)}
			for _, slot := range []string{"a", "b"} {
				if starts, err := l.IsDefault(slot); err != nil || starts != (slot == c.want) {
					t.Errorf("IsDefault(%s) = %v, %v; want that %s starts", slot, starts, err, c.want)
				}
			}
			if err := l.SetDefault("b"); err != nil || !bytes.Equal(v["LoaderEntryDefault"], loaderText("sealroot-b[+.]*")) {
				t.Errorf("SetDefault(b): %v, the variable is %q", err, v["LoaderEntryDefault"])
			}
		})
	}
}

// loaderText is the text as the Boot Loader Interface has it: UTF-16 with a zero
// at its end.
func loaderText(s string) []byte {
	var b []byte
	for _, c := range utf16.Encode([]rune(s + "\x00")) {
		b = append(b, byte(c), byte(c>>8))
	}
	return b
}

func TestDamagedGrubenvIsMended(t *testing.T) {
	esp := newFolder(t, map[string][]byte{slotesp.Grubenv: make([]byte, 1024)})
	l := bootset.Loader{Places: places(live.LoaderGRUB, nil, esp)}
	if err := l.SetDefault("a"); err != nil {
		t.Fatal(err)
	}
	if right, err := (grubDefault{esp}).IsDefault("a"); !right || err != nil {
		t.Errorf("IsDefault(a) = %v, %v; want true, nil", right, err)
	}
}
