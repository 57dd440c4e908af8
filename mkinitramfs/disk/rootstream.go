package disk

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sealroot/mkinitramfs/modules"
)

// ErrRoot means that a root file system cannot become an image.
var ErrRoot = errors.New("unusable root file system")

// rootEdit says what is changed in a root on its way into the image.
type rootEdit struct {
	release     string            // kernel release whose modules the root must hold
	addModules  *modules.Tree     // added when the root has none; may be nil
	needModules bool              // no modules is an error
	keepModules string            // directory that gets a copy of the root's modules; "" for none
	extra       string            // directory of files to add or replace; "" for none
	osRelease   map[string]string // variables of os-release to set
	now         time.Time         // time stamp of files that are made here
	usr         bool              // the image is to be a /usr, see inUsr
	firstBoot   bool              // a machine's first boot may be known by its machine-id
}

const (
	osReleasePath = "usr/lib/os-release"
	machineIDPath = "etc/machine-id"
	// uninitialized is what machine-id(5) has there in place of an ID that the first
	// boot is to make.
	uninitialized = "uninitialized\n"
	// maxSmallFile bounds a file of the root that is read into memory.
	maxSmallFile = 64 << 10
)

// rootFilter copies a tar stream and edits it.
type rootFilter struct {
	rootEdit
	out     *tar.Writer
	extras  map[string]bool   // paths that extra replaces
	seen    map[string]byte   // path → type flag
	links   map[string]string // symbolic links
	dropped map[string]bool   // paths that do not get into the image as they are
	left    map[string]int    // files that are left out of a /usr, by their first directory
	merged  []string          // links of the merged /usr
	osText  []byte            // content of os-release
	id      *string           // content of machine-id; nil: none
	hasMods bool              // the root has modules of the kernel
}

// filtered is what filterRoot found out.
type filtered struct {
	osRelease []byte // content of the image's os-release
	leftOut   string // what the image lacks, for a person; "" for nothing
}

// filterRoot copies the root that open opens to out with the changes of edit.
// Owners, modes, times, extended attributes, hard links and devices stay as they
// are. A /usr is read first, and then the rest.
func filterRoot(open func() (io.ReadCloser, error), out *tar.Writer, edit rootEdit) (filtered, error) {
	f := &rootFilter{
		rootEdit: edit, out: out, extras: map[string]bool{}, seen: map[string]byte{},
		links: map[string]string{}, dropped: map[string]bool{}, left: map[string]int{},
	}
	if err := f.listExtras(); err != nil {
		return filtered{}, err
	}
	passes := []func(name string) bool{func(string) bool { return true }}
	if f.usr {
		ofUsr := func(name string) bool { return inUsr(name) == name }
		passes = []func(string) bool{ofUsr, func(name string) bool { return !ofUsr(name) }}
	}
	for _, take := range passes {
		if err := f.copyTar(open, take); err != nil {
			return filtered{}, err
		}
	}
	if len(f.seen) == 0 {
		return filtered{}, fmt.Errorf("cannot make an image of an empty root: %w", ErrRoot)
	}
	for _, step := range []func() error{f.addMountPoints, f.addReleaseFiles, f.addModuleTree, f.addExtras, f.checkMerged, out.Close} {
		if err := step(); err != nil {
			return filtered{}, err
		}
	}
	return filtered{f.osText, f.leftOut()}, nil
}

// copyTar copies the entries whose names are to be taken.
func (f *rootFilter) copyTar(open func() (io.ReadCloser, error), take func(name string) bool) error {
	source, err := open()
	if err != nil {
		return err
	}
	defer source.Close()
	for in := tar.NewReader(source); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot read root tar: %w", err)
		}
		name, err := cleanName(h.Name)
		if err != nil {
			return err
		}
		if !take(name) {
			continue
		}
		if err := f.entry(name, h, in); err != nil {
			return err
		}
	}
}

// cleanName returns the name of an entry relative to the root, "." for the root.
func cleanName(name string) (string, error) {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == "." || filepath.IsLocal(clean) {
		return clean, nil
	}
	return "", fmt.Errorf("cannot use path %q, which leaves the root: %w", name, ErrRoot)
}

