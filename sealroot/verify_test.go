package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/install"
	"sealroot/slots"
	"sealroot/slots/bootlog"
	"sealroot/slots/manifest"
	"sealroot/verity"
	"sealroot/verity/signature/sign"
	"sealroot/verity/signature/signaturetest"
)

// signed is a machine in which slot a holds a signed image, with layers low and top on the
// state partition.
type signed struct {
	*fake
	parts  map[manifest.Name][]byte
	files  map[install.BootFile][]byte
	layers map[string]tree // by name
	closed error           // why no layer can be opened
}

// tree is data with its hash tree.
type tree struct{ data, hashes, root []byte }

type area []byte

func (a area) WriteAt(p []byte, off int64) (int, error) { return copy(a[off:], p), nil }

func newTree(t *testing.T, fill byte) tree {
	t.Helper()
	data := bytes.Repeat([]byte{fill}, 16<<12)
	params, err := verity.NewParams(int64(len(data)), bytes.Repeat([]byte{1}, 32), [16]byte{fill})
	if err != nil {
		t.Fatal(err)
	}
	hashes := make(area, params.HashSize())
	root, err := verity.Format(bytes.NewReader(data), params, hashes)
	if err != nil {
		t.Fatal(err)
	}
	return tree{data, hashes, root}
}

func newSigned(t *testing.T, k signaturetest.Signer) *signed {
	t.Helper()
	root := newTree(t, 1)
	sig, err := sign.RootHash(root.root, k.Cert, k.Key)
	if err != nil {
		t.Fatal(err)
	}
	s := &signed{
		fake:   &fake{},
		parts:  map[manifest.Name][]byte{manifest.Root: root.data, manifest.Verity: root.hashes, manifest.Signature: sig},
		files:  map[install.BootFile][]byte{install.UKI: []byte("kernel")},
		layers: map[string]tree{"low": newTree(t, 2), "top": newTree(t, 3)},
	}
	m := manifest.Manifest{Name: "kiosk", Version: "1", Architecture: manifest.Architecture, KernelRelease: "6.1.0", RootHash: root.root,
		Layout: &manifest.Layout{Loader: "grub", Store: "gpt", Partitions: "labels", Filesystem: "squashfs"}}
	for _, name := range []string{"low", "top"} {
		l := s.layers[name]
		m.Layers = append(m.Layers, manifest.Layer{Name: name, RootHash: l.root, File: "layer-" + name, Size: int64(len(l.data)), SHA256: sha256.Sum256(l.data)})
	}
	for _, name := range manifest.Names() {
		b, ok := s.parts[name]
		if !ok {
			b, ok = s.files[install.BootFile(name)]
		}
		if ok {
			m.Parts = append(m.Parts, manifest.Part{Name: name, File: string(name), Size: int64(len(b)), SHA256: sha256.Sum256(b)})
		}
	}
	text, err := manifest.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	message, err := manifest.Sign(text, k.Cert, k.Key)
	if err != nil {
		t.Fatal(err)
	}
	s.files[install.Manifest], s.files[install.ManifestSignature] = text, message
	return s
}

func (*signed) Tries() int             { return 3 }
func (*signed) Replicates(string) bool { return false }
func (s *signed) Install(changed func(place, slot string)) (install.Machine, error) {
	set, err := s.BootSet(changed)
	return install.Machine{Machine: set, Disk: s, ESP: signedESP{s}, Layers: signedLayers{s}}, err
}

func (s *signed) OpenPart(_ string, part manifest.Name, _ bool) (install.Partition, error) {
	return zeros{bytes.NewReader(s.parts[part])}, nil
}

func (*signed) OpenLayer(string, string, manifest.Name, bool) (install.Partition, error) {
	return nil, install.ErrNoPartition
}

type signedESP struct{ *signed }

func (signedESP) Needs() []install.BootFile { return nil }
func (e signedESP) With(_ bool, use func(install.Folder) error) error {
	return use(signedFolder{nil, e.signed})
}

type signedFolder struct {
	install.Folder // nil: only Open is called
	s              *signed
}

func (f signedFolder) Open(_ string, file install.BootFile) (io.ReadCloser, error) {
	if b, ok := f.s.files[file]; ok {
		return io.NopCloser(bytes.NewReader(b)), nil
	}
	return nil, fs.ErrNotExist
}

type signedLayers struct{ s *signed }

