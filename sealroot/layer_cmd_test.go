package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mkinitramfs/layer"
	"sealroot/sealroot/install"
	"sealroot/sealroot/layers"
	"sealroot/sealroot/schematest"
	"sealroot/slots"
	"sealroot/slots/manifest"
	"sealroot/state/balance"
	"sealroot/state/layerlist"
	"sealroot/state/layout"
	"sealroot/verity"
	"sealroot/verity/osrelease"
	"sealroot/verity/signature/sign"
	"sealroot/verity/signature/signaturetest"
)

// layerDisk is a machine in memory that keeps layers.
type layerDisk struct {
	*fake
	files  map[string][]byte // as layout.LayerImage has them
	full   bool
	bad    bool   // the medium gives something else than what was written
	settle func() // is called when a draft is written out
	dir    string // of drafts
	// images are the root hashes of other slots' images.
	images map[string]string
}

func (d *layerDisk) name(l manifest.Layer) string {
	return layout.LayerImage(l.Name, string(slices.Collect(hexOf(l.RootHash))))
}

func hexOf(b []byte) func(func(byte) bool) {
	return func(yield func(byte) bool) {
		for _, c := range b {
			if !yield("0123456789abcdef"[c>>4]) || !yield("0123456789abcdef"[c&15]) {
				return
			}
		}
	}
}

func (d *layerDisk) Layers() install.Layers { return d }

func (d *layerDisk) Holds(l manifest.Layer) (bool, error) {
	f, ok := d.files[d.name(l)]
	return ok && sha256.Sum256(f) == l.SHA256, nil
}

func (d *layerDisk) Open(manifest.Layer) (install.LayerImage, error) {
	return install.LayerImage{}, errors.ErrUnsupported
}

func (d *layerDisk) Write(manifest.Layer, io.Reader) error { return errors.ErrUnsupported }

func (d *layerDisk) Draft() (*os.File, error) {
	if d.full {
		return nil, install.ErrRoom
	}
	return os.CreateTemp(d.dir, "draft")
}

func (d *layerDisk) Settle(draft *os.File, l manifest.Layer) (bool, error) {
	if d.settle != nil {
		d.settle()
	}
	sum := sha256.New()
	_, err := io.Copy(sum, io.NewSectionReader(draft, 0, l.Size))
	return !d.bad && [32]byte(sum.Sum(nil)) == l.SHA256, err
}

func (d *layerDisk) Keep(draft *os.File, l manifest.Layer) error {
	text, err := io.ReadAll(io.NewSectionReader(draft, 0, l.Size))
	d.files[d.name(l)] = text
	return err
}

func (d *layerDisk) HeldLayers() (names []string, err error) {
	for name := range d.files {
		names = append(names, name)
	}
	return names, nil
}

func (d *layerDisk) RemoveLayer(file string) error { delete(d.files, file); return nil }

func (d *layerDisk) Manifest(slot, _ string) (manifest.Manifest, error) {
	hash, err := hex.DecodeString(d.images[slot])
	return manifest.Manifest{RootHash: hash}, err
}

type bytesAt []byte

func (m bytesAt) WriteAt(p []byte, at int64) (int, error) { return copy(m[at:], p), nil }

// layerMachine is what the commands of layers find.
type layerMachine struct {
	t    *testing.T
	dir  string
	env  Env
	disk *layerDisk
	key  signaturetest.Signer
	rep  report.Report
}

func newLayerMachine(t *testing.T) *layerMachine {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m := &layerMachine{t: t, dir: dir, key: signaturetest.Of(t, key, 1, time.Unix(2e9, 0)), disk: &layerDisk{fake: &fake{list: goodPair()}, files: map[string][]byte{}, dir: t.TempDir()}}
	m.env = Env{
		State: dir + "/state", Report: dir + "/boot.json", Lock: dir + "/lock", Config: dir + "/config.json", LayerCerts: dir + "/certs", LayersFailed: dir + "/layers-failed",
		Root: dir + "/root", Limits: dir + "/limits", ShowLayer: layers.Show,
		Open: func(Where) (Machine, error) { return m.disk, nil },
	}
	m.put("certs/l.crt", string(m.key.PEM()))
	m.put("root/usr/lib/os-release", "ID=debian\nVERSION_ID=12\n")
	m.put("limits", "keep_free: 1M\n")
	m.put("state/encrypted/.sealroot/x", "")
	m.configure(config.Config{LayersAllowed: []string{"app-*"}, Root: config.Root{Filesystem: "squashfs"}, State: config.State{Create: config.CreateFirstBoot, Unlock: []string{config.UnlockTPM2}},
		Layers: []config.Layer{{Name: "demo", Hash: strings.Repeat("d", 64), OnFailure: config.LayerSkip}, {Name: "core", Hash: strings.Repeat("c", 64)}}})
	m.rep = report.Report{Schema: 1, Slot: report.Slot{Name: "b", Successful: true}, Root: report.Root{RootHash: strings.Repeat("4f", 32), KernelRelease: "6.1"}}
	m.report()
	return m
}

