package schematest

import (
	"strings"
	"testing"
)

const schema = `{
	"title": "t", "type": "object", "required": ["a"],
	"properties": {
		"a": {"const": 1}, "b": {"type": ["string", "null"], "enum": ["x", null]}, "c": {"type": "array", "items": {"$ref": "#/$defs/n"}},
		"any": {"type": "object"}, "bad": {"format": "x"}, "hex": {"pattern": "^[0-9a-f]+$"}, "lost": {"$ref": "#/$defs/m"}
	},
	"$defs": {"n": {"type": "integer", "minimum": 0, "maximum": 2}}
}`

func TestCheck(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"fits", `{"a": 1, "b": "x", "c": [0, 2], "any": {"z": 1}}`, ""},
		{"null_fits", `{"a": 1, "b": null, "c": []}`, ""},
		{"missing", `{}`, "$: a is missing"},
		{"not_an_object", `[]`, "not of type object"},
		{"wrong_const", `{"a": 2}`, "$.a: 2 is not 1"},
		{"wrong_type", `{"a": 1, "b": 7}`, "not of type string or null"},
		{"wrong_enum", `{"a": 1, "b": "y"}`, "y is not one of"},
		{"fraction", `{"a": 1, "c": [0, 1.5]}`, "$.c[1]: 1.5 is not of type integer"},
		{"too_small", `{"a": 1, "c": [-1]}`, "minimum"},
		{"too_large", `{"a": 1, "c": [3]}`, "maximum"},
		{"not_listed", `{"a": 1, "z": 1}`, "z is not listed"},
		{"unknown_word", `{"a": 1, "bad": "x"}`, "unknown word format"},
		{"pattern_fits", `{"a": 1, "hex": "0af"}`, ""},
		{"wrong_pattern", `{"a": 1, "hex": "0AF"}`, "does not match"},
		{"unknown_ref", `{"a": 1, "lost": 1}`, "no #/$defs/m"},
		{"no_json", `{`, "value:"},
		{"two_values", `{"a": 1} {}`, "more than one"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := strings.Join(Check([]byte(schema), []byte(c.value)), "; ")
			if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q in it", got, c.want)
			}
		})
	}
}
