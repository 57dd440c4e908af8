package luks2

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// TestReadRefuses: each case has right checksums, so only validation is
// between it and the volume key.
func TestReadRefuses(t *testing.T) {
	b64 := func(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }
	set := func(key string, value any, path ...string) func(map[string]any) {
		return func(doc map[string]any) { at(doc, path...)[key] = value }
	}
	argon := func(time, memory, cpus any) func(map[string]any) {
		return set("kdf", map[string]any{"type": "argon2id", "time": time, "memory": memory, "cpus": cpus, "salt": b64(32)}, "keyslots", "0")
	}
	seg, slot, dig := []string{"segments", "0"}, []string{"keyslots", "0"}, []string{"digests", "0"}
	area, af, kdf := []string{"keyslots", "0", "area"}, []string{"keyslots", "0", "af"}, []string{"keyslots", "0", "kdf"}
	tests := []struct {
		name string
		fn   func(doc map[string]any)
		want error
	}{
		{"null_cipher", set("encryption", "cipher_null-ecb", seg...), ErrUnsupported},
		{"capi_null_cipher", set("encryption", "capi:ecb(cipher_null)-plain", seg...), ErrUnsupported},
		{"ecb", set("encryption", "aes-ecb", seg...), ErrUnsupported},
		{"text_in_cipher", set("encryption", "aes-xts-plain64 0 7:0 0 1 allow_discards", seg...), ErrUnsupported},
		{"linear_segment", set("type", "linear", seg...), ErrUnsupported},
		{"second_segment", func(doc map[string]any) { at(doc, "segments")["1"] = at(doc, "segments", "0") }, ErrUnsupported},
		{"no_segment", set("segments", map[string]any{}), ErrUnsupported},
		{"backup_segment_flag", set("flags", []any{"backup-final"}, seg...), ErrUnsupported},
		{"integrity", set("integrity", map[string]any{"type": "none"}, seg...), ErrUnsupported},
		{"sector_size_zero", set("sector_size", 0, seg...), ErrUnsupported},
		{"sector_size_odd", set("sector_size", 1024, seg...), ErrUnsupported},
		{"sector_size_text", set("sector_size", "4096", seg...), ErrHeader},
		{"iv_tweak", set("iv_tweak", "8", seg...), ErrUnsupported},
		{"offset_zero", set("offset", "0", seg...), ErrHeader},
		{"offset_in_keyslots", set("offset", "32768", seg...), ErrHeader},
		{"offset_unaligned", set("offset", "16777217", seg...), ErrHeader},
		{"offset_beyond_device", set("offset", "33558528", seg...), ErrHeader},
		{"offset_overflows", set("offset", "18446744073709547520", seg...), ErrHeader},
		{"offset_as_number", set("offset", 16777216, seg...), ErrHeader},
		{"offset_leading_zero", set("offset", "016777216", seg...), ErrHeader},
		{"size_beyond_device", set("size", "33554432", seg...), ErrHeader},
		{"size_unaligned", set("size", "513", seg...), ErrHeader},
		{"size_zero", set("size", "0", seg...), ErrHeader},

		{"requirements", set("requirements", map[string]any{"mandatory": []any{"online-reencrypt-v2"}}, "config"), ErrUnsupported},
		{"requirements_as_array", set("requirements", []any{"online-reencrypt"}, "config"), ErrUnsupported},
		{"unknown_flag", set("flags", []any{"no-such-flag"}, "config"), ErrUnsupported},
		{"json_size", set("json_size", "12287", "config"), ErrHeader},
		{"keyslots_size_huge", set("keyslots_size", "18446744073709547520", "config"), ErrHeader},
		{"keyslots_size_over_data", set("keyslots_size", "16748544", "config"), ErrHeader},
		{"keyslots_size_zero", set("keyslots_size", "0", "config"), ErrHeader},

		{"reencrypt_keyslot", set("type", "reencrypt", slot...), ErrUnsupported},
		{"keyslot_unknown_key", set("mode", "reencrypt", slot...), ErrUnsupported},
		{"key_size_absurd", set("key_size", 2147483647, slot...), ErrUnsupported},
		{"key_size_negative", set("key_size", -64, slot...), ErrUnsupported},
		{"key_size_48", set("key_size", 48, slot...), ErrUnsupported},
		{"key_size_fraction", set("key_size", 64.5, slot...), ErrUnsupported},
		{"priority", set("priority", 3, slot...), ErrHeader},
		{"keyslot_id_32", func(doc map[string]any) { at(doc, "keyslots")["32"] = at(doc, "keyslots", "0") }, ErrHeader},
		{"keyslot_id_00", func(doc map[string]any) { at(doc, "keyslots")["00"] = at(doc, "keyslots", "0") }, ErrHeader},
		{"overlapping_areas", func(doc map[string]any) { at(doc, "keyslots")["1"] = at(doc, "keyslots", "0") }, ErrHeader},
		{"area_null_cipher", set("encryption", "cipher_null-ecb", area...), ErrUnsupported},
		{"area_type", set("type", "journal", area...), ErrUnsupported},
		{"area_in_header", set("offset", "4096", area...), ErrHeader},
		{"area_over_data", set("offset", "16773120", area...), ErrHeader},
		{"area_offset_overflows", set("offset", "18446744073709547520", area...), ErrHeader},
		{"area_size_overflows", set("size", "18446744073709547520", area...), ErrHeader},
		{"area_too_small", set("size", "253952", area...), ErrHeader},
		{"area_key_size", set("key_size", 0, area...), ErrUnsupported},
		{"stripes", set("stripes", 1, af...), ErrUnsupported},
		{"stripes_huge", set("stripes", 4294967295, af...), ErrUnsupported},
		{"af_hash", set("hash", "md5", af...), ErrUnsupported},

		{"kdf_type", set("type", "scrypt", kdf...), ErrUnsupported},
		{"kdf_hash", set("hash", "sha1", kdf...), ErrUnsupported},
		{"iterations_huge", set("iterations", 4294967295, kdf...), ErrKDFCost},
		{"iterations_few", set("iterations", 1, kdf...), ErrKDFCost},
		{"iterations_negative", set("iterations", -1000, kdf...), ErrKDFCost},
		{"salt_empty", set("salt", "", kdf...), ErrHeader},
		{"salt_huge", set("salt", b64(4096), kdf...), ErrHeader},
		{"salt_not_base64", set("salt", "&&&&", kdf...), ErrHeader},
		{"argon2_memory_4_TiB", argon(4, 4294967295, 4), ErrKDFCost},
		{"argon2_memory_over_1_GiB", argon(1, 1<<20+1, 4), ErrKDFCost},
		{"argon2_memory_zero", argon(4, 0, 1), ErrKDFCost},
		{"argon2_time_zero", argon(0, 65536, 4), ErrKDFCost},
		{"argon2_time_huge", argon(4294967295, 65536, 4), ErrKDFCost},
		{"argon2_product", argon(17, 1<<20, 4), ErrKDFCost},
		{"argon2_cpus_zero", argon(4, 65536, 0), ErrKDFCost},
		{"argon2_cpus_256", argon(4, 65536, 256), ErrKDFCost},

		{"digest_empty", set("digest", "", dig...), ErrHeader},
		{"digest_one_byte", set("digest", b64(1), dig...), ErrHeader},
		{"digest_too_long", set("digest", b64(64), dig...), ErrHeader},
		{"digest_iterations_huge", set("iterations", 4294967295, dig...), ErrKDFCost},
		{"digest_iterations_one", set("iterations", 1, dig...), ErrKDFCost},
		{"digest_of_no_segment", set("segments", []any{}, dig...), ErrHeader},
		{"digest_of_no_keyslot", set("keyslots", []any{}, dig...), ErrUnsupported},
		{"digest_keyslot_twice", set("keyslots", []any{"0", "0"}, dig...), ErrHeader},
		{"second_digest", func(doc map[string]any) { at(doc, "digests")["1"] = at(doc, "digests", "0") }, ErrUnsupported},

		{"unknown_top_key", set("extra", map[string]any{}), ErrUnsupported},
		{"case_variant_key", func(doc map[string]any) { doc["Segments"] = doc["segments"] }, ErrUnsupported},
		{"only_case_variant_key", func(doc map[string]any) { doc["Tokens"] = doc["tokens"]; delete(doc, "tokens") }, ErrUnsupported},
		{"tokens_missing", func(doc map[string]any) { delete(doc, "tokens") }, ErrHeader},
		{"token_without_type", set("0", map[string]any{"keyslots": []any{}}, "tokens"), ErrHeader},
		{"token_type_with_escape", set("0", map[string]any{"type": "\x1b[2J", "keyslots": []any{}}, "tokens"), ErrHeader},
		{"token_of_missing_keyslot", set("0", map[string]any{"type": "x", "keyslots": []any{"9"}}, "tokens"), ErrHeader},
		{"token_null", set("0", nil, "tokens"), ErrHeader},
	}
	good, _ := written(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := &memDisk{bytes.Clone(good.b)}
			edit(t, d, tt.fn)
			start := time.Now()
			h, err := Read(d, testSize)
			if !errors.Is(err, tt.want) || h != nil {
				t.Errorf("got a header: %v, %v, want %v", h != nil, err, tt.want)
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("took %v", took)
			}
			if err != nil && len(err.Error()) > 300 {
				t.Errorf("message has %d bytes", len(err.Error()))
			}
		})
	}
	// The way these headers are made is not what is refused.
	d := &memDisk{bytes.Clone(good.b)}
	edit(t, d, set("flags", []any{"allow-discards"}, "config"))
	h := must[*Header](t)(Read(d, testSize))
	if _, err := h.Unlock(0, []byte("secret")); err != nil {
		t.Error(err)
	}
}

