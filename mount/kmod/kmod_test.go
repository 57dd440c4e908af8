package kmod

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

const release = "6.1.0-test"

func mod(name string, g Group, aliases []string, deps ...int) Module {
	return Module{Name: name, Path: "/usr/lib/modules/" + release + "/kernel/" + name + ".ko", Deps: deps, Group: g, Aliases: aliases}
}

// sample is a list as mkinitramfs writes it.
func sample() List {
	return List{Release: release, Modules: []Module{
		mod("sha256_generic", GroupBase, nil),                                     // 0
		mod("sha256_ssse3", GroupBase, nil, 0),                                    // 1
		mod("virtio_ring", GroupDriver, nil),                                      // 2
		mod("virtio", GroupDriver, nil, 2),                                        // 3
		mod("virtio_pci", GroupDriver, []string{"pci:v00001AF4d*sv*sd*bc*i*"}, 3), // 4
		mod("virtio_blk", GroupDriver, []string{"virtio:d00000002v*"}, 3),         // 5
		mod("nvme", GroupDriver, []string{"pci:v*d*sv*sd*bc01sc08i02*"}),          // 6
		mod("dm_mod", GroupBase, nil),                                             // 7
		mod("dm_verity", GroupRoot, nil, 7),                                       // 8
		mod("squashfs", GroupRoot, nil),                                           // 9
		mod("dm_crypt", GroupState, nil, 7),                                       // 10
	}}
}

// inserter writes down what is loaded; paths in fail do not load, and virtio_pci
// makes the devices appear that real hardware would.
type inserter struct {
	mu     sync.Mutex
	loaded []string
	fail   map[string]error
	then   map[string]func()
}

func (i *inserter) Insert(path string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	name := strings.TrimSuffix(filepath.Base(path), ".ko")
	if err := i.fail[name]; err != nil {
		return err
	}
	i.loaded = append(i.loaded, name)
	if f := i.then[name]; f != nil {
		f()
	}
	return nil
}

// sysfs makes a /sys in which the named devices of a bus have modaliases.
func sysfs(t *testing.T, devices map[string]string) (dir string, add func(device, alias string)) {
	t.Helper()
	dir = t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "bus/empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	add = func(device, alias string) {
		bus, name, _ := strings.Cut(device, "/")
		d := filepath.Join(dir, "bus", bus, "devices", name)
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Error(err)
		}
		if alias == "" {
			return
		}
		if err := os.WriteFile(filepath.Join(d, "modalias"), []byte(alias+"\n"), 0o644); err != nil {
			t.Error(err)
		}
	}
	for d, a := range devices {
		add(d, a)
	}
	return dir, add
}

// checkOrder holds that each module came after its dependencies, and once.
func checkOrder(t *testing.T, l List, loaded []string) {
	t.Helper()
	for _, m := range l.Modules {
		at := slices.Index(loaded, m.Name)
		if at >= 0 && slices.Contains(loaded[at+1:], m.Name) {
			t.Errorf("%s was loaded twice: %q", m.Name, loaded)
		}
		for _, d := range m.Deps {
			dep := slices.Index(loaded, l.Modules[d].Name)
			if at >= 0 && (dep < 0 || dep > at) {
				t.Errorf("%s was loaded before %s: %q", m.Name, l.Modules[d].Name, loaded)
			}
		}
	}
}

func TestLoadGroup(t *testing.T) {
	ins := &inserter{}
	l := NewLoader(sample(), t.TempDir(), ins)
	for _, g := range []Group{GroupBase, GroupRoot, GroupRoot, GroupState, GroupHint} {
		if err := l.LoadGroup(t.Context(), g); err != nil {
			t.Fatalf("%s: %v", g, err)
		}
	}
	checkOrder(t, sample(), ins.loaded)
	if want := []string{"sha256_generic", "sha256_ssse3", "dm_mod"}; !slices.Equal(ins.loaded[:3], want) {
		t.Errorf("base: got %q, want %q", ins.loaded[:3], want)
	}
	got := slices.Sorted(slices.Values(ins.loaded[3:]))
	if want := []string{"dm_crypt", "dm_verity", "squashfs"}; !slices.Equal(got, want) {
		t.Errorf("others: got %q, want %q", got, want)
	}
}

func TestLoadGroupNamesModuleAndReason(t *testing.T) {
	ins := &inserter{fail: map[string]error{"dm_mod": unix.ENOKEY}}
	l := NewLoader(sample(), t.TempDir(), ins)
	err := l.LoadGroup(t.Context(), GroupRoot)
	if !errors.Is(err, unix.ENOKEY) {
		t.Fatalf("got %v, want ENOKEY", err)
	}
	if want := "cannot load module dm_verity: cannot load module dm_mod: required key not available"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	if want := []string{"squashfs"}; !slices.Equal(ins.loaded, want) {
		t.Errorf("got %q, want the others loaded: %q", ins.loaded, want)
	}
}

