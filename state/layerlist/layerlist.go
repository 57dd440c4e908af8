// Package layerlist is the list of what a machine has changed about its layers: images
// that the running system has added, and layers that it turned off. It lies in the
// encrypted volume, where nobody but that system writes; PID 1 goes by it as far as the
// configuration allows. Beside it lie the list before, and what boots have proved.
package layerlist

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"

	"sealroot/init/config"
	"sealroot/state/layout"
	"sealroot/verity"
)

// The files, below the root of the encrypted volume.
const (
	File       = layout.LayerList
	ProofsFile = layout.LayerProofs
)

// Bounds of a list: bytes that are read of it, and entries.
const (
	MaxSize    = 16 << 10
	MaxEntries = 64
)

var (
	// ErrFormat: the file does not hold a list of layers.
	ErrFormat = errors.New("not a list of layers")
	// ErrFull: the list takes no more entries.
	ErrFull = errors.New("the list of layers is full")
)

// Entry is one line: an image that is added, or without Hash a layer that is turned off.
type Entry struct {
	Name string // of the layer
	Hash string // root hash in lower-case hex
}

// List is from the lowest layer up. Each layer is added at most once, and turned off at
// most once.
type List []Entry

// header begins the file.
const header = "sealroot-layers 1\n"

// Format is the file's content: a header, and a line for each entry,
//
//	add tools <root hash>
//	off demo
func (l List) Format() []byte {
	text := header
	for _, e := range l {
		if e.Hash != "" {
			text += "add " + e.Name + " " + e.Hash + "\n"
		} else {
			text += "off " + e.Name + "\n"
		}
	}
	return []byte(text)
}

// Parse reads the file's content. Errors are ErrFormat.
func Parse(text []byte) (List, error) {
	rest, ok := strings.CutPrefix(string(text), header)
	var l List
	for ok && rest != "" {
		line, more, whole := strings.Cut(rest, "\n")
		word, name, _ := strings.Cut(line, " ")
		name, hash, added := strings.Cut(name, " ")
		ok = whole && config.IsLayerName(name) && len(l) < MaxEntries &&
			(word == "add" && verity.IsRootHash(hash) || word == "off" && !added)
		for _, e := range l {
			ok = ok && (e.Name != name || (e.Hash == "") == added)
		}
		l, rest = append(l, Entry{name, hash}), more
	}
	if !ok {
		return nil, ErrFormat
	}
	return l, nil
}

// ID names a list by the content of its file.
func ID(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

// Off tells whether a layer is turned off.
func (l List) Off(name string) bool {
	for _, e := range l {
		if e.Name == name && e.Hash == "" {
			return true
		}
	}
	return false
}
