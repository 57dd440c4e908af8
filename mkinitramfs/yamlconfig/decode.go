package yamlconfig

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"sealroot/init/config"
)

// decoder puts a tree of YAML nodes into a configuration. It reads a scalar as
// the field's type asks, not as YAML's rules guess: `version: 1.10` is not the
// number 1.1, and `fsck: no` is not false.
type decoder struct {
	lines    map[string]int // of each key and list entry
	problems []error
}

func (d *decoder) add(n *yaml.Node, path, remedy, format string, args ...any) {
	d.problems = append(d.problems, &config.Problem{
		Path: path, Line: n.Line, Reason: fmt.Sprintf(format, args...), Remedy: remedy,
	})
}

// line is the line of the key path or, when the text lacks it, of the nearest
// key around it; 0 for none.
func (d *decoder) line(path string) int {
	for path != "" {
		if line, ok := d.lines[path]; ok {
			return line
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return 0
}

func (d *decoder) document(doc *yaml.Node, c *config.Config) {
	if doc.Kind == yaml.DocumentNode && len(doc.Content) == 1 {
		doc = doc.Content[0]
	}
	d.value(doc, reflect.ValueOf(c).Elem(), "")
}

func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		d.add(n, path, "write the value out", "anchors and aliases are not accepted")
		return
	}
	// Only Duration has a form of its own.
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if n.Kind != yaml.ScalarNode {
			d.add(n, path, "", "a single value is needed")
		} else if err := u.UnmarshalText([]byte(n.Value)); err != nil {
			d.add(n, path, "", "%v", err)
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, v, path)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.add(n, path, "write it as [one, two]", "a list is needed")
			return
		}
		list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, item := range n.Content {
			at := fmt.Sprintf("%s[%d]", path, i)
			d.lines[at] = item.Line
			d.value(item, list.Index(i), at)
		}
		v.Set(list)
	default:
		d.scalar(n, v, path)
	}
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.ScalarNode {
		d.add(n, path, "", "a single value is needed")
		return
	}
	if n.Value == "" || n.Tag == "!!null" {
		d.add(n, path, "leave the key out to get its default", "has no value")
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(n.Value)
	case reflect.Int:
		i, err := strconv.ParseInt(n.Value, 10, 32)
		if err != nil {
			d.add(n, path, "", "%.40q is not a whole number", n.Value)
			return
		}
		v.SetInt(i)
	case reflect.Bool:
		if n.Value != "true" && n.Value != "false" {
			d.add(n, path, "", "%.40q is neither true nor false", n.Value)
			return
		}
		v.SetBool(n.Value == "true")
	}
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.add(n, path, "", "a mapping of keys to values is needed")
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := key.Value
		at := name
		if path != "" {
			at = path + "." + name
		}
		field, ok := fieldByKey(v, name)
		switch first := seen[name]; {
		case key.Kind != yaml.ScalarNode:
			d.add(key, path, "", "a key must be a single word")
		case !ok:
			d.add(key, at, suggest(name, path, v.Type()), "unknown key")
		case first > 0:
			d.add(key, at, "", "given twice, first on line %d", first)
		case at == "kernel":
			d.add(key, at, "leave it out", "filled in by mkinitramfs")
		default:
			seen[name] = key.Line
			d.lines[at] = key.Line
			before := len(d.problems)
			d.value(value, field, at)
			// Zero would pass as "not given" and get the default.
			if field.IsZero() && len(d.problems) == before && (at == "boot.tries" || at == "boot.commit_deadline") {
				d.add(value, at, "leave the key out to get its default", "must be more than zero")
			}
		}
	}
}

// keyOf is the key of a field, the same in JSON and YAML.
func keyOf(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

func fieldByKey(v reflect.Value, name string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if keyOf(v.Type().Field(i)) == name {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

// suggest says what the person may have meant by an unknown key of t: one
// spelled nearly so, the same one elsewhere, or else which keys there are.
func suggest(name, path string, t reflect.Type) string {
	var keys []string
	best, bestDistance := "", 3
	for i := range t.NumField() {
		key := keyOf(t.Field(i))
		if path == "" && key == "kernel" {
			continue
		}
		keys = append(keys, key)
		if d := distance(strings.ToLower(name), key); d < bestDistance {
			best, bestDistance = key, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %s?", best)
	}
	if elsewhere := find(name, "", reflect.TypeFor[config.Config]()); elsewhere != "" {
		return fmt.Sprintf("did you mean %s?", elsewhere)
	}
	slices.Sort(keys)
	return "known here: " + strings.Join(keys, ", ")
}

// find returns the path of the first key called name below t, or "".
func find(name, path string, t reflect.Type) string {
	for i := range t.NumField() {
		f := t.Field(i)
		at := strings.TrimPrefix(path+"."+keyOf(f), ".")
		if keyOf(f) == name {
			return at
		}
		if f.Type.Kind() == reflect.Struct {
			if found := find(name, at, f.Type); found != "" {
				return found
			}
		}
	}
	return ""
}

// distance is the Levenshtein distance of two keys, in bytes.
func distance(a, b string) int {
	if len(a) > 40 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
