package luks2

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sort"
)

// FreeKeyslot returns the lowest keyslot that is not in use.
func (h *Header) FreeKeyslot() (int, error) {
	for id := range MaxKeyslots {
		if _, used := h.meta.keyslots[id]; !used {
			return id, nil
		}
	}
	return 0, fmt.Errorf("%w: all keyslots are in use", ErrFull)
}

// FreeToken returns the lowest token id that is not in use.
func (h *Header) FreeToken() (int, error) {
	for id := range MaxKeyslots {
		if _, used := h.meta.tokens[id]; !used {
			return id, nil
		}
	}
	return 0, fmt.Errorf("%w: all tokens are in use", ErrFull)
}

// AddKeyslot returns a header in which passphrase opens keyslot id. The volume
// key must be the header's (ErrVolumeKey). Nothing is written; see Update.
func (h *Header) AddKeyslot(id int, volumeKey, passphrase []byte, kdf KDF, rand io.Reader) (*Header, error) {
	n, err := h.addKeyslot(id, volumeKey, passphrase, kdf, rand)
	if err != nil {
		return nil, fmt.Errorf("cannot add keyslot %d: %w", id, err)
	}
	return n, nil
}

func (h *Header) addKeyslot(id int, volumeKey, passphrase []byte, kdf KDF, rand io.Reader) (*Header, error) {
	if _, used := h.meta.keyslots[id]; used || id < 0 || id >= MaxKeyslots {
		return nil, fmt.Errorf("%w: keyslot is in use or does not exist", ErrFull)
	}
	if err := h.VerifyVolumeKey(volumeKey); err != nil {
		return nil, err
	}
	k := keyslot{
		keySize: len(volumeKey), priority: 1, afHash: "sha256", areaKeySize: 64,
		kdf: kdf, salt: make([]byte, saltBytes),
	}
	size := uint64(k.materialBytes()+areaAlign-1) / areaAlign * areaAlign
	var err error
	if k.area, err = h.freeArea(size); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(rand, k.salt); err != nil {
		return nil, fmt.Errorf("cannot get random bytes: %w", err)
	}
	n := h.change()
	n.meta.keyslots[id] = k
	if n, err = n.check(); err != nil { // the cost too, before it is paid
		return nil, err
	}
	if n.material[id], err = k.newMaterial(volumeKey, passphrase, rand); err != nil {
		return nil, err
	}
	return n, nil
}

// freeArea finds room that no keyslot uses, nor one that was removed since the
// last write: until Update has written both copies, a power cut may bring that
// one back.
func (h *Header) freeArea(size uint64) (span, error) {
	used := slices.Clone(h.retired)
	for _, k := range h.meta.keyslots {
		used = append(used, k.area)
	}
	sort.Slice(used, func(i, j int) bool { return used[i].offset < used[j].offset })
	offset := 2 * h.hdrSize
	for _, u := range used {
		if u.offset >= offset+size {
			break
		}
		offset = max(offset, u.offset+u.size)
	}
	if offset+size > 2*h.hdrSize+h.meta.keyslotsSize {
		return span{}, fmt.Errorf("%w: no room for another keyslot", ErrFull)
	}
	return span{offset, size}, nil
}

// RemoveKeyslot returns a header without keyslot id; Update overwrites its
// area. Tokens that name it must be removed first.
func (h *Header) RemoveKeyslot(id int) (*Header, error) {
	k, ok := h.meta.keyslots[id]
	if !ok {
		return nil, fmt.Errorf("cannot remove keyslot %d: %w", id, ErrNoSuchKeyslot)
	}
	n := h.change()
	delete(n.meta.keyslots, id)
	delete(n.material, id)
	n.retired = append(n.retired, k.area)
	n, err := n.check()
	if err != nil {
		return nil, fmt.Errorf("cannot remove keyslot %d: %w", id, err)
	}
	return n, nil
}

// Tokens lists the tokens by id.
func (h *Header) Tokens() []Token {
	tokens := []Token{}
	for id := range MaxKeyslots {
		if t, ok := h.meta.tokens[id]; ok {
			tokens = append(tokens, Token{t.ID, t.Type, slices.Clone(t.Keyslots), slices.Clone(t.JSON)})
		}
	}
	return tokens
}

// AddToken returns a header with one more token: a JSON object with a "type"
// and the "keyslots" it opens (["0"]), which must be in use.
func (h *Header) AddToken(id int, token []byte) (*Header, error) {
	if _, used := h.meta.tokens[id]; used || id < 0 || id >= MaxKeyslots {
		return nil, fmt.Errorf("cannot add token %d: %w: token is in use or does not exist", id, ErrFull)
	}
	if _, err := parseJSON(token); err != nil {
		return nil, fmt.Errorf("cannot add token %d: %w: %w", id, ErrHeader, err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, token); err != nil {
		return nil, fmt.Errorf("cannot add token %d: %w: %w", id, ErrHeader, err)
	}
	n := h.change()
	n.meta.tokens[id] = Token{ID: id, JSON: compact.Bytes()}
	n, err := n.check()
	if err != nil {
		return nil, fmt.Errorf("cannot add token %d: %w", id, err)
	}
	return n, nil
}

// RemoveToken returns a header without token id.
func (h *Header) RemoveToken(id int) (*Header, error) {
	if _, ok := h.meta.tokens[id]; !ok {
		return nil, fmt.Errorf("cannot remove token %d: %w", id, ErrNoSuchToken)
	}
	n := h.change()
	delete(n.meta.tokens, id)
	n, err := n.check()
	if err != nil {
		return nil, fmt.Errorf("cannot remove token %d: %w", id, err)
	}
	return n, nil
}