// panicker brings the program down at each module.
type panicker struct{}

func (panicker) Insert(string) error { panic("a module") }

// Modules are loaded in goroutines, where a panic would be the end of PID 1.
func TestPanicIsAModuleThatFailed(t *testing.T) {
	l := NewLoader(sample(), t.TempDir(), panicker{})
	for range 2 { // the second time no goroutine tries it again
		if err := l.LoadGroup(t.Context(), GroupRoot); err == nil || !strings.Contains(err.Error(), "cannot load module squashfs: internal error: a module") {
			t.Errorf("LoadGroup() = %v", err)
		}
	}
}

func TestLoadForDevicesGoesOnUntilNothingIsNew(t *testing.T) {
	sys, add := sysfs(t, map[string]string{
		"pci/0000:00:02.0": "pci:v00001AF4d00001001sv00001AF4sd00000002bc01sc00i00",
		"pci/0000:00:1f.0": "",
		"acpi/PNP0A08:00":  "acpi:PNP0A08:PNP0A03:",
	})
	ins := &inserter{then: map[string]func(){
		"virtio_pci": func() { add("virtio/virtio0", "virtio:d00000002v00001AF4") },
	}}
	warnings, err := NewLoader(sample(), sys, ins).LoadForDevices(t.Context())
	if err != nil || warnings != nil {
		t.Fatalf("got %v, %v, want no error", warnings, err)
	}
	if want := []string{"virtio_ring", "virtio", "virtio_pci", "virtio_blk"}; !slices.Equal(ins.loaded, want) {
		t.Errorf("got %q, want %q", ins.loaded, want)
	}
}

func TestABrokenDriverIsAWarning(t *testing.T) {
	sys, _ := sysfs(t, map[string]string{
		"pci/a": "pci:v00001AF4d00001001sv00001AF4sd00000002bc01sc00i00",
		"pci/b": "pci:v00008086d00001000sv00001AF4sd00000002bc01sc08i02",
	})
	ins := &inserter{fail: map[string]error{"nvme": unix.ENODEV}}
	warnings, err := NewLoader(sample(), sys, ins).LoadForDevices(t.Context())
	if err != nil || len(warnings) != 1 || warnings[0].Error() != "cannot load module nvme: no such device" {
		t.Errorf("got %v, %v, want one warning", warnings, err)
	}
	if !slices.Contains(ins.loaded, "virtio_pci") {
		t.Errorf("got %q, want virtio_pci loaded", ins.loaded)
	}
}

func TestLoadModaliases(t *testing.T) {
	ins := &inserter{}
	l := NewLoader(sample(), t.TempDir(), ins)
	for range 2 {
		if w := l.LoadModaliases(t.Context(), []string{"virtio:d00000002v00001AF4", "virtio:d00000009v00001AF4"}); w != nil {
			t.Fatal(w)
		}
	}
	if want := []string{"virtio_ring", "virtio", "virtio_blk"}; !slices.Equal(ins.loaded, want) {
		t.Errorf("got %q, want %q", ins.loaded, want)
	}
}

func TestNothingIsLoadedAfterTheDeadline(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ins := &inserter{}
	if err := NewLoader(sample(), t.TempDir(), ins).LoadGroup(ctx, GroupBase); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if len(ins.loaded) != 0 {
		t.Errorf("got %q, want nothing", ins.loaded)
	}
}

