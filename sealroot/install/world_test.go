package install

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"testing"

	"sealroot/sealroot/bootset"
	"sealroot/slots"
	"sealroot/slots/manifest"
	"sealroot/verity"
	"sealroot/verity/signature"
	"sealroot/verity/signature/sign"
	"sealroot/verity/signature/signaturetest"
)

const (
	rootBlocks = 300 // two levels of tree
	rootSize   = rootBlocks * 4096
	slack      = 64 << 10
)

// bytesOf are the same random bytes for the same seed.
func bytesOf(seed uint64, n int) []byte {
	r := mathrand.NewPCG(seed, 1)
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		v := r.Uint64()
		for j := range 8 {
			b[i+j] = byte(v >> (8 * j))
		}
	}
	return b
}

type buffer []byte

func (b *buffer) WriteAt(p []byte, off int64) (int, error) {
	return copy((*b)[off:], p), nil
}

// testSet is a set in memory: the parts and their manifest.
type testSet struct {
	manifest manifest.Manifest
	files    map[string][]byte
}

func newSet(t testing.TB, k signaturetest.Signer, seed uint64, version string) testSet {
	t.Helper()
	root := bytesOf(seed, rootSize)
	params, err := verity.NewParams(rootSize, bytesOf(seed+100, 32), [16]byte{byte(seed)})
	if err != nil {
		t.Fatal(err)
	}
	// whole from the start: it is written from several goroutines
	tree := make(buffer, params.HashSize())
	hash, err := verity.Format(bytes.NewReader(root), params, &tree)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := sign.RootHash(hash, k.Cert, k.Key)
	if err != nil {
		t.Fatal(err)
	}
	s := testSet{
		manifest: manifest.Manifest{Name: "kiosk", Version: version, SecurityVersion: 2, Architecture: manifest.Architecture, KernelRelease: "6.1.0", RootHash: hash,
			Layout: &manifest.Layout{Loader: "grub", Store: "gpt", Partitions: "labels", Filesystem: "squashfs"}},
		files: map[string][]byte{
			"verity-sig": sig, "verity": tree, "root": root,
			"kernel": bytesOf(seed+200, 3000), "initrd": bytesOf(seed+300, 5000), "uki": bytesOf(seed+400, 9000),
		},
	}
	s.seal(t, k)
	return s
}

// seal makes the manifest of the files, and signs it.
func (s *testSet) seal(t testing.TB, k signaturetest.Signer) {
	t.Helper()
	s.manifest.Parts = nil
	for _, n := range manifest.Names() {
		if b, ok := s.files[string(n)]; ok {
			s.manifest.Parts = append(s.manifest.Parts, manifest.Part{Name: n, File: string(n), Size: int64(len(b)), SHA256: sha256.Sum256(b)})
		}
	}
	text, err := manifest.Encode(s.manifest)
	if err != nil {
		t.Fatal(err)
	}
	message, err := manifest.Sign(text, k.Cert, k.Key)
	if err != nil {
		t.Fatal(err)
	}
	s.files[manifest.File], s.files[manifest.SignatureFile] = text, message
}

// withLayers adds layers to the set.
func (s *testSet) withLayers(t testing.TB, k signaturetest.Signer, names ...string) {
	t.Helper()
	for i, name := range names {
		content := bytesOf(uint64(500+i), 4000)
		s.manifest.Layers = append(s.manifest.Layers, manifest.Layer{Name: name, RootHash: bytesOf(uint64(600+i), 32), File: "layer-" + name, Size: 4000, SHA256: sha256.Sum256(content)})
		s.files["layer-"+name] = content
	}
	s.seal(t, k)
}

// withParity adds parity to the tree.
func (s *testSet) withParity(t testing.TB, k signaturetest.Signer, roots int) {
	t.Helper()
	p, err := verity.ReadSuperblock(bytes.NewReader(s.files["verity"]))
	if err != nil {
		t.Fatal(err)
	}
	p.FECRoots = roots
	area := make(buffer, p.AreaSize())
	copy(area, s.files["verity"])
	if err := verity.BuildFEC(bytes.NewReader(s.files["root"]), bytes.NewReader(area), p, &area); err != nil {
		t.Fatal(err)
	}
	s.files["verity"] = area
	s.seal(t, k)
}

func (s testSet) clone() testSet {
	c := testSet{s.manifest, map[string][]byte{}}
	c.manifest.Parts = slices.Clone(s.manifest.Parts)
	for n, b := range s.files {
		c.files[n] = bytes.Clone(b)
	}
	return c
}

// order is the order of a set's files.
func (s testSet) order() []string {
	return s.manifest.Files()
}