func (m *layerMachine) put(name, text string) {
	m.t.Helper()
	at := filepath.Join(m.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(text), 0o644)); err != nil {
		m.t.Fatal(err)
	}
}

func (m *layerMachine) configure(c config.Config) {
	m.t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		m.t.Fatal(err)
	}
	m.put("config.json", string(text))
}

func (m *layerMachine) report() {
	m.t.Helper()
	text, err := m.rep.Encode()
	if err != nil {
		m.t.Fatal(err)
	}
	m.put("boot.json", string(text))
}

// boot is a boot as PID 1 makes it: by the list where that is good or tried, else by the
// image's good one.
func (m *layerMachine) boot() {
	m.t.Helper()
	image := m.rep.Root.RootHash
	read := func(file string) []byte {
		text, err := os.ReadFile(filepath.Join(m.env.volume(), file))
		if err != nil && !os.IsNotExist(err) {
			m.t.Fatal(err)
		}
		return text
	}
	m.rep.LayerList, m.rep.LayerTrial, m.rep.Layers = "", false, []report.Layer{{Name: "demo"}, {Name: "core"}}
	defer m.report()
	text, good := read(layerlist.File), read(layerlist.GoodFile(image))
	if text == nil {
		return
	}
	if !bytes.Equal(text, good) {
		slot := m.rep.Slot
		use, next := layerlist.Proofs(read(layerlist.ProofsFile)).Use(image, layerlist.ID(text), slot.Trial, slot.Trial && slot.TriesAfter == 0)
		m.put("state/encrypted/"+layerlist.ProofsFile, string(next))
		if m.rep.LayerTrial = use; !use {
			text = good
		}
	}
	if text == nil {
		return
	}
	m.rep.LayerList = layerlist.ID(text)
	list, err := layerlist.Parse(text)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, e := range list {
		if e.Hash != "" {
			m.rep.Layers = append(m.rep.Layers, report.Layer{Name: e.Name, RootHash: e.Hash, Source: report.LayerAdded})
		}
	}
}

// added are the layers of this boot that somebody added.
func (m *layerMachine) added() string {
	var all []string
	for _, l := range m.rep.Layers {
		if l.Source != "" {
			all = append(all, l.Name)
		}
	}
	return strings.Join(all, " ")
}

func (m *layerMachine) run(args ...string) (int, string) {
	m.t.Helper()
	var out bytes.Buffer
	code := Main(m.t.Context(), args, &out, &out, m.env)
	return code, out.String()
}

// image makes the image of a layer of that name for a system.
func (m *layerMachine) image(name, release string) string {
	m.t.Helper()
	return m.imageWith(name, release, func(string) error { return nil })
}

// imageWith makes one of a tree to which add adds.
func (m *layerMachine) imageWith(name, release string, add func(tree string) error) string {
	m.t.Helper()
	dir := m.t.TempDir()
	at := filepath.Join(dir, "tree", osrelease.ExtensionPath(name))
	if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(release), 0o644)); err != nil {
		m.t.Fatal(err)
	}
	if err := add(dir + "/tree"); err != nil {
		m.t.Fatal(err)
	}
	if out, err := exec.Command("mksquashfs", dir+"/tree", dir+"/fs", "-quiet", "-noappend", "-no-progress").CombinedOutput(); err != nil {
		m.t.Fatalf("mksquashfs: %v\n%s", err, out)
	}
	data, err := os.ReadFile(dir + "/fs")
	if err != nil {
		m.t.Fatal(err)
	}
	params, err := verity.NewParams(int64(len(data)), []byte("salt"), [16]byte{1})
	if err != nil {
		m.t.Fatal(err)
	}
	tree := make(bytesAt, params.HashSize())
	hash, err := verity.Format(bytes.NewReader(data), params, tree)
	if err != nil {
		m.t.Fatal(err)
	}
	sig, err := sign.RootHash(hash, m.key.Cert, m.key.Key)
	if err != nil {
		m.t.Fatal(err)
	}
	f, err := os.Create(dir + "/layer.raw")
	if err != nil {
		m.t.Fatal(err)
	}
	err = layer.Pack(f, layer.Parts{Data: bytes.NewReader(data), Tree: bytes.NewReader(tree), DataSize: int64(len(data)), TreeSize: int64(len(tree)), RootHash: hash, Signature: bytes.TrimRight(sig, "\x00")})
	if err := errors.Join(err, f.Close()); err != nil {
		m.t.Fatal(err)
	}
	return f.Name()
}