func TestLoadersSideBySideLoadOnce(t *testing.T) {
	for range 50 {
		ins := &inserter{}
		l := NewLoader(sample(), t.TempDir(), ins)
		var wg sync.WaitGroup
		for _, g := range []Group{GroupBase, GroupRoot, GroupState, GroupDriver, GroupRoot} {
			wg.Go(func() {
				if err := l.LoadGroup(t.Context(), g); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		checkOrder(t, sample(), ins.loaded)
		if len(ins.loaded) != len(sample().Modules) {
			t.Fatalf("got %d modules, want %d", len(ins.loaded), len(sample().Modules))
		}
	}
}

func TestKernelInsert(t *testing.T) {
	if err := (Kernel{}).Insert(filepath.Join(t.TempDir(), "none.ko")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want %v", err, os.ErrNotExist)
	}
	text := filepath.Join(t.TempDir(), "text.ko")
	if err := os.WriteFile(text, []byte("not a module"), 0o600); err != nil {
		t.Fatal(err)
	}
	// ENOEXEC from a kernel with modules, ENOSYS from one without.
	if err := (Kernel{}).Insert(text); !errors.Is(err, unix.ENOEXEC) && !errors.Is(err, unix.ENOSYS) {
		t.Errorf("got %v, want ENOEXEC", err)
	}
}

func TestCheckRelease(t *testing.T) {
	out, err := exec.Command("uname", "-r").Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := (List{Release: strings.TrimSpace(string(out))}).CheckRelease(); err != nil {
		t.Error(err)
	}
	if err := sample().CheckRelease(); !errors.Is(err, ErrRelease) {
		t.Errorf("got %v, want %v", err, ErrRelease)
	}
}

// What lies below /sys/devices is found by way of the buses too: each device
// with a modalias whose subsystem is a bus (a class, such as input, has no
// drivers), and the processors.
func TestModaliasesOfThisMachine(t *testing.T) {
	want := make(map[string]bool)
	err := filepath.WalkDir("/sys/devices", func(path string, _ os.DirEntry, err error) error {
		if err != nil || filepath.Base(path) != "modalias" {
			return nil // devices come and go
		}
		subsystem, err := os.Readlink(filepath.Join(filepath.Dir(path), "subsystem"))
		if (err != nil || !strings.Contains(subsystem, "/bus/")) && !strings.HasSuffix(filepath.Dir(path), "/system/cpu") {
			return nil
		}
		if b, err := os.ReadFile(path); err == nil && len(b) > 1 {
			want[strings.TrimSuffix(string(b), "\n")] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Modaliases("/sys")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	if w := slices.Sorted(maps.Keys(want)); !slices.Equal(got, w) || len(got) == 0 {
		t.Errorf("got %q, want %q", got, w)
	}
}

func encode(t *testing.T, l List) []byte {
	t.Helper()
	b, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParse(t *testing.T) {
	got, err := Parse(encode(t, sample()))
	if err != nil || !reflect.DeepEqual(got, sample()) {
		t.Errorf("got %+v, %v, want the sample", got, err)
	}
	const dir = "/usr/lib/modules/" + release + "/"
	tests := []struct {
		name   string
		change func(*List)
	}{
		{"no_release", func(l *List) { l.Release = "" }},
		{"release_is_a_path", func(l *List) { l.Release = "../x" }},
		{"release_is_dots", func(l *List) { l.Release = ".." }},
		{"no_name", func(l *List) { l.Modules[0].Name = "" }},
		{"hyphen_in_name", func(l *List) { l.Modules[0].Name = "dm-verity" }},
		{"twice", func(l *List) { l.Modules[1].Name = l.Modules[0].Name }},
		{"path_elsewhere", func(l *List) { l.Modules[0].Path = "/etc/x.ko" }},
		{"path_climbs", func(l *List) { l.Modules[0].Path = dir + "../x.ko" }},
		{"compressed", func(l *List) { l.Modules[0].Path = dir + "x.ko.xz" }},
		{"depends_on_itself", func(l *List) { l.Modules[3].Deps = []int{3} }},
		{"depends_on_a_later_one", func(l *List) { l.Modules[3].Deps = []int{4} }},
		{"depends_on_minus_one", func(l *List) { l.Modules[3].Deps = []int{-1} }},
		{"unknown_group", func(l *List) { l.Modules[0].Group = "later" }},
		{"empty_alias", func(l *List) { l.Modules[4].Aliases = []string{""} }},
		{"long_alias", func(l *List) { l.Modules[4].Aliases = []string{strings.Repeat("x", 513)} }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := sample()
			tt.change(&l)
			got, err := Parse(encode(t, l))
			if !errors.Is(err, ErrList) || !reflect.DeepEqual(got, List{}) {
				t.Errorf("got %+v, %v, want nothing and %v", got, err, ErrList)
			}
		})
	}
	for name, text := range map[string]string{
		"empty": "", "not_json": "x", "array": "[]", "unknown_field": `{"release":"x","more":1}`,
		"something_follows": `{"release":"x"} {}`, "half": `{"release":"x"`,
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := Parse([]byte(text)); !errors.Is(err, ErrList) || !reflect.DeepEqual(got, List{}) {
				t.Errorf("got %+v, %v, want nothing and %v", got, err, ErrList)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	b, err := json.Marshal(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"release":"6.1","modules":[{"name":"a","path":"/usr/lib/modules/6.1/a.ko","group":"base"}]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := Parse(b)
		if err != nil && !reflect.DeepEqual(l, List{}) {
			t.Errorf("got %+v with error %v", l, err)
		}
		for i, m := range l.Modules {
			for _, d := range m.Deps {
				if d < 0 || d >= i {
					t.Errorf("module %d depends on %d", i, d)
				}
			}
		}
	})
}
