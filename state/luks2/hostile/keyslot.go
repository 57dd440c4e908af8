package hostile

import (
	"encoding/base64"
	"strconv"
	"strings"

	"sealroot/state/luks2"
)

// keyslotCases are about keyslots and the areas of their material.
func keyslotCases() []Case {
	bad, refused := luks2.ErrHeader, luks2.ErrUnsupported
	slot := func(key string, value any) func(*volume) { return set(key, value, "keyslots", "0") }
	area := func(key string, value any) func(*volume) { return set(key, value, "keyslots", "0", "area") }
	af := func(key string, value any) func(*volume) { return set(key, value, "keyslots", "0", "af") }
	// another adds a keyslot like keyslot 0 elsewhere.
	another := func(id, offset string, changes object) func(*volume) {
		return document(func(doc object) {
			zero := at(doc, "keyslots", "0")
			place := with(at(zero, "area"), object{"offset": offset})
			at(doc, "keyslots")[id] = with(with(zero, object{"area": place}), changes)
			at(doc, "digests", "0")["keyslots"] = []any{"0", id}
		})
	}
	const outside = "are not inside the keyslot area"
	return []Case{
		{"keyslots_missing", bad, "keyslots is missing", unset("keyslots")},
		{"keyslots_as_array", bad, "keyslots has the wrong type", set("keyslots", []any{})},
		{"keyslot_null", bad, "not an object", set("0", nil, "keyslots")},
		{"keyslot_unknown_type", refused, `type is "luks3"`, slot("type", "luks3")},
		{"keyslot_of_reencryption", refused, `type is "reencrypt"`, slot("type", "reencrypt")},
		{"keyslot_unknown_key", refused, `unknown key "mode"`, slot("mode", "reencrypt")},
		{"keyslot_id_32", bad, `"32" is not an id`, another("32", "290816", nil)},
		{"keyslot_id_negative", bad, `"-1" is not an id`, another("-1", "290816", nil)},
		{"keyslot_id_with_zero", bad, `"01" is not an id`, another("01", "290816", nil)},
		{"keyslot_id_of_64_bits", bad, `is not an id`, another("18446744073709551617", "290816", nil)},
		{"keyslot_id_wide_digit", bad, `is not an id`, another("１", "290816", nil)},
		{"keyslot_id_empty", bad, `"" is not an id`, another("", "290816", nil)},
		{"keyslots_33", bad, `"32" is not an id`, document(func(doc object) {
			zero, ids := at(doc, "keyslots", "0"), []any{}
			for id := range 33 {
				place := with(at(zero, "area"), object{"offset": strconv.Itoa(32768 + id*258048)})
				at(doc, "keyslots")[strconv.Itoa(id)] = with(zero, object{"area": place})
				ids = append(ids, strconv.Itoa(id))
			}
			at(doc, "digests", "0")["keyslots"] = ids
		})},
		{"keyslot_without_digest", refused, "not for all keyslots", document(func(doc object) {
			place := with(at(doc, "keyslots", "0", "area"), object{"offset": "290816"})
			at(doc, "keyslots")["1"] = with(at(doc, "keyslots", "0"), object{"area": place})
		})},
		{"keyslots_of_different_sizes", bad, "keys of different sizes", another("1", "290816", object{"key_size": 32})},
		{"priority_3", bad, "priority is 3", slot("priority", 3)},
		{"priority_negative", bad, "priority is -1", slot("priority", -1)},
		{"priority_as_text", bad, "priority has the wrong type", slot("priority", "1")},
		{"key_size_zero", refused, "key_size is 0", slot("key_size", 0)},
		{"key_size_16", refused, "key_size is 16", slot("key_size", 16)},
		{"key_size_48", refused, "key_size is 48", slot("key_size", 48)},
		{"key_size_65", refused, "key_size is 65", slot("key_size", 65)},
		{"key_size_2_GiB", refused, "key_size is 2147483647", slot("key_size", 2147483647)},
		{"key_size_negative", refused, "key_size is -64", slot("key_size", -64)},
		{"key_size_wraps", refused, "key_size is 4294967360", slot("key_size", 1<<32+64)},
		{"key_size_fraction", refused, "key_size is 64.5", slot("key_size", 64.5)},
		{"key_size_exponent", refused, "key_size is 6.4e1", replace(`"key_size":64`, `"key_size":6.4e1`)},
		{"key_size_huge_exponent", refused, "key_size is 1e999999999", replace(`"key_size":64`, `"key_size":1e999999999`)},
		{"key_size_minus_zero", refused, "key_size is -0", replace(`"key_size":64`, `"key_size":-0`)},
		{"key_size_as_text", bad, "key_size has the wrong type", slot("key_size", "64")},

		{"area_missing", bad, "area is missing", unset("area", "keyslots", "0")},
		{"area_null_cipher", refused, `area: encryption is "cipher_null-ecb"`, area("encryption", "cipher_null-ecb")},
		{"area_cbc", refused, "area: encryption", area("encryption", "aes-cbc-essiv:sha256")},
		{"area_journal", refused, `type is "journal"`, area("type", "journal")},
		{"area_datashift", refused, `type is "datashift"`, area("type", "datashift")},
		{"area_key_size_zero", refused, "area: key_size is 0", area("key_size", 0)},
		{"area_key_size_48", refused, "area: key_size is 48", area("key_size", 48)},
		{"area_key_size_huge", refused, "area: key_size is 4294967296", area("key_size", 1<<32)},
		{"area_at_zero", bad, outside, area("offset", "0")},
		{"area_in_primary", bad, outside, area("offset", "4096")},
		{"area_in_second", bad, outside, area("offset", "16384")},
		{"area_one_block_early", bad, outside, area("offset", "28672")},
		{"area_over_data", bad, outside, area("offset", "16523264")},
		{"area_in_data", bad, outside, area("offset", "16777216")},
		{"area_beyond_device", bad, outside, area("offset", "33554432")},
		{"area_offset_overflows", bad, outside, area("offset", "18446744073709547520")},
		{"area_offset_negative", bad, "offset is not a number", area("offset", "-4096")},
		{"area_offset_unaligned", bad, outside, area("offset", "33280")},
		{"area_offset_as_number", bad, "offset has the wrong type", area("offset", 32768)},
		{"area_size_zero", bad, "0 bytes are too small", area("size", "0")},
		{"area_size_small", bad, "253952 bytes are too small", area("size", "253952")},
		{"area_size_over_data", bad, outside, area("size", "16748544")},
		{"area_size_overflows", bad, outside, area("size", "18446744073709547520")},
		{"area_size_wraps", bad, outside, area("size", "18446744073709518848")},
		{"area_size_unaligned", bad, outside, area("size", "258049")},
		{"area_unknown_key", refused, `unknown key "shift_size"`, area("shift_size", "1")},
		{"areas_equal", bad, "overlaps that of keyslot 0", another("1", "32768", nil)},
		{"areas_overlap", bad, "overlaps that of keyslot 0", another("1", "286720", nil)},
		{"areas_overlap_by_all_but_a_block", bad, "overlaps that of keyslot 0", another("1", "36864", nil)},

		{"af_missing", bad, "af is missing", unset("af", "keyslots", "0")},
		{"af_type", refused, `af: type is "none"`, af("type", "none")},
		{"af_hash_md5", refused, `hash is "md5"`, af("hash", "md5")},
		{"af_hash_sha1", refused, `hash is "sha1"`, af("hash", "sha1")},
		{"af_stripes_one", refused, "stripes is 1,", af("stripes", 1)},
		{"af_stripes_zero", refused, "stripes is 0", af("stripes", 0)},
		{"af_stripes_3999", refused, "stripes is 3999", af("stripes", 3999)},
		{"af_stripes_huge", refused, "stripes is 4294967295", af("stripes", 4294967295)},
		{"af_unknown_key", refused, `unknown key "salt"`, af("salt", "")},
	}
}