// TestReadRefusesText: what cannot be said with a map.
func TestReadRefusesText(t *testing.T) {
	replace := func(old, new string) func([]byte) []byte {
		return func(text []byte) []byte { return bytes.Replace(text, []byte(old), []byte(new), 1) }
	}
	tests := []struct {
		name string
		fn   func(text []byte) []byte
	}{
		{"duplicate_top_key", replace(`"tokens":{}`, `"tokens":{},"tokens":{}`)},
		{"duplicate_deep_key", replace(`"iv_tweak":"0"`, `"iv_tweak":"0","encryption":"cipher_null-ecb"`)},
		{"duplicate_by_escape", replace(`"tokens":{}`, `"tokens":{},"\u0074okens":{}`)},
		{"duplicate_in_token", replace(`"tokens":{}`, `"tokens":{"0":{"type":"x","keyslots":[],"a":1,"a":2}}`)},
		{"trailing_document", func(text []byte) []byte { return append(text, "{}"...) }},
		{"after_nul", func(text []byte) []byte { return append(text, "\x00{}"...) }},
		{"not_terminated", nil},
		{"empty", func([]byte) []byte { return nil }},
		{"array", func([]byte) []byte { return []byte("[]") }},
		{"invalid_utf8", replace(`"tokens":{}`, "\"tokens\":{\"0\":{\"type\":\"x\xff\",\"keyslots\":[]}}")},
		{"deep", replace(`"tokens":{}`, `"tokens":{"0":{"type":"x","keyslots":[],"a":`+strings.Repeat("[", 1000)+strings.Repeat("]", 1000)+`}}`)},
		{"many_values", replace(`"tokens":{}`, `"tokens":{"0":{"type":"x","keyslots":[],"a":[`+strings.Repeat("0,", 5000)+`0]}}`)},
		{"exponent", replace(`"sector_size":4096`, `"sector_size":4.096e3`)},
		{"comment", replace(`"tokens":{}`, `"tokens":{}/**/`)},
	}
	good, _ := written(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := &memDisk{bytes.Clone(good.b)}
			before := bytes.Clone(d.b[:2*minHeaderBytes])
			if tt.name == "not_terminated" {
				terminateWithBlank(t, d)
			} else {
				editText(t, d, tt.fn)
			}
			if bytes.Equal(before, d.b[:2*minHeaderBytes]) {
				t.Fatal("the case changes nothing")
			}
			h, err := Read(d, testSize)
			if err == nil || errors.Is(err, ErrNotLUKS2) || h != nil {
				t.Errorf("got a header: %v, %v, want a refusal of the content", h != nil, err)
			}
		})
	}
}

