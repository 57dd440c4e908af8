package layers

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
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
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/install"
	"sealroot/state/layerlist"
	"sealroot/state/layout"
	"sealroot/verity"
	"sealroot/verity/osrelease"
	"sealroot/verity/signature"
	"sealroot/verity/signature/sign"
	"sealroot/verity/signature/signaturetest"
)

const image = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

func hash(c string) string { return strings.Repeat(c, 64) }

// store is a volume with a list.
func store(t *testing.T) (volume string) {
	t.Helper()
	volume = t.TempDir()
	if err := os.Mkdir(filepath.Join(volume, layout.Private), 0o700); err != nil {
		t.Fatal(err)
	}
	return volume
}

// A commit writes two files. Cut between them the list is good, and the next commit says
// the rest.
func TestCommitCutShort(t *testing.T) {
	v := store(t)
	list := layerlist.List{{Name: "a", Hash: hash("1")}}
	r := report.Report{Root: report.Root{RootHash: image}, LayerList: layerlist.ID(list.Format()), LayerTrial: true}
	if trial, err := Load(v, r).Save(list); err != nil || !trial {
		t.Fatal(trial, err)
	}
	if err := Load(v, r).prove(r.LayerList, layerlist.Tried); err != nil { // PID 1
		t.Fatal(err)
	}
	if k := Load(v, r); !k.OnTrial() || k.MayChange() == nil || k.Aside() {
		t.Errorf("not on trial: %+v", k)
	}
	if err := Load(v, r).write(layerlist.GoodFile(image), list.Format()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		if k := Load(v, r); k.OnTrial() || k.Aside() || !slices.Equal(k.Base(), list) {
			t.Errorf("good, and %+v", k)
		}
		if changed, err := Load(v, r).Commit(); err != nil || changed != want {
			t.Errorf("Commit() = %v, %v; want %v", changed, err, want)
		}
	}
	// Removed behind such a cut, nothing is on trial.
	if err := Load(v, r).prove(r.LayerList, layerlist.Tried); err != nil {
		t.Fatal(err)
	}
	if trial, err := Load(v, r).Remove("a"); err != nil || trial || Load(v, r).OnTrial() {
		t.Errorf("Remove() = %v, %v; on trial %v", trial, err, Load(v, r).OnTrial())
	}
	// A list that is not the one that the boot began with.
	r.LayerList = "0011223344556677"
	if err := Load(v, r).prove(r.LayerList, layerlist.Tried); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(v, r).Commit(); err == nil {
		t.Error("a list that nobody has any more is committed")
	}
}

func TestBadList(t *testing.T) {
	v := store(t)
	for _, text := range []string{"", "sealroot-layers 1\nadd", strings.Repeat("x", 1<<20)} {
		if err := os.WriteFile(filepath.Join(v, layerlist.File), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Files(v, nil)
		if k := Load(v, report.Report{}); !errors.Is(k.Broken, layerlist.ErrFormat) || !errors.Is(err, layerlist.ErrFormat) {
			t.Errorf("%.20q: %v; %v", text, k.Broken, err)
		}
	}
}

func signer(t *testing.T, serial int64) signaturetest.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signaturetest.Of(t, key, serial, time.Unix(1e9, 0))
}

type memory []byte

func (m memory) WriteAt(p []byte, at int64) (int, error) { return copy(m[at:], p), nil }

