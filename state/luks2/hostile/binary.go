package hostile

import (
	"bytes"
	"encoding/binary"
	"strings"

	"sealroot/state/luks2"
)

// binaryCases are about the binary header, in both copies.
func binaryCases() []Case {
	bad, none := luks2.ErrHeader, luks2.ErrNotLUKS2
	size := func(n uint64) func(*volume) { return both(func(h *header) { h.size = n }) }
	damage := func(fn func(b []byte) []byte) func(*volume) {
		return func(v *volume) { v.damage = fn }
	}
	csumAlg := func(name string) func(*volume) { return both(func(h *header) { h.csumAlg = name }) }
	id := func(text string) func(*volume) { return both(func(h *header) { h.uuid = []byte(text) }) }
	label := func(text string) func(*volume) { return both(func(h *header) { h.label = []byte(text) }) }
	deviceSize := func(n int64) func(*volume) {
		return func(v *volume) {
			v.size = n
			v.damage = func(b []byte) []byte { return b[:min(int64(len(b)), n)] }
		}
	}
	return []Case{
		{"zeros", none, "wrong magic", damage(func(b []byte) []byte { clear(b); return b })},
		{"noise", none, "wrong magic", damage(func(b []byte) []byte {
			for i := range b {
				b[i] = byte(i*7919>>5) ^ byte(i)
			}
			return b
		})},
		{"ext4", none, "wrong magic", damage(func(b []byte) []byte {
			clear(b)
			binary.LittleEndian.PutUint16(b[1024+0x38:], 0xef53) // s_magic
			return b
		})},
		{"luks1", none, "LUKS version 1", func(v *volume) {
			v.second.absent = true
			v.primary.version = 1
		}},
		{"luks1_in_both_places", none, "LUKS version 1", both(func(h *header) { h.version = 1 })},
		{"version_0", none, "LUKS version 0", both(func(h *header) { h.version = 0 })},
		{"version_3", none, "LUKS version 3", both(func(h *header) { h.version = 3 })},
		{"version_other_byte_order", none, "LUKS version 512", both(func(h *header) { h.version = 0x200 })},
		{"magic_swapped", none, "wrong magic", func(v *volume) { v.primary.magic, v.second.magic = v.second.magic, v.primary.magic }},
		{"magic_text_only", none, "wrong magic", both(func(h *header) { h.magic = h.magic[:4] })},
		{"size_zero", none, "header size 0", size(0)},
		{"size_of_binary_header", none, "header size 4096", size(binaryBytes)},
		{"size_8_KiB", none, "header size 8192", size(8 << 10)},
		{"size_8_MiB", none, "header size 8388608", size(8 << 20)},
		{"size_no_power_of_two", none, "header size 16640", size(hdrBytes + 256)},
		{"size_24_KiB", none, "header size 24576", size(24 << 10)},
		{"size_overflows", none, "header size 18446744073709551615", size(1<<64 - 1)},
		{"size_negative", none, "header size 9223372036854775808", size(1 << 63)},
		{"size_larger_than_checksummed", none, "wrong checksum", size(32 << 10)},
		{"offset_of_both_copies_wrong", none, "another place", both(func(h *header) { h.offset += 512 })},
		{"offset_huge", none, "another place", both(func(h *header) { h.offset = 1<<64 - 512 })},
		{"checksum_sha1", none, "checksum algorithm", csumAlg("sha1")},
		{"checksum_sha512", none, "checksum algorithm", csumAlg("sha512")},
		{"checksum_upper_case", none, "checksum algorithm", csumAlg("SHA256")},
		{"checksum_none", none, "checksum algorithm", csumAlg("")},
		{"checksum_with_blank", none, "checksum algorithm", csumAlg("sha256 ")},
		{"checksum_name_not_terminated", none, "checksum algorithm", csumAlg(strings.Repeat("sha256", 6))},
		{"checksum_name_surplus", bad, "surplus bytes behind the checksum algorithm", csumAlg("sha256\x00crc32c")},
		{"checksums_wrong", none, "wrong checksum", damage(func(b []byte) []byte {
			b[448] ^= 1
			b[hdrBytes+448] ^= 1
			return b
		})},
		{"checksums_surplus", none, "wrong checksum", damage(func(b []byte) []byte {
			b[448+32] = 1
			b[hdrBytes+448+32] = 1
			return b
		})},
		{"checksums_zero", none, "wrong checksum", damage(func(b []byte) []byte {
			clear(b[448:512])
			clear(b[hdrBytes+448:][:64])
			return b
		})},
		{"json_changed_behind_checksum", none, "wrong checksum", damage(func(b []byte) []byte {
			return bytes.ReplaceAll(b, []byte(`"iv_tweak":"0"`), []byte(`"iv_tweak":"8"`))
		})},
		{"uuid_with_space", bad, "bad UUID", id("6f0d 0 1-7a51-4c0b-9d0e-1c2b3a495867")},
		{"uuid_with_newline", bad, "bad UUID", id("6f0d3c1e-7a51-4c0b-9d0e-1c2b3a49586\n")},
		{"uuid_upper_case", bad, "bad UUID", id(strings.ToUpper(uuid))},
		{"uuid_empty", bad, "bad UUID", id("")},
		{"uuid_short", bad, "bad UUID", id(uuid[:35])},
		{"uuid_path", bad, "bad UUID", id("../../../../../../../../../../../../x")},
		{"uuid_unicode_dash", bad, "bad UUID", id("6f0d3c1e\u20107a51\u20104c0b-9d0e-1c2b3a4958")},
		{"uuid_not_terminated", bad, "UUID is not terminated", id(uuid + "0000")},
		{"uuid_surplus", bad, "surplus bytes behind the UUID", id(uuid + "\x00 7:")},
		{"label_with_escape", bad, "bad label", label("\x1b[2J\x1b]0;x\a")},
		{"label_with_newline", bad, "bad label", label("state\nsealroot: unlocked")},
		{"label_right_to_left", bad, "bad label", label("\u202egmi.etats")},
		{"label_not_terminated", bad, "label is not terminated", label(strings.Repeat("x", 48))},
		{"label_surplus", bad, "surplus bytes behind the label", label("hostile\x00y")},
		{"subsystem_with_control", bad, "bad label", both(func(h *header) { h.system = []byte("a\rb") })},
		{"subsystem_surplus", bad, "surplus bytes behind the subsystem", both(func(h *header) { h.system = []byte("\x00b") })},
		{"padding_surplus", bad, "surplus bytes in the padding", both(func(h *header) { h.padding = []byte{0, 0, 1} })},
		{"padding_end_surplus", bad, "surplus bytes in the padding", both(func(h *header) { h.padding2 = append(make([]byte, 3583), 1) })},
		{"json_not_terminated", bad, "JSON area is not terminated", both(func(h *header) { h.fill = ' ' })},
		{"json_surplus", bad, "surplus bytes behind the JSON area", text(func(t []byte) []byte { return append(t, "\x00{}"...) })},
		{"json_surplus_at_the_end", bad, "surplus bytes behind the JSON area", both(func(h *header) {
			h.json = append(h.json, make([]byte, int(h.area)-len(h.json)-1)...)
			h.json = append(h.json, '}')
		})},
		{"nul_in_json", bad, "surplus bytes behind the JSON area", replace(`"tokens"`, "\"to\x00kens\"")},
		{"nul_at_start", bad, "surplus bytes behind the JSON area", text(func(t []byte) []byte { return append([]byte{0}, t...) })},
		{"device_empty", none, "device too small", deviceSize(0)},
		{"device_one_sector", none, "device too small", deviceSize(512)},
		{"device_ends_in_json", none, "device too small", deviceSize(8 << 10)},
		{"device_ends_behind_primary", bad, "ends beyond the device's 16384 bytes", deviceSize(hdrBytes)},
		{"device_ends_in_keyslot", bad, "ends beyond the device's 40960 bytes", deviceSize(40 << 10)},
		{"device_ends_before_data", bad, "ends beyond the device's 16773120 bytes", deviceSize(16<<20 - 4096)},
	}
}