// terminateWithBlank fills the whole JSON area, which encode never does.
func terminateWithBlank(t *testing.T, d *memDisk) {
	t.Helper()
	for _, offset := range []int{0, minHeaderBytes} {
		b := d.b[offset:][:minHeaderBytes]
		for i := binaryBytes; i < len(b); i++ {
			if b[i] == 0 {
				b[i] = ' '
			}
		}
		clear(b[offCsum:][:csumBytes])
		copy(b[offCsum:], checksum(b[:binaryBytes], b[binaryBytes:]))
	}
}

// TestTwoCopies: which copy wins, and that a torn one is no loss.
func TestTwoCopies(t *testing.T) {
	rewrite := func(t *testing.T, d *memDisk, offset uint64, magic string, seqid uint64, cipher string) {
		c := must[diskCopy](t)(readCopy(d, offset, magic, testSize))
		c.seqid = seqid
		c.json = bytes.Replace(c.json, []byte(`"iv_tweak":"0","encryption":"aes-xts-plain64"`),
			[]byte(`"iv_tweak":"0","encryption":"`+cipher+`"`), 1)
		d.WriteAt(c.encode(offset, magic, make([]byte, hdrSaltBytes)), int64(offset))
	}
	tests := []struct {
		name string
		fn   func(t *testing.T, d *memDisk)
		want error
	}{
		{"both_good", func(*testing.T, *memDisk) {}, nil},
		{"primary_zeroed", func(_ *testing.T, d *memDisk) { clear(d.b[:minHeaderBytes]) }, nil},
		{"primary_torn", func(_ *testing.T, d *memDisk) { clear(d.b[4096:8192]) }, nil},
		{"secondary_torn", func(_ *testing.T, d *memDisk) { d.b[minHeaderBytes+5000] ^= 1 }, nil},
		{"secondary_zeroed", func(_ *testing.T, d *memDisk) { clear(d.b[minHeaderBytes : 2*minHeaderBytes]) }, nil},
		{"both_torn", func(_ *testing.T, d *memDisk) { d.b[5000] ^= 1; d.b[minHeaderBytes+5000] ^= 1 }, ErrNotLUKS2},
		{"newer_hostile_secondary", func(t *testing.T, d *memDisk) {
			rewrite(t, d, minHeaderBytes, magicSecond, 9, "cipher_null-ecb")
		}, ErrUnsupported},
		{"older_hostile_secondary", func(t *testing.T, d *memDisk) {
			rewrite(t, d, 0, magicPrimary, 9, Encryption)
			rewrite(t, d, minHeaderBytes, magicSecond, 1, "cipher_null-ecb")
		}, nil},
		{"hostile_primary_torn_secondary", func(t *testing.T, d *memDisk) {
			rewrite(t, d, 0, magicPrimary, 9, "cipher_null-ecb")
			d.b[minHeaderBytes+5000] ^= 1
		}, ErrUnsupported},
		{"luks1", func(_ *testing.T, d *memDisk) { clear(d.b[7:]); d.b[7] = 1 }, ErrNotLUKS2},
		{"zeros", func(_ *testing.T, d *memDisk) { clear(d.b) }, ErrNotLUKS2},
		{"header_size_odd", func(_ *testing.T, d *memDisk) { clear(d.b[minHeaderBytes:]); d.b[offHdrSize+7] = 1 }, ErrNotLUKS2},
		{"uuid_with_space", func(t *testing.T, d *memDisk) {
			c := must[diskCopy](t)(readCopy(d, 0, magicPrimary, testSize))
			c.uuid, c.seqid = strings.Replace(testUUID, "6f0d3c1e", "6f0d 0 1", 1), 9
			d.WriteAt(c.encode(0, magicPrimary, make([]byte, hdrSaltBytes)), 0)
		}, ErrHeader},
	}
	good, _ := written(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := &memDisk{bytes.Clone(good.b)}
			tt.fn(t, d)
			h, err := Read(d, testSize)
			if !errors.Is(err, tt.want) || (err == nil) != (h != nil) {
				t.Fatalf("got a header: %v, %v, want %v", h != nil, err, tt.want)
			}
			if err != nil {
				return
			}
			if _, err := h.Unlock(0, []byte("secret")); err != nil {
				t.Error(err)
			}
			// An update repairs the other copy.
			if _, err := Update(d, h, h.change(), &testRand{state: 7}); err != nil {
				t.Fatal(err)
			}
			p, perr := readCopy(d, 0, magicPrimary, testSize)
			s, serr := readCopy(d, minHeaderBytes, magicSecond, testSize)
			if perr != nil || serr != nil || p.seqid != s.seqid {
				t.Errorf("after an update: %v, %v", perr, serr)
			}
		})
	}
}

