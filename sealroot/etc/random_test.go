package etc

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state/etcmerge"
)

// For many small trees and changes the new layer shows, through the kernel's overlay,
// what the pure merge of the trees says, which were read through it as well.
func TestMergeOfRandomTrees(t *testing.T) {
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 6))
		w := newWorld(t)
		must(t, unix.Mount("tmpfs", w.dir, "tmpfs", 0, ""))
		t.Cleanup(func() { unix.Unmount(w.dir, unix.MNT_DETACH) }) // after a failure
		must(t, os.Mkdir(w.volume, 0o755))
		for _, id := range []string{v1, v2} {
			must(t, os.Mkdir(w.image(id), 0o755))
			shake(t, random, w.image(id), 12)
		}
		w.booted(v1)
		var machine etcmerge.Tree
		w.inEtc(v1, func(etc string) { shake(t, random, etc, 10); machine = readTree(t, etc) })
		base, image := readTree(t, w.image(v1)), readTree(t, w.image(v2))
		plan, _ := etcmerge.Merge3(base, image, machine)
		want := etcmerge.Tree{}
		for _, step := range plan {
			if c, ok := changeOf(step, tree{entries: image}, tree{entries: machine}); ok {
				want[step.Path] = c.entry
			}
		}
		w.booted(v2)
		w.inEtc(v2, func(etc string) {
			if got := readTree(t, etc); !maps.EqualFunc(got, want, same) {
				t.Errorf("seed %d:\n%s\nwant %v", seed, describe(t, etc), slices.Sorted(maps.Keys(want)))
			}
		})
		// Nothing in the layer is there for nothing: without it the list is shorter.
		for name, e := range readTree(t, filepath.Join(w.volume, "etc")) {
			if i, there := image[name]; there && e.Kind != etcmerge.Dir && same(i, e) {
				t.Errorf("seed %d: %s is the image's, and in the layer", seed, name)
			}
		}
		must(t, unix.Unmount(w.dir, 0))
	}
}

func readTree(t *testing.T, dir string) etcmerge.Tree {
	t.Helper()
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	var r reader
	layer, err := r.read(f)
	must(t, err)
	entries := etcmerge.Tree{}
	for name, n := range layer {
		entries[name] = n.Entry
	}
	return entries
}

// shake makes, changes and removes files with few names, so that trees collide.
func shake(t *testing.T, random *rand.Rand, dir string, times int) {
	t.Helper()
	for range times {
		name := dir
		for range 1 + random.IntN(3) {
			name = filepath.Join(name, string("abc"[random.IntN(3)]))
		}
		text := fmt.Sprintf("%d", random.IntN(3))
		info, err := os.Lstat(name)
		switch n := random.IntN(10); {
		case n < 2 && err == nil:
			must(t, os.RemoveAll(name))
		case n < 3 && err == nil && info.Mode().Type() != os.ModeSymlink:
			must(t, os.Chmod(name, 0o700))
		case n < 4 && err == nil:
			must(t, os.Lchown(name, 5, 6))
		case err == nil && n < 7: // something of another kind
			must(t, os.RemoveAll(name))
			must(t, os.Mkdir(name, 0o755))
		default:
			// above it may be a file, or nothing
			if os.MkdirAll(filepath.Dir(name), 0o755) != nil || err == nil && info.IsDir() {
				continue
			}
			if n == 9 {
				os.RemoveAll(name)
				must(t, os.Symlink(text, name))
			} else if err == nil && info.Mode().IsRegular() || os.IsNotExist(err) {
				must(t, os.WriteFile(name, []byte(text), 0o644))
			}
		}
	}
}