// A layer's life by the commands: added, tried, kept, replaced, dropped, tried again, turned
// off, removed; files are there as long as somebody needs them.
func TestLayerCommands(t *testing.T) {
	m := newLayerMachine(t)
	one, two := m.image("app-x", "ID=debian\nIMAGE_VERSION=1\n"), m.image("app-x", "ID=debian\nIMAGE_VERSION=2\n")
	boot := func() (int, string) { m.boot(); return 0, "" }
	command := func(args ...string) func() (int, string) {
		return func() (int, string) { return m.run(args...) }
	}
	for i, step := range []struct {
		do    func() (int, string)
		code  int
		says  string
		files int
	}{
		{command("layer", "list"), 0, "no layers", 0},
		{boot, 0, "", 0},
		{command("layer", "add", one), 0, "layer app-x 1: on trial at the next boot, signed by", 1},
		{command("layer", "list"), 0, "on trial", 1},
		{boot, 0, "", 1},
		{command("status"), 0, "layers are on trial: run sealroot commit", 1},
		{command("layer", "add", two), 3, "sealroot commit keeps them first", 1},
		{command("commit"), 0, "the layers of this boot: committed", 1},
		{command("layer", "add", two), 0, "layer app-x 2", 2},
		{command("commit"), 0, "is committed", 2}, // both are needed still
		{boot, 0, "", 2},
		{boot, 0, "", 2}, // the one before did not come up
		{command("layer", "list"), 0, "dropped", 2},
		{command("status"), 0, "was dropped", 2},
		{command("layer", "add", one), 0, "is there already", 2}, // what was dropped is forgotten
		{command("layer", "list"), 0, "active", 2},
		{command("layer", "add", two), 0, "on trial at the next boot", 2}, // asked for again, it is tried again
		{boot, 0, "", 2},
		{command("layer", "remove", "app-x"), 3, "on trial", 2},
		{command("layer", "override", "app-x", "off"), 3, "on trial", 2},
		{boot, 0, "", 2},
		{command("layer", "override", "app-x", "on"), 0, "once more", 2},
		{boot, 0, "", 2},
		{command("commit"), 0, "the layers of this boot: committed", 1}, // the first one is not needed any more
		{command("layer", "override", "app-x", "off"), 0, "off at the next boot", 1},
		{command("layer", "override", "app-x", "off"), 0, "is off", 1},
		{command("layer", "override", "demo", "off"), 0, "off at the next boot", 1},
		{command("layer", "override", "core", "off"), 3, "the image needs layer core", 1},
		{command("layer", "override", "app-y", "off"), 3, "no layer", 1},
		{command("layer", "override", "demo", "maybe"), 2, "on|off", 1},
		{boot, 0, "", 1},
		{command("commit"), 0, "", 1},
		{command("layer", "override", "demo", "on"), 0, "on at the next boot", 1},
		{command("layer", "remove", "app-x"), 0, "no slot needs it", 0},
		{command("layer", "remove", "app-x"), 3, "no layer", 0},
		{boot, 0, "", 0},
		{command("commit"), 0, "", 0},
	} {
		code, out := step.do()
		if code != step.code || !strings.Contains(out, step.says) || len(m.disk.files) != step.files {
			t.Fatalf("step %d: exit status %d, %d files:\n%s\nwant %d, %d, %q", i, code, len(m.disk.files), out, step.code, step.files, step.says)
		}
	}
}

func TestLayerAddRefused(t *testing.T) {
	allowed := func(c *config.Config) {}
	base := func() config.Config {
		return config.Config{LayersAllowed: []string{"app-*"}, Root: config.Root{Filesystem: "squashfs"}, State: config.State{Create: config.CreateFirstBoot, Unlock: []string{config.UnlockTPM2}}}
	}
	const debian = "ID=debian\nVERSION_ID=12\n"
	for _, tt := range []struct {
		name, layer, release string
		configure            func(c *config.Config)
		prepare              func(m *layerMachine)
		code                 int
		says                 string
	}{
		{"control", "app-x", debian, allowed, nil, 0, "on trial"},
		{"name", "other", debian, allowed, nil, 3, "does not allow a layer other"},
		{"nothing_allowed", "app-x", debian, func(c *config.Config) { c.LayersAllowed = nil }, nil, 3, "allows no further layers"},
		{"image's_own", "app-x", debian, func(c *config.Config) { c.Layers = []config.Layer{{Name: "app-x"}} }, nil, 3, "image's own"},
		{"other_version", "app-x", "ID=debian\nVERSION_ID=13\n", allowed, nil, 3, "VERSION_ID 13"},
		{"other_kernel", "app-x", "ID=_any\nSEALROOT_KERNEL=6.2\n", allowed, nil, 3, "kernel 6.2"},
		{"plain", "app-x", debian, func(c *config.Config) { c.State.Unlock = []string{config.UnlockPlain} }, nil, 3, "plain"},
		{"no_state", "app-x", debian, func(c *config.Config) { c.State.Create = config.CreateNone }, nil, 3, "state.create: none"},
		{"degraded", "app-x", debian, allowed, func(m *layerMachine) { m.rep.Degraded = true; m.report() }, 3, "degraded"},
		{"other_key", "app-x", debian, allowed, func(m *layerMachine) {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				m.t.Fatal(err)
			}
			m.put("certs/l.crt", string(signaturetest.Of(m.t, key, 2, time.Unix(2e9, 0)).PEM()))
		}, 6, "signer is not trusted"},
		{"no_room", "app-x", debian, allowed, func(m *layerMachine) { m.put("limits", "keep_free: 1000T\n") }, 3, "stay free"},
		{"full", "app-x", debian, allowed, func(m *layerMachine) { m.disk.full = true }, 3, "not enough room"},
		{"bad_medium", "app-x", debian, allowed, func(m *layerMachine) { m.disk.bad = true }, exitFailed, install.ErrReadBack.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newLayerMachine(t)
			c := base()
			tt.configure(&c)
			m.configure(c)
			if tt.prepare != nil {
				tt.prepare(m)
			}
			code, out := m.run("layer", "add", m.image(tt.layer, tt.release))
			_, err := os.Stat(filepath.Join(m.env.volume(), layerlist.File))
			changed := err == nil
			if code != tt.code || !strings.Contains(out, tt.says) || (code == 0) != changed || (code == 0) != (len(m.disk.files) > 0) {
				t.Errorf("exit status %d, list written %v, %d files: %s\nwant %d, %q", code, changed, len(m.disk.files), out, tt.code, tt.says)
			}
		})
	}
}

