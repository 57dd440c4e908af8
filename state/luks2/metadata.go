package luks2

import (
	"fmt"
	"maps"
	"slices"
)

// What a header may say. Other values that cryptsetup knows are refused, not
// ignored: a header that asks for something we do not do is not ours.
const (
	stripes    = 4000 // the only number cryptsetup writes
	areaAlign  = 4096
	saltBytes  = 32
	sectorSize = 512 // of keyslot areas and of the IV
)

// metadata is the JSON area, validated.
type metadata struct {
	keyslots     map[int]keyslot
	tokens       map[int]Token
	digestID     int
	digest       digest
	segmentID    int
	segment      segment
	keyslotsSize uint64
	flags        []string // kept for cryptsetup, never obeyed
}

type keyslot struct {
	keySize     int // of the volume key
	priority    int
	hasPriority bool
	afHash      string
	area        span
	areaKeySize int
	kdf         KDF
	salt        []byte
}

// span is a range of bytes on the device.
type span struct{ offset, size uint64 }

func (s span) overlaps(t span) bool {
	return s.offset < t.offset+t.size && t.offset < s.offset+s.size
}

type digest struct {
	hash       string
	iterations int
	salt       []byte
	digest     []byte
}

type segment struct {
	offset     uint64
	size       uint64 // 0: up to the end of the device
	sectorSize int
}

// materialBytes is the length of a split volume key.
func (k keyslot) materialBytes() int { return k.keySize * stripes }

// parseMetadata reads and validates the JSON area of a header of hdrSize bytes
// (one copy) on a device of deviceSize bytes.
func parseMetadata(text []byte, hdrSize, deviceSize uint64) (metadata, error) {
	doc, err := parseJSON(text)
	if err != nil {
		return metadata{}, fmt.Errorf("%w: %w", ErrHeader, err)
	}
	r := &reader{}
	top := r.object("header", doc, "keyslots", "tokens", "segments", "digests", "config")
	m := metadata{keyslots: map[int]keyslot{}, tokens: map[int]Token{}}
	r.config(&m, r.get(top, "config", kindObject), hdrSize)
	r.segment(&m, r.get(top, "segments", kindObject), hdrSize, deviceSize)
	keyslots := r.numbered("keyslots", r.get(top, "keyslots", kindObject))
	for _, id := range slices.Sorted(maps.Keys(keyslots)) {
		m.keyslots[id] = r.keyslot(fmt.Sprintf("keyslot %d", id), keyslots[id])
	}
	r.areas(&m, hdrSize)
	r.digest(&m, r.get(top, "digests", kindObject))
	tokens := r.numbered("tokens", r.get(top, "tokens", kindObject))
	for _, id := range slices.Sorted(maps.Keys(tokens)) {
		m.tokens[id] = r.token(&m, id, tokens[id])
	}
	if r.err != nil {
		return metadata{}, r.err
	}
	return m, nil
}

func (r *reader) config(m *metadata, v value, hdrSize uint64) {
	if _, ok := v.members["requirements"]; ok {
		// Re-encryption in progress and every later format extension say so
		// here. Recovery of the former is CVE-2021-4122.
		r.failf(ErrUnsupported, "config", "the header has requirements")
		return
	}
	o := r.object("config", v, "json_size", "keyslots_size", "flags")
	if n := r.u64(o, "json_size"); n != hdrSize-binaryBytes {
		r.failf(ErrHeader, "config", "json_size is %d, want %d", n, hdrSize-binaryBytes)
	}
	m.keyslotsSize = r.u64(o, "keyslots_size")
	if m.keyslotsSize%areaAlign != 0 || m.keyslotsSize > 128<<20 {
		r.failf(ErrHeader, "config", "keyslots_size is %d", m.keyslotsSize)
	}
	if _, ok := o.members["flags"]; !ok {
		return
	}
	for _, e := range r.get(o, "flags", kindArray).elems {
		// crypt_persistent_flags: hints on how to activate. Nobody signed
		// them, so they are carried along and never looked at.
		known := object{"config", map[string]value{"flags": e}}
		m.flags = append(m.flags, r.text(known, "flags", "allow-discards", "same-cpu-crypt",
			"submit-from-crypt-cpus", "no-read-workqueue", "no-write-workqueue"))
		if len(m.flags) > 16 {
			r.failf(ErrHeader, "config", "too many flags")
			return
		}
	}
}

func (r *reader) segment(m *metadata, v value, hdrSize, deviceSize uint64) {
	segments := r.numbered("segments", v)
	if len(segments) != 1 {
		r.failf(ErrUnsupported, "segments", "want exactly one, have %d", len(segments))
		return
	}
	for id, v := range segments {
		path := fmt.Sprintf("segment %d", id)
		o := r.object(path, v, "type", "offset", "size", "iv_tweak", "encryption", "sector_size")
		r.text(o, "type", "crypt")
		r.text(o, "encryption", Encryption)
		r.text(o, "iv_tweak", "0")
		s := segment{offset: r.u64(o, "offset"), sectorSize: r.number(o, "sector_size", 512, 4096, ErrUnsupported)}
		if s.sectorSize != 512 && s.sectorSize != 4096 {
			r.failf(ErrUnsupported, path, "sector_size is %d", s.sectorSize)
			return
		}
		if size := r.get(o, "size", kindString).text; size != "dynamic" {
			if s.size = r.u64(o, "size"); s.size == 0 || s.size%uint64(s.sectorSize) != 0 {
				r.failf(ErrHeader, path, "size is %d", s.size)
			}
		}
		switch {
		case s.offset%areaAlign != 0:
			r.failf(ErrHeader, path, "offset %d is not a multiple of %d", s.offset, areaAlign)
		case s.offset < 2*hdrSize+m.keyslotsSize:
			r.failf(ErrHeader, path, "offset %d is inside the header", s.offset)
		case s.offset > deviceSize || s.size > deviceSize-s.offset:
			r.failf(ErrHeader, path, "ends beyond the device's %d bytes", deviceSize)
		}
		m.segmentID, m.segment = id, s
	}
}

