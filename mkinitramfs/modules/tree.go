// Package modules chooses the kernel modules of an initramfs: it reads the
// dependency files that depmod writes (man modules.dep), walks the closure of
// what a configuration needs, and lists the result in load order.
package modules

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

var (
	// ErrNoTree means that a directory holds no modules for the kernel release.
	ErrNoTree = errors.New("no kernel modules")
	// ErrNoModule means that a required module neither exists nor is built in.
	ErrNoModule = errors.New("no such kernel module")
	// ErrFormat means that a file of depmod cannot be understood.
	ErrFormat = errors.New("malformed module list")
)

// Depmod writes modules.dep and its companions for the module tree baseDir
// (as `depmod -b baseDir release`).
type Depmod func(ctx context.Context, baseDir, release string) error

// Tree is the modules of one kernel release.
type Tree struct {
	Release string
	Dir     string // holds kernel/, modules.builtin, …

	meta    map[string][]byte   // files of depmod that Dir lacks
	deps    map[string][]string // file → files it needs
	files   map[string]string   // module name → file
	builtin map[string]bool     // module name
	aliases map[string][]string // module name → device and CPU aliases
	byAlias map[string][]string // alias without wildcards → module names
	soft    map[string][]string // module name → names or aliases wanted before
}

// Locate returns the directory of the release's modules below dir: dir may be
// the root of a file system, a directory of releases, or the directory itself.
func Locate(dir, release string) (string, error) {
	for _, d := range []string{
		filepath.Join(dir, "usr/lib/modules", release),
		filepath.Join(dir, "lib/modules", release),
		filepath.Join(dir, release),
		dir,
	} {
		if filepath.Base(d) != release {
			continue
		}
		if info, err := os.Stat(d); err == nil && info.IsDir() {
			return d, nil
		}
	}
	return "", fmt.Errorf("cannot find modules of kernel %s below %s: %w", release, dir, ErrNoTree)
}

// Open reads the tree of release below dir (see Locate). Kernel packages come
// without modules.dep: depmod is run for them on a copy of the tree's metadata.
func Open(ctx context.Context, dir, release string, depmod Depmod) (*Tree, error) {
	where, err := Locate(dir, release)
	if err != nil {
		return nil, err
	}
	t := &Tree{Release: release, Dir: where, meta: map[string][]byte{}}
	if _, err := os.Stat(filepath.Join(where, "modules.dep")); errors.Is(err, fs.ErrNotExist) {
		if err := t.runDepmod(ctx, depmod); err != nil {
			return nil, err
		}
	}
	if err := t.parse(); err != nil {
		return nil, err
	}
	return t, nil
}

// runDepmod runs depmod in a temporary tree of symbolic links, because the
// tree itself may be read-only or belong to someone else (kmod 30 has no
// option for another output directory).
func (t *Tree) runDepmod(ctx context.Context, depmod Depmod) error {
	base, err := os.MkdirTemp("", "sealroot-depmod-")
	if err != nil {
		return fmt.Errorf("cannot run depmod: %w", err)
	}
	defer os.RemoveAll(base)
	dir := filepath.Join(base, "lib/modules", t.Release)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot run depmod: %w", err)
	}
	entries, err := os.ReadDir(t.Dir)
	if err != nil {
		return fmt.Errorf("cannot read module tree: %w", err)
	}
	for _, e := range entries {
		target, err := filepath.Abs(filepath.Join(t.Dir, e.Name()))
		if err != nil {
			return fmt.Errorf("cannot run depmod: %w", err)
		}
		if err := os.Symlink(target, filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("cannot run depmod: %w", err)
		}
	}
	if err := depmod(ctx, base, t.Release); err != nil {
		return err
	}
	written, err := filepath.Glob(filepath.Join(dir, "modules.*"))
	if err != nil {
		return fmt.Errorf("cannot run depmod: %w", err)
	}
	for _, file := range written {
		if info, err := os.Lstat(file); err != nil || !info.Mode().IsRegular() {
			continue
		}
		if t.meta[filepath.Base(file)], err = os.ReadFile(file); err != nil {
			return fmt.Errorf("cannot read depmod's result: %w", err)
		}
	}
	if t.meta["modules.dep"] == nil {
		return fmt.Errorf("cannot find modules.dep of kernel %s after depmod: %w", t.Release, ErrNoTree)
	}
	return nil
}

// Meta returns the files of depmod that the tree itself lacks, by name.
func (t *Tree) Meta() map[string][]byte { return t.meta }

