package manifest

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Parse reads manifest.json. Its error is ErrFormat. Nothing in the result is
// trusted before Verify has accepted the same bytes: Open does both.
func Parse(text []byte) (Manifest, error) {
	if len(text) > MaxSize {
		return Manifest{}, fmt.Errorf("%w: it has %d bytes, at most %d", ErrFormat, len(text), MaxSize)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	r := reader{d}
	m, err := r.manifest()
	if err == nil {
		if _, end := d.Token(); end != io.EOF {
			err = errors.New("text behind the JSON object")
		}
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if err := m.check(); err != nil {
		return Manifest{}, err
	}
	return m, nil
}

// reader reads JSON by its tokens: encoding/json alone takes keys in any case
// and the last one of several.
type reader struct{ *json.Decoder }

func (r reader) manifest() (m Manifest, err error) {
	var schema int64
	err = r.object("the manifest", []field{
		{"schema", func() error { return r.number(&schema) }},
		{"name", func() error { return r.text(&m.Name) }},
		{"version", func() error { return r.text(&m.Version) }},
		{"security_version", func() (err error) {
			var n int64
			err = r.number(&n)
			m.SecurityVersion = int(n)
			return err
		}},
		{"architecture", func() error { return r.text(&m.Architecture) }},
		{"kernel_release", func() error { return r.text(&m.KernelRelease) }},
		{"root_hash", func() (err error) { m.RootHash, err = r.hex(64); return err }},
		{"parts", func() error {
			return r.array(len(Names()), func() error {
				p, err := r.part()
				m.Parts = append(m.Parts, p)
				return err
			})
		}},
		{"layers", func() error {
			return r.array(MaxLayers, func() error {
				l, err := r.layer()
				m.Layers = append(m.Layers, l)
				return err
			})
		}},
		{"x-system", func() (err error) { m.System, err = r.system(); return err }},
		{"x-sealed", func() error { return r.text(&m.Sealed) }},
		{"x-state-partition", func() error { return r.text(&m.StatePartition) }},
		{"x-layout", func() (err error) { m.Layout, err = r.layout(); return err }},
	})
	if err == nil && schema != Schema {
		err = fmt.Errorf("schema %d, this program knows %d", schema, Schema)
	}
	return m, err
}

func (r reader) system() (*System, error) {
	var s System
	return &s, r.object("x-system", []field{
		{"id", func() error { return r.text(&s.ID) }},
		{"version_id", func() error { return r.text(&s.VersionID) }},
		{"sysext_level", func() error { return r.text(&s.SysextLevel) }},
		{"layers_allowed", func() error { return r.text(&s.LayersAllowed) }},
	})
}

func (r reader) layout() (*Layout, error) {
	var l Layout
	return &l, r.object("x-layout", []field{
		{"loader", func() error { return r.text(&l.Loader) }},
		{"store", func() error { return r.text(&l.Store) }},
		{"partitions", func() error { return r.text(&l.Partitions) }},
		{"tree_at_mib", func() error {
			var n int64
			err := r.number(&n)
			l.TreeAtMiB = int(n)
			return err
		}},
		{"filesystem", func() error { return r.text(&l.Filesystem) }},
		{"source", func() error { return r.text(&l.Source) }},
		{"partuuids", func() error { return r.text(&l.PartUUIDs) }},
	}, "source", "partuuids")
}

func (r reader) part() (p Part, err error) {
	err = r.object("a part", []field{
		{"name", func() error {
			var s string
			err := r.text(&s)
			p.Name = Name(s)
			return err
		}},
		{"file", func() error { return r.text(&p.File) }},
		{"size", func() error { return r.number(&p.Size) }},
		{"sha256", func() error { return r.sha256(&p.SHA256) }},
	})
	return p, err
}

func (r reader) layer() (l Layer, err error) {
	summed := false
	err = r.object("a layer", []field{
		{"name", func() error { return r.text(&l.Name) }},
		{"root_hash", func() (err error) { l.RootHash, err = r.hex(64); return err }},
		{"file", func() error { return r.text(&l.File) }},
		{"size", func() error { return r.number(&l.Size) }},
		{"sha256", func() error { summed = true; return r.sha256(&l.SHA256) }},
		{"parts", func() error {
			l.Parts = []Part{}
			return r.array(len(LayerParts()), func() error {
				p, err := r.part()
				l.Parts = append(l.Parts, p)
				return err
			})
		}},
	}, "file", "size", "sha256", "parts")
	if err == nil && summed == (l.Parts != nil) {
		err = errors.New("a layer has a sha256 or parts")
	}
	return l, err
}

func (r reader) sha256(to *[32]byte) error {
	b, err := r.hex(len(to))
	if err == nil && copy(to[:], b) != len(to) {
		err = errors.New("it is no SHA-256")
	}
	return err
}

// field is a key that an object must have, but for extensions, and what reads its
// value.
type field struct {
	key  string
	read func() error
}

// object reads an object with exactly the fields, beside extensions "x-…", which
// may be missing too, as may those named.
func (r reader) object(what string, fields []field, optional ...string) error {
	if t, err := r.Token(); err != nil || t != json.Delim('{') {
		return fmt.Errorf("%s is not a JSON object", what)
	}
	seen := map[string]bool{}
	for r.More() {
		t, err := r.Token()
		key, ok := t.(string)
		if err != nil || !ok {
			return fmt.Errorf("%s is not JSON", what)
		}
		if seen[key] {
			return fmt.Errorf("%s has the key %.40q twice", what, key)
		}
		seen[key] = true
		if err := r.value(what, key, fields); err != nil {
			return err
		}
	}
	if _, err := r.Token(); err != nil {
		return fmt.Errorf("%s does not end", what)
	}
	for _, f := range fields {
		if !seen[f.key] && !strings.HasPrefix(f.key, "x-") && !slices.Contains(optional, f.key) {
			return fmt.Errorf("%s has no %s", what, f.key)
		}
	}
	return nil
}

func (r reader) value(what, key string, fields []field) error {
	for _, f := range fields {
		if f.key != key {
			continue
		}
		if err := f.read(); err != nil {
			return fmt.Errorf("%s of %s: %w", key, what, err)
		}
		return nil
	}
	if !strings.HasPrefix(key, "x-") {
		return fmt.Errorf("%s has the unknown key %.40q", what, key)
	}
	var skipped json.RawMessage
	if err := r.Decode(&skipped); err != nil {
		return fmt.Errorf("%s is not JSON", what)
	}
	return nil
}

// array reads an array of at most limit elements.
func (r reader) array(limit int, element func() error) error {
	if t, err := r.Token(); err != nil || t != json.Delim('[') {
		return errors.New("it is no array")
	}
	for n := 0; r.More(); n++ {
		if n == limit {
			return fmt.Errorf("more than %d elements, which this program does not know", limit)
		}
		if err := element(); err != nil {
			return err
		}
	}
	if _, err := r.Token(); err != nil {
		return errors.New("it does not end")
	}
	return nil
}

func (r reader) text(to *string) error {
	t, err := r.Token()
	s, ok := t.(string)
	if err != nil || !ok {
		return errors.New("it is no string")
	}
	*to = s
	return nil
}

func (r reader) number(to *int64) error {
	t, err := r.Token()
	n, ok := t.(json.Number)
	if err != nil || !ok {
		return errors.New("it is no number")
	}
	if *to, err = strconv.ParseInt(n.String(), 10, 64); err != nil {
		*to = 0
		return errors.New("it is no whole number of 64 bits")
	}
	return nil
}

// hex reads at most limit bytes in lower-case hex: one value has one spelling.
func (r reader) hex(limit int) ([]byte, error) {
	var s string
	if err := r.text(&s); err != nil {
		return nil, err
	}
	b, err := hex.DecodeString(s)
	if err != nil || len(b) > limit || s != strings.ToLower(s) {
		return nil, errors.New("it is no hash in lower-case hex")
	}
	return b, nil
}
