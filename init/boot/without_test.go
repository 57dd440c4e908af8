package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/mount/child"
	"sealroot/mount/dm"
	"sealroot/mount/loop"
	"sealroot/slots"
	"sealroot/state"
	"sealroot/state/layout"
	"sealroot/verity/osrelease"
)

// bindMounts mounts directories in the place of devices.
type bindMounts struct{ mount.Kernel }

func (bindMounts) MountIn(f mount.Filesystem, where mount.Place) error {
	if f.Type != "bind" {
		return mount.Kernel{}.MountIn(f, where)
	}
	return unix.Mount(f.Source, filepath.Join(where.Root, where.Path), "", unix.MS_BIND, "")
}

// busyVerity makes each device of /images/NAME, and as the kernel has it none twice, and
// takes none away that is mounted, or is a layer of an overlay that is.
type busyVerity struct {
	fakeVerity
	made map[string]bool
}

func (v busyVerity) Verity(name, _ string, _ dm.VerityTarget) (dm.Device, error) {
	if v.made[name] {
		return dm.Device{}, fmt.Errorf("%w: %w", dm.ErrExists, unix.EBUSY)
	}
	v.made[name] = true
	return dm.Device{Name: name, Path: "/images/" + strings.TrimPrefix(name, "sealroot-layer-")}, nil
}

func (v busyVerity) Remove(name string) error {
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil || regexp.MustCompile(`(?m) /layer(ed|s/\S+) | /sysroot .* - overlay `).Match(text) {
		return errors.Join(unix.EBUSY, err)
	}
	if !v.made[name] {
		return unix.ENXIO
	}
	delete(v.made, name)
	return nil
}

