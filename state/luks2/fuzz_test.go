package luks2

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"reflect"
	"testing"
)

// fuzzDocument is the JSON of a good header.
func fuzzDocument(f *testing.F) []byte {
	d, _ := written(f)
	return must[diskCopy](f)(readCopy(d, 0, magicPrimary, testSize)).json
}

// FuzzRead puts bytes over the start of the primary, makes its checksum right
// again when that is possible, and sometimes has the secondary torn.
func FuzzRead(f *testing.F) {
	good, _ := written(f)
	start := good.b[:2*minHeaderBytes+64*stripes]
	f.Add(bytes.Clone(start[:512]), int64(testSize), false)
	f.Add(bytes.Clone(start[:offLabel]), int64(binaryBytes), true)
	f.Add([]byte(magicSecond), int64(1<<40), true)
	f.Fuzz(func(t *testing.T, head []byte, size int64, torn bool) {
		b := bytes.Clone(start)
		copy(b[:binaryBytes], head)
		if torn {
			clear(b[minHeaderBytes:][:binaryBytes])
		}
		hdrSize := binary.BigEndian.Uint64(b[offHdrSize:])
		if hdrSize >= minHeaderBytes && hdrSize <= uint64(len(b)) {
			clear(b[offCsum:][:csumBytes])
			copy(b[offCsum:], checksum(b[:binaryBytes], b[binaryBytes:hdrSize]))
		}
		h, err := Read(bytes.NewReader(b), size)
		if (err == nil) != (h != nil) {
			t.Errorf("got a header: %v, %v", h != nil, err)
		}
		if err == nil && (!validUUID(h.UUID()) || h.DataOffset() > uint64(size)) {
			t.Errorf("accepted UUID %q, data at %d", h.UUID(), h.DataOffset())
		}
	})
}

// FuzzJSON: what is accepted is what encoding/json understands too, and is held
// within the bounds.
func FuzzJSON(f *testing.F) {
	f.Add(fuzzDocument(f))
	f.Add([]byte(`{"a":[1,-0.5e3,"\u00e9\ud83d\ude00",null,true],"A":{"":{}}}`))
	f.Add([]byte(`{"a":1,"\u0061":2}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		v, err := parseJSON(text)
		if err != nil {
			if !reflect.DeepEqual(v, value{}) {
				t.Errorf("error %v with a value", err)
			}
			return
		}
		dec := json.NewDecoder(bytes.NewReader(text))
		dec.UseNumber()
		var want any
		if err := dec.Decode(&want); err != nil {
			t.Fatalf("accepted, but: %v", err)
		}
		values := 0
		if got := plain(v, 0, &values); !reflect.DeepEqual(got, sameBools(want)) || values > maxValues {
			t.Errorf("got %#v of %d values, want %#v", got, values, want)
		}
	})
}

// sameBools makes all booleans true: a value does not keep which it is.
func sameBools(v any) any {
	switch v := v.(type) {
	case bool:
		return true
	case []any:
		for i := range v {
			v[i] = sameBools(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = sameBools(v[k])
		}
	}
	return v
}

// plain is a value as encoding/json gives it; too deep a one is nil.
func plain(v value, depth int, values *int) any {
	*values++
	if depth > maxDepth {
		return nil
	}
	switch v.kind {
	case kindNumber:
		return json.Number(v.text)
	case kindString:
		return v.text
	case kindBool:
		return true
	case kindArray:
		elems := []any{}
		for _, e := range v.elems {
			elems = append(elems, plain(e, depth+1, values))
		}
		return elems
	case kindObject:
		members := map[string]any{}
		for k, e := range v.members {
			members[k] = plain(e, depth+1, values)
		}
		return members
	}
	return nil
}

// FuzzMetadata gets past the checksum. What is accepted must survive being
// written and read again.
func FuzzMetadata(f *testing.F) {
	doc := fuzzDocument(f)
	f.Add(doc)
	f.Add(bytes.Replace(doc, []byte(`"tokens":{}`), []byte(`"tokens":{"0":{"type":"systemd-recovery","keyslots":["0"]}}`), 1))
	f.Add(bytes.Replace(doc, []byte(`"dynamic"`), []byte(`"4096"`), 1))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := parseMetadata(text, minHeaderBytes, testSize)
		if err != nil {
			if !reflect.DeepEqual(m, metadata{}) {
				t.Errorf("error %v with a value", err)
			}
			return
		}
		again, err := m.encode(minHeaderBytes)
		if err != nil {
			t.Fatal(err)
		}
		m2, err := parseMetadata(again, minHeaderBytes, testSize)
		if err != nil {
			t.Fatalf("our own text is refused: %v\n%s", err, again)
		}
		for id, tok := range m.tokens { // JSON may be spelled differently
			tok.JSON = m2.tokens[id].JSON
			m.tokens[id] = tok
		}
		if !reflect.DeepEqual(m, m2) {
			t.Errorf("got %+v, want %+v", m2, m)
		}
	})
}

// FuzzToken: a token that is accepted is a token afterwards.
func FuzzToken(f *testing.F) {
	_, h := written(f)
	f.Add(RecoveryToken(0))
	f.Add([]byte(`{"type":"systemd-tpm2","keyslots":["0"],"tpm2-pcrs":[7],"tpm2-blob":["a","b"]}`))
	f.Fuzz(func(t *testing.T, token []byte) {
		n, err := h.AddToken(3, token)
		if (err == nil) != (n != nil) {
			t.Fatalf("got a header: %v, %v", n != nil, err)
		}
		if err == nil && (len(n.Tokens()) != 1 || n.Tokens()[0].ID != 3 || n.Tokens()[0].Type == "") {
			t.Errorf("got %+v", n.Tokens())
		}
	})
}

func FuzzNormalizeRecoveryKey(f *testing.F) {
	f.Add([]byte("bhniktnl-becjtikj-khjecvfh-jtghielh-fjihnnug-evijrkun-vclfitng-hchghtke"))
	f.Fuzz(func(t *testing.T, typed []byte) {
		key, err := NormalizeRecoveryKey(typed)
		if err != nil {
			if key != nil {
				t.Errorf("error %v with a value", err)
			}
			return
		}
		again, err := NormalizeRecoveryKey(key)
		if err != nil || !bytes.Equal(again, key) || len(key) != RecoveryKeyBytes {
			t.Errorf("%q is not in its normal form: %q, %v", typed, key, err)
		}
	})
}
