// Package schematest checks JSON against the JSON schemas in docs/, for tests.
// It knows the few words that those use: type, const, enum, required, pattern,
// properties, items, minimum, maximum, and $ref into $defs; any other word that
// would decide something is an error, and so is a member that no schema lists,
// so that the documents list all there is.
package schematest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Check returns what is wrong with value, nothing when it fits.
func Check(schema, value []byte) []string {
	var s map[string]any
	if err := json.Unmarshal(schema, &s); err != nil {
		return []string{fmt.Sprintf("schema: %v", err)}
	}
	var v any
	d := json.NewDecoder(bytes.NewReader(value))
	if err := d.Decode(&v); err != nil {
		return []string{fmt.Sprintf("value: %v", err)}
	}
	if d.More() {
		return []string{"value: more than one"}
	}
	defs, _ := s["$defs"].(map[string]any)
	c := checker{defs: defs}
	c.check("$", s, v)
	return c.found
}

type checker struct {
	defs  map[string]any
	found []string
}

func (c *checker) say(at, format string, args ...any) {
	c.found = append(c.found, at+": "+fmt.Sprintf(format, args...))
}

func (c *checker) check(at string, s map[string]any, v any) {
	if ref, ok := s["$ref"].(string); ok {
		target, ok := c.defs[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
		if !ok {
			c.say(at, "schema: no %s", ref)
			return
		}
		s = target
	}
	for word, want := range s {
		c.word(at, word, want, v)
	}
	if object, ok := v.(map[string]any); ok {
		c.members(at, s, object)
	}
	if list, ok := v.([]any); ok {
		items, _ := s["items"].(map[string]any)
		for i, element := range list {
			c.check(fmt.Sprintf("%s[%d]", at, i), items, element)
		}
	}
}

func (c *checker) word(at, word string, want, v any) {
	switch word {
	case "$schema", "$defs", "title", "description", "properties", "items":
	case "type":
		if names := words(want); !slices.ContainsFunc(names, func(name string) bool { return is(name, v) }) {
			c.say(at, "%v is not of type %s", v, strings.Join(names, " or "))
		}
	case "const":
		if v != want {
			c.say(at, "%v is not %v", v, want)
		}
	case "enum":
		if !slices.Contains(want.([]any), v) {
			c.say(at, "%v is not one of %v", v, want)
		}
	case "pattern":
		text, ok := v.(string)
		if matches, err := regexp.MatchString(want.(string), text); ok && (err != nil || !matches) {
			c.say(at, "%q does not match %v", text, want)
		}
	case "minimum", "maximum":
		n, ok := v.(float64)
		limit, _ := want.(float64)
		if ok && (word == "minimum" && n < limit || word == "maximum" && n > limit) {
			c.say(at, "%v is beyond the %s %v", n, word, limit)
		}
	case "required":
		object, _ := v.(map[string]any)
		for _, name := range words(want) {
			if _, ok := object[name]; !ok {
				c.say(at, "%s is missing", name)
			}
		}
	default:
		c.say(at, "schema: unknown word %s", word)
	}
}

// members checks those that are listed. An object whose schema lists none may
// hold anything.
func (c *checker) members(at string, s, object map[string]any) {
	listed, ok := s["properties"].(map[string]any)
	if !ok {
		return
	}
	for name, v := range object {
		member, ok := listed[name].(map[string]any)
		if !ok {
			c.say(at, "%s is not listed", name)
			continue
		}
		c.check(at+"."+name, member, v)
	}
}

func words(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		var all []string
		for _, w := range v {
			all = append(all, fmt.Sprint(w))
		}
		return all
	}
	return nil
}

func is(name string, v any) bool {
	switch v := v.(type) {
	case nil:
		return name == "null"
	case bool:
		return name == "boolean"
	case string:
		return name == "string"
	case float64:
		return name == "number" || name == "integer" && v == float64(int64(v))
	case []any:
		return name == "array"
	case map[string]any:
		return name == "object"
	}
	return false
}
