package etc

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state/layout"
)

// must is for steps that only prepare a test.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Identities of images.
var (
	v1 = strings.Repeat("1", 64)
	v2 = strings.Repeat("2", 64)
	v3 = strings.Repeat("3", 64)
	// The same with lists of layers that the machine added.
	v1x, v1y = v1[:48] + strings.Repeat("e", 16), v1[:48] + strings.Repeat("f", 16)
	v2x, v2y = v2[:48] + strings.Repeat("e", 16), v2[:48] + strings.Repeat("f", 16)
)

// world is a machine with a volume, and images whose /etc are directories. It needs
// root: the kernel's overlay is what the machine changes /etc through, and the judge
// of what an upper layer means.
type world struct {
	t      *testing.T
	dir    string
	volume string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	w.volume = filepath.Join(w.dir, "volume")
	must(t, os.Mkdir(w.volume, 0o755))
	return w
}

func (w *world) image(id string) string { return filepath.Join(w.dir, id[:4]+id[60:]) }

// files makes an image's /etc: names that end with a slash are directories, content
// that begins with -> is the target of a link.
func (w *world) files(id string, files map[string]string) {
	w.t.Helper()
	must(w.t, os.MkdirAll(w.image(id), 0o755))
	put(w.t, w.image(id), files)
}

func put(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		if target, link := strings.CutPrefix(content, "->"); strings.HasSuffix(name, "/") {
			must(t, os.MkdirAll(path, 0o755))
		} else if link {
			must(t, os.Symlink(target, path))
		} else {
			must(t, os.WriteFile(path, []byte(content), 0o644))
		}
	}
}

// boot is a merge as PID 1 has it done.
func (w *world) boot(id string, o Options) (Result, error) {
	w.t.Helper()
	o.Image = id
	return merge(w.t, w.volume, w.image(id), o)
}

func merge(t *testing.T, volume, image string, o Options) (Result, error) {
	t.Helper()
	v, err := os.Open(volume)
	must(t, err)
	defer v.Close()
	i, err := os.Open(image)
	must(t, err)
	defer i.Close()
	return Merge(v, i, o)
}

func (w *world) booted(id string) Result {
	w.t.Helper()
	r, err := w.boot(id, Options{})
	must(w.t, err)
	return r
}

// inEtc mounts /etc of an image over the volume, as PID 1 does, for as long as do
// runs.
func (w *world) inEtc(id string, do func(etc string)) {
	w.t.Helper()
	etc, work := filepath.Join(w.dir, "etc"), filepath.Join(w.volume, layout.EtcWork)
	must(w.t, os.MkdirAll(etc, 0o755))
	must(w.t, os.MkdirAll(work, 0o700))
	must(w.t, os.MkdirAll(filepath.Join(w.volume, layout.Etc), 0o755))
	must(w.t, unix.Mount("overlay", etc, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,redirect_dir=nofollow,metacopy=off,index=off,xino=off",
		w.image(id), filepath.Join(w.volume, layout.Etc), work)))
	defer func() { must(w.t, unix.Unmount(etc, 0)) }()
	do(etc)
}

// shell changes /etc by a script.
func (w *world) shell(id, script string) {
	w.t.Helper()
	w.inEtc(id, func(etc string) {
		cmd := exec.Command("sh", "-ec", script)
		cmd.Dir = etc
		if out, err := cmd.CombinedOutput(); err != nil {
			w.t.Fatalf("%s: %v\n%s", script, err, out)
		}
	})
}

// list describes /etc as the kernel shows it, one line for each file.
func (w *world) list(id string) string {
	w.t.Helper()
	var text string
	w.inEtc(id, func(etc string) { text = describe(w.t, etc) })
	return text
}

func describe(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%s %o %d:%d", name, st.Mode, st.Uid, st.Gid)
		if d.Type().IsRegular() {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", text)
		} else if d.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		} else if d.Type()&fs.ModeDevice != 0 {
			line += fmt.Sprintf(" rdev=%d", st.Rdev)
		}
		b.WriteString(line + "\n")
		return nil
	}))
	return b.String()
}

// has checks what /etc holds: content by name, "" for no file.
func (w *world) has(id string, want map[string]string) {
	w.t.Helper()
	w.inEtc(id, func(etc string) {
		for name, content := range want {
			got, err := os.ReadFile(filepath.Join(etc, name))
			switch {
			case content == "" && err == nil:
				w.t.Errorf("%s: %q is there, want no such file", name, got)
			case content != "" && string(got) != content:
				w.t.Errorf("%s: %q, %v, want %q", name, got, err, content)
			}
		}
	})
}