// A layer that would take a directory of the running root away, or give it to a user, is
// refused; what else it does to one is said. An image that replaces the one in use is not
// held against what that has, and what is mounted over the root is not the root's. In an
// /etc that is mounted the machine's own lies above the layer's, and nothing is refused.
func TestLayerAddComparesWithTheRoot(t *testing.T) {
	mkdir := func(name string, uid int, mode os.FileMode) func(tree string) error {
		return func(tree string) error {
			at := filepath.Join(tree, name)
			return errors.Join(os.MkdirAll(at, 0o755), os.Chown(at, uid, uid), os.Chmod(at, mode))
		}
	}
	const says = "0:0, mode 0755 another owner or mode, "
	for _, tt := range []struct {
		name  string
		add   func(tree string) error
		inUse bool
		usr   bool
		code  int
		says  string // "" for no word
	}{
		{"good", mkdir("usr/lib/app", 1000, 0o777), false, false, 0, ""},
		{"lib", mkdir("lib/app", 0, 0o755), false, false, 3, `/lib: layer app-x has a directory over a link to "usr/lib" of the root, which is gone then, with all that is reached through it; move what the layer has there below /usr/lib: `},
		{"link", func(tree string) error { return os.Symlink("usr", filepath.Join(tree, "opt")) }, false, false, 3, `/opt: layer app-x has a link to "usr" over a directory`},
		{"user's", mkdir("srv/systemd", 1000, 0o755), false, false, 3, "/srv/systemd: layer app-x gives the root's directory of owner " + says + "1000:1000, mode 0755, and lets others"},
		{"machine's", mkdir("etc/systemd", 1000, 0o755), false, false, 0, "warning: /etc/systemd: layer app-x gives the root's directory of owner " + says + "1000:1000, mode 0755, and lets others"},
		{"machine's_link", mkdir("etc/app", 0, 0o755), false, false, 0, `warning: /etc/app: layer app-x has a directory over a link to "/usr/share/app"`},
		{"machine's_etc", mkdir("etc", 1000, 0o755), false, false, 0, "warning: /etc: layer"},
		{"image's_etc", mkdir("etc/systemd", 1000, 0o755), false, false, 3, "/etc/systemd: layer"},
		{"not_below_etc", mkdir("etcetera/x", 1000, 0o755), false, false, 3, "/etcetera/x: layer"},
		{"mode", mkdir("etc/systemd", 0, 0o700), false, false, 0, "warning: /etc/systemd: layer app-x gives the root's directory of owner " + says + "0:0, mode 0700; chown 0:0 and chmod 0755"},
		{"in_use", mkdir("lib/app", 0, 0o755), true, false, 0, "warning: /lib: "},
		{"mounted", mkdir("mounted/systemd", 1000, 0o755), false, false, 0, ""},
		{"not_of_usr", mkdir("lib/app", 0, 0o755), false, true, 0, ""},
		{"usr", mkdir("usr/lib", 1000, 0o755), false, true, 3, "/usr/lib: layer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newLayerMachine(t)
			for _, name := range []string{"opt/x", "srv/systemd/x", "etcetera/x/x", "etc/x", "mounted/x"} {
				m.put("root/"+name, "")
			}
			if err := os.Symlink("usr/lib", m.dir+"/root/lib"); err != nil {
				t.Fatal(err)
			}
			for _, mounted := range []string{"etc", "mounted"} { // of a machine's /etc the layer is a part
				at := filepath.Join(m.dir, "root", mounted)
				if tt.name != "image's_etc" {
					if err := unix.Mount("tmpfs", at, "tmpfs", 0, "mode=755"); err != nil {
						t.Fatal(err)
					}
					defer unix.Unmount(at, 0)
				}
				m.put("root/"+mounted+"/systemd/x", "")
				if err := os.Symlink("/usr/share/app", filepath.Join(at, "app")); err != nil {
					t.Fatal(err)
				}
			}
			if tt.usr {
				c := config.Config{LayersAllowed: []string{"app-*"}, Root: config.Root{Source: config.SourceUsrVerity, Filesystem: "squashfs"}, State: config.State{Create: config.CreateFirstBoot, Unlock: []string{config.UnlockTPM2}}}
				m.configure(c)
			}
			if tt.inUse {
				m.rep.Layers = []report.Layer{{Name: "app-x", Source: report.LayerAdded}}
				m.report()
			}
			code, out := m.run("layer", "add", m.imageWith("app-x", "ID=debian\n", tt.add))
			if code != tt.code || !strings.Contains(out, tt.says) || tt.says == "" && strings.Contains(out, "warning") || (code == 0) != (len(m.disk.files) > 0) {
				t.Errorf("exit status %d, %d files: %s\nwant %d, %q", code, len(m.disk.files), out, tt.code, tt.says)
			}
		})
	}
}

