package hostile

import "sealroot/state/luks2"

// segmentCases are about the data segment: what dm-crypt would be told.
func segmentCases() []Case {
	bad, refused := luks2.ErrHeader, luks2.ErrUnsupported
	seg := func(key string, value any) func(*volume) { return set(key, value, "segments", "0") }
	cipher := func(name string) func(*volume) { return seg("encryption", name) }
	return []Case{
		{"null_cipher", refused, `segment 0: encryption is "cipher_null-ecb"`, cipher("cipher_null-ecb")},
		{"null_cipher_by_crypto_api", refused, "segment 0: encryption", cipher("capi:ecb(cipher_null)-plain")},
		{"null_cipher_with_xts_name", refused, "segment 0: encryption", cipher("cipher_null-xts-plain64")},
		{"cipher_ecb", refused, "segment 0: encryption", cipher("aes-ecb")},
		{"cipher_cbc", refused, "segment 0: encryption", cipher("aes-cbc-essiv:sha256")},
		{"cipher_null_iv", refused, "segment 0: encryption", cipher("aes-xts-null")},
		{"cipher_32_bit_iv", refused, "segment 0: encryption", cipher("aes-xts-plain")},
		{"cipher_aead", refused, "segment 0: encryption", cipher("aegis128-random")},
		{"cipher_other", refused, "segment 0: encryption", cipher("serpent-xts-plain64")},
		{"cipher_upper_case", refused, "segment 0: encryption", cipher("AES-XTS-PLAIN64")},
		{"cipher_empty", refused, "segment 0: encryption", cipher("")},
		{"cipher_with_table_fields", refused, "segment 0: encryption", cipher("aes-xts-plain64 0 7:0 0 1 allow_discards")},
		{"cipher_with_newline", refused, "segment 0: encryption", cipher("aes-xts-plain64\n0 1 zero")},
		{"cipher_as_array", bad, "encryption has the wrong type", seg("encryption", []any{"aes-xts-plain64"})},
		{"cipher_missing", bad, "encryption is missing", unset("encryption", "segments", "0")},
		{"segment_linear", refused, `type is "linear"`, seg("type", "linear")},
		{"segment_of_verity", refused, `type is "verity"`, seg("type", "verity")},
		{"segment_with_flags", refused, `unknown key "flags"`, seg("flags", []any{"backup-final"})},
		{"segment_in_reencryption", refused, `unknown key "flags"`, seg("flags", []any{"in-reencryption"})},
		{"segment_integrity", refused, `unknown key "integrity"`, seg("integrity", object{"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"})},
		{"segment_integrity_none", refused, `unknown key "integrity"`, seg("integrity", object{"type": "none"})},
		{"segment_of_hardware", refused, `type is "hw-opal"`, seg("type", "hw-opal")},
		{"segments_two", refused, "want exactly one, have 2", document(func(doc object) {
			all := at(doc, "segments")
			all["1"] = all["0"]
		})},
		{"segments_crypt_and_linear", refused, "want exactly one, have 2", document(func(doc object) {
			at(doc, "segments")["1"] = object{"type": "linear", "offset": "25165824", "size": "dynamic"}
		})},
		{"segments_none", refused, "want exactly one, have 0", set("segments", object{})},
		{"segments_as_array", bad, "segments has the wrong type", set("segments", []any{})},
		{"segments_missing", bad, "segments is missing", unset("segments")},
		{"segment_null", bad, "not an object", set("0", nil, "segments")},
		{"segment_id_with_zero", bad, `"00" is not an id`, document(func(doc object) {
			doc["segments"] = object{"00": at(doc, "segments", "0")}
		})},
		{"iv_tweak_shifted", refused, `iv_tweak is "8"`, seg("iv_tweak", "8")},
		{"iv_tweak_as_number", bad, "iv_tweak has the wrong type", seg("iv_tweak", 0)},
		{"sector_size_zero", refused, "sector_size is 0", seg("sector_size", 0)},
		{"sector_size_one", refused, "sector_size is 1,", seg("sector_size", 1)},
		{"sector_size_1024", refused, "sector_size is 1024", seg("sector_size", 1024)},
		{"sector_size_8192", refused, "sector_size is 8192", seg("sector_size", 8192)},
		{"sector_size_negative", refused, "sector_size is -4096", seg("sector_size", -4096)},
		{"sector_size_exponent", refused, "sector_size is 4.096e3", replace(`"sector_size":4096`, `"sector_size":4.096e3`)},
		{"sector_size_of_64_bits", refused, "sector_size is 18446744073709555712", replace(`"sector_size":4096`, `"sector_size":18446744073709555712`)},
		{"sector_size_as_text", bad, "sector_size has the wrong type", seg("sector_size", "4096")},
		{"sector_size_missing", bad, "sector_size is missing", unset("sector_size", "segments", "0")},
		{"data_in_header", bad, "offset 0 is inside the header", seg("offset", "0")},
		{"data_detached", bad, "offset 4096 is inside the header", seg("offset", "4096")},
		{"data_in_keyslots", bad, "offset 32768 is inside the header", seg("offset", "32768")},
		{"data_one_block_too_early", bad, "is inside the header", seg("offset", "16773120")},
		{"data_unaligned", bad, "not a multiple of 4096", seg("offset", "16777728")},
		{"data_beyond_device", bad, "ends beyond the device's", seg("offset", "33558528")},
		{"data_offset_overflows", bad, "ends beyond the device's", seg("offset", "18446744073709547520")},
		{"data_offset_of_65_bits", bad, "offset is not a number", seg("offset", "36893488147419103232")},
		{"data_offset_as_number", bad, "offset has the wrong type", seg("offset", 16777216)},
		{"data_offset_leading_zero", bad, "offset is not a number", seg("offset", "016777216")},
		{"data_offset_plus", bad, "offset is not a number", seg("offset", "+16777216")},
		{"data_offset_negative", bad, "offset is not a number", seg("offset", "-16777216")},
		{"data_offset_blank", bad, "offset is not a number", seg("offset", " 16777216")},
		{"data_offset_hexadecimal", bad, "offset is not a number", seg("offset", "0x1000000")},
		{"data_offset_underscore", bad, "offset is not a number", seg("offset", "16_777_216")},
		{"data_offset_wide_digits", bad, "offset is not a number", seg("offset", "１６７７７２１６")},
		{"data_offset_empty", bad, "offset is not a number", seg("offset", "")},
		{"data_size_beyond_device", bad, "ends beyond the device's", seg("size", "16781312")},
		{"data_size_overflows", bad, "ends beyond the device's", seg("size", "18446744073709547520")},
		{"data_size_unaligned", bad, "size is 4608", seg("size", "4608")},
		{"data_size_zero", bad, "size is 0", seg("size", "0")},
		{"data_size_upper_case", bad, "size is not a number", seg("size", "Dynamic")},
		{"data_size_as_number", bad, "size has the wrong type", seg("size", 4096)},
	}
}