// entry copies one entry, or keeps it back.
func (f *rootFilter) entry(name string, h *tar.Header, content io.Reader) (err error) {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if name == "." {
		return nil // sqfstar is told what the root directory is
	}
	if h.Typeflag == tar.TypeLink {
		if h.Linkname, err = cleanName(h.Linkname); err != nil {
			return err
		}
		if f.dropped[h.Linkname] {
			return fmt.Errorf("cannot replace %s, which has the hard link %s: %w", h.Linkname, name, ErrRoot)
		}
	}
	if h.Typeflag == tar.TypeReg && (name == osReleasePath || name == "etc/os-release" && f.osText == nil) {
		if f.osText, err = readSmall(content, h.Size, name); err != nil {
			return err
		}
		if name != osReleasePath {
			content = strings.NewReader(string(f.osText))
		}
	}
	isDir := h.Typeflag == tar.TypeDir
	isID := name == machineIDPath || f.usr && name == inUsr(machineIDPath)
	if isID && f.id == nil { // that of a factory comes first
		text, err := []byte(nil), error(nil)
		if h.Typeflag == tar.TypeReg {
			text, err = readSmall(content, h.Size, name)
		}
		if err != nil {
			return err
		}
		id := string(text)
		f.id = &id
	}
	if name == osReleasePath || isID || f.extras[name] && !isDir {
		f.dropped[name] = true
		return nil
	}
	if f.usr {
		var ok bool
		if name, ok, err = f.place(name, h); !ok || err != nil {
			return err
		}
	}
	f.seen[name] = h.Typeflag
	if h.Typeflag == tar.TypeSymlink {
		f.links[name] = h.Linkname
	}
	if content, err = f.module(name, h, content); err != nil {
		return err
	}
	return f.write(name, h, content)
}

// write writes one entry with a normal header.
func (f *rootFilter) write(name string, h *tar.Header, content io.Reader) error {
	if f.usr {
		if name == "usr" {
			return nil // the root directory of the image
		}
		name = strings.TrimPrefix(name, "usr/")
		if h.Typeflag == tar.TypeLink {
			h.Linkname = strings.TrimPrefix(h.Linkname, "usr/")
		}
	}
	h.Name = name
	if h.Typeflag == tar.TypeDir {
		h.Name += "/"
	}
	if h.Typeflag == tar.TypeGNUSparse {
		h.Typeflag = tar.TypeReg // the reader has filled the holes
	}
	h.Format = tar.FormatUnknown // the writer takes the simplest that holds everything
	h.Uname, h.Gname = "", ""    // names are those of the build machine
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			delete(h.PAXRecords, key)
		}
	}
	if err := f.out.WriteHeader(h); err != nil {
		return fmt.Errorf("cannot copy %s into the image: %w", name, err)
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	if _, err := io.CopyN(f.out, content, h.Size); err != nil {
		return fmt.Errorf("cannot copy %s into the image: %w", name, err)
	}
	return nil
}

// module notes that the root has modules of the kernel, and keeps a copy.
func (f *rootFilter) module(name string, h *tar.Header, content io.Reader) (io.Reader, error) {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(name, "usr/"), "lib/modules/"+f.release+"/")
	if !ok {
		return content, nil
	}
	f.hasMods = true
	if f.keepModules == "" || h.Typeflag != tar.TypeReg {
		return content, nil
	}
	to := filepath.Join(f.keepModules, "lib/modules", f.release, rest)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return nil, fmt.Errorf("cannot keep module: %w", err)
	}
	file, err := os.Create(to)
	if err != nil {
		return nil, fmt.Errorf("cannot keep module: %w", err)
	}
	_, err = io.Copy(file, content)
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot keep module %s: %w", name, err), file.Close())
	}
	return &closeAtEnd{file}, nil
}

// closeAtEnd closes a file that is read once to its end.
type closeAtEnd struct{ f *os.File }

func (c *closeAtEnd) Read(p []byte) (int, error) {
	n, err := c.f.Read(p)
	if errors.Is(err, io.EOF) {
		_ = c.f.Close()
	}
	return n, err
}

// dirs adds the missing parents of a path.
func (f *rootFilter) dirs(name string) error {
	dir := path.Dir(name)
	if dir == "." || f.seen[dir] != 0 {
		return nil
	}
	if err := f.dirs(dir); err != nil {
		return err
	}
	return f.dir(dir, 0o755)
}