// kdfCases are about the cost of one try.
func kdfCases() []Case {
	bad, refused, cost := luks2.ErrHeader, luks2.ErrUnsupported, luks2.ErrKDFCost
	kdf := func(key string, value any) func(*volume) { return set(key, value, "keyslots", "0", "kdf") }
	argon := func(kind string, time, memory, cpus any) func(*volume) {
		return set("kdf", object{"type": kind, "time": time, "memory": memory, "cpus": cpus, "salt": base(32)}, "keyslots", "0")
	}
	return []Case{
		{"kdf_missing", bad, "kdf is missing", unset("kdf", "keyslots", "0")},
		{"kdf_scrypt", refused, `type is "scrypt"`, kdf("type", "scrypt")},
		{"kdf_argon2d", refused, `type is "argon2d"`, argon("argon2d", 4, 65536, 1)},
		{"kdf_upper_case", refused, `type is "PBKDF2"`, kdf("type", "PBKDF2")},
		{"kdf_hash_sha1", refused, `hash is "sha1"`, kdf("hash", "sha1")},
		{"kdf_hash_empty", refused, `hash is ""`, kdf("hash", "")},
		{"kdf_hash_upper_case", refused, `hash is "SHA512"`, kdf("hash", "SHA512")},
		{"kdf_hash_of_crypto_api", refused, `hash is "hmac(sha512)"`, kdf("hash", "hmac(sha512)")},
		{"kdf_hash_missing", bad, "hash is missing", unset("hash", "keyslots", "0", "kdf")},
		{"kdf_of_both_kinds", refused, `unknown key "memory"`, kdf("memory", 65536)},
		{"iterations_4_billion", cost, "iterations is 4294967295", kdf("iterations", 4294967295)},
		{"iterations_over_bound", cost, "iterations is 10000001", kdf("iterations", 10_000_001)},
		{"iterations_999", cost, "iterations is 999", kdf("iterations", 999)},
		{"iterations_zero", cost, "iterations is 0", kdf("iterations", 0)},
		{"iterations_negative", cost, "iterations is -1000", kdf("iterations", -1000)},
		{"iterations_fraction", cost, "iterations is 1000.5", kdf("iterations", 1000.5)},
		{"iterations_of_65_bits", cost, "iterations is 36893488147419104232", replace(`"iterations":1000`, `"iterations":36893488147419104232`)},
		{"iterations_of_1000_digits", cost, "iterations is 9999", replace(`"iterations":1000`, `"iterations":`+strings.Repeat("9", 1000))},
		{"iterations_as_text", bad, "iterations has the wrong type", kdf("iterations", "1000")},
		{"salt_missing", bad, "salt is missing", unset("salt", "keyslots", "0", "kdf")},
		{"salt_empty", bad, "salt is not base64", kdf("salt", "")},
		{"salt_7_bytes", bad, "salt is not base64 of", kdf("salt", base(7))},
		{"salt_4096_bytes", bad, "salt is not base64 of", kdf("salt", base(4096))},
		{"salt_garbage", bad, "salt is not base64", kdf("salt", "&&&&&&&&&&&&&&&&")},
		{"salt_without_padding", bad, "salt is not base64", kdf("salt", strings.TrimRight(base(32), "="))},
		{"salt_url_alphabet", bad, "salt is not base64", kdf("salt", strings.Repeat("-_", 20))},
		{"salt_bits_behind_the_end", bad, "salt is not base64", kdf("salt", strings.Repeat("A", 42)+"B=")},
		{"argon2_memory_4_TiB", cost, "memory is 4294967295", argon("argon2id", 4, 4294967295, 4)},
		{"argon2_memory_over_1_GiB", cost, "memory is 1048577", argon("argon2id", 1, 1<<20+1, 4)},
		{"argon2_memory_wraps", cost, "memory is 4294967328", argon("argon2id", 4, 1<<32+32, 4)},
		{"argon2_memory_zero", cost, "memory is 0", argon("argon2id", 4, 0, 1)},
		{"argon2_memory_below_lanes", cost, "memory is 31", argon("argon2id", 4, 31, 4)},
		{"argon2_memory_negative", cost, "memory is -65536", argon("argon2id", 4, -65536, 4)},
		{"argon2_memory_as_text", bad, "memory has the wrong type", argon("argon2id", 4, "65536", 4)},
		{"argon2_time_zero", cost, "time is 0", argon("argon2id", 0, 65536, 4)},
		{"argon2_time_1001", cost, "time is 1001", argon("argon2id", 1001, 64, 4)},
		{"argon2_time_4_billion", cost, "time is 4294967295", argon("argon2id", 4294967295, 65536, 4)},
		{"argon2_time_negative", cost, "time is -1", argon("argon2id", -1, 65536, 4)},
		{"argon2_product", cost, "17 passes over 1048576 KiB", argon("argon2id", 17, 1<<20, 4)},
		{"argon2_product_by_time", cost, "1000 passes over 65536 KiB", argon("argon2id", 1000, 65536, 4)},
		{"argon2_cpus_zero", cost, "cpus is 0", argon("argon2id", 4, 65536, 0)},
		{"argon2_cpus_5", cost, "cpus is 5", argon("argon2id", 4, 65536, 5)},
		{"argon2_cpus_256", cost, "cpus is 256", argon("argon2id", 4, 65536, 256)},
		{"argon2_cpus_257", cost, "cpus is 257", argon("argon2id", 4, 65536, 257)},
		{"argon2i_memory", cost, "memory is 1048577", argon("argon2i", 1, 1<<20+1, 1)},
		{"argon2i_product", cost, "64 passes over 524288 KiB", argon("argon2i", 64, 512<<10, 1)},
		{"argon2_with_iterations", refused, `unknown key "iterations"`, document(func(doc object) {
			at(doc, "keyslots", "0")["kdf"] = object{"type": "argon2id", "time": 4, "memory": 65536, "cpus": 1, "iterations": 1000, "salt": base(32)}
		})},
	}
}

