package luks2

import (
	"bytes"
	"encoding/binary"
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
