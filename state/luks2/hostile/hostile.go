// Package hostile makes LUKS2 headers that must be refused: what somebody who
// writes the disk can put there. Checksums are right where a case is not about
// them, and passphrase Passphrase opens keyslot 0 wherever that still means
// anything, so that nothing but validation stands between a header and the
// volume key. No program links it; its own program, write, puts the headers
// into files.
package hostile

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"

	"sealroot/state/luks2"
)

const (
	// Passphrase opens keyslot 0 of the header that all cases are made from.
	Passphrase = "secret"
	// DeviceBytes is the size of the volume, unless a case is about it.
	DeviceBytes = 32 << 20

	uuid        = "6f0d3c1e-7a51-4c0b-9d0e-1c2b3a495867"
	binaryBytes = 4096
	hdrBytes    = 16 << 10
)

// Case is one hostile header.
type Case struct {
	Name string
	// Want is the sentinel of luks2 that the refusal wraps, Reason a piece of
	// its text: the case is not refused for something else.
	Want   error
	Reason string
	edit   func(v *volume)
}

// Image is the start of a volume; behind Head it is zero up to Size.
type Image struct {
	Head []byte
	Size int64
}

// ReadAt reads the image as a device of Size bytes.
func (i Image) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off >= i.Size {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), i.Size-off))
	clear(b[:n])
	if off < int64(len(i.Head)) {
		copy(b[:n], i.Head[off:])
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// WriteFile makes a sparse file of the image.
func (i Image) WriteFile(path string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(i.Head); err != nil {
		return err
	}
	return f.Truncate(i.Size)
}

// Good is the header that all cases are made from: with one keyslot of a cheap
// key derivation, and nothing to refuse. Every call makes the same.
func Good() (Image, error) {
	random := rand.NewChaCha8([32]byte{'h', 'o', 's', 't', 'i', 'l', 'e'})
	key := make([]byte, 64)
	random.Read(key) // never fails
	h, err := luks2.Format(luks2.FormatParams{UUID: uuid, Label: "hostile", VolumeKey: key, Rand: random})
	if err == nil {
		h, err = h.AddKeyslot(0, key, []byte(Passphrase), luks2.RandomSecretKDF(), random)
	}
	var w memory
	if err == nil {
		_, err = luks2.WriteNew(&w, h, random)
	}
	if err != nil {
		return Image{}, fmt.Errorf("cannot make the good header: %w", err)
	}
	return Image{w.b, DeviceBytes}, nil
}

// memory is a luks2.Writer.
type memory struct{ b []byte }

func (m *memory) WriteAt(b []byte, off int64) (int, error) {
	if end := int(off) + len(b); end > len(m.b) {
		m.b = append(m.b, make([]byte, end-len(m.b))...)
	}
	return copy(m.b[off:], b), nil
}

func (m *memory) Sync() error { return nil }

// Make makes the header of the case from the good one.
func (c Case) Make(good Image) (Image, error) {
	v := newVolume(good)
	c.edit(v)
	if v.err != nil {
		return Image{}, fmt.Errorf("cannot make %s: %w", c.Name, v.err)
	}
	return v.image(), nil
}

// volume is what a case changes. The codec of package luks2 is not used on the
// way back: it would refuse to write most of them.
type volume struct {
	primary, second header
	material        []byte // of keyslot 0
	materialAt      int64
	size            int64
	// damage changes the bytes after the checksums were made.
	damage func(b []byte) []byte
	err    error
}

// header is one copy, with fields as wide as on the disk.
type header struct {
	absent   bool
	at       uint64 // where it really lies
	magic    string
	version  uint16
	size     uint64 // as it says
	seqid    uint64
	label    []byte
	csumAlg  string
	uuid     []byte
	system   []byte
	offset   uint64 // as it says
	padding  []byte // from byte 264 on
	padding2 []byte // from byte 512 on
	json     []byte
	fill     byte   // behind json, instead of zeros
	area     uint64 // bytes of the JSON area, as checksummed
}

func newVolume(good Image) *volume {
	text, _, _ := bytes.Cut(good.Head[binaryBytes:hdrBytes], []byte{0})
	p := header{
		magic: "LUKS\xba\xbe", version: 2, size: hdrBytes, seqid: 1, label: []byte("hostile"),
		csumAlg: "sha256", uuid: []byte(uuid), json: slices.Clip(bytes.Clone(text)), area: hdrBytes - binaryBytes,
	}
	s := p
	s.magic, s.at, s.offset = "SKUL\xba\xbe", hdrBytes, hdrBytes
	return &volume{primary: p, second: s, material: good.Head[2*hdrBytes:], materialAt: 2 * hdrBytes, size: good.Size}
}

// encode returns the copy with its right checksum.
func (h header) encode() []byte {
	b := make([]byte, binaryBytes+h.area)
	be := binary.BigEndian
	copy(b, h.magic)
	be.PutUint16(b[6:], h.version)
	be.PutUint64(b[8:], h.size)
	be.PutUint64(b[16:], h.seqid)
	copy(b[24:72], h.label)
	copy(b[72:104], h.csumAlg)
	salt := sha256.Sum256([]byte(h.magic))
	copy(b[104:168], salt[:])
	copy(b[168:208], h.uuid)
	copy(b[208:256], h.system)
	be.PutUint64(b[256:], h.offset)
	copy(b[264:448], h.padding)
	copy(b[512:binaryBytes], h.padding2)
	n := copy(b[binaryBytes:], h.json)
	for i := binaryBytes + n; i < len(b); i++ {
		b[i] = h.fill
	}
	sum := sha256.Sum256(b)
	copy(b[448:], sum[:])
	return b
}

func (v *volume) image() Image {
	w := memory{make([]byte, 2*hdrBytes)}
	w.WriteAt(v.material, v.materialAt)
	for _, h := range []header{v.second, v.primary} {
		if !h.absent {
			w.WriteAt(h.encode(), int64(h.at))
		}
	}
	if v.damage != nil {
		w.b = v.damage(w.b)
	}
	return Image{w.b, v.size}
}

// copies changes both copies.
func (v *volume) copies(fn func(h *header)) {
	fn(&v.primary)
	fn(&v.second)
}

// both is a case that changes both copies.
func both(fn func(h *header)) func(*volume) {
	return func(v *volume) { v.copies(fn) }
}

// text is a case that changes the text of the JSON.
func text(fn func(text []byte) []byte) func(*volume) {
	return func(v *volume) {
		changed := fn(bytes.Clone(v.primary.json))
		if bytes.Equal(changed, v.primary.json) {
			v.err = errors.New("the case changes nothing")
		}
		v.copies(func(h *header) { h.json = changed })
	}
}

// replace is a case that replaces a piece of the JSON's text.
func replace(old, new string) func(*volume) {
	return text(func(text []byte) []byte { return bytes.Replace(text, []byte(old), []byte(new), 1) })
}

// object is a JSON object.
type object = map[string]any

// document is a case that changes the decoded JSON.
func document(fn func(doc object)) func(*volume) {
	return func(v *volume) {
		var doc object
		if v.err = json.Unmarshal(v.primary.json, &doc); v.err != nil {
			return
		}
		fn(doc)
		var changed []byte
		if changed, v.err = json.Marshal(doc); v.err == nil {
			v.copies(func(h *header) { h.json = changed })
		}
	}
}

// set is a case that sets one member; path leads to its object.
func set(key string, value any, path ...string) func(*volume) {
	return document(func(doc object) { at(doc, path...)[key] = value })
}

// unset is a case that takes one member away.
func unset(key string, path ...string) func(*volume) {
	return document(func(doc object) { delete(at(doc, path...), key) })
}

// at walks down a document.
func at(doc object, path ...string) object {
	for _, p := range path {
		doc = doc[p].(object)
	}
	return doc
}

// with is a copy of an object with members changed.
func with(o object, changes object) object {
	o = maps.Clone(o)
	maps.Copy(o, changes)
	return o
}

// grow makes the header larger, with all that follows from it: the volume stays
// good. doc changes its text then.
func (v *volume) grow(size uint64, doc func(text []byte) []byte) {
	v.copies(func(h *header) {
		h.size, h.area = size, size-binaryBytes
		for _, field := range []struct {
			name     string
			old, new uint64
		}{
			{"json_size", hdrBytes - binaryBytes, size - binaryBytes},
			{"offset", 2 * hdrBytes, 2 * size},
			{"keyslots_size", luks2.DefaultDataOffset - 2*hdrBytes, luks2.DefaultDataOffset - 2*size},
		} {
			h.json = bytes.Replace(h.json, fmt.Appendf(nil, `"%s":"%d"`, field.name, field.old), fmt.Appendf(nil, `"%s":"%d"`, field.name, field.new), 1)
		}
		h.json = doc(h.json)
	})
	v.second.at, v.second.offset, v.materialAt = size, size, int64(2*size)
}

// Cases are all hostile headers; their names differ and can be names of files.
func Cases() []Case {
	return slices.Concat(binaryCases(), copyCases(), textCases(), segmentCases(), configCases(), keyslotCases(), kdfCases(), digestCases(), tokenCases())
}