// configCases are about the configuration of the header.
func configCases() []Case {
	bad, refused := luks2.ErrHeader, luks2.ErrUnsupported
	config := func(key string, value any) func(*volume) { return set(key, value, "config") }
	requires := func(names ...any) func(*volume) { return config("requirements", object{"mandatory": names}) }
	many := make([]any, 17)
	for i := range many {
		many[i] = "allow-discards"
	}
	return []Case{
		{"requires_reencryption", refused, "has requirements", requires("online-reencrypt")},
		{"requires_reencryption_v2", refused, "has requirements", requires("online-reencrypt-v2")},
		{"requires_offline_reencryption", refused, "has requirements", requires("offline-reencrypt")},
		{"requires_unknown", refused, "has requirements", requires("no-such-thing-yet")},
		{"requires_nothing", refused, "has requirements", requires()},
		{"requires_as_array", refused, "has requirements", config("requirements", []any{"online-reencrypt"})},
		{"requires_null", refused, "has requirements", config("requirements", nil)},
		{"reencryption_as_cryptsetup_writes_it", refused, "has requirements", document(reencryption)},
		{"reencryption_without_requirement", refused, "want exactly one, have 3", document(func(doc object) {
			reencryption(doc)
			delete(at(doc, "config"), "requirements")
		})},
		{"reencryption_keyslot_alone", refused, `keyslot 1: unknown key "direction"`, document(func(doc object) {
			segments := at(doc, "segments", "0")
			reencryption(doc)
			delete(at(doc, "config"), "requirements")
			doc["segments"] = object{"0": segments}
		})},
		{"config_missing", bad, "config is missing", unset("config")},
		{"config_as_array", bad, "config has the wrong type", set("config", []any{})},
		{"config_unknown_key", refused, `unknown key "priority"`, config("priority", 1)},
		{"flag_unknown", refused, `flags is "no-such-flag"`, config("flags", []any{"no-such-flag"})},
		{"flag_as_number", bad, "flags has the wrong type", config("flags", []any{1})},
		{"flags_as_text", bad, "flags has the wrong type", config("flags", "allow-discards")},
		{"flags_many", bad, "too many flags", config("flags", many)},
		{"json_size_small", bad, "json_size is 12287", config("json_size", "12287")},
		{"json_size_of_header", bad, "json_size is 16384", config("json_size", "16384")},
		{"json_size_overflows", bad, "json_size is not a number", config("json_size", "18446744073709551616")},
		{"json_size_as_number", bad, "json_size has the wrong type", config("json_size", 12288)},
		{"keyslots_size_huge", bad, "keyslots_size is 18446744073709547520", config("keyslots_size", "18446744073709547520")},
		{"keyslots_size_wraps_to_data", bad, "keyslots_size is 18446744073709518848", config("keyslots_size", "18446744073709518848")},
		{"keyslots_size_over_128_MiB", bad, "keyslots_size is 134221824", config("keyslots_size", "134221824")},
		{"keyslots_size_unaligned", bad, "keyslots_size is 16744449", config("keyslots_size", "16744449")},
		{"keyslots_size_over_data", bad, "is inside the header", config("keyslots_size", "16748544")},
		{"keyslots_size_zero", bad, "not inside the keyslot area", config("keyslots_size", "0")},
		{"keyslots_size_missing", bad, "keyslots_size is missing", unset("keyslots_size", "config")},
	}
}

// reencryption makes a document like that of an interrupted cryptsetup
// reencrypt --decrypt (CVE-2021-4122: whoever opens it decrypts it).
func reencryption(doc object) {
	segment := at(doc, "segments", "0")
	doc["segments"] = object{
		"0": with(segment, object{"flags": []any{"in-reencryption"}}),
		"1": with(segment, object{"flags": []any{"backup-previous"}}),
		"2": object{"type": "linear", "offset": segment["offset"], "size": "dynamic", "flags": []any{"backup-final"}},
	}
	at(doc, "keyslots")["1"] = object{
		"type": "reencrypt", "key_size": 1, "mode": "reencrypt", "direction": "forward",
		"area": object{"type": "checksum", "offset": "290816", "size": "4096", "hash": "sha256", "sector_size": 4096},
	}
	at(doc, "config")["requirements"] = object{"mandatory": []any{"online-reencrypt-v2"}}
}
