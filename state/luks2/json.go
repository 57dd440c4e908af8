package luks2

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// Bounds of a document, before anything is built from it. A real header has
// about 300 values; 32 keyslots and 32 tokens of systemd stay below 2000.
const (
	maxDepth  = 16
	maxValues = 4096
)

type kind uint8

const (
	kindNull kind = iota
	kindBool
	kindNumber
	kindString
	kindArray
	kindObject
)

// value is one JSON value. encoding/json alone cannot be used on a document
// that an attacker may write: it matches keys without regard to case and lets
// the last of two equal keys win, while json-c, which cryptsetup uses, does
// neither.
type value struct {
	kind    kind
	text    string           // number as written, string unescaped
	members map[string]value // object
	elems   []value          // array
	raw     []byte           // object: its text
}

// parseJSON reads exactly one document. Duplicate keys at any depth, invalid
// UTF-8, trailing data and documents beyond the bounds are errors.
func parseJSON(text []byte) (value, error) {
	if !utf8.Valid(text) {
		return value{}, errors.New("JSON is not UTF-8")
	}
	if !json.Valid(text) {
		return value{}, errors.New("JSON is malformed")
	}
	p := parser{text: text, dec: json.NewDecoder(bytes.NewReader(text))}
	p.dec.UseNumber()
	v, err := p.value(0)
	if err != nil {
		return value{}, err
	}
	if _, err := p.dec.Token(); err != io.EOF {
		return value{}, errors.New("data after the JSON document")
	}
	return v, nil
}

type parser struct {
	text   []byte
	dec    *json.Decoder
	values int
}

func (p *parser) value(depth int) (value, error) {
	if p.values++; p.values > maxValues {
		return value{}, fmt.Errorf("JSON has more than %d values", maxValues)
	}
	if depth > maxDepth {
		return value{}, fmt.Errorf("JSON is nested deeper than %d", maxDepth)
	}
	tok, err := p.dec.Token()
	if err != nil {
		return value{}, fmt.Errorf("JSON: %w", err)
	}
	switch t := tok.(type) {
	case nil:
		return value{kind: kindNull}, nil
	case bool:
		return value{kind: kindBool}, nil
	case json.Number:
		return value{kind: kindNumber, text: t.String()}, nil
	case string:
		return value{kind: kindString, text: t}, nil
	case json.Delim:
		if t == '[' {
			return p.array(depth)
		}
		return p.object(depth)
	}
	return value{}, errors.New("JSON: unknown token")
}

func (p *parser) array(depth int) (value, error) {
	v := value{kind: kindArray}
	for p.dec.More() {
		e, err := p.value(depth + 1)
		if err != nil {
			return value{}, err
		}
		v.elems = append(v.elems, e)
	}
	_, err := p.dec.Token() // the closing bracket; json.Valid has seen it
	return v, err
}

func (p *parser) object(depth int) (value, error) {
	start := p.dec.InputOffset() - 1
	v := value{kind: kindObject, members: map[string]value{}}
	for p.dec.More() {
		tok, err := p.dec.Token()
		if err != nil {
			return value{}, fmt.Errorf("JSON: %w", err)
		}
		key, ok := tok.(string)
		if !ok {
			return value{}, errors.New("JSON: key is not a string")
		}
		if _, dup := v.members[key]; dup {
			return value{}, fmt.Errorf("JSON: duplicate key %.40q", key)
		}
		if v.members[key], err = p.value(depth + 1); err != nil {
			return value{}, err
		}
	}
	if _, err := p.dec.Token(); err != nil {
		return value{}, fmt.Errorf("JSON: %w", err)
	}
	v.raw = p.text[start:p.dec.InputOffset()]
	return v, nil
}