func (r *reader) keyslot(path string, v value) keyslot {
	o := r.object(path, v, "type", "key_size", "priority", "af", "area", "kdf")
	r.text(o, "type", "luks2")
	k := keyslot{keySize: r.keySize(o), priority: 1}
	if _, ok := o.members["priority"]; ok {
		k.hasPriority = true
		k.priority = r.number(o, "priority", 0, 2, ErrHeader)
	}

	af := r.object(path+" af", r.get(o, "af", kindObject), "type", "stripes", "hash")
	r.text(af, "type", "luks1")
	r.number(af, "stripes", stripes, stripes, ErrUnsupported)
	k.afHash = r.text(af, "hash", hashNames()...)

	area := r.object(path+" area", r.get(o, "area", kindObject), "type", "offset", "size", "encryption", "key_size")
	r.text(area, "type", "raw")
	r.text(area, "encryption", Encryption)
	k.areaKeySize = r.keySize(area)
	k.area = span{r.u64(area, "offset"), r.u64(area, "size")}

	k.kdf, k.salt = r.kdf(path+" kdf", r.get(o, "kdf", kindObject))
	return k
}

func (r *reader) keySize(o object) int {
	n := r.number(o, "key_size", 32, 64, ErrUnsupported)
	if n != 32 && n != 64 {
		r.failf(ErrUnsupported, o.path, "key_size is %d", n)
		return 0
	}
	return n
}

// areas checks that the keyslots' areas lie in the keyslot area, hold what
// they must and do not overlap.
func (r *reader) areas(m *metadata, hdrSize uint64) {
	ids := slices.Sorted(maps.Keys(m.keyslots))
	start, end := 2*hdrSize, 2*hdrSize+m.keyslotsSize
	for i, id := range ids {
		k := m.keyslots[id]
		path := fmt.Sprintf("keyslot %d area", id)
		if k.area.offset < start || k.area.offset > end || k.area.size > end-k.area.offset ||
			k.area.offset%areaAlign != 0 || k.area.size%areaAlign != 0 {
			r.failf(ErrHeader, path, "%d bytes at %d are not inside the keyslot area", k.area.size, k.area.offset)
			return
		}
		if k.area.size < uint64(k.materialBytes()) {
			r.failf(ErrHeader, path, "%d bytes are too small", k.area.size)
		}
		for _, other := range ids[:i] {
			if k.area.overlaps(m.keyslots[other].area) {
				r.failf(ErrHeader, path, "overlaps that of keyslot %d", other)
			}
		}
	}
}

// digest: exactly one, over the one segment and all keyslots. A keyslot
// without digest (cryptsetup --unbound) holds some other key.
func (r *reader) digest(m *metadata, v value) {
	digests := r.numbered("digests", v)
	if len(digests) != 1 {
		r.failf(ErrUnsupported, "digests", "want exactly one, have %d", len(digests))
		return
	}
	for id, v := range digests {
		path := fmt.Sprintf("digest %d", id)
		o := r.object(path, v, "type", "keyslots", "segments", "hash", "iterations", "salt", "digest")
		r.text(o, "type", "pbkdf2")
		d := digest{hash: r.text(o, "hash", hashNames()...), iterations: r.iterations(o)}
		d.salt = r.bytes(o, "salt", 8, 64)
		d.digest = r.bytes(o, "digest", 1, 64)
		if h, err := hashByName(d.hash); err == nil && len(d.digest) != h().Size() {
			r.failf(ErrHeader, path, "has %d bytes, want %d", len(d.digest), h().Size())
		}
		if !slices.Equal(r.ids(o, "segments"), []int{m.segmentID}) {
			r.failf(ErrHeader, path, "is not for segment %d alone", m.segmentID)
		}
		if !slices.Equal(r.ids(o, "keyslots"), slices.Sorted(maps.Keys(m.keyslots))) {
			r.failf(ErrUnsupported, path, "is not for all keyslots")
		}
		m.digestID, m.digest = id, d
	}
	size := 0
	for _, k := range m.keyslots {
		if size != 0 && size != k.keySize {
			r.failf(ErrHeader, "keyslots", "hold keys of different sizes")
		}
		size = k.keySize
	}
}

// token checks what every token has; the rest belongs to its type.
func (r *reader) token(m *metadata, id int, v value) Token {
	o := object{fmt.Sprintf("token %d", id), v.members}
	if v.kind != kindObject {
		r.failf(ErrHeader, o.path, "not an object")
		return Token{}
	}
	t := Token{ID: id, Type: r.get(o, "type", kindString).text, Keyslots: r.ids(o, "keyslots"), JSON: slices.Clone(v.raw)}
	if t.Type == "" || len(t.Type) > 128 || !printable(t.Type) {
		r.failf(ErrHeader, o.path, "has a bad type")
	}
	for _, k := range t.Keyslots {
		if _, ok := m.keyslots[k]; !ok {
			r.failf(ErrHeader, o.path, "names keyslot %d, which is not there", k)
		}
	}
	return t
}

// printable says whether s is plain ASCII that may stand in a message.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}