// A layer that was removed is gone for good, whether the boot after that is committed or
// not, and wherever the power goes meanwhile; other changes before it stay on trial.
func TestRemovedForGood(t *testing.T) {
	m := newLayerMachine(t)
	x, y := m.image("app-x", "ID=debian\n"), m.image("app-y", "ID=debian\n")
	must := func(args ...string) {
		t.Helper()
		if code, out := m.run(args...); code != 0 {
			t.Fatalf("%q: %s", args, out)
		}
	}
	list := filepath.Join(m.env.volume(), layerlist.File)
	must("layer", "add", x)
	m.boot()
	must("commit")
	before, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	must("layer", "remove", "app-x")
	for range 2 { // not committed
		if m.boot(); m.added() != "" || m.rep.LayerTrial {
			t.Fatalf("removed: %q, on trial %v", m.added(), m.rep.LayerTrial)
		}
	}
	// The power goes between the two files.
	m.put("state/encrypted/"+layerlist.File, string(before))
	if m.boot(); m.added() != "" {
		t.Errorf("after a power cut: %q", m.added())
	}
	must("layer", "remove", "app-x")
	if code, out := m.run("status"); strings.Contains(out, "dropped") {
		t.Errorf("status %d: %s", code, out)
	}
	// Added again, kept, and then removed beside another that never came up.
	must("layer", "add", x)
	if m.boot(); m.added() != "app-x" || !m.rep.LayerTrial {
		t.Fatalf("added again: %q", m.added())
	}
	must("commit")
	must("layer", "add", y)
	m.boot()
	m.boot()
	if m.added() != "app-x" {
		t.Fatalf("y does not come up: %q", m.added())
	}
	must("layer", "remove", "app-x")
	if m.boot(); m.added() != "" || m.rep.LayerTrial {
		t.Errorf("the change of another layer tries what was dropped: %q, on trial %v", m.added(), m.rep.LayerTrial)
	}
	must("layer", "add", x)
	must("layer", "override", "demo", "off")
	must("layer", "remove", "app-x")
	if m.boot(); m.added() != "" || !m.rep.LayerTrial {
		t.Errorf("what else was changed is on trial %v: %q", m.rep.LayerTrial, m.added())
	}
}

// Each image has the list that it came up with. A rollback brings that back and tries no
// other; the layers of an update come with its trial, or with the boot after its commit.
func TestLayersOfEachImage(t *testing.T) {
	m := newLayerMachine(t)
	x, y := m.image("app-x", "ID=debian\n"), m.image("app-y", "ID=debian\n")
	must := func(args ...string) {
		t.Helper()
		if code, out := m.run(args...); code != 0 {
			t.Fatalf("%q: %s", args, out)
		}
	}
	runs := func(image string, slot report.Slot, want string, trial bool) {
		t.Helper()
		slot.Name = "b"
		m.rep.Root.RootHash, m.rep.Slot = strings.Repeat(image, 32), slot
		if m.boot(); m.added() != want || m.rep.LayerTrial != trial {
			t.Fatalf("image %s has %q, on trial %v; want %q, %v", image, m.added(), m.rep.LayerTrial, want, trial)
		}
	}
	committed := report.Slot{Successful: true}
	m.disk.images = map[string]string{"a": strings.Repeat("0a", 32)}
	m.rep.Root.RootHash = strings.Repeat("0a", 32)
	m.report()
	must("layer", "add", x)
	runs("0a", committed, "app-x", true)
	must("commit")
	// An update, whose only try shows it without.
	runs("0b", report.Slot{Trial: true}, "", false)
	if code, out := m.run("layer", "add", y); code != 3 || !strings.Contains(out, "first sealroot commit") {
		t.Errorf("a change while the list waits: %d, %s", code, out)
	}
	must("commit")
	runs("0b", committed, "app-x", true)
	must("commit")
	must("layer", "add", y)
	runs("0b", committed, "app-x app-y", true)
	must("commit")
	must("layer", "remove", "app-x")
	runs("0b", committed, "app-y", false)
	must("commit")
	if len(m.disk.files) != 2 {
		t.Errorf("%d files, want that of the other slot's image too", len(m.disk.files))
	}
	// A rollback to it.
	m.disk.images = map[string]string{"a": strings.Repeat("0b", 32)}
	runs("0a", committed, "app-x", false)
	must("commit")
	runs("0a", committed, "app-x", false)
	if _, out := m.run("status"); !strings.Contains(out, "goes by its own") {
		t.Errorf("status: %s", out)
	}
	must("layer", "override", "app-y", "on")
	runs("0a", committed, "app-y", true)
	runs("0a", committed, "app-x", false)
	// No slot holds it any more.
	m.disk.images = nil
	runs("0b", committed, "app-y", false)
	must("commit")
	if _, err := os.Stat(filepath.Join(m.env.volume(), layerlist.GoodFile(strings.Repeat("0a", 32)))); !os.IsNotExist(err) || len(m.disk.files) != 1 {
		t.Errorf("the list of an image that is gone: %v, %d files", err, len(m.disk.files))
	}
}

