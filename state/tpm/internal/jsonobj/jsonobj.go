// Package jsonobj reads JSON objects the way a reader of untrusted bytes must:
// keys are compared byte for byte (encoding/json folds their case) and a key
// that occurs twice is an error (encoding/json takes the last one).
package jsonobj

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// ErrSyntax is returned for bytes that are not one JSON object.
var ErrSyntax = errors.New("not a JSON object")

// ErrDuplicate is returned for an object in which a key occurs twice.
var ErrDuplicate = errors.New("duplicate key in JSON object")

// Parse splits data, which must hold exactly one JSON object, into its members.
// The values are left as they are. The caller bounds the length of data.
func Parse(data []byte) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := delim(dec, '{'); err != nil {
		return nil, err
	}
	members := make(map[string]json.RawMessage)
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("%w: %v", ErrSyntax, err)
		}
		key, ok := tok.(string)
		if !ok {
			return nil, fmt.Errorf("%w: key is not a string", ErrSyntax)
		}
		if _, ok := members[key]; ok {
			return nil, fmt.Errorf("%w: %q", ErrDuplicate, key)
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, fmt.Errorf("%w: value of %q: %v", ErrSyntax, key, err)
		}
		members[key] = value
	}
	if err := delim(dec, '}'); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fmt.Errorf("%w: something follows it", ErrSyntax)
	}
	return members, nil
}

func delim(dec *json.Decoder, want json.Delim) error {
	tok, err := dec.Token()
	if err != nil {
		return fmt.Errorf("%w: %v", ErrSyntax, err)
	}
	if tok != want {
		return fmt.Errorf("%w: found %v in place of %v", ErrSyntax, tok, want)
	}
	return nil
}
