package luks2

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
)

// Header is one validated header with the keyslots' material, in memory.
// It holds no secret.
type Header struct {
	hdrSize     uint64
	seqid       uint64
	label       string
	uuid        string
	subsystem   string
	secondStale bool
	torn        bool // the other copy on the disk is not intact
	meta        metadata
	material    map[int][]byte // encrypted, split volume key of each keyslot
	retired     []span         // areas of keyslots removed since the last write
	older       []byte         // JSON of the other copy where that is intact and older
}

// Read reads a header from a device (or file) of deviceSize bytes: the newest
// intact copy of the two, validated, and the material of its keyslots. Nothing
// is read again later. Errors wrap ErrNotLUKS2, ErrHeader, ErrUnsupported or
// ErrKDFCost; any other error is the device's.
func Read(r io.ReaderAt, deviceSize int64) (*Header, error) {
	if deviceSize < 0 {
		return nil, fmt.Errorf("%w: device size %d", ErrNotLUKS2, deviceSize)
	}
	c, err := findCopy(r, uint64(deviceSize))
	if err != nil {
		return nil, err
	}
	switch {
	case c.malformed != "":
		return nil, fmt.Errorf("%w: %s", ErrHeader, c.malformed)
	case !validUUID(c.uuid):
		return nil, fmt.Errorf("%w: bad UUID", ErrHeader)
	case !printable(c.label) || !printable(c.subsystem):
		return nil, fmt.Errorf("%w: bad label", ErrHeader)
	}
	m, err := parseMetadata(c.json, c.hdrSize, uint64(deviceSize))
	if err != nil {
		return nil, err
	}
	h := &Header{
		hdrSize: c.hdrSize, seqid: c.seqid, label: c.label, uuid: c.uuid, subsystem: c.subsystem,
		secondStale: c.secondStale, torn: c.torn, older: c.older, meta: m, material: map[int][]byte{},
	}
	for id, k := range m.keyslots {
		b := make([]byte, k.materialBytes())
		err := readFull(r, b, k.area.offset, uint64(deviceSize))
		if errors.Is(err, errShort) {
			return nil, fmt.Errorf("%w: keyslot %d lies beyond the end of the device", ErrHeader, id)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read keyslot %d: %w", id, err)
		}
		h.material[id] = b
	}
	return h, nil
}

// UUID is the volume's, in lower case.
func (h *Header) UUID() string { return h.uuid }

// Label is the volume's, plain ASCII.
func (h *Header) Label() string { return h.label }

// DataOffset is where the encrypted data starts, in bytes.
func (h *Header) DataOffset() uint64 { return h.meta.segment.offset }

// SequenceID counts the updates of the header.
func (h *Header) SequenceID() uint64 { return h.seqid }

// Interrupted tells whether the last update was cut short before it reached
// both copies. The material of keyslots that it removed may still be there;
// Update finishes it, also one without a change.
func (h *Header) Interrupted() bool { return h.torn || h.older != nil }

// Keyslots lists the keyslots in use by id.
func (h *Header) Keyslots() []KeyslotInfo {
	infos := make([]KeyslotInfo, 0, len(h.meta.keyslots))
	for _, id := range slices.Sorted(maps.Keys(h.meta.keyslots)) {
		k := h.meta.keyslots[id]
		infos = append(infos, KeyslotInfo{
			ID: id, Priority: k.priority, KDF: k.kdf,
			Cost: k.kdf.Iterations + k.kdf.Time*k.kdf.MemoryKiB + h.meta.digest.iterations,
		})
	}
	return infos
}

// CryptTarget says how dm-crypt maps the data segment of a device of
// deviceSize bytes, rounded down to whole sectors.
func (h *Header) CryptTarget(deviceSize int64) (CryptTarget, error) {
	s := h.meta.segment
	if deviceSize < 0 || uint64(deviceSize) < s.offset || uint64(deviceSize)-s.offset < s.size {
		return CryptTarget{}, fmt.Errorf("%w: data segment ends beyond the device's %d bytes", ErrHeader, deviceSize)
	}
	length := s.size
	if length == 0 {
		length = uint64(deviceSize) - s.offset
		length -= length % uint64(s.sectorSize)
	}
	keySize := h.keySize()
	switch {
	case length == 0:
		return CryptTarget{}, fmt.Errorf("%w: data segment is empty", ErrHeader)
	case keySize == 0:
		return CryptTarget{}, fmt.Errorf("%w: no keyslot says how long the key is", ErrNoSuchKeyslot)
	}
	return CryptTarget{
		UUID: h.uuid, Encryption: Encryption, KeySize: keySize, SectorSize: s.sectorSize,
		OffsetBytes: s.offset, LengthBytes: length,
	}, nil
}

// keySize is the length of the volume key, which only keyslots tell (all the
// same); 0 without any.
func (h *Header) keySize() int {
	for _, k := range h.meta.keyslots {
		return k.keySize
	}
	return 0
}

// change returns a copy of h whose maps may be changed.
func (h *Header) change() *Header {
	n := *h
	n.meta.keyslots = maps.Clone(h.meta.keyslots)
	n.meta.tokens = maps.Clone(h.meta.tokens)
	n.material = maps.Clone(h.material)
	n.retired = slices.Clone(h.retired)
	return &n
}

// check encodes a changed header and reads it as if it came from a disk: what
// we would refuse to read is never written.
func (h *Header) check() (*Header, error) {
	text, err := h.meta.encode(h.hdrSize)
	if err != nil {
		return nil, err
	}
	if uint64(len(text)) >= h.hdrSize-binaryBytes { // one byte for the NUL
		return nil, fmt.Errorf("%w: metadata of %d bytes", ErrFull, len(text))
	}
	// The device is as large as the segment demands: its real size was
	// checked when the header was read.
	size := h.meta.segment.offset + h.meta.segment.size
	if h.meta, err = parseMetadata(text, h.hdrSize, size); err != nil {
		return nil, err
	}
	return h, nil
}