// While an image is read others may work, a deadline above all, and it ends with its
// context. What somebody writes into the file meanwhile is not what is added.
func TestLayerAddDoesNotKeepTheLock(t *testing.T) {
	m := newLayerMachine(t)
	image := m.image("app-x", "ID=debian\n")
	whole, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	settled := false
	free := func() {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		unlock, err := lock(ctx, m.env.Lock)
		if err != nil {
			t.Errorf("while the image is read or written: %v", err)
			return
		}
		unlock()
	}
	m.disk.settle = func() { settled = true; free() }
	m.env.ShowLayer = func(f *os.File, filesystem string, offset, size int64) (*os.File, error) {
		free()
		if err := os.WriteFile(image, make([]byte, len(whole)), 0o644); err != nil {
			t.Fatal(err)
		}
		return layers.Show(f, filesystem, offset, size)
	}
	if code, out := m.run("layer", "add", image); code != 0 || !settled {
		t.Fatal(out)
	}
	for _, got := range m.disk.files {
		if !bytes.Equal(got, whole) {
			t.Error("what was added is not what was verified")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out bytes.Buffer
	if code := Main(ctx, []string{"layer", "add", m.image("app-y", "ID=debian\n")}, &out, &out, m.env); code == 0 || len(m.disk.files) != 1 {
		t.Errorf("after its end: %d, %s", code, &out)
	}
}

// With a list that cannot be read the commands go by the last good one, and say so.
func TestBrokenListOfLayers(t *testing.T) {
	m := newLayerMachine(t)
	x := m.image("app-x", "ID=debian\n")
	if code, out := m.run("layer", "add", x); code != 0 {
		t.Fatal(out)
	}
	m.boot()
	if code, out := m.run("commit"); code != 0 {
		t.Fatal(out)
	}
	m.put("state/encrypted/"+layerlist.File, "x")
	if _, out := m.run("status"); !strings.Contains(out, "does not count") {
		t.Errorf("status: %s", out)
	}
	for _, args := range []string{"layer list", "layer override demo off", "layer remove app-x", "layer list"} {
		if code, out := m.run(strings.Fields(args)...); code != 0 {
			t.Errorf("%s: %d, %s", args, code, out)
		}
	}
	if m.boot(); m.added() != "" || !m.rep.LayerTrial {
		t.Errorf("after that: %q, on trial %v", m.added(), m.rep.LayerTrial)
	}
}

// A commit that cannot keep the layers says so and fails, and keeps the slot; one that
// cannot keep the slot keeps the layers.
func TestCommitOfLayersFails(t *testing.T) {
	m := newLayerMachine(t)
	if code, out := m.run("layer", "add", m.image("app-x", "ID=debian\n")); code != 0 {
		t.Fatal(out)
	}
	m.rep.Slot = report.Slot{Name: "b", Trial: true, TriesAfter: 2}
	m.boot()
	good := filepath.Join(m.env.volume(), layerlist.GoodFile(m.rep.Root.RootHash))
	m.put("state/encrypted/"+layerlist.GoodFile(m.rep.Root.RootHash)+".new/x", "")
	m.disk.list = pair()
	code, out := m.run("commit")
	if s, _ := slots.Find(m.disk.list, "b"); code == 0 || !strings.Contains(out, "not committed, try again") || !s.Successful || !strings.Contains(out, "layers that no slot needs stay") {
		t.Errorf("exit status %d, slot %+v, want it committed, and the rest of a commit tried: %s", code, s, out)
	}
	if err := os.RemoveAll(good + ".new"); err != nil {
		t.Fatal(err)
	}
	m.disk.list = pair()
	m.disk.saveErr = slots.ErrStore
	code, _ = m.run("commit")
	if _, err := os.Stat(good); err != nil || code == 0 {
		t.Errorf("exit status %d, %v", code, err)
	}
}

// Layers on trial are not committed while /etc is in memory, whether the slot is committed or not.
func TestLayersAreNotCommittedWithEtcInMemory(t *testing.T) {
	for _, list := range [][]slots.Slot{pair(), {{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Successful: true}}} {
		m := newLayerMachine(t)
		if code, out := m.run("layer", "add", m.image("app-x", "ID=debian\n")); code != 0 {
			t.Fatal(out)
		}
		m.rep.Slot = report.Slot{Name: "b", Trial: !list[1].Successful, TriesAfter: 2}
		m.env.Refused = m.dir + "/refused"
		m.boot()
		m.disk.list = list
		for _, memory := range []bool{true, false} {
			m.rep.EtcInMemory = memory
			m.report()
			code, out := m.run("commit")
			_, err := os.Stat(filepath.Join(m.env.volume(), layerlist.GoodFile(m.rep.Root.RootHash)))
			if kept := err == nil; kept == memory || (code == exitRefused) != memory {
				t.Errorf("in memory %v: exit status %d, layers kept %v: %s", memory, code, kept, out)
			}
		}
	}
}

// A list that is good already is no reason to fail when its trial cannot be noted as over.
func TestCommitOfLayersThatAreGood(t *testing.T) {
	m := newLayerMachine(t)
	if code, out := m.run("layer", "add", m.image("app-x", "ID=debian\n")); code != 0 {
		t.Fatal(out)
	}
	m.boot()
	list, err := os.ReadFile(filepath.Join(m.env.volume(), layerlist.File))
	if err != nil {
		t.Fatal(err)
	}
	m.put("state/encrypted/"+layerlist.GoodFile(m.rep.Root.RootHash), string(list)) // a commit cut short
	m.put("state/encrypted/"+layerlist.ProofsFile+".new/x", "")
	if code, out := m.run("commit"); code != 0 || !strings.Contains(out, "still count as on trial") {
		t.Errorf("exit status %d: %s", code, out)
	}
}

// Without an encrypted volume there is no list, and nothing to note about one.
func TestNoLayersToCommit(t *testing.T) {
	for _, plain := range []bool{true, false} {
		m := newLayerMachine(t)
		if plain {
			m.configure(config.Config{State: config.State{Create: config.CreateFirstBoot, Unlock: []string{config.UnlockPlain}}})
		}
		m.put("state/encrypted/"+layerlist.File, string(layerlist.List{{Name: "demo"}}.Format()))
		m.rep.Slot = report.Slot{Name: "b", Trial: true}
		m.report()
		m.disk.list = pair()
		code, out := m.run("commit")
		if _, err := os.Stat(filepath.Join(m.env.volume(), layerlist.ProofsFile)); code != 0 || (err != nil) != plain {
			t.Errorf("plain %v: exit status %d, %v: %s", plain, code, err, out)
		}
	}
}

// A slot that was marked bad in this boot is not committed, nor are its layers.
func TestLayersOfABadSlotAreNotCommitted(t *testing.T) {
	for _, bad := range []bool{true, false} {
		m := newLayerMachine(t)
		if code, out := m.run("layer", "add", m.image("app-x", "ID=debian\n")); code != 0 {
			t.Fatal(out)
		}
		m.rep.Slot = report.Slot{Name: "b", Trial: true, TriesAfter: 2}
		m.boot()
		m.disk.list = pair()
		if bad {
			m.disk.list[1] = slots.Slot{Name: "b"}
		}
		code, out := m.run("commit")
		if _, err := os.Stat(filepath.Join(m.env.volume(), layerlist.GoodFile(m.rep.Root.RootHash))); (err != nil) != bad || (code != 0) != bad {
			t.Errorf("marked bad %v: %v, exit status %d, %s", bad, err, code, out)
		}
	}
}

// With layers on trial a check that fails, or a deadline that passes, ends their trial and
// takes nothing from the slot, on trial itself or committed; once they are kept, or dropped,
// the slot answers for itself.
func TestLayersOnTrialAreGivenUp(t *testing.T) {
	for _, args := range []string{"deadline", "check", "check --lower", "check --no-reboot"} {
		for name, list := range map[string][]slots.Slot{"trial": pair(), "committed": goodPair()} {
			t.Run(args+"/"+name, func(t *testing.T) {
				m := newLayerMachine(t)
				if code, out := m.run("layer", "add", m.image("app-x", "ID=debian\n")); code != 0 {
					t.Fatal(out)
				}
				reboots := 0
				m.env.Reboot = func(context.Context) error { reboots++; return nil }
				m.env.Checks, m.env.Eager, m.env.Trial, m.env.LayersTrial = []string{m.dir + "/checks"}, m.dir+"/eager", m.dir+"/trial", m.dir+"/layers-trial"
				m.put("checks/10-net", "#!/bin/sh\nexit 1\n")
				if err := os.Chmod(m.dir+"/checks/10-net", 0o755); err != nil {
					t.Fatal(err)
				}
				mark := "layers-trial"
				if name == "trial" {
					mark = "trial"
					m.rep.Slot = report.Slot{Name: "b", Trial: true, TriesAfter: 2}
				}
				m.put(mark, "b\n")
				m.disk.list = list
				m.boot()
				before := slices.Clone(list)
				_, out := m.run(strings.Fields(args)...)
				want := 1
				if strings.Contains(args, "no-reboot") {
					want = 0
				}
				if !slices.Equal(m.disk.list, before) || reboots != want || !strings.Contains(out, "layers on trial") {
					t.Fatalf("slots %+v, %d restarts: %s", m.disk.list, reboots, out)
				}
				// Nothing of this boot is committed any more.
				if code, out := m.run("commit"); code != exitRefused || !slices.Equal(m.disk.list, before) || !strings.Contains(out, "have failed in this boot") {
					t.Errorf("commit: exit status %d, slots %+v: %s", code, m.disk.list, out)
				}
				if err := os.Remove(m.env.LayersFailed); err != nil { // the machine stops
					t.Fatal(err)
				}
				// The next boot goes without.
				if m.boot(); m.added() != "" || m.rep.LayerTrial {
					t.Fatalf("the next boot has %q", m.added())
				}
				if args == "check --lower" || name == "trial" {
					if m.run(strings.Fields(args)...); slices.Equal(m.disk.list, before) {
						t.Error("the slot does not answer for what fails without the layers")
					}
				}
			})
		}
	}
}

// The JSON of the list fits the schema of results.
func TestLayerListJSON(t *testing.T) {
	m := newLayerMachine(t)
	m.boot()
	if code, out := m.run("layer", "add", m.image("app-x", "ID=debian\n")); code != 0 {
		t.Fatal(out)
	}
	code, out := m.run("layer", "list", "--json")
	schema, err := os.ReadFile("../docs/result.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range schematest.Check(schema, []byte(out)) {
		t.Error(problem)
	}
	var r struct{ Data struct{ Layers []layers.Row } }
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 {
		t.Fatal(code, err)
	}
	rows := r.Data.Layers
	if len(rows) != 3 || rows[2].Name != "app-x" || rows[2].Source != report.LayerAdded || rows[2].Active || rows[2].Next == "" {
		t.Errorf("rows %+v", rows)
	}
}

// An installation says which added layers the new image leaves out.
func TestInstallTellsLayers(t *testing.T) {
	m := newLayerMachine(t)
	m.put("root/"+osrelease.ExtensionPath("driver"), "ID=debian\nSEALROOT_KERNEL=6.1\n")
	m.put("root/"+osrelease.ExtensionPath("tools"), "ID=debian\n")
	m.put("root/"+osrelease.ExtensionPath("fine"), "ID=debian\n")
	r := m.rep
	for _, name := range []string{"driver", "tools", "fine", "unknown"} {
		r.Layers = append(r.Layers, report.Layer{Name: name, Source: report.LayerAdded})
	}
	own := []manifest.Layer{{Name: "tools"}}
	for _, tt := range []struct {
		name string
		set  manifest.Manifest
		want []string
	}{
		{"fits", manifest.Manifest{KernelRelease: "6.1"}, nil},
		{"kernel", manifest.Manifest{KernelRelease: "6.2", Layers: own}, []string{"layer driver will be left out there: it is for kernel 6.1", "tools will be left out there: the image has one"}},
		{"system", manifest.Manifest{KernelRelease: "6.1", System: &manifest.System{ID: "fedora", LayersAllowed: "fine dr*"}},
			[]string{"driver will be left out there: it is for ID debian, kernel 6.1", "tools will be left out there: layers_allowed", "fine will be left out there: it is for ID debian"}},
		{"allowed", manifest.Manifest{KernelRelease: "6.1", System: &manifest.System{ID: "debian", VersionID: "13", LayersAllowed: "*"}}, nil},
	} {
		c := &command{env: m.env, stdout: io.Discard}
		c.tellLayers(r, tt.set)
		said := c.result.Messages
		if len(said) != len(tt.want) {
			t.Errorf("%s: said %q, want %q", tt.name, said, tt.want)
			continue
		}
		for i, want := range tt.want {
			if !strings.Contains(said[i], want) {
				t.Errorf("%s: said %q, want %q", tt.name, said[i], want)
			}
		}
	}
}

// A layer leaves as much free as the volume does: of btrfs also a block group.
func TestKeptFree(t *testing.T) {
	const mib, gib = int64(1) << 20, int64(1) << 30
	for _, tt := range []struct {
		asked, unit, total, want int64
	}{
		{0, 4096, 40 * gib, 2 * gib}, {64 * mib, 4096, 40 * gib, 64 * mib}, {1, 4096, 40 * gib, 16 * mib},
		{64 * mib, 4 * mib, 40 * gib, gib}, {3 * gib, 4 * mib, 40 * gib, 3 * gib}, {0, 4 * mib, gib, gib / 10},
	} {
		if got := keptFree(balance.Limits{KeepFree: tt.asked}, tt.unit, tt.total); got != tt.want {
			t.Errorf("keep_free %d, units of %d: %d of %d, want %d", tt.asked, tt.unit, got, tt.total, tt.want)
		}
	}
}
