package luks2

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strconv"

	"golang.org/x/crypto/pbkdf2"
)

// DefaultDataOffset is where cryptsetup puts the data, 16 MiB.
const DefaultDataOffset = 16 << 20

// FormatParams says how a new volume is made.
type FormatParams struct {
	UUID       string // text form, lower case
	Label      string // plain ASCII, at most 47 bytes
	VolumeKey  []byte // 64 or 32 random bytes; only its digest is kept
	SectorSize int    // 512 or 4096; 0: 4096
	DataOffset uint64 // bytes, a multiple of 4096; 0: DefaultDataOffset
	Rand       io.Reader
}

// Format makes a header without keyslots; AddKeyslot adds them. Its digest
// costs 1000 iterations: the volume key is random, guessing it is hopeless.
func Format(p FormatParams) (*Header, error) {
	if p.SectorSize == 0 {
		p.SectorSize = 4096
	}
	if p.DataOffset == 0 {
		p.DataOffset = DefaultDataOffset
	}
	switch {
	case len(p.VolumeKey) != 32 && len(p.VolumeKey) != 64:
		return nil, fmt.Errorf("cannot format: %w: volume key of %d bytes", ErrUnsupported, len(p.VolumeKey))
	case !validUUID(p.UUID):
		return nil, fmt.Errorf("cannot format: %w: bad UUID", ErrHeader)
	case len(p.Label) >= labelBytes || !printable(p.Label):
		return nil, fmt.Errorf("cannot format: %w: bad label", ErrHeader)
	case p.DataOffset < 2*minHeaderBytes || p.DataOffset-2*minHeaderBytes > 128<<20:
		return nil, fmt.Errorf("cannot format: %w: data offset %d", ErrHeader, p.DataOffset)
	}
	salt := make([]byte, saltBytes)
	if _, err := io.ReadFull(p.Rand, salt); err != nil {
		return nil, fmt.Errorf("cannot format: cannot get random bytes: %w", err)
	}
	d := digest{hash: "sha256", iterations: minIterations, salt: salt}
	newHash, err := hashByName(d.hash)
	if err != nil {
		return nil, err
	}
	d.digest = pbkdf2.Key(p.VolumeKey, salt, d.iterations, newHash().Size(), newHash)
	h := &Header{
		hdrSize: minHeaderBytes, label: p.Label, uuid: p.UUID, material: map[int][]byte{},
		meta: metadata{
			keyslots: map[int]keyslot{}, tokens: map[int]Token{}, digest: d,
			segment:      segment{offset: p.DataOffset, sectorSize: p.SectorSize},
			keyslotsSize: p.DataOffset - 2*minHeaderBytes,
		},
	}
	if h, err = h.check(); err != nil {
		return nil, fmt.Errorf("cannot format: %w", err)
	}
	return h, nil
}

// The JSON objects as they are written; names and types as in cryptsetup's
// lib/luks2/luks2_json_format.c.
type (
	jsonDocument struct {
		Keyslots map[int]jsonKeyslot     `json:"keyslots"`
		Tokens   map[int]json.RawMessage `json:"tokens"`
		Segments map[int]jsonSegment     `json:"segments"`
		Digests  map[int]jsonDigest      `json:"digests"`
		Config   jsonConfig              `json:"config"`
	}
	jsonKeyslot struct {
		Type     string   `json:"type"`
		KeySize  int      `json:"key_size"`
		Priority *int     `json:"priority,omitempty"`
		AF       jsonAF   `json:"af"`
		Area     jsonArea `json:"area"`
		KDF      jsonKDF  `json:"kdf"`
	}
	jsonAF struct {
		Type    string `json:"type"`
		Stripes int    `json:"stripes"`
		Hash    string `json:"hash"`
	}
	jsonArea struct {
		Type       string `json:"type"`
		Offset     uint64 `json:"offset,string"`
		Size       uint64 `json:"size,string"`
		Encryption string `json:"encryption"`
		KeySize    int    `json:"key_size"`
	}
	jsonKDF struct {
		Type       string `json:"type"`
		Hash       string `json:"hash,omitempty"`
		Iterations int    `json:"iterations,omitempty"`
		Time       int    `json:"time,omitempty"`
		Memory     int    `json:"memory,omitempty"`
		CPUs       int    `json:"cpus,omitempty"`
		Salt       string `json:"salt"`
	}
	jsonSegment struct {
		Type       string `json:"type"`
		Offset     uint64 `json:"offset,string"`
		Size       string `json:"size"`
		IVTweak    string `json:"iv_tweak"`
		Encryption string `json:"encryption"`
		SectorSize int    `json:"sector_size"`
	}
	jsonDigest struct {
		Type       string   `json:"type"`
		Keyslots   []string `json:"keyslots"`
		Segments   []string `json:"segments"`
		Hash       string   `json:"hash"`
		Iterations int      `json:"iterations"`
		Salt       string   `json:"salt"`
		Digest     string   `json:"digest"`
	}
	jsonConfig struct {
		JSONSize     uint64   `json:"json_size,string"`
		KeyslotsSize uint64   `json:"keyslots_size,string"`
		Flags        []string `json:"flags,omitempty"`
	}
)

// encode is the inverse of parseMetadata.
func (m metadata) encode(hdrSize uint64) ([]byte, error) {
	b64 := base64.StdEncoding.EncodeToString
	doc := jsonDocument{Keyslots: map[int]jsonKeyslot{}, Tokens: map[int]json.RawMessage{}}
	ids := []string{}
	for id := range MaxKeyslots {
		if t, ok := m.tokens[id]; ok {
			doc.Tokens[id] = t.JSON
		}
		k, ok := m.keyslots[id]
		if !ok {
			continue
		}
		ids = append(ids, strconv.Itoa(id))
		j := jsonKeyslot{
			Type: "luks2", KeySize: k.keySize,
			AF:   jsonAF{"luks1", stripes, k.afHash},
			Area: jsonArea{"raw", k.area.offset, k.area.size, Encryption, k.areaKeySize},
			KDF:  jsonKDF{k.kdf.Type, k.kdf.Hash, k.kdf.Iterations, k.kdf.Time, k.kdf.MemoryKiB, k.kdf.CPUs, b64(k.salt)},
		}
		if k.hasPriority {
			j.Priority = &k.priority
		}
		doc.Keyslots[id] = j
	}
	size := "dynamic"
	if m.segment.size != 0 {
		size = strconv.FormatUint(m.segment.size, 10)
	}
	doc.Segments = map[int]jsonSegment{m.segmentID: {"crypt", m.segment.offset, size, "0", Encryption, m.segment.sectorSize}}
	doc.Digests = map[int]jsonDigest{m.digestID: {"pbkdf2", ids, []string{strconv.Itoa(m.segmentID)},
		m.digest.hash, m.digest.iterations, b64(m.digest.salt), b64(m.digest.digest)}}
	doc.Config = jsonConfig{hdrSize - binaryBytes, m.keyslotsSize, m.flags}

	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false) // a foreign token goes back as it came
	if err := enc.Encode(doc); err != nil {
		return nil, fmt.Errorf("cannot encode metadata: %w", err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}