// base is base64 of n bytes.
func base(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }

// digestCases are about how a volume key is told from a wrong one.
func digestCases() []Case {
	bad, refused, cost := luks2.ErrHeader, luks2.ErrUnsupported, luks2.ErrKDFCost
	digest := func(key string, value any) func(*volume) { return set(key, value, "digests", "0") }
	return []Case{
		{"digests_missing", bad, "digests is missing", unset("digests")},
		{"digests_none", refused, "want exactly one, have 0", set("digests", object{})},
		{"digests_two", refused, "want exactly one, have 2", document(func(doc object) { at(doc, "digests")["1"] = at(doc, "digests", "0") })},
		{"digest_type", refused, `type is "none"`, digest("type", "none")},
		{"digest_hash_sha1", refused, `hash is "sha1"`, digest("hash", "sha1")},
		{"digest_hash_longer", bad, "has 32 bytes, want 64", digest("hash", "sha512")},
		{"digest_empty", bad, "digest is not base64", digest("digest", "")},
		{"digest_one_byte", bad, "has 1 bytes, want 32", digest("digest", base(1))},
		{"digest_31_bytes", bad, "has 31 bytes, want 32", digest("digest", base(31))},
		{"digest_64_bytes", bad, "has 64 bytes, want 32", digest("digest", base(64))},
		{"digest_garbage", bad, "digest is not base64", digest("digest", "====")},
		{"digest_iterations_4_billion", cost, "iterations is 4294967295", digest("iterations", 4294967295)},
		{"digest_iterations_one", cost, "iterations is 1,", digest("iterations", 1)},
		{"digest_salt_empty", bad, "salt is not base64", digest("salt", "")},
		{"digest_of_no_segment", bad, "not for segment 0 alone", digest("segments", []any{})},
		{"digest_of_another_segment", bad, "not for segment 0 alone", digest("segments", []any{"1"})},
		{"digest_of_no_keyslot", refused, "not for all keyslots", digest("keyslots", []any{})},
		{"digest_of_missing_keyslot", refused, "not for all keyslots", digest("keyslots", []any{"0", "5"})},
		{"digest_of_keyslot_twice", bad, "keyslots holds a bad id", digest("keyslots", []any{"0", "0"})},
		{"digest_of_keyslot_by_number", bad, "keyslots holds a bad id", digest("keyslots", []any{0})},
		{"digest_without_keyslots_in_header", refused, "not for all keyslots", set("keyslots", object{})},
		{"digest_unknown_key", refused, `unknown key "flags"`, digest("flags", []any{})},
	}
}

