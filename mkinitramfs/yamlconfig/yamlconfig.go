// Package yamlconfig reads the configuration that a person writes as YAML and
// says with line numbers what is wrong with it. Only mkinitramfs uses it; PID 1
// reads the JSON that comes of it (package config).
package yamlconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"gopkg.in/yaml.v3"

	"sealroot/init/config"
)

// maxSize bounds a configuration file, in bytes.
const maxSize = 64 << 10

// Load reads the file, fills in the defaults and validates the result. Every
// problem found is reported at once; each error about the content wraps
// config.ErrInvalid and a *config.Problem with its line. File names inside the
// configuration stay as written: relative to the file's folder.
func Load(path string) (*config.Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read configuration: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read configuration: %w", err)
	}
	return Parse(path, text)
}

// Parse is Load for text in memory; errors begin with name.
func Parse(name string, text []byte) (*config.Config, error) {
	c, err := parse(text)
	if err != nil {
		var all []error
		for _, p := range config.Problems(err) {
			all = append(all, fmt.Errorf("%s: %w", name, p))
		}
		return nil, errors.Join(all...)
	}
	return c, nil
}

// parse returns joined *config.Problem values as its error.
func parse(text []byte) (*config.Config, error) {
	if len(text) > maxSize {
		return nil, &config.Problem{Reason: fmt.Sprintf("more than %d bytes", maxSize)}
	}
	var doc, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&doc); err == io.EOF {
		return nil, &config.Problem{Reason: "the file is empty"}
	} else if err != nil {
		// The line that the parser names may be the one before.
		where, isLine := strings.CutPrefix(strings.TrimPrefix(err.Error(), "yaml: "), "line ")
		if isLine {
			where = "near line " + where
		}
		return nil, &config.Problem{Reason: "not YAML: " + where}
	}
	if err := dec.Decode(&second); err != io.EOF {
		return nil, &config.Problem{Line: second.Line, Reason: "text behind the end of the first document"}
	}
	var c config.Config
	d := decoder{lines: map[string]int{}}
	d.document(&doc, &c)
	if len(d.problems) > 0 {
		// A configuration that was only half read would bring up follow-up
		// problems that are none.
		return nil, errors.Join(d.problems...)
	}
	c = c.WithDefaults()
	problems := config.Problems(c.Validate())
	var all []error
	for _, p := range problems {
		p.Line = d.line(p.Path)
		all = append(all, p)
	}
	if len(all) > 0 {
		return nil, errors.Join(all...)
	}
	c = c.OfBuild() // not before: problems are found by their places in the list
	return &c, nil
}