// copyCases are about the two copies.
func copyCases() []Case {
	const cipher = `"iv_tweak":"0","encryption":"aes-xts-plain64"`
	null := func(h *header) {
		h.json = bytes.Replace(h.json, []byte(cipher), []byte(strings.Replace(cipher, "aes-xts-plain64", "cipher_null-ecb", 1)), 1)
	}
	torn := func(offset int) func(b []byte) []byte {
		return func(b []byte) []byte { b[offset] ^= 1; return b }
	}
	secondAt := func(size uint64) func(v *volume) {
		return func(v *volume) {
			v.primary.absent = true
			v.grow(size, func(text []byte) []byte { return text })
			null(&v.second)
		}
	}
	refused := luks2.ErrUnsupported
	return []Case{
		{"newer_second_null_cipher", refused, "cipher_null", func(v *volume) { v.second.seqid = 2; null(&v.second) }},
		{"newest_second_null_cipher", refused, "cipher_null", func(v *volume) { v.second.seqid = 1<<64 - 1; null(&v.second) }},
		{"newer_primary_null_cipher", refused, "cipher_null", func(v *volume) { v.primary.seqid = 2; null(&v.primary) }},
		{"null_cipher_torn_second", refused, "cipher_null", func(v *volume) { null(&v.primary); v.damage = torn(hdrBytes + 5000) }},
		{"null_cipher_torn_primary", refused, "cipher_null", func(v *volume) { null(&v.second); v.damage = torn(5000) }},
		{"second_alone_at_4_MiB", refused, "cipher_null", secondAt(4 << 20)},
		{"second_alone_at_32_KiB", refused, "cipher_null", secondAt(32 << 10)},
		{"second_alone_at_8_MiB", luks2.ErrNotLUKS2, "wrong magic", secondAt(8 << 20)},
		{"second_alone_at_12_KiB", luks2.ErrNotLUKS2, "wrong magic", func(v *volume) {
			v.primary.absent, v.second.at, v.second.offset = true, 12<<10, 12<<10
		}},
		{"second_of_another_place", luks2.ErrNotLUKS2, "wrong magic", func(v *volume) {
			v.primary.absent, v.second.at = true, 32<<10
		}},
		{"copies_disagree_on_cipher", luks2.ErrHeader, "disagree", func(v *volume) { null(&v.second) }},
		{"copies_disagree_on_uuid", luks2.ErrHeader, "disagree", func(v *volume) { v.second.uuid = []byte("0" + uuid[1:]) }},
		{"copies_disagree_on_label", luks2.ErrHeader, "disagree", func(v *volume) { v.second.label = []byte("other") }},
		{"copies_disagree_on_keyslots", luks2.ErrHeader, "disagree", func(v *volume) {
			v.second.json = bytes.Replace(v.second.json, []byte(`"iterations":1000`), []byte(`"iterations":1001`), 1)
		}},
		{"both_torn", luks2.ErrNotLUKS2, "wrong checksum", func(v *volume) {
			v.damage = func(b []byte) []byte { return torn(5000)(torn(hdrBytes + 5000)(b)) }
		}},
		{"newer_second_not_terminated", luks2.ErrHeader, "not terminated", func(v *volume) { v.second.seqid, v.second.fill = 2, 'x' }},
		{"newer_second_bad_uuid", luks2.ErrHeader, "bad UUID", func(v *volume) { v.second.seqid, v.second.uuid = 2, []byte("x") }},
	}
}
