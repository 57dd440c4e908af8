package hostile

import (
	"bytes"
	"fmt"
	"strings"

	"sealroot/state/luks2"
)

// textCases are about the JSON as a text, and what parsers differ in.
func textCases() []Case {
	bad, refused := luks2.ErrHeader, luks2.ErrUnsupported
	const tokens = `"tokens":{}`
	token := func(rest string) func(*volume) {
		return replace(tokens, `"tokens":{"0":{"type":"x","keyslots":[],`+rest+`}}`)
	}
	whole := func(s string) func(*volume) {
		return text(func([]byte) []byte { return []byte(s) })
	}
	// A header of 4 MiB with a token that is right until it ends.
	large := func(rest func(n int) string) func(*volume) {
		return func(v *volume) {
			v.grow(4<<20, func(text []byte) []byte {
				n := 4<<20 - 2*binaryBytes - len(text)
				return bytes.Replace(text, []byte(tokens), []byte(`"tokens":{"0":{"type":"x","keyslots":[],`+rest(n)+`}}`), 1)
			})
		}
	}
	return []Case{
		{"json_empty", bad, "malformed", whole("")},
		{"json_blank", bad, "malformed", whole("  ")},
		{"json_array", bad, "not an object", whole("[]")},
		{"json_null", bad, "not an object", whole("null")},
		{"json_number", bad, "not an object", whole("1")},
		{"json_string", bad, "not an object", whole(`"keyslots"`)},
		{"json_empty_object", bad, "config is missing", whole("{}")},
		{"json_cut", bad, "malformed", text(func(t []byte) []byte { return t[:len(t)/2] })},
		{"json_byte_order_mark", bad, "malformed", text(func(t []byte) []byte { return append([]byte("\xef\xbb\xbf"), t...) })},
		{"json_utf16", bad, "surplus bytes", text(func(t []byte) []byte {
			var wide []byte
			for _, c := range t {
				wide = append(wide, c, 0)
			}
			return wide
		})},
		{"json_twice", bad, "malformed", text(func(t []byte) []byte { return append(t, t...) })},
		{"json_trailing_object", bad, "malformed", text(func(t []byte) []byte { return append(t, "{}"...) })},
		{"json_trailing_comma", bad, "malformed", replace(tokens, tokens+",")},
		{"json_comment", bad, "malformed", replace(tokens, tokens+"/**/")},
		{"json_single_quotes", bad, "malformed", replace(`"dynamic"`, `'dynamic'`)},
		{"json_bare_key", bad, "malformed", replace(tokens, `tokens:{}`)},
		{"json_not_a_number", bad, "malformed", replace(`"sector_size":4096`, `"sector_size":NaN`)},
		{"json_hexadecimal", bad, "malformed", replace(`"sector_size":4096`, `"sector_size":0x1000`)},
		{"json_leading_zero", bad, "malformed", replace(`"sector_size":4096`, `"sector_size":04096`)},
		{"json_control_in_string", bad, "malformed", token("\"a\":\"\x01\"")},
		{"json_invalid_utf8", bad, "not UTF-8", token("\"a\":\"\xff\"")},
		{"json_overlong_utf8", bad, "not UTF-8", token("\"a\":\"\xc0\xaf\"")},
		{"json_surrogate_utf8", bad, "not UTF-8", token("\"a\":\"\xed\xa0\x80\"")},

		{"duplicate_top_key", bad, `duplicate key "tokens"`, replace(tokens, tokens+","+tokens)},
		{"duplicate_segments", bad, `duplicate key "segments"`, replace(`"segments":`, `"segments":{},"segments":`)},
		{"duplicate_encryption", bad, `duplicate key "encryption"`, replace(`"iv_tweak":"0"`, `"iv_tweak":"0","encryption":"cipher_null-ecb"`)},
		{"duplicate_segment_id", bad, `duplicate key "0"`, replace(`"segments":{`, `"segments":{"0":{"type":"linear"},`)},
		{"duplicate_by_escape", bad, `duplicate key "tokens"`, replace(tokens, tokens+`,"\u0074okens":{}`)},
		{"duplicate_in_token", bad, `duplicate key "a"`, token(`"a":1,"a":2`)},
		{"duplicate_deep_in_token", bad, `duplicate key "b"`, token(`"a":[{"b":1,"b":2}]`)},
		{"key_upper_case", refused, `unknown key "Segments"`, replace(`"segments":`, `"Segments":{},"segments":`)},
		{"key_upper_case_alone", refused, `unknown key "Tokens"`, replace(`"tokens"`, `"Tokens"`)},
		{"key_upper_case_deep", refused, `unknown key "Encryption"`, replace(`"iv_tweak":"0"`, `"iv_tweak":"0","Encryption":"cipher_null-ecb"`)},
		{"key_long_s", refused, `unknown key "ſegments"`, replace(`"segments":`, `"ſegments":{},"segments":`)},
		{"key_kelvin_sign", refused, "unknown key \"\u212aeyslots\"", replace(`"keyslots":{`, "\"\u212aeyslots\":{},\"keyslots\":{")},
		{"key_cyrillic", refused, "unknown key \"t\u043ekens\"", replace(`"tokens"`, "\"t\u043ekens\"")},
		{"key_zero_width", refused, `unknown key "tokens\u200b"`, replace(`"tokens"`, "\"tokens\u200b\"")},
		{"key_escaped_nul", refused, `unknown key "tokens\x00"`, replace(`"tokens"`, `"tokens\u0000"`)},
		{"key_blank", refused, `unknown key " tokens"`, replace(`"tokens"`, `" tokens"`)},
		{"key_very_long", refused, `unknown key "aaaa`, replace(tokens, `"tokens":{},"`+strings.Repeat("a", 8000)+`":1`)},
		{"value_escaped_nul", refused, `encryption is "aes-xts-plain64\x00"`, replace(`"iv_tweak":"0","encryption":"aes-xts-plain64"`, `"iv_tweak":"0","encryption":"aes-xts-plain64\u0000"`)},
		{"value_lone_surrogate", refused, `encryption is "aes-xts-plain64`, replace(`"iv_tweak":"0","encryption":"aes-xts-plain64"`, `"iv_tweak":"0","encryption":"aes-xts-plain64\ud800"`)},

		{"deep_arrays", bad, "nested deeper", token(`"a":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000))},
		{"deep_objects", bad, "nested deeper", token(`"a":` + strings.Repeat(`{"a":`, 1000) + "1" + strings.Repeat("}", 1000))},
		{"deep_at_the_bound", bad, "nested deeper", token(`"a":` + strings.Repeat("[", 15) + strings.Repeat("]", 15))},
		{"many_values", bad, "more than 4096 values", token(`"a":[` + strings.Repeat("0,", 5000) + "0]")},
		{"large_deep_arrays", bad, "malformed", large(func(n int) string { // deeper than Go's own bound
			return `"a":` + strings.Repeat("[", n/2-8) + strings.Repeat("]", n/2-8)
		})},
		{"large_many_values", bad, "more than 4096 values", large(func(n int) string { return `"a":[` + strings.Repeat("0,", n/2-8) + "0]" })},
		{"large_many_keys", bad, "more than 4096 values", large(func(n int) string {
			var b strings.Builder
			for i := 0; b.Len() < n-16; i++ {
				fmt.Fprintf(&b, `"%x":0,`, i)
			}
			return b.String() + `"a":0`
		})},
		{"large_string", bad, `"1x" is not an id`, large(func(n int) string { return `"a":"` + strings.Repeat("x", n-32) + `"},"1x":{` })},
		{"large_escapes", bad, `"1x" is not an id`, large(func(n int) string { return `"a":"` + strings.Repeat(`\u00e9`, n/6-8) + `"},"1x":{` })},
		{"large_number", bad, `"1x" is not an id`, large(func(n int) string { return `"a":` + strings.Repeat("9", n-32) + `},"1x":{` })},
		{"large_type", bad, "bad type", large(func(n int) string { return `"a":0},"1":{"keyslots":[],"type":"` + strings.Repeat("x", n-64) + `"` })},
		{"large_blanks", bad, `"1x" is not an id`, large(func(n int) string { return strings.Repeat(" ", n-32) + `"a":0},"1x":{` })},
	}
}