// stateLayerSize is the size of the data of layers on the state partition; behind it lies
// the tree, and no table: that is layerFiles' affair.
const stateLayerSize = 40 * 4096

// withTrees gives the layers of withLayers content that has their root hash.
func (s *testSet) withTrees(t testing.TB, k signaturetest.Signer, w *world) {
	t.Helper()
	for i := range s.manifest.Layers {
		l := &s.manifest.Layers[i]
		data := bytesOf(uint64(800+i), stateLayerSize)
		params, err := verity.NewParams(stateLayerSize, bytesOf(7, 32), [16]byte{7})
		if err != nil {
			t.Fatal(err)
		}
		tree := make(buffer, params.HashSize())
		if l.RootHash, err = verity.Format(bytes.NewReader(data), params, &tree); err != nil {
			t.Fatal(err)
		}
		content := append(data, tree...)
		l.Size, l.SHA256 = int64(len(content)), sha256.Sum256(content)
		s.files["layer-"+l.Name], w.layers[layerKey(*l)] = content, bytes.Clone(content)
	}
	s.seal(t, k)
}

// withSlotLayers adds layers in partitions to the set.
func (s *testSet) withSlotLayers(t testing.TB, k signaturetest.Signer, seed uint64, names ...string) {
	t.Helper()
	for i, name := range names {
		data := bytesOf(seed+uint64(i), 40*4096)
		params, err := verity.NewParams(int64(len(data)), bytesOf(seed, 32), [16]byte{byte(seed)})
		if err != nil {
			t.Fatal(err)
		}
		tree := make(buffer, params.HashSize())
		l := manifest.Layer{Name: name}
		if l.RootHash, err = verity.Format(bytes.NewReader(data), params, &tree); err != nil {
			t.Fatal(err)
		}
		sig, err := sign.RootHash(l.RootHash, k.Cert, k.Key)
		if err != nil {
			t.Fatal(err)
		}
		for part, b := range map[manifest.Name][]byte{manifest.Signature: bytes.TrimRight(sig, "\x00"), manifest.Verity: tree, manifest.Root: data} {
			s.files[layerFile(name, part)] = b
		}
		for _, part := range manifest.LayerParts() {
			b := s.files[layerFile(name, part)]
			l.Parts = append(l.Parts, manifest.Part{Name: part, File: layerFile(name, part), Size: int64(len(b)), SHA256: sha256.Sum256(b)})
		}
		s.manifest.Layers = append(s.manifest.Layers, l)
	}
	s.seal(t, k)
}

func layerFile(layer string, part manifest.Name) string { return "layer-" + layer + "." + string(part) }

