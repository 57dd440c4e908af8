// Package osrelease reads the os-release file (man os-release) of a verified
// root: it says which product and which security version an image is, at a
// place where nobody but the image's builder can change it.
package osrelease

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// MaxSize bounds the file; real ones have under 1 KiB.
const MaxSize = 64 << 10

// Path is the file inside a root.
const Path = "usr/lib/os-release"

// SecurityVersionKey is the variable of SecurityVersion.
const SecurityVersionKey = "SEALROOT_SECURITY_VERSION"

// MaxSecurityVersion bounds it, whoever writes or reads it:
// 31 bits, as the rollback floor holds.
const MaxSecurityVersion = 1<<31 - 1

// ErrFormat means that the file is not a list of NAME=value lines.
var ErrFormat = errors.New("not an os-release file")

// Release is what sealroot uses of the file.
type Release struct {
	ImageID      string // IMAGE_ID: the product, must equal the configured name
	ImageVersion string // IMAGE_VERSION: shown to people
	PrettyName   string // PRETTY_NAME: shown to people
	// ID, VersionID and SysextLevel are what layers are made for; Architecture and Kernel
	// count in the extension-release of a layer only. See Extends.
	ID, VersionID, SysextLevel, Architecture, Kernel string
	Layers                                           string // LayersKey
	// SecurityVersion is SecurityVersionKey, 0 when absent.
	SecurityVersion int
}

// Parse reads the file's content. Unknown variables are ignored; of a repeated
// one the last counts, as in a shell.
func Parse(content []byte) (Release, error) {
	if len(content) > MaxSize {
		return Release{}, fmt.Errorf("cannot read os-release of %d bytes, at most %d: %w", len(content), MaxSize, ErrFormat)
	}
	if bytes.IndexByte(content, 0) >= 0 {
		return Release{}, fmt.Errorf("cannot read os-release with a NUL byte: %w", ErrFormat)
	}
	var r Release
	for i, line := range strings.Split(string(content), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			return Release{}, fmt.Errorf("cannot read os-release line %d: %w", i+1, ErrFormat)
		}
		value, err := unquote(value)
		if err != nil {
			return Release{}, fmt.Errorf("cannot read os-release line %d: %w", i+1, err)
		}
		switch name {
		case "IMAGE_ID":
			r.ImageID = value
		case "IMAGE_VERSION":
			r.ImageVersion = value
		case "PRETTY_NAME":
			r.PrettyName = value
		case "ID":
			r.ID = value
		case "VERSION_ID":
			r.VersionID = value
		case "SYSEXT_LEVEL":
			r.SysextLevel = value
		case "ARCHITECTURE":
			r.Architecture = value
		case KernelKey:
			r.Kernel = value
		case LayersKey:
			r.Layers = value
		case SecurityVersionKey:
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil || n > MaxSecurityVersion {
				return Release{}, fmt.Errorf("cannot read %s %q as a small integer: %w", name, value, ErrFormat)
			}
			r.SecurityVersion = int(n)
		}
	}
	return r, nil
}

// unquote undoes the shell quoting that os-release allows: one pair of single
// or double quotes, backslash escapes inside double quotes.
func unquote(v string) (string, error) {
	if v == "" {
		return v, nil
	}
	q := v[0]
	if q != '"' && q != '\'' {
		return v, nil
	}
	if len(v) < 2 || v[len(v)-1] != q {
		return "", fmt.Errorf("quote is not closed: %w", ErrFormat)
	}
	v = v[1 : len(v)-1]
	if q == '\'' {
		return v, nil
	}
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		if v[i] == '\\' && i+1 < len(v) {
			i++
		}
		b.WriteByte(v[i])
	}
	return b.String(), nil
}
