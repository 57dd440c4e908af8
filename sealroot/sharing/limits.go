package sharing

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"sealroot/init/config"
	"sealroot/state/balance"
)

// LimitsFile is where an administrator may choose limits; none is needed.
const LimitsFile = "/etc/sealroot/state.yaml"

// maxLimits bounds that file, in bytes.
const maxLimits = 64 << 10

// key is one key of the file.
type key struct {
	name string
	set  func(l *balance.Limits, value string) error
}

// keys are all there are; a dot stands for a mapping within.
func keys() []key {
	size := func(of func(*balance.Limits) *int64) func(*balance.Limits, string) error {
		return func(l *balance.Limits, value string) (err error) {
			*of(l), err = parseSize(value)
			return err
		}
	}
	weight := func(of func(*balance.Limits) *int64) func(*balance.Limits, string) error {
		return func(l *balance.Limits, value string) error {
			n, err := strconv.ParseUint(value, 10, 16)
			if err != nil {
				return fmt.Errorf("%.40q is not a whole number", value)
			}
			*of(l) = int64(n)
			return nil
		}
	}
	return []key{
		{"keep_free", size(func(l *balance.Limits) *int64 { return &l.KeepFree })},
		{"min", size(func(l *balance.Limits) *int64 { return &l.Min })},
		{"max", size(func(l *balance.Limits) *int64 { return &l.Max })},
		{"rate", size(func(l *balance.Limits) *int64 { return &l.Rate })},
		{"interval", func(l *balance.Limits, value string) (err error) {
			if l.Interval, err = time.ParseDuration(value); err != nil {
				return fmt.Errorf("%.40q is not a time such as 1s or 500ms", value)
			}
			return nil
		}},
		{"weights.partition", weight(func(l *balance.Limits) *int64 { return &l.OuterWeight })},
		{"weights.volume", weight(func(l *balance.Limits) *int64 { return &l.InnerWeight })},
	}
}

// LoadLimits reads the file at path; without one the defaults count. What is wrong
// with it comes as *config.Problem values.
func LoadLimits(path string) (balance.Limits, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return balance.Defaults(), nil
	}
	if err != nil {
		return balance.Limits{}, fmt.Errorf("cannot read the limits: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxLimits+1))
	if err != nil {
		return balance.Limits{}, fmt.Errorf("cannot read the limits: %w", err)
	}
	l, err := ParseLimits(text)
	if err == nil {
		return l, nil
	}
	var all []error
	for _, p := range config.Problems(err) {
		all = append(all, fmt.Errorf("%s: %w", path, p))
	}
	return balance.Limits{}, errors.Join(all...)
}

// LimitsIn are the limits of a file that somebody may change at any time.
type LimitsIn struct {
	Path     string
	GiveBack bool

	read bool
	info fs.FileInfo // nil where there was no file
	err  error
}

// Reread reads the file where it has changed, or was wrong, and tells whether that made a
// difference. With what is wrong it returns limits that resize nothing: a gap is closed
// all the same.
func (f *LimitsIn) Reread() (l balance.Limits, changed bool, problem error) {
	info, err := os.Stat(f.Path)
	if err != nil {
		info = nil
	}
	if f.read && f.err == nil && sameFile(info, f.info) {
		return l, false, nil
	}
	l, err = LoadLimits(f.Path)
	if err != nil {
		l = balance.Defaults()
		l.GapOnly = true
	}
	l.GiveBack = f.GiveBack
	changed = !f.read || err == nil || f.err == nil || err.Error() != f.err.Error()
	f.read, f.info, f.err = true, info, err
	return l, changed, err
}

func sameFile(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// ParseLimits reads the text of such a file. Errors: *config.Problem, joined.
func ParseLimits(text []byte) (balance.Limits, error) {
	fail := func(line int, path, remedy, format string, args ...any) error {
		return &config.Problem{Path: path, Line: line, Reason: fmt.Sprintf(format, args...), Remedy: remedy}
	}
	if len(text) > maxLimits {
		return balance.Limits{}, fail(0, "", "", "more than %d bytes", maxLimits)
	}
	l := balance.Defaults()
	var doc, second yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(&doc); err == io.EOF {
		return l, nil // comments only
	} else if err != nil {
		return balance.Limits{}, fail(0, "", "", "not YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := decoder.Decode(&second); err != io.EOF {
		return balance.Limits{}, fail(second.Line, "", "", "text behind the end of the first document")
	}
	r := reader{limits: &l, fail: fail, seen: map[string]int{}}
	r.mapping(doc.Content[0], "")
	if len(r.errs) == 0 {
		if err := l.Check(); err != nil {
			r.errs = append(r.errs, fail(0, "", "change one of the keys", "%v", err))
		}
	}
	if len(r.errs) > 0 {
		return balance.Limits{}, errors.Join(r.errs...)
	}
	return l, nil
}

// reader puts a mapping into limits.
type reader struct {
	limits *balance.Limits
	fail   func(line int, path, remedy, format string, args ...any) error
	seen   map[string]int // lines
	errs   []error
}

func (r *reader) mapping(n *yaml.Node, path string) {
	if n.Kind != yaml.MappingNode || n.Anchor != "" {
		r.errs = append(r.errs, r.fail(n.Line, path, "", "a mapping of keys to values is needed"))
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		at := strings.TrimPrefix(path+"."+name.Value, ".")
		if first := r.seen[at]; first > 0 {
			r.errs = append(r.errs, r.fail(name.Line, at, "", "given twice, first on line %d", first))
			continue
		}
		r.seen[at] = name.Line
		r.value(name, value, at)
	}
}

func (r *reader) value(name, value *yaml.Node, at string) {
	var known []string
	for _, k := range keys() {
		known = append(known, k.name)
		switch {
		case strings.HasPrefix(k.name, at+"."):
			r.mapping(value, at)
			return
		case k.name != at:
			continue
		case value.Kind != yaml.ScalarNode || value.Value == "" || value.Anchor != "":
			r.errs = append(r.errs, r.fail(value.Line, at, "leave the key out to get its default", "a single value is needed"))
			return
		}
		if err := k.set(r.limits, value.Value); err != nil {
			r.errs = append(r.errs, r.fail(value.Line, at, "", "%v", err))
		}
		return
	}
	r.errs = append(r.errs, r.fail(name.Line, at, "keys are "+strings.Join(known, ", "), "unknown key"))
}

// parseSize reads a size in bytes: a whole number with K, M, G or T behind it, which
// are powers of 1024.
func parseSize(text string) (int64, error) {
	const units = "KMGT"
	wrong := fmt.Errorf("%.40q is not a size such as 512M or 20G", text)
	shift := 0
	if text != "" {
		if at := strings.IndexByte(units, text[len(text)-1]); at >= 0 {
			shift, text = 10*(at+1), text[:len(text)-1]
		}
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || n == 0 || n > 1<<62>>shift || shift == 0 {
		return 0, wrong
	}
	return int64(n << shift), nil
}