func TestTruncatedDevice(t *testing.T) {
	d, _ := written(t)
	for _, size := range []int64{-1, 0, 1, 4095, 4096, 16383, 16384, 32768, 16<<20 - 1} {
		h, err := Read(d, size)
		if !(errors.Is(err, ErrNotLUKS2) || errors.Is(err, ErrHeader)) || h != nil {
			t.Errorf("device of %d bytes: got a header: %v, %v", size, h != nil, err)
		}
		if size >= 0 && size < 2*minHeaderBytes+64*stripes { // shorter than it says it is
			short := &memDisk{d.b[:size]}
			if h, err := Read(short, testSize); err == nil || h != nil {
				t.Errorf("device that ends after %d bytes: got a header: %v, %v", size, h != nil, err)
			}
		}
	}
}

// swapDisk gives each sector once.
type swapDisk struct {
	*memDisk
	seen map[int64]bool
}

func (d *swapDisk) ReadAt(b []byte, off int64) (int, error) {
	for sector := off / 512; sector*512 < off+int64(len(b)); sector++ {
		if d.seen[sector] {
			return 0, os.ErrInvalid
		}
		d.seen[sector] = true
	}
	return d.memDisk.ReadAt(b, off)
}

func TestNothingIsReadTwice(t *testing.T) {
	good, _ := written(t)
	d := &swapDisk{good, map[int64]bool{}}
	h := must[*Header](t)(Read(d, testSize))
	clear(good.b) // from here on the disk does not matter
	if key := must[[]byte](t)(h.Unlock(0, []byte("secret"))); !bytes.Equal(key, testKey()) {
		t.Error("got another key")
	}
	if _, err := h.CryptTarget(testSize); err != nil {
		t.Error(err)
	}
}

type failingReader struct {
	io.ReaderAt
	from, to int64
}

func (r failingReader) ReadAt(b []byte, off int64) (int, error) {
	if off < r.to && off+int64(len(b)) > r.from {
		return 0, os.ErrDeadlineExceeded
	}
	return r.ReaderAt.ReadAt(b, off)
}

// TestReadErrorIsNotForeignFormat: an I/O error must not look like an empty
// place that may be formatted.
func TestReadErrorIsNotForeignFormat(t *testing.T) {
	d, _ := written(t)
	h, err := Read(failingReader{d, 0, 1 << 20}, testSize)
	if !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, ErrNotLUKS2) || h != nil {
		t.Errorf("got a header: %v, %v, want the device's error", h != nil, err)
	}
	if _, err := Read(failingReader{d, 0, 4096}, testSize); err != nil {
		t.Errorf("primary unreadable: got %v, want the secondary", err)
	}
}
