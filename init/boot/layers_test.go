package boot

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mkinitramfs/layer"
	"sealroot/mount"
	"sealroot/mount/dm"
	"sealroot/mount/loop"
	"sealroot/mount/mounttest"
	"sealroot/slots"
	"sealroot/slots/gpt"
	"sealroot/state/layout"
	"sealroot/verity"
	"sealroot/verity/osrelease"
)

// inRoot runs a test in a thread that has a directory with nothing but /proc as "/".
func inRoot(t *testing.T, name string, test func(t *testing.T)) {
	dir := t.TempDir()
	t.Run(name, func(t *testing.T) {
		runtime.LockOSThread() // and never unlocked: the thread is thrown away
		for _, err := range []error{unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			os.Mkdir(dir+"/proc", 0o555), unix.Mount("/proc", dir+"/proc", "", unix.MS_BIND|unix.MS_REC, ""), unix.Chroot(dir), unix.Chdir("/")} {
			if err != nil {
				t.Fatal(err)
			}
		}
		test(t)
	})
}

func put(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := errors.Join(mkdirs(filepath.Dir(path)), os.WriteFile(path, content, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// layerImage puts the image of a layer with this file system on the state partition.
func layerImage(t *testing.T, name string, data []byte) config.Layer {
	t.Helper()
	return layerImageBy(t, name, data, func([]byte) []byte { return []byte("{}") })
}

// layerImageBy is the same with a signature partition.
func layerImageBy(t *testing.T, name string, data []byte, signed func(hash []byte) []byte) config.Layer {
	t.Helper()
	params, err := verity.NewParams(int64(len(data)), []byte("salt"), [16]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	tree := make(memory, params.HashSize())
	hash, err := verity.Format(bytes.NewReader(data), params, tree)
	if err != nil {
		t.Fatal(err)
	}
	l := config.Layer{Name: name, From: config.LayerFromState, Verity: config.LayerVerified, Hash: hex.EncodeToString(hash), Filesystem: "squashfs", OnFailure: config.LayerStop}
	put(t, imageOf(l), nil)
	f, err := os.OpenFile(imageOf(l), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = layer.Pack(f, layer.Parts{Data: bytes.NewReader(data), Tree: bytes.NewReader(tree), DataSize: int64(len(data)), TreeSize: int64(len(tree)), RootHash: hash, Signature: signed(hash)})
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return l
}

func imageOf(l config.Layer) string {
	return filepath.Join(stateDir, layout.LayerImage(l.Name, l.Hash))
}

type memory []byte

func (m memory) WriteAt(p []byte, at int64) (int, error) { return copy(m[at:], p), nil }

// layerDevices opens each layer as /dev/NAME.
type layerDevices struct {
	fakeVerity
	removed  []string
	policies []dm.OnCorruption
}

func (d *layerDevices) Verity(name, uuid string, t dm.VerityTarget) (dm.Device, error) {
	d.policies = append(d.policies, t.OnCorruption)
	return dm.Device{Name: name, Path: "/dev/" + name + "/" + t.DataDevice + "," + t.HashDevice}, nil
}
func (d *layerDevices) Remove(name string) error { d.removed = append(d.removed, name); return nil }

// layeredBoot is a boot with layers low, mid and top from the state partition, and
// mine from the volume.
func layeredBoot(t *testing.T) (*boot, *mounttest.Recorder, *layerDevices) {
	t.Helper()
	b, _ := testBoot(&person{}, config.State{})
	m, d, loops := &mounttest.Recorder{}, &layerDevices{fakeVerity: fakeVerity{status: "V"}}, uint32(0)
	b.sys.Mounter, b.sys.Verity = m, d
	b.sys.AttachLoop = func(f *os.File, o loop.Options) (loop.Device, error) {
		if !o.ReadOnly || !o.Autoclear || o.SizeLimit == 0 || o.Offset == 0 {
			t.Errorf("%s is attached with %+v", f.Name(), o)
		}
		loops++
		return loop.Device{Major: 7, Minor: loops - 1}, nil
	}
	b.rootRelease, b.kernelRelease = osrelease.Release{ID: "debian"}, "6.1.0-1"
	for i, name := range []string{"low", "mid", "top"} {
		b.cfg.Layers = append(b.cfg.Layers, layerImage(t, name, bytes.Repeat([]byte(name), 8192)[:8192]))
		release := "ID=debian\nIMAGE_VERSION=" + name + ".1\n"
		put(t, filepath.Join(layerDir(i), osrelease.ExtensionPath(name)), []byte(release)) // as if it were mounted
	}
	b.cfg.Layers = append(b.cfg.Layers, config.Layer{Name: "mine", From: config.LayerFromVolume, Verity: config.LayerUnverified, OnFailure: config.LayerStop})
	outer, err := func() (*os.File, error) {
		if err := mkdirs(filepath.Join(encryptedDir, layout.LayerDir("mine"))); err != nil {
			return nil, err
		}
		return openDir(stateDir)
	}()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { outer.Close() })
	b.volume.outer = outer
	usableRoot(t, layersRoot)
	return b, m, d
}

// usableRoot has what the root of a boot must have.
func usableRoot(t *testing.T, at string) {
	t.Helper()
	put(t, at+"/sbin/init", []byte("init"))
	if err := errors.Join(os.Chmod(at+"/sbin/init", 0o755), mkdirs(at+"/etc", at+"/home", at+"/state", at+"/var")); err != nil {
		t.Fatal(err)
	}
}

// recorderOf are the recorders of layeredBoot.
func recorderOf(b *boot) (*mounttest.Recorder, *layerDevices) {
	return b.sys.Mounter.(*mounttest.Recorder), b.sys.Verity.(*layerDevices)
}

const layersTrace = `mount -t squashfs -o ro,nodev /dev/sealroot-layer-low/7:0,7:1 ///layers/0
mount -t squashfs -o ro,nodev /dev/sealroot-layer-mid/7:2,7:3 ///layers/1
mount -t squashfs -o ro,nodev /dev/sealroot-layer-top/7:4,7:5 ///layers/2
mount -t overlay -o ro,nodev,lowerdir=/sysroot/state/encrypted//.layers/mine:/layers/2//.:/layers/1//.:/layers/0//.:/sysroot//.,redirect_dir=nofollow,metacopy=off,index=off,xino=off overlay ///layered
mount --move /sysroot//state /layered//state
umount /sysroot
mount --move ///layered ///sysroot
umount /layers/0
umount /layers/1
umount /layers/2
`

func TestStackLayers(t *testing.T) {
	inRoot(t, "in_order", func(t *testing.T) {
		b, m, _ := layeredBoot(t)
		if err := b.stackLayers(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := m.Trace(); got != layersTrace {
			t.Errorf("got\n%swant\n%s", got, layersTrace)
		}
		if len(b.report.Layers) != 4 || b.report.Layers[1].Version != "mid.1" || b.report.Layers[1].RootHash != b.cfg.Layers[1].Hash || !b.layered {
			t.Errorf("reported are %+v, layered %v", b.report.Layers, b.layered)
		}
	})
	// Over a /usr the trees are the /usr of each layer; the root with the state stays.
	inRoot(t, "over_usr", func(t *testing.T) {
		b, m, _ := layeredBoot(t)
		b.cfg.Root.Source, b.cfg.Layers[2].OnFailure = config.SourceUsrVerity, config.LayerSkip
		for _, err := range []error{
			mkdirs(filepath.Join(encryptedDir, layout.LayerDir("mine"), "usr")),
			mkdirs(filepath.Join(newRoot, "usr", "lib32"), filepath.Join(newRoot, "usr", "sbin")), os.Symlink("usr/sbin", filepath.Join(newRoot, "sbin")),
			os.Rename(layerDir(2)+"/usr", layerDir(2)+"/real"), os.Symlink("/layers/0/usr", layerDir(2)+"/usr"),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		usableRoot(t, newRoot)
		if err := b.stackLayers(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := `mount -t overlay -o ro,nodev,lowerdir=/sysroot/state/encrypted//.layers/mine/usr:/layers/1//usr:/layers/0//usr:/sysroot/usr//.,redirect_dir=nofollow,metacopy=off,index=off,xino=off overlay ///layered
umount /sysroot/usr
mount --move ///layered ///sysroot/usr
umount /layers/0
umount /layers/1
`
		if _, got, _ := strings.Cut(m.Trace(), "umount /layers/2\n"); got != want {
			t.Errorf("got\n%swant, behind a layer whose /usr is a link,\n%s", m.Trace(), want)
		}
		if left := b.report.Layers[2].LeftOut; !strings.HasPrefix(left, "cannot use layer top: ") {
			t.Errorf("a layer whose /usr is a link: left out %q", left)
		}
		if at := b.report.Mounts[len(b.report.Mounts)-1]; at.Where != "/usr" || at.Type != "overlay" {
			t.Errorf("reported is %+v", at)
		}
		if to, err := os.Readlink(newRoot + "/lib32"); err != nil || to != "usr/lib32" {
			t.Errorf("/lib32, which a layer may bring: %q, %v", to, err)
		}
	})
	inRoot(t, "on_corruption", func(t *testing.T) {
		b, _, d := layeredBoot(t)
		b.cfg.Root.OnCorruption, b.cfg.Layers[1].OnFailure = string(dm.CorruptionRestart), config.LayerSkip
		if err := b.stackLayers(t.Context()); err != nil || !slices.Equal(d.policies, []dm.OnCorruption{dm.CorruptionRestart, dm.CorruptionEIO, dm.CorruptionRestart}) {
			t.Errorf("%v, policies %q", err, d.policies)
		}
	})
	// The changes of a root in memory are in no place that anything else can write.
	inRoot(t, "in_memory", func(t *testing.T) {
		b, m, _ := layeredBoot(t)
		b.cfg.Overlays = []config.Overlay{{Path: config.WholeRoot, Upper: config.UpperMemory}}
		b.cfg.Layers = nil
		if err := os.Chmod(newRoot, 0o711); err != nil {
			t.Fatal(err)
		}
		if err := b.stackLayers(t.Context()); err != nil {
			t.Fatal(err)
		}
		const want = `mount -t tmpfs -o nodev,mode=0755,size=25%,nr_inodes=1m changes ///changes
mount -t overlay -o nodev,lowerdir=/sysroot//.,upperdir=/changes//upper,workdir=/changes//work,redirect_dir=nofollow,metacopy=off,index=off,xino=off overlay ///layered
mount --move /sysroot//state /layered//state
umount /sysroot
mount --move ///layered ///sysroot
umount /changes
`
		if got := m.Trace(); got != want || !b.layered {
			t.Errorf("layered %v, got\n%swant\n%s", b.layered, got, want)
		}
		if info, err := os.Stat(changesDir + "/upper"); err != nil || info.Mode().Perm() != 0o711 {
			t.Errorf("the root shows %v, %v; want the image's mode", info, err)
		}
		if at := b.report.Mounts[len(b.report.Mounts)-1]; at.Where != "/" || at.Type != "overlay" || slices.Contains(at.Options, "ro") {
			t.Errorf("reported is %+v", at)
		}
	})
	// What is amiss with memory, or with the state partition, no slot is blamed for.
	inRoot(t, "in_memory_fails", func(t *testing.T) {
		for n, want := range []slots.Class{slots.EnvironmentFailure, slots.ImageFailure, slots.StateFailure} {
			b, m, _ := layeredBoot(t)
			b.cfg.Overlays = []config.Overlay{{Path: config.WholeRoot, Upper: config.UpperMemory}}
			b.cfg.Layers = nil
			m.FailAt, m.FailWith = n+1, unix.EINVAL
			if want == slots.StateFailure {
				_ = b.volume.outer.Close()
				b.volume.outer, m.FailAt = nil, 0
			}
			if class, _ := classOf(b.stackLayers(t.Context())); class != want {
				t.Errorf("step %d: class %s, want %s", n+1, class, want)
			}
		}
	})
	inRoot(t, "none", func(t *testing.T) {
		b, m, _ := layeredBoot(t)
		b.cfg.Layers = nil
		if err := b.stackLayers(t.Context()); err != nil || m.Trace() != "" || b.layered {
			t.Errorf("%v: %s", err, m.Trace())
		}
	})
	// An overlay that cannot be stacked is the image's failure, at whatever step.
	for n := 4; n <= strings.Count(layersTrace, "\n"); n++ {
		inRoot(t, "fails", func(t *testing.T) {
			b, m, _ := layeredBoot(t)
			m.FailAt, m.FailWith = n, unix.EBUSY
			if class, _ := classOf(b.stackLayers(t.Context())); class != slots.ImageFailure {
				t.Errorf("step %d: class %s", n, class)
			}
		})
	}
}

// takenName has a device of the name already.
type takenName struct {
	*layerDevices
	name string
}

func (d takenName) Verity(name, uuid string, t dm.VerityTarget) (dm.Device, error) {
	if name == d.name {
		return dm.Device{}, dm.ErrExists
	}
	return d.layerDevices.Verity(name, uuid, t)
}

// Whatever is in the place of a layer is left out or stops the boot, as configured, and
// nothing of it is left.
func TestLayerFailures(t *testing.T) {
	mid := func(b *boot) *config.Layer { return &b.cfg.Layers[1] }
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, b *boot, m *mounttest.Recorder, d *layerDevices)
		want  error
		class slots.Class
	}{
		{"missing", func(t *testing.T, b *boot, _ *mounttest.Recorder, _ *layerDevices) { os.Remove(imageOf(*mid(b))) }, unix.ENOENT, slots.ImageFailure},
		{"link", func(t *testing.T, b *boot, _ *mounttest.Recorder, _ *layerDevices) {
			at := imageOf(*mid(b))
			if err := errors.Join(os.Rename(at, at+".other"), os.Symlink(filepath.Base(at)+".other", at)); err != nil {
				t.Fatal(err)
			}
		}, mount.ErrUnsafePath, slots.ImageFailure},
		{"fifo", func(t *testing.T, b *boot, _ *mounttest.Recorder, _ *layerDevices) {
			at := imageOf(*mid(b))
			if err := errors.Join(os.Remove(at), unix.Mkfifo(at, 0o644)); err != nil {
				t.Fatal(err)
			}
		}, errNoImage, slots.ImageFailure},
		{"empty", func(t *testing.T, b *boot, _ *mounttest.Recorder, _ *layerDevices) { put(t, imageOf(*mid(b)), nil) }, nil, slots.ImageFailure},
		{"no_table", func(t *testing.T, b *boot, _ *mounttest.Recorder, _ *layerDevices) {
			put(t, imageOf(*mid(b)), make([]byte, 8<<20))
		}, gpt.ErrNoTable, slots.ImageFailure},
		{"superblock", func(t *testing.T, b *boot, _ *mounttest.Recorder, _ *layerDevices) {
			f, err := os.OpenFile(imageOf(*mid(b)), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.WriteAt([]byte{0}, 2<<20) // the tree's partition
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
		}, verity.ErrSuperblock, slots.ImageFailure},
		{"longer_hash", func(t *testing.T, b *boot, _ *mounttest.Recorder, _ *layerDevices) {
			old := imageOf(*mid(b))
			mid(b).Hash += mid(b).Hash
			if at := imageOf(*mid(b)); at != old {
				t.Fatalf("another name: %s", at)
			}
		}, nil, slots.ImageFailure},
		{"not_for_this_root", func(t *testing.T, b *boot, _ *mounttest.Recorder, _ *layerDevices) { b.rootRelease.ID = "fedora" }, errLayer, slots.ImageFailure},
		{"block_does_not_match", func(t *testing.T, b *boot, m *mounttest.Recorder, d *layerDevices) {
			m.FailAt, m.FailWith, d.status = 2, syscall.EIO, "C"
		}, nil, slots.ImageFailure},
		{"disk_cannot_be_read", func(t *testing.T, b *boot, m *mounttest.Recorder, d *layerDevices) {
			m.FailAt, m.FailWith = 2, syscall.EIO
		}, syscall.EIO, slots.EnvironmentFailure},
		{"damaged_file_system", func(t *testing.T, b *boot, m *mounttest.Recorder, d *layerDevices) {
			m.FailAt, m.FailWith = 2, syscall.EUCLEAN
		}, syscall.EUCLEAN, slots.StateFailure},
		{"device_is_there_already", func(t *testing.T, b *boot, _ *mounttest.Recorder, d *layerDevices) {
			b.sys.Verity = takenName{d, layerName(*mid(b))}
		}, dm.ErrExists, slots.EnvironmentFailure},
		{"busy", func(t *testing.T, b *boot, m *mounttest.Recorder, d *layerDevices) {
			m.FailAt, m.FailWith = 2, syscall.EBUSY
		}, syscall.EBUSY, slots.EnvironmentFailure},
		{"not_in_a_degraded_boot", func(t *testing.T, b *boot, _ *mounttest.Recorder, _ *layerDevices) {
			b.report.Degraded, b.rootRelease.ID = true, "fedora"
		}, errLayer, slots.StateFailure},
		{"no_directory_in_the_volume", func(t *testing.T, b *boot, _ *mounttest.Recorder, _ *layerDevices) {
			b.cfg.Layers[1] = config.Layer{Name: "mid", From: config.LayerFromVolume, Verity: config.LayerUnverified, OnFailure: config.LayerSkip}
			if b.cfg.Layers[0].OnFailure == config.LayerStop {
				b.cfg.Layers[1].OnFailure = config.LayerStop
			}
		}, unix.ENOENT, slots.StateFailure},
		{"no_usr_over_usr", func(t *testing.T, b *boot, _ *mounttest.Recorder, _ *layerDevices) {
			b.cfg.Root.Source, b.cfg.Layers = config.SourceUsrVerity, b.cfg.Layers[:3]
			if err := errors.Join(mkdirs(newRoot+"/usr"), os.Rename(layerDir(1)+"/usr", layerDir(1)+"/lost")); err != nil {
				t.Fatal(err)
			}
		}, unix.ENOENT, slots.ImageFailure},
		{"no_state_partition", func(t *testing.T, b *boot, _ *mounttest.Recorder, _ *layerDevices) { b.volume.outer = nil }, nil, slots.StateFailure},
	} {
		inRoot(t, tt.name, func(t *testing.T) {
			b, m, d := layeredBoot(t)
			tt.spoil(t, b, m, d)
			err := b.stackLayers(t.Context())
			class, _ := classOf(b.blame(err))
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || class != tt.class {
				t.Errorf("stop: %v, class %s; want %v, class %s", err, class, tt.want, tt.class)
			}
			if strings.Contains(m.Trace(), "overlay") {
				t.Errorf("it went on:\n%s", m.Trace())
			}
		})
		inRoot(t, tt.name+"_skip", func(t *testing.T) {
			b, m, d := layeredBoot(t)
			for i := range b.cfg.Layers {
				b.cfg.Layers[i].OnFailure = config.LayerSkip
			}
			tt.spoil(t, b, m, d)
			if err := b.stackLayers(t.Context()); err != nil {
				t.Fatal(err)
			}
			note := b.report.Layers[1]
			byDesign := errors.Is(tt.want, errLayer) || tt.want == unix.ENOENT && mid(b).From == config.LayerFromVolume
			if note.Absent != byDesign {
				t.Errorf("absent by design: %v, want %v: %+v", note.Absent, byDesign, note)
			}
			if !strings.HasPrefix(note.LeftOut, "cannot use layer mid: ") || len(b.report.Failures) == 0 {
				t.Errorf("reported %+v", note)
			}
			ordinary := errors.Is(tt.want, errLayer) && b.rootRelease.ID == "fedora" || mid(b).From == config.LayerFromVolume
			if b.layerFailed == ordinary {
				t.Errorf("goes into the boot log: %t", b.layerFailed)
			}
			if !strings.Contains(m.Trace(), "lowerdir") || strings.Contains(m.Trace(), ":/layers/1/") || mid(b).From == config.LayerFromState && !slices.Contains(d.removed, layerName(*mid(b))) {
				t.Errorf("removed %q in\n%s", d.removed, m.Trace())
			}
		})
	}
}

// unverified takes the loop device of the data for that of dm-verity, which not every
// host has (qemu-tests has it), and holds it as that does.
type unverified struct {
	fakeVerity
	held map[string]*os.File
}

func (u unverified) Verity(name, _ string, t dm.VerityTarget) (dm.Device, error) {
	path := "/dev/loop" + strings.TrimPrefix(t.DataDevice, "7:")
	f, err := os.Open(path)
	u.held[name] = f
	return dm.Device{Name: name, Path: path}, err
}

func (u unverified) Remove(name string) error {
	f := u.held[name]
	delete(u.held, name)
	return f.Close()
}

// The same with the host's kernel: loop devices over files of a mount that is moved into
// the overlay of what is on them. Each layer is a squashfs.
func TestLayersAreMounted(t *testing.T) {
	names := []string{"low", "mid", "top"}
	images := map[string][]byte{}
	for i, name := range names {
		tree, image := t.TempDir(), filepath.Join(t.TempDir(), "image")
		release := "ID=debian\n"
		if name == "top" {
			release += "VERSION_ID=12\n"
		}
		put(t, filepath.Join(tree, osrelease.ExtensionPath(name)), []byte(release))
		put(t, filepath.Join(tree, "which"), []byte(name))
		put(t, filepath.Join(tree, "etc", fmt.Sprint(i)), []byte("etc"))
		if out, err := exec.Command("mksquashfs", tree, image, "-quiet", "-noappend", "-no-progress").CombinedOutput(); err != nil {
			t.Fatalf("mksquashfs: %v\n%s", err, out)
		}
		var err error
		if images[name], err = os.ReadFile(image); err != nil {
			t.Fatal(err)
		}
	}
	for _, version := range []string{"12", "13"} {
		dir := t.TempDir()
		t.Run("root_of_version_"+version, func(t *testing.T) {
			runtime.LockOSThread()                                 // and never unlocked: the thread is thrown away
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil { // CLONE_FS with it
				t.Fatal(err)
			}
			mounted := func(what, where, kind string, flags uintptr) {
				t.Helper()
				if err := errors.Join(mkdirs(where), unix.Mount(what, where, kind, flags, "")); err != nil {
					t.Fatalf("%s at %s: %v", what, where, err)
				}
			}
			mounted("", "/", "", unix.MS_REC|unix.MS_PRIVATE)
			mounted("tmpfs", dir, "tmpfs", 0)
			for _, place := range []string{"/proc", "/dev", "/sys"} {
				mounted(place, dir+place, "", unix.MS_BIND|unix.MS_REC)
			}
			for _, err := range []error{unix.Chroot(dir), unix.Chdir("/")} {
				if err != nil {
					t.Fatal(err)
				}
			}
			mounted("tmpfs", newRoot, "tmpfs", 0)
			put(t, newRoot+"/which", []byte("root"))
			put(t, newRoot+"/etc/root", []byte("etc"))
			mounted("tmpfs", stateDir, "tmpfs", 0)
			mounted("tmpfs", encryptedDir, "tmpfs", 0)
			b, _ := testBoot(&person{}, config.State{})
			devices := unverified{held: map[string]*os.File{}}
			b.sys.Mounter, b.sys.Verity, b.sys.AttachLoop = mount.Kernel{}, devices, loop.Attach
			b.rootRelease = osrelease.Release{ID: "debian", VersionID: version}
			for _, name := range names {
				l := layerImage(t, name, images[name])
				l.OnFailure = config.LayerSkip
				b.cfg.Layers = append(b.cfg.Layers, l)
			}
			var err error
			if b.volume.outer, err = openDir(stateDir); err != nil {
				t.Fatal(err)
			}
			defer b.volume.outer.Close()
			want, entries := names[2], 4
			if version != "12" {
				want, entries = names[1], 3
			}
			if err := b.stackLayers(t.Context()); err != nil {
				t.Fatal(err)
			}
			if left := b.report.Layers[2].LeftOut; (version != "12") != strings.Contains(left, "it is for ID debian, VERSION_ID 12") {
				t.Errorf("left out: %q", left)
			}
			if got, err := os.ReadFile(newRoot + "/which"); err != nil || string(got) != want {
				t.Errorf("the topmost is %q, %v; want %s", got, err, want)
			}
			if etc, err := os.ReadDir(newRoot + "/etc"); err != nil || len(etc) != entries {
				t.Errorf("/etc has %v, %v; want %d", etc, err, entries)
			}
			text, err := os.ReadFile("/proc/thread-self/mountinfo")
			if err != nil {
				t.Fatal(err)
			}
			var mounts []string
			for line := range strings.Lines(string(text)) {
				f := strings.Fields(line)
				if strings.HasPrefix(f[4], newRoot) || strings.HasPrefix(f[4], "/layer") {
					_, kind, _ := strings.Cut(line, " - ")
					mounts = append(mounts, f[4]+" "+strings.Fields(kind)[0])
				}
			}
			if got := strings.Join(mounts, ", "); got != "/sysroot/state tmpfs, /sysroot/state/encrypted tmpfs, /sysroot overlay" && got != "/sysroot overlay, /sysroot/state tmpfs, /sysroot/state/encrypted tmpfs" {
				t.Errorf("mounts %s", got)
			}
			if len(devices.held) != entries-1 {
				t.Errorf("%d devices are held, want one for each of %d layers", len(devices.held), entries-1)
			}
			for name := range devices.held {
				if err := devices.Remove(name); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A root that was built with other layers asks for its own initramfs.
func TestLayersOfAnotherRoot(t *testing.T) {
	for _, tt := range []struct {
		name string
		of   func(ours string) string // what os-release says
		ours bool
	}{
		{"ours", func(ours string) string { return "SEALROOT_LAYERS=" + ours }, true},
		{"other", func(ours string) string { return "SEALROOT_LAYERS=" + strings.Repeat("0", 32) }, false},
		{"none", func(string) string { return "" }, false},
	} {
		inRoot(t, tt.name, func(t *testing.T) {
			b, _, _ := layeredBoot(t)
			b.cfg.Name = "kiosk"
			put(t, newRoot+"/usr/lib/os-release", []byte("ID=debian\nIMAGE_ID=kiosk\n"+tt.of(b.cfg.LayerSet())+"\n"))
			err := b.checkRoot(t.Context(), "a", false, &report.Root{})
			// ours goes on, to the init that is not there
			if _, reason := classOf(err); tt.ours != (reason == slots.Mount) || tt.ours == (reason == slots.WrongKernel) {
				t.Errorf("checkRoot() = %v, reason %s", err, reason)
			}
		})
	}
}