// read returns a metadata file; one that does not exist is empty.
func (t *Tree) read(name string) ([]byte, error) {
	if b, ok := t.meta[name]; ok {
		return b, nil
	}
	b, err := os.ReadFile(filepath.Join(t.Dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read module tree: %w", err)
	}
	return b, nil
}

// parse reads modules.dep, .builtin, .alias and .softdep.
func (t *Tree) parse() error {
	t.deps, t.files, t.builtin = map[string][]string{}, map[string]string{}, map[string]bool{}
	t.aliases, t.byAlias, t.soft = map[string][]string{}, map[string][]string{}, map[string][]string{}
	for name, line := range map[string]func([]string) error{
		"modules.dep":     t.depLine,
		"modules.builtin": t.builtinLine,
		"modules.alias":   t.aliasLine,
		"modules.softdep": t.softLine,
	} {
		text, err := t.read(name)
		if err != nil {
			return err
		}
		if err := eachLine(text, line); err != nil {
			return fmt.Errorf("cannot read %s: %w", filepath.Join(t.Dir, name), err)
		}
	}
	return nil
}

// eachLine calls f with the fields of every line that is not a comment.
func eachLine(text []byte, f func(fields []string) error) error {
	s := bufio.NewScanner(strings.NewReader(string(text)))
	s.Buffer(nil, 1<<20)
	for n := 1; s.Scan(); n++ {
		fields := strings.Fields(s.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if err := f(fields); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	return s.Err()
}

// depLine reads "kernel/a/b.ko: kernel/c/d.ko …".
func (t *Tree) depLine(fields []string) error {
	file, ok := strings.CutSuffix(fields[0], ":")
	if !ok {
		return fmt.Errorf("no colon after %q: %w", fields[0], ErrFormat)
	}
	for _, f := range append([]string{file}, fields[1:]...) {
		// A path that leaves the tree would read a file of the build machine.
		if !filepath.IsLocal(f) {
			return fmt.Errorf("module path %q leaves the tree: %w", f, ErrFormat)
		}
	}
	t.deps[file] = fields[1:]
	t.files[Name(file)] = file
	return nil
}

func (t *Tree) builtinLine(fields []string) error {
	t.builtin[Name(fields[0])] = true
	return nil
}

// aliasLine reads "alias PATTERN MODULE".
func (t *Tree) aliasLine(fields []string) error {
	if len(fields) < 3 || fields[0] != "alias" {
		return nil
	}
	// Some aliases have spaces in them (dmi:, acpi with odd strings).
	alias := strings.Join(fields[1:len(fields)-1], " ")
	name := normalize(fields[len(fields)-1])
	if strings.Contains(alias, ":") {
		t.aliases[name] = append(t.aliases[name], alias)
	} else {
		t.byAlias[normalize(alias)] = append(t.byAlias[normalize(alias)], name)
	}
	return nil
}

// softLine reads "softdep MODULE [pre: NAME…] [post: NAME…]" and keeps "pre".
func (t *Tree) softLine(fields []string) error {
	if len(fields) < 3 || fields[0] != "softdep" {
		return nil
	}
	name, pre := normalize(fields[1]), false
	for _, f := range fields[2:] {
		switch {
		case f == "pre:":
			pre = true
		case f == "post:":
			pre = false
		case pre:
			t.soft[name] = append(t.soft[name], normalize(f))
		}
	}
	return nil
}

// Name is the name that the kernel gives the module in a file: without
// directory and extensions, with underscores.
func Name(file string) string {
	base, _, _ := strings.Cut(path.Base(file), ".ko")
	return normalize(base)
}

func normalize(name string) string { return strings.ReplaceAll(name, "-", "_") }

// ReadModule returns the module in file, which is relative to the tree,
// decompressed: PID 1 has no decompressor and the kernel may have none either.
func (t *Tree) ReadModule(file string) ([]byte, error) {
	f, err := os.Open(filepath.Join(t.Dir, file))
	if err != nil {
		return nil, fmt.Errorf("cannot read module: %w", err)
	}
	defer f.Close()
	r, err := decompress(f, file)
	if err != nil {
		return nil, fmt.Errorf("cannot decompress module %s: %w", file, err)
	}
	b, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err != nil {
		return nil, fmt.Errorf("cannot decompress module %s: %w", file, err)
	}
	if len(b) > maxModule {
		return nil, fmt.Errorf("cannot use module %s of more than %d bytes: %w", file, maxModule, ErrFormat)
	}
	return b, nil
}