func (f *rootFilter) dir(name string, mode int64) error {
	f.seen[name] = tar.TypeDir
	return f.write(name, &tar.Header{Typeflag: tar.TypeDir, Mode: mode, ModTime: f.now}, nil)
}

func (f *rootFilter) file(name string, mode int64, content []byte) error {
	if err := f.dirs(name); err != nil {
		return err
	}
	f.seen[name] = tar.TypeReg
	h := &tar.Header{Typeflag: tar.TypeReg, Mode: mode, ModTime: f.now, Size: int64(len(content))}
	return f.write(name, h, strings.NewReader(string(content)))
}

// addMountPoints adds the directories that PID 1 and the real init mount on:
// the root is read-only, nobody can make them later. That around a /usr is made
// at each boot.
func (f *rootFilter) addMountPoints() error {
	if f.usr {
		return nil
	}
	for _, d := range []struct {
		name string
		mode int64
	}{{"dev", 0o755}, {"proc", 0o555}, {"run", 0o755}, {"state", 0o755}, {"sys", 0o555}, {"tmp", 0o1777}} {
		if f.seen[d.name] == 0 {
			if err := f.dir(d.name, d.mode); err != nil {
				return err
			}
		}
	}
	return nil
}

// addReleaseFiles writes os-release, and machine-id without an ID: one that came with
// the image would be the same on every machine.
func (f *rootFilter) addReleaseFiles() error {
	if f.extras[osReleasePath] {
		var err error
		if f.osText, err = os.ReadFile(filepath.Join(f.extra, osReleasePath)); err != nil {
			return fmt.Errorf("cannot read --extra: %w", err)
		}
	}
	// PID 1 compares it with the configuration: nothing else may stand there.
	f.osText = editOSRelease(f.osText, f.osRelease)
	if err := f.file(osReleasePath, 0o644, f.osText); err != nil {
		return err
	}
	at := machineIDPath
	if f.usr {
		at = inUsr(at)
	}
	if f.extras[machineIDPath] || f.extras[at] {
		return nil
	}
	id := ""
	if f.firstBoot && (f.id == nil || strings.TrimSpace(*f.id) == strings.TrimSpace(uninitialized)) {
		id = uninitialized
	}
	return f.file(at, 0o444, []byte(id))
}

// addModuleTree adds the kernel's modules when the root has none.
func (f *rootFilter) addModuleTree() error {
	if f.hasMods {
		return nil
	}
	if f.addModules == nil && (f.needModules || f.keepModules != "") {
		return fmt.Errorf("cannot find usr/lib/modules/%s in the root: initramfs and running system need the modules of their kernel; give --modules-dir (--slot-b-modules-dir): %w", f.release, ErrRoot)
	}
	if !f.needModules {
		return nil
	}
	base := "lib/modules"
	if f.usr || f.seen["lib"] == 0 || f.seen["lib"] == tar.TypeSymlink {
		base = "usr/lib/modules"
	}
	base = path.Join(base, f.release)
	if err := f.copyDir(f.addModules.Dir, base, func(name string) bool {
		// Links to the build tree of the kernel package lead nowhere.
		return name == "build" || name == "source"
	}); err != nil {
		return err
	}
	meta := f.addModules.Meta()
	for _, name := range sortedKeys(meta) {
		if err := f.file(path.Join(base, name), 0o644, meta[name]); err != nil {
			return err
		}
	}
	return nil
}

// editOSRelease sets variables of an os-release file and keeps the other lines.
func editOSRelease(text []byte, vars map[string]string) []byte {
	if len(text) == 0 {
		text = []byte("ID=linux\n")
	}
	var out strings.Builder
	for line := range strings.Lines(string(text)) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), "=")
		if _, ok := vars[name]; ok {
			continue
		}
		out.WriteString(strings.TrimRight(line, "\n") + "\n")
	}
	for _, name := range sortedKeys(vars) {
		fmt.Fprintf(&out, "%s=%s\n", name, vars[name])
	}
	return []byte(out.String())
}

func readSmall(r io.Reader, size int64, name string) ([]byte, error) {
	if size > maxSmallFile {
		return nil, fmt.Errorf("cannot read %s of %d bytes: %w", name, size, ErrRoot)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", name, err)
	}
	return b, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