// tokenCases are about what all tokens have; their content belongs to the
// packages that own a type.
func tokenCases() []Case {
	bad := luks2.ErrHeader
	token := func(value any) func(*volume) { return set("0", value, "tokens") }
	return []Case{
		{"tokens_missing", bad, "tokens is missing", unset("tokens")},
		{"tokens_as_array", bad, "tokens has the wrong type", set("tokens", []any{})},
		{"token_null", bad, "not an object", token(nil)},
		{"token_as_text", bad, "not an object", token("systemd-tpm2")},
		{"token_without_type", bad, "type is missing", token(object{"keyslots": []any{}})},
		{"token_type_empty", bad, "bad type", token(object{"type": "", "keyslots": []any{}})},
		{"token_type_long", bad, "bad type", token(object{"type": strings.Repeat("x", 129), "keyslots": []any{}})},
		{"token_type_with_escape", bad, "bad type", token(object{"type": "\x1b[2J", "keyslots": []any{}})},
		{"token_type_not_ascii", bad, "bad type", token(object{"type": "systemd\u2010tpm2", "keyslots": []any{}})},
		{"token_type_as_number", bad, "type has the wrong type", token(object{"type": 1, "keyslots": []any{}})},
		{"token_without_keyslots", bad, "keyslots is missing", token(object{"type": "x"})},
		{"token_keyslots_as_text", bad, "keyslots has the wrong type", token(object{"type": "x", "keyslots": "0"})},
		{"token_of_keyslot_by_number", bad, "keyslots holds a bad id", token(object{"type": "x", "keyslots": []any{0}})},
		{"token_of_keyslot_twice", bad, "keyslots holds a bad id", token(object{"type": "x", "keyslots": []any{"0", "0"}})},
		{"token_of_keyslot_negative", bad, "keyslots holds a bad id", token(object{"type": "x", "keyslots": []any{"-1"}})},
		{"token_of_missing_keyslot", bad, "names keyslot 9, which is not there", token(object{"type": "x", "keyslots": []any{"9"}})},
		{"token_id_32", bad, `"32" is not an id`, set("32", object{"type": "x", "keyslots": []any{}}, "tokens")},
		{"token_id_with_blank", bad, `"0 " is not an id`, set("0 ", object{"type": "x", "keyslots": []any{}}, "tokens")},
		{"tokens_33", bad, `"32" is not an id`, document(func(doc object) {
			for id := range 33 {
				at(doc, "tokens")[strconv.Itoa(id)] = object{"type": "x", "keyslots": []any{}}
			}
		})},
	}
}