// tar is the set as a tar of the files in an order.
func (s testSet) tar(t testing.TB, order ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range order {
		if err := w.WriteHeader(&tar.Header{Name: n, Mode: 0o644, Size: int64(len(s.files[n])), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(s.files[n]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (s testSet) source(t testing.TB) Source {
	t.Helper()
	return newTarSource(io.NopCloser(bytes.NewReader(s.tar(t, s.order()...))))
}

var errCut = errors.New("power cut")

// world is a whole machine that loses its power before its n-th write, or has
// one write that fails.
type world struct {
	state  string // file system of the state partition
	cutAt  int    // before this write, from 1; 0 never
	failAt int    // this write fails, and the machine goes on
	lose   bool
	writes int
	off    bool
	trace  []string

	slots []slots.Slot
	armed string // the loader's one-shot
	first string // the loader's default
	// firstErr: the default cannot be read until it is set
	firstErr error
	record   string            // slot that the log says the one-shot was armed for
	layers   map[string][]byte // by name and root hash
	parts    map[string][]byte
	files    map[string][]byte // "b/kernel"
	beside   map[string][]byte // written and not published
	room     int64
	old      int64
	// fallback: a commit makes a copy of the unified kernel image
	fallback bool
	needs    []BootFile
	// lies: the slots are not saved when a slot is to become unbootable. The
	// control of the tests that cut the power.
	lies bool
}

// write is called before each change that lasts.
func (w *world) write(what string) error {
	if w.off {
		return errCut
	}
	w.writes++
	w.trace = append(w.trace, what)
	switch w.writes {
	case w.cutAt:
		w.off = true
		return errCut
	case w.failAt:
		return errors.New("input/output error")
	}
	return nil
}

func (w *world) clone() *world {
	c := *w
	c.slots = slices.Clone(w.slots)
	c.layers = maps.Clone(w.layers)
	c.parts, c.files, c.beside = map[string][]byte{}, maps.Clone(w.files), maps.Clone(w.beside)
	for n, b := range w.parts {
		c.parts[n] = bytes.Clone(b)
	}
	c.trace = nil
	return &c
}

// restart is the machine with power again.
func (w *world) restart() *world {
	c := w.clone()
	c.cutAt, c.failAt, c.writes, c.off, c.lies = 0, 0, 0, false, false
	return c
}

// put fills a slot.
func (w *world) put(slot string, s testSet) {
	for _, n := range []string{"root", "verity", "verity-sig"} {
		part := make([]byte, len(s.files[n])+slack)
		copy(part, s.files[n])
		w.parts[slot+"/"+n] = part
	}
	for _, l := range s.manifest.InPartitions() {
		for _, p := range l.Parts {
			part := make([]byte, len(s.files[p.File])+slack)
			copy(part, s.files[p.File])
			w.parts[slot+"/"+p.File] = part
		}
	}
	for _, f := range BootFiles() {
		if b, ok := s.files[string(f)]; ok {
			w.files[slot+"/"+string(f)] = b
		}
	}
}

func (w *world) Load() ([]slots.Slot, error) { return slices.Clone(w.slots), nil }

func (w *world) Save(s []slots.Slot) error {
	if err := w.write("slots"); err != nil {
		return err
	}
	if was, _ := slots.Find(w.slots, "b"); w.lies && was.Bootable() {
		return nil
	}
	w.slots = slices.Clone(s)
	return nil
}

func (w *world) Get() (string, error) { return w.armed, nil }

func (w *world) Arm(slot string) error {
	if err := w.write("arm"); err != nil {
		return err
	}
	w.armed = slot
	return nil
}

func (w *world) Clear() error {
	if err := w.write("clear"); err != nil {
		return err
	}
	w.armed = ""
	return nil
}

func (w *world) IsDefault(slot string) (bool, error) { return w.first == slot, w.firstErr }

func (w *world) SetDefault(slot string) error {
	if w.first == slot && w.firstErr == nil {
		return nil
	}
	if err := w.write("default"); err != nil {
		return err
	}
	w.first, w.firstErr = slot, nil
	return nil
}

func (w *world) Record(c slots.LogChange) error {
	if err := w.write("log"); err != nil {
		return err
	}
	if slices.Contains(c.Forget, w.record) {
		w.record = ""
	}
	if c.SetArmed {
		w.record = c.Armed
	}
	return nil
}

func (w *world) OpenPart(slot string, part manifest.Name, write bool) (Partition, error) {
	name := slot + "/" + string(part)
	if w.parts[name] == nil {
		return nil, fs.ErrNotExist
	}
	return &partition{w: w, name: name, write: write}, nil
}

func (w *world) OpenLayer(slot, layer string, part manifest.Name, write bool) (Partition, error) {
	name := slot + "/" + layerFile(layer, part)
	if w.parts[name] == nil {
		return nil, ErrNoPartition
	}
	return &partition{w: w, name: name, write: write}, nil
}

// partition keeps what was written in memory until it is synced.
type partition struct {
	w       *world
	name    string
	write   bool
	pending []func()
}

func (p *partition) Size() int64   { return int64(len(p.w.parts[p.name])) }
func (p *partition) Forget() error { return nil }
func (p *partition) Close() error  { return nil }

func (p *partition) ReadAt(b []byte, off int64) (int, error) {
	return bytes.NewReader(p.w.parts[p.name]).ReadAt(b, off)
}

func (p *partition) WriteAt(b []byte, off int64) (int, error) {
	if !p.write || off+int64(len(b)) > p.Size() {
		return 0, errors.New("written outside")
	}
	if err := p.w.write("write " + p.name); err != nil {
		return 0, err
	}
	data := bytes.Clone(b)
	p.pending = append(p.pending, func() { copy(p.w.parts[p.name][off:], data) })
	if !p.w.lose {
		p.flush() // the medium took it at once
	}
	return len(b), nil
}

func (p *partition) flush() {
	for _, do := range p.pending {
		do()
	}
	p.pending = nil
}

func (p *partition) Sync() error {
	if err := p.w.write("sync " + p.name); err != nil {
		return err
	}
	p.flush()
	return nil
}

// layerStore are the layers of a world.
type layerStore struct{ w *world }

func (s layerStore) Holds(l manifest.Layer) (bool, error) {
	b, ok := s.w.layers[layerKey(l)]
	return ok && sha256.Sum256(b) == l.SHA256, nil
}

func (s layerStore) Open(l manifest.Layer) (LayerImage, error) {
	b, ok := s.w.layers[layerKey(l)]
	if !ok || len(b) < stateLayerSize {
		return LayerImage{}, ErrBad
	}
	section := func(b []byte) *io.SectionReader { return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))) }
	return LayerImage{section(b[:stateLayerSize]), section(b[stateLayerSize:]), io.NopCloser(nil)}, nil
}

func (s layerStore) Write(l manifest.Layer, content io.Reader) error {
	b, err := io.ReadAll(content)
	if err != nil {
		return err
	}
	if err := s.w.write("layer " + l.Name); err != nil {
		return err
	}
	s.w.layers[layerKey(l)] = b
	return nil
}

func layerKey(l manifest.Layer) string { return l.Name + "-" + hexOf(l.RootHash) }

func (w *world) Needs() []BootFile                             { return w.needs }
func (w *world) With(write bool, use func(Folder) error) error { return use(folder{w, write}) }

type folder struct {
	w     *world
	write bool
}

func (f folder) Room(string) (Room, error) {
	return Room{Free: f.w.room, Old: f.w.old, Fallback: f.w.fallback}, nil
}

func (f folder) Open(slot string, file BootFile) (io.ReadCloser, error) {
	b, ok := f.w.files[slot+"/"+string(file)]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (f folder) Write(slot string, file BootFile, content io.Reader) error {
	if !f.write {
		return errors.New("mounted for reading")
	}
	b, err := io.ReadAll(content)
	if err != nil {
		return err
	}
	if err := f.w.write("write " + slot + "/" + string(file)); err != nil {
		return err
	}
	f.w.beside[slot+"/"+string(file)] = b
	return nil
}

func (f folder) Written(slot string, file BootFile) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(f.w.beside[slot+"/"+string(file)])), nil
}

func (f folder) Publish(slot string, files []BootFile) error {
	for _, file := range files {
		name := slot + "/" + string(file)
		if err := f.w.write("publish " + name); err != nil {
			return err
		}
		f.w.files[name] = f.w.beside[name]
		delete(f.w.beside, name)
	}
	for _, file := range BootFiles() {
		if name := slot + "/" + string(file); f.w.files[name] != nil && !slices.Contains(files, file) {
			if err := f.w.write("delete " + name); err != nil {
				return err
			}
			delete(f.w.files, name)
		}
	}
	return nil
}

func (w *world) machine(k signaturetest.Signer) Machine {
	return Machine{
		Machine: bootset.Machine{Store: w, Loader: w, Log: w, HoldsImage: func(string) error { return nil }},
		Disk:    w, ESP: w, Layers: layerStore{w}, Certs: []*signature.Certificate{k.Parsed},
		Layout: manifest.Layout{Loader: "grub", Store: "gpt", Partitions: "labels"}, State: w.state,
		Say: func(string, ...any) {}, Progress: Quiet{},
	}
}

// whole says whether a slot holds one of the sets, all of it.
func (w *world) whole(slot string, sets ...testSet) error {
	for _, s := range sets {
		if !bytes.HasPrefix(w.parts[slot+"/verity-sig"], s.files["verity-sig"]) {
			continue
		}
		for _, n := range []string{"root", "verity"} {
			if !bytes.HasPrefix(w.parts[slot+"/"+n], s.files[n]) {
				return fmt.Errorf("its %s is not that of version %s", n, s.manifest.Version)
			}
		}
		for _, l := range s.manifest.InPartitions() {
			for _, p := range l.Parts {
				if !bytes.HasPrefix(w.parts[slot+"/"+p.File], s.files[p.File]) {
					return fmt.Errorf("%s of layer %s is not that of version %s", p.Name, l.Name, s.manifest.Version)
				}
			}
		}
		for _, f := range BootFiles() {
			if !bytes.Equal(w.files[slot+"/"+string(f)], s.files[string(f)]) {
				return fmt.Errorf("its %s is not that of version %s", f, s.manifest.Version)
			}
		}
		return nil
	}
	return errors.New("its signature is of none of the images")
}

// bricked says what is wrong with a machine that lost its power, for a slot a
// that must never change.
func (w *world) bricked(running testSet, sets ...testSet) error {
	for _, s := range w.slots {
		if !s.Bootable() {
			continue
		}
		if err := w.whole(s.Name, append(sets, running)...); err != nil {
			return fmt.Errorf("%s, and %w", s, err)
		}
	}
	if err := w.whole("a", running); err != nil {
		return fmt.Errorf("the running slot was changed: %w", err)
	}
	if a, _ := slots.Find(w.slots, "a"); a.State() != slots.Committed {
		return fmt.Errorf("the running slot is not committed: %s", a)
	}
	if d, _ := slots.Find(w.slots, w.first); w.writes > 1 && d.State() != slots.Committed {
		return fmt.Errorf("the loader's default is %s", d)
	}
	return nil
}