// What lies in the volume, or as a layer in it, and keeps the root from being put
// together or from starting, costs the volume: on_failure says what follows, nothing in
// the volume is touched, and no slot is blamed.
func TestStateThatSpoilsTheRoot(t *testing.T) {
	file := func(path, text string) error {
		return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644))
	}
	for _, tt := range []struct {
		name     string
		spoil    func() error
		init     string
		degraded bool
		left     string // of the layer
		why      string
		afterEtc bool // it spoils what follows
	}{
		{"nothing", func() error { return nil }, "", false, "", "", false},
		{"home_is_a_link", func() error { return os.Symlink("/data/home", "/volume/home") }, "", true, "", "not a directory", false},
		{"var_is_a_file", func() error { return file("/volume/var", "") }, "", true, "", "not a directory", false},
		{"etc_is_a_file", func() error { return file("/volume/etc", "") }, "", true, "", "not a directory", false},
		{"usr", func() error { return os.MkdirAll("/volume/usr", 0o755) }, "", false, "", "", false},
		{"init_elsewhere", func() error { return os.MkdirAll("/volume/opt", 0o755) }, "/opt/init", true, "", "cannot start /opt/init", false},
		{"layer_without_execute_bit", func() error { return file("/volume/.layers/site/sbin/init", "x") }, "", false, "not an executable file", "", false},
		{"layer_with_a_file_for_etc", func() error { return file("/volume/.layers/site/etc", "x") }, "", false, "not a directory", "", false},
		{"layer_with_a_link_for_var", func() error { return os.Symlink("/run", "/volume/.layers/site/var") }, "", false, "unsafe path", "", true},
		{"layer_with_a_file_for_state", func() error { return file("/volume/.layers/site/state", "x") }, "", false, "cannot attach a mount", "", false},
		{"layer_with_a_whiteout_for_state", func() error { return unix.Mknod("/volume/.layers/site/state", unix.S_IFCHR, 0) }, "", false, "no such file", "", false},
	} {
		for _, step := range []string{config.FailureDegraded, config.FailureHalt, config.FailureReboot} {
			t.Run(tt.name+"_"+step, func(t *testing.T) {
				inOwnRoot(t, func(t *testing.T) {
					m := aMachine{t: t}
					m.image("1", map[string]string{"opt/init": "", "etc/image": "1"})
					m.step(os.Chmod("/images/1/opt/init", 0o755))
					m.step(file("/images/tools/"+osrelease.ExtensionPath("tools"), "ID=_any\n"))
					m.step(file("/images/tools/usr/tool", "y"))
					for _, dir := range []string{newRoot, "/volume/.layers/site/usr", "/outer/encrypted"} {
						m.step(os.MkdirAll(dir, 0o755))
					}
					m.step(file("/volume/.layers/site/usr/added", "x"))
					m.step(tt.spoil())
					b, _ := testBoot(&person{}, config.State{Create: config.CreateFirstBoot, OnFailure: []string{config.FailurePrompt, step}})
					devices := busyVerity{made: map[string]bool{}}
					b.sys.Mounter, b.sys.Verity = bindMounts{}, devices
					b.sys.AttachLoop = func(*os.File, loop.Options) (loop.Device, error) { return loop.Device{Major: 7}, nil }
					b.sys.RunProgram = func(_ context.Context, _ string, argv ...string) (child.Result, error) {
						if b.report.Degraded {
							t.Errorf("a degraded boot runs %q", argv)
						}
						return child.Result{Output: []byte("conflict: c: both\n")}, unix.Setxattr("/volume/etc", layout.EtcOwner, []byte(argv[3]+" 1"), 0)
					}
					b.cfg.Etc, b.cmd.Init = config.EtcOverlay, tt.init
					b.cfg.Overlays = []config.Overlay{{Path: "/var/lib/pkg", Upper: config.UpperEncrypted}, {Path: "/opt", Upper: config.UpperMemory}}
					if tt.init != "" {
						b.cfg.Overlays = nil
					}
					b.report.Slot.Name, b.report.Root.RootHash, b.report.State.Unlocked = "a", strings.Repeat("ab", 32), report.UnlockedTPM2
					b.report.State.UUID = "of the volume"
					b.imageFS = mount.Filesystem{Type: "bind", Source: "/images/1"}
					m.step(b.mountImage("a", b.imageFS))
					b.outerFS = mount.Filesystem{Type: "bind", Source: "/outer"}
					m.step(b.mountIn(b.outerFS, mount.Place{Root: newRoot, Path: "state"}))
					var err error
					b.volume.outer, err = openDir(stateDir)
					m.step(err)
					b.volume.volume = &state.Volume{}
					b.volumeFS = mount.Filesystem{Type: "bind", Source: "/volume"}
					m.step(b.mountIn(b.volumeFS, mount.Place{Root: stateDir, Path: "encrypted"}))
					tools := layerImage(t, "tools", make([]byte, 8192))
					tools.Filesystem = "bind"
					b.cfg.Layers = []config.Layer{tools, {Name: "site", From: config.LayerFromVolume, Verity: config.LayerUnverified, OnFailure: config.LayerSkip}}
					b.report.EtcInMemory = true // whatever came first
					before, around := listed(t, "/volume"), mountsAround(t)

					err = b.assemble(t.Context())
					left := ""
					if len(b.report.Layers) > 1 {
						left = b.report.Layers[1].LeftOut
					}
					if got := mountsAround(t); got != around {
						t.Errorf("mounts outside the root:\n%swant\n%s", got, around)
					}
					if devices.made[layerName(tools)] != (err == nil) || len(devices.made) > 1 {
						t.Errorf("assemble() = %v leaves %v", err, devices.made)
					}
					r := b.report
					merged := !tt.degraded && (tt.left == "" || tt.afterEtc) // it waits for a layer that was there
					if r.EtcInMemory || (r.EtcImage != "") != merged || (len(r.EtcConflicts) > 0) != merged {
						t.Errorf("of /etc the report has image %q, conflicts %q, in memory %v", r.EtcImage, r.EtcConflicts, r.EtcInMemory)
					}
					if tt.degraded && step != config.FailureDegraded {
						class, _ := classOf(err)
						if err == nil || errors.Is(err, errHalt) != (step == config.FailureHalt) || class != slots.StateFailure || b.report.Degraded {
							t.Errorf("assemble() = %v, class %s, degraded %v", err, class, b.report.Degraded)
						}
						return
					}
					if err != nil || b.report.Degraded != tt.degraded || tt.why != "" && !strings.Contains(b.report.Failures[0].Error, tt.why) {
						t.Fatalf("assemble() = %v, degraded %v, failures %+v", err, b.report.Degraded, b.report.Failures)
					}
					if b.report.Layers[1].Absent {
						t.Error("a layer is absent by design")
					}
					if !tt.degraded && (tt.left == "" && left != "" || !strings.Contains(left, tt.left)) {
						t.Errorf("the layer is left out: %q, want %q", left, tt.left)
					}
					want := map[string]string{"etc/image": "1", "usr/added": "x", "usr/tool": "y"}
					if tt.degraded || tt.left != "" {
						want["usr/added"] = ""
					}
					m.has(want)
					for name, text := range map[string]string{"home/x": "1", "var/x": "2", "etc/x": "3"} {
						m.step(os.WriteFile(filepath.Join(newRoot, name), []byte(text), 0o644))
					}
					for _, f := range b.report.Failures {
						if f.Class == string(slots.ImageFailure) {
							t.Errorf("a slot is blamed: %+v", f)
						}
					}
					if (b.report.State.UUID == "") != tt.degraded {
						t.Errorf("the report has volume %q open", b.report.State.UUID)
					}
					if tt.degraded {
						after := listed(t, "/volume")
						if gone := slices.DeleteFunc(before, func(name string) bool { return slices.Contains(after, name) }); len(gone) > 0 {
							t.Errorf("the volume has lost %q", gone)
						}
						if got := m.mounts(); strings.Contains(got, "/volume") || b.volume.volume != nil || b.volume.outer == nil {
							t.Errorf("mounts\n%s", got)
						}
					} else if _, err := os.Stat("/volume/var/x"); err != nil {
						t.Errorf("what is written goes elsewhere: %v", err)
					}
					b.volume.outer.Close()
				})
			})
		}
	}
}