// pack makes the image of a layer with these files.
func pack(t *testing.T, by signaturetest.Signer, files map[string]string) (path string) {
	t.Helper()
	tree, dir := t.TempDir(), t.TempDir()
	for name, text := range files {
		at := filepath.Join(tree, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("mksquashfs", tree, dir+"/fs", "-quiet", "-noappend", "-no-progress").CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v\n%s", err, out)
	}
	data, err := os.ReadFile(dir + "/fs")
	if err != nil {
		t.Fatal(err)
	}
	params, err := verity.NewParams(int64(len(data)), []byte("salt"), [16]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	tree2 := make(memory, params.HashSize())
	hash, err := verity.Format(bytes.NewReader(data), params, tree2)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := sign.RootHash(hash, by.Cert, by.Key)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(dir + "/layer.raw")
	if err != nil {
		t.Fatal(err)
	}
	err = layer.Pack(f, layer.Parts{Data: bytes.NewReader(data), Tree: bytes.NewReader(tree2), DataSize: int64(len(data)), TreeSize: int64(len(tree2)), RootHash: hash, Signature: bytes.TrimRight(sig, "\x00")})
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// An image is taken when all of it is as a certificate says, and it is read through the
// kernel; the file that is written is the one that was verified.
func TestOpen(t *testing.T) {
	ours, stranger := signer(t, 1), signer(t, 2)
	certs, err := signature.ParseCertificates(ours.PEM())
	if err != nil {
		t.Fatal(err)
	}
	release := osrelease.ExtensionPath("tools")
	whole := pack(t, ours, map[string]string{release: "ID=debian\nIMAGE_VERSION=3\n", "usr/bin/tool": "x"})
	root := t.TempDir()
	open := func(path, name, kind string) (*Image, error) {
		draft, err := os.Create(filepath.Join(t.TempDir(), "draft"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { draft.Close() })
		return Open(t.Context(), path, draft, func(int64) error { return nil }, Wanted{Name: name, Filesystem: kind, Certs: certs, Show: Show, Root: root})
	}
	im, err := open(whole, "", "squashfs")
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(im.file.Name())
	if err != nil || int64(len(content)) != im.Layer.Size || im.Layer.Name != "tools" || im.Release.ImageVersion != "3" || !strings.Contains(im.Signer, "CN=") || len(im.RootHash()) != 64 {
		t.Errorf("got %+v, %v", im, err)
	}
	flipped := filepath.Join(t.TempDir(), "flipped.raw")
	content[1<<20+100] ^= 1
	if err := os.WriteFile(flipped, content, 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	two := pack(t, ours, map[string]string{release: "ID=debian\n", osrelease.ExtensionPath("more"): "ID=debian\n"})
	for _, tt := range []struct {
		name, path, layer, kind string
		want                    error
		says                    string
	}{
		{"changed", flipped, "", "squashfs", verity.ErrCorrupt, ""},
		{"other_key", pack(t, stranger, map[string]string{release: "ID=debian\n"}), "", "squashfs", signature.ErrUnknownSigner, ""},
		{"no_image", "/etc/os-release", "", "squashfs", layer.ErrImage, ""},
		{"folder", "/etc", "", "squashfs", install.ErrSet, "no plain file"},
		{"fifo", fifo, "", "squashfs", install.ErrSet, "no plain file"},
		{"other_file_system", whole, "", "erofs", install.ErrSet, "--filesystem erofs"},
		{"other_name", whole, "more", "squashfs", install.ErrSet, `no layer "more"`},
		{"two_names", two, "", "squashfs", bootset.ErrUsage, "--name"},
		{"no_release", pack(t, ours, map[string]string{"usr/bin/tool": "x"}), "", "squashfs", install.ErrSet, "what it is for"},
		{"bad_name", pack(t, ours, map[string]string{osrelease.ExtensionPath("Bad.Name"): "ID=debian\n"}), "", "squashfs", install.ErrSet, "has no /usr"},
		{"bad_release", pack(t, ours, map[string]string{release: "ID"}), "", "squashfs", install.ErrSet, ""},
		{"missing", "/no/such/file", "", "squashfs", os.ErrNotExist, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := open(tt.path, tt.layer, tt.kind); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %v, %q", err, tt.want, tt.says)
			}
		})
	}
	if im, err := open(two, "more", "squashfs"); err != nil || im.Layer.Name != "more" {
		t.Errorf("with a name: %v", err)
	}
}

func TestMay(t *testing.T) {
	cfg := config.Config{
		LayersAllowed: []string{"site", "app-*"},
		Layers:        []config.Layer{{Name: "app-own", OnFailure: config.LayerStop}, {Name: "demo", OnFailure: config.LayerSkip}},
	}
	plain, none := cfg, cfg
	plain.State.Unlock = []string{config.UnlockPlain}
	none.State.Create = config.CreateNone
	debian := osrelease.Release{ID: "debian", VersionID: "12"}
	for name, tt := range map[string]struct {
		err  error
		says string
	}{
		"ready": {Ready(cfg, report.Report{}), ""}, "plain": {Ready(plain, report.Report{}), "plain"}, "none": {Ready(none, report.Report{}), "create: none"}, "degraded": {Ready(cfg, report.Report{Degraded: true}), "degraded"},
		"allowed": {MayAdd(cfg, "site"), ""}, "begins": {MayAdd(cfg, "app-x"), ""}, "own": {MayAdd(cfg, "app-own"), "image's own"}, "not_allowed": {MayAdd(cfg, "sit"), `"app-*"`}, "nothing_allowed": {MayAdd(config.Config{}, "site"), "layers_allowed"},
		"fits": {Fits(debian, debian, "6.1"), ""}, "other_system": {Fits(osrelease.Release{ID: "fedora"}, debian, "6.1"), "for ID fedora"}, "other_kernel": {Fits(osrelease.Release{ID: "debian", Kernel: "6.2"}, debian, "6.1"), "kernel 6.2"},
		"off": {MayTurnOff(cfg, false, "demo"), ""}, "off_added": {MayTurnOff(cfg, true, "site"), ""}, "needed": {MayTurnOff(cfg, false, "app-own"), "needs"}, "unknown": {MayTurnOff(cfg, false, "x"), "no layer"},
		"room": {Room(10<<20, 30<<20, 20<<20), ""}, "no_room": {Room(12<<20+1, 30<<20, 20<<20), "a smaller volume leaves it more, as sealroot state resize -3M"},
	} {
		switch {
		case tt.says == "" && tt.err != nil:
			t.Errorf("%s: %v", name, tt.err)
		case tt.says != "" && (!errors.Is(tt.err, bootset.ErrRefused) || !strings.Contains(tt.err.Error(), tt.says)):
			t.Errorf("%s: %v, want it refused with %q", name, tt.err, tt.says)
		}
	}
}

// What list says of each layer: now and at the next boot.
func TestTable(t *testing.T) {
	a, b := layerlist.Entry{Name: "a", Hash: hash("a")}, layerlist.Entry{Name: "b", Hash: hash("b")}
	offDemo := layerlist.Entry{Name: "demo"}
	id := func(l layerlist.List) string { return layerlist.ID(l.Format()) }
	kept := func(l, good layerlist.List, state string) Kept {
		k := Kept{List: l, ID: id(l), Proofs: layerlist.Proofs("").With(image, id(l), state)}
		if good != nil {
			k.good, k.goodID = good, id(good)
		}
		return k
	}
	with := func(list layerlist.List, more ...report.Layer) report.Report {
		r := report.Report{Layers: append([]report.Layer{{Name: "demo", Version: "7"}}, more...)}
		r.Root.RootHash = image
		if list != nil {
			r.LayerList = id(list)
		}
		return r
	}
	of := func(e layerlist.Entry) report.Layer {
		return report.Layer{Name: e.Name, RootHash: e.Hash, Source: report.LayerAdded}
	}
	left := of(a)
	left.LeftOut = "it is not there"
	off := report.Layer{Name: "demo", LeftOut: report.LayerOff}
	one, both, changed := layerlist.List{a}, layerlist.List{a, b}, layerlist.List{a, offDemo}
	trial := with(one, of(a))
	trial.LayerTrial = true
	turned := with(layerlist.List{offDemo})
	turned.Layers = []report.Layer{off}
	for _, tt := range []struct {
		name string
		r    report.Report
		k    Kept
		want string // name, active, trial, why, next of each
		todo int
	}{
		{"image's_own", with(nil), Kept{}, "demo active", 0},
		{"added_now", with(nil), kept(one, nil, layerlist.New), "demo active; a: added after this boot began -> on trial", 0},
		{"on_trial", trial, kept(one, nil, layerlist.Tried), "demo active; a active, on trial", 1},
		{"good", with(one, of(a)), kept(one, one, layerlist.Good), "demo active; a active", 0},
		{"left_out", with(one, left), kept(one, one, layerlist.Good), "demo active; a: it is not there", 0},
		{"removed", with(one, of(a)), kept(nil, layerlist.List{}, ""), "demo active; a active -> removed", 0},
		{"turned_off", with(one, of(a)), kept(changed, one, layerlist.New), "demo active -> off; a active", 0},
		{"off", turned, kept(layerlist.List{offDemo}, layerlist.List{offDemo}, layerlist.Good), "demo: turned off on this machine", 0},
		{"turned_on", turned, kept(nil, layerlist.List{offDemo}, layerlist.New), "demo: turned off on this machine -> on", 0},
		{"dropped", with(one, of(a)), kept(both, one, layerlist.Tried), "demo active; a active; b: " + whyDropped, 1},
		{"dropped_and_nothing_before", with(nil), kept(one, nil, layerlist.Tried), "demo active; a: " + whyDropped, 1},
		{"another_image's", with(one, of(a)), kept(both, one, ""), "demo active; a active; b: " + whyAside, 1},
		{"broken", with(one, of(a)), Kept{Broken: layerlist.ErrFormat, good: one, goodID: id(one)}, "demo active; a active", 1},
	} {
		var got []string
		tt.k.boot = tt.r
		for _, row := range Table(tt.r, tt.k) {
			text := row.Name
			if row.Active {
				text += " active"
			} else {
				text += ": " + row.Why
			}
			if row.Trial {
				text += ", on trial"
			}
			if row.Next != "" {
				text += " -> " + row.Next
			}
			got = append(got, text)
		}
		if text := strings.Join(got, "; "); text != tt.want {
			t.Errorf("%s: %s\nwant %s", tt.name, text, tt.want)
		}
		if todo := ToDo(tt.k); len(todo) != tt.todo {
			t.Errorf("%s: to do %q", tt.name, todo)
		}
	}
}