func (signedLayers) Holds(manifest.Layer) (bool, error)    { return false, errors.ErrUnsupported }
func (signedLayers) Write(manifest.Layer, io.Reader) error { return errors.ErrUnsupported }
func (l signedLayers) Open(of manifest.Layer) (install.LayerImage, error) {
	if l.s.closed != nil {
		return install.LayerImage{}, l.s.closed
	}
	have, ok := l.s.layers[of.Name]
	if !ok {
		return install.LayerImage{}, fmt.Errorf("%w: it is not there", install.ErrBad)
	}
	section := func(b []byte) *io.SectionReader { return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))) }
	return install.LayerImage{Data: section(have.data), Tree: section(have.hashes), Closer: io.NopCloser(nil)}, nil
}

// A slot that is good itself has its place back, whatever the layers on the state partition
// are, which all slots share; they are told of, and what was not read is not called bad.
func TestVerifyGivesThePlaceBack(t *testing.T) {
	k := signaturetest.New(t)
	trust := t.TempDir()
	if err := os.WriteFile(filepath.Join(trust, "image.crt"), k.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	closed := fmt.Errorf("the state partition is not mounted in this boot: %w", bootset.ErrRefused)
	const ofTop = "cannot use layer top: no such file or directory"
	for _, c := range []struct {
		name     string
		spoil    func(*signed)
		reason   slots.Reason
		detail   string
		code     int
		restored bool
		ok       bool // of the slot
		says     string
		layers   []string
	}{
		{"good", func(*signed) {}, slots.Verity, "", exitOK, true, true, "", []string{"low", "top"}},
		{"layer_is_missing", func(s *signed) { delete(s.layers, "top") }, slots.Verity, "", exitBad, true, false, "slot a: layer top: ", []string{"low"}},
		{"layer_is_bad", func(s *signed) { s.layers["low"].data[9000] ^= 1 }, slots.Mount, "cannot mount", exitBad, true, false, "slot a: layer low: ", []string{"top"}},
		{"state_is_not_mounted", func(s *signed) { s.closed = closed }, slots.Verity, "", exitRefused, true, true, "layer top was not read: ", nil},
		{"layers_of_a_bad_root", func(s *signed) { s.parts[manifest.Root][9000] ^= 1 }, slots.Verity, "", exitBad, false, false, "slot a: ", nil},
		{"layers_beside_a_bad_boot_file", func(s *signed) { s.files[install.UKI] = []byte("another") }, slots.Verity, "", exitBad, false, false, "uki", nil},
		{"that_layer_is_missing", func(s *signed) { delete(s.layers, "top") }, slots.Mount, ofTop, exitBad, false, false, "slot a: layer top: ", []string{"low"}},
		{"that_layer_was_not_read", func(s *signed) { s.closed = closed }, slots.Mount, ofTop, exitRefused, false, true, "layer top was not read: ", nil},
		{"that_layer_is_there_again", func(*signed) {}, slots.Mount, ofTop, exitOK, true, true, "", []string{"low", "top"}},
		{"another_layer_is_missing", func(s *signed) { delete(s.layers, "low") }, slots.Mount, ofTop, exitBad, true, false, "slot a: layer low: ", []string{"top"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSigned(t, k)
			c.spoil(s)
			w := world{report: running(func(r *report.Report) { r.Name = "kiosk" }), adapt: func(env *Env) {
				s.list = []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Successful: true}}
				s.log = bootlog.Record{}.Apply(slots.LogChange{Failures: []slots.Failure{{Slot: "a", Class: slots.ImageFailure, Reason: c.reason, Detail: c.detail, Above: "b"}}}, "boot")
				env.Open = func(Where) (Machine, error) { return s, nil }
			}}
			code, stdout, stderr, _ := w.outcome(t, "verify", "a", "--trust", trust)
			if code != c.code || !strings.Contains(stderr, c.says) {
				t.Errorf("exit status %d, %q, %q; want %d, %q", code, stdout, stderr, c.code, c.says)
			}
			if first := s.list[0].Priority > s.list[1].Priority; first != c.restored || strings.Contains(stdout, "its place back") != c.restored {
				t.Errorf("slots are %v, %q; want the place given back: %t", s.list, stdout, c.restored)
			}
			_, text, _, _ := w.outcome(t, "verify", "a", "--trust", trust, "--json")
			fitsResult(t, text)
			var got struct {
				Data []struct {
					OK     bool
					Layers []string `json:"layers_verified"`
				}
			}
			if err := json.Unmarshal([]byte(text), &got); err != nil || len(got.Data) != 1 {
				t.Fatalf("%v: %s", err, text)
			}
			if d := got.Data[0]; d.OK != c.ok || !slices.Equal(d.Layers, c.layers) {
				t.Errorf("ok %t, layers %q; want %t, %q", d.OK, d.Layers, c.ok, c.layers)
			}
		})
	}
}