// mountsAround are the mounts that are not in the new root.
func mountsAround(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`(?m)^`+newRoot+`[ /].*\n`).ReplaceAllString(mountsBelow(string(text)), "")
}

// A block that does not match is the fault of the image, or of its own layer, also where
// the state is what is made of it; a disk that cannot be read is not.
func TestCorruptImageIsNoFaultOfTheState(t *testing.T) {
	for name, tt := range map[string]struct {
		says map[string]string
		want slots.Class
	}{
		"image": {map[string]string{"root": "C", "layer-tools": "V"}, slots.ImageFailure},
		"layer": {map[string]string{"root": "V", "layer-tools": "C"}, slots.ImageFailure},
		"disk":  {map[string]string{"root": "V", "layer-tools": "V"}, slots.StateFailure},
	} {
		inOwnRoot(t, func(t *testing.T) {
			m := aMachine{t: t}
			m.image("1", nil)
			for _, dir := range []string{newRoot, "/volume"} {
				m.step(os.MkdirAll(dir, 0o755))
			}
			b, _ := testBoot(&person{}, config.State{Create: config.CreateFirstBoot, OnFailure: []string{config.FailureReboot}})
			b.sys.Mounter, b.sys.Verity = noOverlay{}, verityOf{busyVerity{made: map[string]bool{}}, tt.says}
			b.sys.AttachLoop = func(*os.File, loop.Options) (loop.Device, error) { return loop.Device{Major: 7}, nil }
			b.cfg.Etc, b.cfg.State.Create = config.EtcVolatile, config.CreateFirstBoot
			b.imageFS = mount.Filesystem{Type: "bind", Source: "/images/1"}
			m.step(b.mountImage("a", b.imageFS))
			m.step(unix.Mount("outer", stateDir, "tmpfs", 0, "mode=0755"))
			m.step(os.Mkdir(encryptedDir, 0o755))
			m.step(unix.Mount("/volume", encryptedDir, "", unix.MS_BIND, ""))
			put(t, "/images/tools/"+osrelease.ExtensionPath("tools"), []byte("ID=_any\n"))
			l := layerImage(t, "tools", make([]byte, 8192))
			l.Filesystem = "bind"
			b.cfg.Layers = []config.Layer{l}
			var err error
			b.volume.outer, err = openDir(stateDir)
			m.step(err)
			err = b.assemble(t.Context())
			if class, _ := classOf(err); class != tt.want || !errors.Is(err, unix.EIO) {
				t.Errorf("%s: %v of class %s, want %s", name, err, class, tt.want)
			}
			if class, _ := classOf(b.blame(err)); class != tt.want {
				t.Errorf("%s: after all of class %s, want %s", name, class, tt.want)
			}
		})
	}
}

