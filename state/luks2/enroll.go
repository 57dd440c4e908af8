package luks2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
)

var (
	// ErrLastKeyslot says that after a change nothing would open the volume.
	ErrLastKeyslot = errors.New("no keyslot would be left")
	// ErrChanged says that the header on the disk is not the one that a change
	// was made from, or not the one that was written.
	ErrChanged = errors.New("the LUKS2 header on the disk is another one")
)

// Enrolment is a way to open the volume that is added, and those that it takes
// the place of. All of it becomes true with one update of the header.
type Enrolment struct {
	VolumeKey  []byte // stays the caller's, as the passphrase does
	Passphrase []byte
	KDF        KDF
	// Token makes the JSON of the token for a keyslot; nil: none, as for a
	// passphrase.
	Token func(keyslot int) ([]byte, error)
	// RetireTokens and RetireKeyslots are the ids of what goes: see Retire.
	RetireTokens, RetireKeyslots []int
	Rand                         io.Reader
}

// Enroll returns a header with the new keyslot and its token, without what they
// replace, and the ids that they got: the lowest free ones, which tools try
// first. Update writes the new keyslot elsewhere and wipes the old ones when
// the new header is on the disk: one of them opens at every moment. Errors:
// ErrVolumeKey, ErrFull, ErrKDFCost, ErrHeader, ErrNoSuchToken,
// ErrNoSuchKeyslot.
func (h *Header) Enroll(e Enrolment) (n *Header, keyslot, token int, err error) {
	if n, keyslot, token, err = h.enroll(e); err != nil {
		return nil, 0, 0, fmt.Errorf("cannot enrol: %w", err)
	}
	return n, keyslot, token, nil
}

func (h *Header) enroll(e Enrolment) (n *Header, keyslot, token int, err error) {
	if n, err = h.retire(e.RetireTokens, e.RetireKeyslots); err != nil {
		return nil, 0, 0, err
	}
	if keyslot, err = n.FreeKeyslot(); err != nil {
		return nil, 0, 0, err
	}
	if n, err = n.AddKeyslot(keyslot, e.VolumeKey, e.Passphrase, e.KDF, e.Rand); err != nil || e.Token == nil {
		return n, keyslot, 0, err
	}
	if token, err = n.FreeToken(); err != nil {
		return nil, 0, 0, err
	}
	text, err := e.Token(keyslot)
	if err != nil {
		return nil, 0, 0, err
	}
	n, err = n.AddToken(token, text)
	return n, keyslot, token, err
}

// Retire returns a header without these tokens and the keyslots that only they
// name, and without these keyslots, which no other token may name. Of a token that
// names several no keyslot goes with it: ours name one, and whoever writes to the
// disk could add those of other ways in to the list. Errors:
// ErrLastKeyslot, ErrNoSuchToken, ErrNoSuchKeyslot, ErrHeader.
func (h *Header) Retire(tokens, keyslots []int) (*Header, error) {
	n, err := h.retire(tokens, keyslots)
	if err == nil && len(n.meta.keyslots) == 0 {
		err = ErrLastKeyslot
	}
	if err != nil {
		return nil, fmt.Errorf("cannot retire tokens %v and keyslots %v: %w", tokens, keyslots, err)
	}
	return n, nil
}

func (h *Header) retire(tokens, keyslots []int) (*Header, error) {
	n, gone := h, map[int]bool{}
	for _, id := range keyslots {
		gone[id] = true
	}
	for _, id := range tokens {
		if own := n.meta.tokens[id].Keyslots; len(own) == 1 {
			gone[own[0]] = true
		}
		var err error
		if n, err = n.RemoveToken(id); err != nil {
			return nil, err
		}
	}
	for _, t := range n.meta.tokens {
		for _, k := range t.Keyslots {
			if gone[k] && !slices.Contains(keyslots, k) {
				delete(gone, k) // it opens for a token that stays
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(gone)) {
		var err error
		if n, err = n.RemoveKeyslot(id); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// TokensOfType lists the ids of the tokens of a type.
func (h *Header) TokensOfType(name string) []int {
	var ids []int
	for _, t := range h.Tokens() {
		if t.Type == name {
			ids = append(ids, t.ID)
		}
	}
	return ids
}

// Disk is what Apply changes; an *os.File is one.
type Disk interface {
	io.ReaderAt
	Writer
}

// Apply is Update for a disk that other programs write too, of deviceSize
// bytes: the header is read once more before, and again after. The caller holds
// the lock that they honour (cryptsetup's is flock(2) on a file). Errors:
// ErrChanged, and those of Read and Update.
func Apply(d Disk, deviceSize int64, old, new *Header, rand io.Reader) (*Header, error) {
	if err := old.isOn(d, deviceSize); err != nil {
		return nil, fmt.Errorf("cannot update LUKS2 header: %w; read it again", err)
	}
	n, err := Update(d, old, new, rand)
	if err != nil {
		return nil, err
	}
	if err := n.isOn(d, deviceSize); err != nil {
		return nil, fmt.Errorf("cannot verify LUKS2 header after its update: %w", err)
	}
	return n, nil
}

// isOn compares h with what a disk holds.
func (h *Header) isOn(d io.ReaderAt, deviceSize int64) error {
	there, err := Read(d, deviceSize)
	if err != nil {
		return err
	}
	ours, err := h.meta.encode(h.hdrSize)
	if err != nil {
		return err
	}
	theirs, err := there.meta.encode(there.hdrSize)
	if err != nil {
		return err
	}
	if h.hdrSize != there.hdrSize || h.seqid != there.seqid || h.label != there.label || h.uuid != there.uuid ||
		h.subsystem != there.subsystem || h.Interrupted() != there.Interrupted() ||
		!bytes.Equal(ours, theirs) || !maps.EqualFunc(h.material, there.material, bytes.Equal) {
		return ErrChanged
	}
	return nil
}
