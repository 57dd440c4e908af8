package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// MaxSize bounds the text that Encode writes and Parse reads, in bytes: MaxLayers layers
// with images have 110 KiB of it, with as many names that may be added.
const MaxSize = 256 << 10

// Parse is Decode, and then the rules of Validate. Errors are joined *Problem
// values.
func Parse(data []byte) (*Config, error) {
	c, err := Decode(data)
	if err != nil {
		return nil, err
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if err := c.validateEmbedded(); err != nil {
		return nil, err
	}
	return c, nil
}

// Decode reads the JSON that Encode wrote: every key known, spelled exactly and
// given once, no null, nothing behind the end. Missing keys get their defaults.
// PID 1 leaves it at that: mkinitramfs has validated what it puts beside PID 1,
// and whoever could change one could change the other. Errors are *Problem.
func Decode(data []byte) (*Config, error) {
	if len(data) > MaxSize {
		return nil, &Problem{Reason: fmt.Sprintf("%d bytes are too many", len(data))}
	}
	if err := checkKeys(data); err != nil {
		return nil, err
	}
	var c Config
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, &Problem{Reason: err.Error()}
	}
	c = c.WithDefaults()
	return &c, nil
}

// Encode returns the configuration as indented JSON with a final newline; equal
// configurations give equal bytes. One that Decode would refuse for its size is a *Problem.
func (c *Config) Encode() ([]byte, error) {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("cannot encode configuration: %w", err)
	}
	b = append(b, '\n')
	if len(b) > MaxSize {
		return nil, &Problem{Reason: fmt.Sprintf("it has %d bytes in the initramfs, at most %d", len(b), MaxSize)}
	}
	return b, nil
}

// checkKeys refuses what encoding/json would let pass: unknown keys, keys given
// twice (the last would win), keys in another case, null, trailing data.
func checkKeys(data []byte) error {
	k := keyChecker{data: data, dec: json.NewDecoder(bytes.NewReader(data))}
	k.dec.UseNumber()
	if err := k.value(reflect.TypeFor[Config](), ""); err != nil {
		return err
	}
	if rest := bytes.TrimSpace(data[k.dec.InputOffset():]); len(rest) > 0 {
		return k.problem("", "there is text behind the end")
	}
	return nil
}

type keyChecker struct {
	data []byte
	dec  *json.Decoder
}

func (k keyChecker) problem(path, format string, args ...any) error {
	read := k.data[:min(k.dec.InputOffset(), int64(len(k.data)))]
	return &Problem{
		Path:   path,
		Line:   1 + bytes.Count(read, []byte("\n")),
		Reason: fmt.Sprintf(format, args...),
	}
}

// value reads one value, whose shape must be that of t. What is inside a
// scalar is left to encoding/json.
func (k keyChecker) value(t reflect.Type, path string) error {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	token, err := k.dec.Token()
	if err != nil {
		return k.problem(path, "not JSON: %v", err)
	}
	if token == nil {
		return k.problem(path, "null is not a value")
	}
	switch t.Kind() {
	case reflect.Struct:
		if token != json.Delim('{') {
			return k.problem(path, "an object is needed")
		}
		return k.object(t, path)
	case reflect.Slice:
		if token != json.Delim('[') {
			return k.problem(path, "a list is needed")
		}
		for i := 0; k.dec.More(); i++ {
			if err := k.value(t.Elem(), fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
		_, err = k.dec.Token()
	default:
		if _, ok := token.(json.Delim); ok {
			return k.problem(path, "a single value is needed")
		}
	}
	if err != nil {
		return k.problem(path, "not JSON: %v", err)
	}
	return nil
}

func (k keyChecker) object(t reflect.Type, path string) error {
	keys := map[string]reflect.Type{}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		keys[name] = t.Field(i).Type
	}
	seen := map[string]bool{}
	for k.dec.More() {
		token, err := k.dec.Token()
		if err != nil {
			return k.problem(path, "not JSON: %v", err)
		}
		name, _ := token.(string)
		key := join(path, fmt.Sprintf("%.60s", name))
		field, known := keys[name]
		if !known {
			return k.problem(key, "unknown key")
		}
		if seen[name] {
			return k.problem(key, "given twice")
		}
		seen[name] = true
		if err := k.value(field, key); err != nil {
			return err
		}
	}
	if _, err := k.dec.Token(); err != nil {
		return k.problem(path, "not JSON: %v", err)
	}
	return nil
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