// An init that a layer with a hash spoils is no fault of the state: it is the image's, which
// names the layer, and with layers on trial nobody's, for the next boot leaves those out.
// What lies in the volume keeps its own blame.
func TestInitSpoiltByALayer(t *testing.T) {
	for _, step := range []string{config.FailureDegraded, config.FailureHalt, config.FailureReboot} {
		for name, tt := range map[string]struct {
			tried, alone bool
			unlocked     string
			want         slots.Class
		}{
			"configured":          {false, true, report.UnlockedTPM2, slots.ImageFailure},
			"on_trial":            {true, true, report.UnlockedTPM2, slots.EnvironmentFailure},
			"with_one_of_volume":  {false, false, report.UnlockedTPM2, slots.ImageFailure},
			"without_any_state":   {false, true, report.UnlockedNone, slots.ImageFailure},
			"in_a_degraded_boot":  {false, true, report.UnlockedDegraded, slots.ImageFailure},
			"trial_and_of_volume": {true, false, report.UnlockedTPM2, slots.EnvironmentFailure},
		} {
			t.Run(name+"_"+step, func(t *testing.T) {
				inOwnRoot(t, func(t *testing.T) {
					m := aMachine{t: t}
					m.image("1", nil)
					put(t, "/images/tools/"+osrelease.ExtensionPath("tools"), []byte("ID=_any\n"))
					put(t, "/images/tools/sbin/init", []byte("x"))
					for _, dir := range []string{"/volume/.layers/site/usr", "/outer/encrypted"} {
						m.step(os.MkdirAll(dir, 0o755))
					}
					b, _ := testBoot(&person{}, config.State{Create: config.CreateFirstBoot, OnFailure: []string{step}})
					b.sys.Mounter, b.sys.Verity = bindMounts{}, busyVerity{fakeVerity{status: "V"}, map[string]bool{}}
					b.sys.AttachLoop = func(*os.File, loop.Options) (loop.Device, error) { return loop.Device{Major: 7}, nil }
					b.cfg.Etc = config.EtcVolatile
					b.report.Slot.Name, b.report.State.Unlocked = "a", tt.unlocked
					b.imageFS = mount.Filesystem{Type: "bind", Source: "/images/1"}
					m.step(b.mountImage("a", b.imageFS))
					b.outerFS = mount.Filesystem{Type: "bind", Source: "/outer"}
					m.step(b.mountIn(b.outerFS, mount.Place{Root: newRoot, Path: "state"}))
					b.volumeFS = mount.Filesystem{Type: "bind", Source: "/volume"}
					m.step(b.mountIn(b.volumeFS, mount.Place{Root: stateDir, Path: "encrypted"}))
					var err error
					b.volume.outer, err = openDir(stateDir)
					m.step(err)
					b.volume.volume = &state.Volume{}
					l := layerImage(t, "tools", make([]byte, 8192))
					l.Filesystem = "bind"
					b.cfg.Layers, b.layersTried = []config.Layer{l}, tt.tried
					if !tt.alone {
						b.cfg.Layers = append(b.cfg.Layers, config.Layer{Name: "site", From: config.LayerFromVolume, Verity: config.LayerUnverified, OnFailure: config.LayerSkip})
					}
					err = b.blame(b.assemble(t.Context()))
					if class, reason := classOf(err); class != tt.want || reason != slots.Mount || !errors.Is(err, mount.ErrNoInit) || b.report.Degraded {
						t.Errorf("%v: class %s, reason %s, degraded %v; want class %s", err, class, reason, b.report.Degraded, tt.want)
					}
				})
			})
		}
	}
}

// noOverlay mounts no overlay in the root.
type noOverlay struct{ bindMounts }

func (m noOverlay) Overlay(o mount.Overlay, where mount.Place) error {
	if where.Root == newRoot {
		return unix.EIO
	}
	return m.bindMounts.Overlay(o, where)
}

// listed are the names below a directory, but for sealroot's own.
func listed(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == layout.Private {
			return fs.SkipDir
		}
		names = append(names, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// A degraded boot does without the layers that it cannot have, whatever they are.
func TestLayersOfADegradedBoot(t *testing.T) {
	for _, partition := range []bool{true, false} {
		inRoot(t, "partition", func(t *testing.T) {
			b, m, _ := layeredBoot(t)
			b.report.Degraded, b.report.State.Unlocked = true, report.UnlockedDegraded
			if !partition {
				b.volume.outer = nil
			}
			if err := os.Remove(imageOf(b.cfg.Layers[1])); err != nil {
				t.Fatal(err)
			}
			if err := b.stackLayers(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(b.report.Layers[1].LeftOut, "cannot use layer mid: ") || (b.report.Layers[0].LeftOut == "") != partition {
				t.Errorf("reported %+v in\n%s", b.report.Layers, m.Trace())
			}
		})
	}
}
