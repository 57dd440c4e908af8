package boot

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/mount"
)

// Where changes go, and that a volume which must not be written still shows those of
// before.
func TestWritableLayers(t *testing.T) {
	w := overlayPlaces("/usr/local")
	w.image = mount.Place{Root: newRoot, Path: "/usr/local"}
	for _, tt := range []struct {
		name               string
		inMemory, readOnly bool
		want               string
	}{
		{"encrypted", false, false, "mount -t overlay -o nodev,lowerdir=/sysroot//usr/local,upperdir=/sysroot/state/encrypted//.sealroot/overlays/usr-local/upper,workdir=/sysroot/state/encrypted//.sealroot/overlays/usr-local/work,redirect_dir=nofollow,metacopy=off,index=off,xino=off overlay"},
		{"memory", true, false, "mount -t overlay -o nodev,lowerdir=/sysroot//usr/local,upperdir=/run/sealroot/overlays/usr-local//upper,workdir=/run/sealroot/overlays/usr-local//work,redirect_dir=nofollow,metacopy=off,index=off,xino=off overlay"},
		{"read_only", false, true, "mount -t overlay -o nodev,lowerdir=/sysroot/state/encrypted//.sealroot/overlays/usr-local/upper:/sysroot//usr/local,upperdir=/run/sealroot/overlays/usr-local//upper,workdir=/run/sealroot/overlays/usr-local//work,redirect_dir=nofollow,metacopy=off,index=off,xino=off overlay"},
	} {
		o := w.overlay(tt.inMemory, tt.readOnly)
		if err := o.Validate(); err != nil || o.String() != tt.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", tt.name, err, o, tt.want)
		}
	}
	// what people install there runs with the rights that it asks for, elsewhere not
	if attr := overlayPlaces("/srv/www").attr; attr != mount.NoSUID|mount.NoDev {
		t.Errorf("attributes of another place: %v", attr.Names())
	}
}

// What a /usr has at a place of the root: in its factory, for /usr/local its own.
func TestContentOfUsr(t *testing.T) {
	b, _ := usrBoot(config.Config{})
	for path, want := range map[string]string{"/opt": "share/factory/opt", "/usr/local": "local", "/usrx": "share/factory/usrx"} {
		if place := b.contentPlace(path); place != (mount.Place{Root: newRoot + "/usr", Path: want}) {
			t.Errorf("%s comes from %s", path, place)
		}
	}
	b.cfg.Root.Source = config.SourceVerity
	if place := b.contentPlace("/usr/local"); place != (mount.Place{Root: newRoot, Path: "usr/local"}) {
		t.Errorf("of a root /usr/local comes from %s", place)
	}
}

// Directories are made below the root and nowhere else, with the mode asked for.
func TestMkdirInFollowsNoLink(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if err := mkdirIn(root, "link/x", 0o700); err == nil {
		t.Error("a link was followed")
	}
	if names, err := os.ReadDir(outside); err != nil || len(names) > 0 {
		t.Errorf("outside there is %v, %v", names, err)
	}
	if err := mkdirIn(root, "/a/b", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"a", "a/b"} {
		if info, err := os.Stat(filepath.Join(root, path)); err != nil || info.Mode() != fs.ModeDir|0o700 {
			t.Errorf("%s: %v, %v, want mode 0700", path, info, err)
		}
	}
}

// The upper layer begins as the directory of the image is, to the last attribute, and is
// never changed again: neither when the owner has changed it, nor with a new image. One
// whose making was cut is made again.
func TestUpperIsMadeOnce(t *testing.T) {
	dir := t.TempDir()
	image, upper, work := filepath.Join(dir, "image"), filepath.Join(dir, "o/upper"), filepath.Join(dir, "o/work")
	o := mount.Overlay{Lower: []mount.Place{{Root: dir, Path: "image"}}, Upper: mount.Place{Root: dir, Path: "o/upper"}, Work: mount.Place{Root: dir, Path: "o/work"}}
	step := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	shows := func() string {
		t.Helper()
		var st unix.Stat_t
		step(unix.Stat(upper, &st))
		value := make([]byte, 16)
		n, _ := unix.Getxattr(upper, "trusted.app", value)
		return fmt.Sprintf("%o %d:%d %q %d", st.Mode, st.Uid, st.Gid, value[:max(n, 0)], st.Mtim.Sec)
	}
	step(os.Mkdir(image, 0o700))
	step(unix.Chmod(image, 0o3770))
	step(os.Chown(image, 5, 6))
	step(unix.Setxattr(image, "trusted.app", []byte("x"), 0))
	step(os.Chtimes(image, time.Unix(7, 0), time.Unix(7, 0)))
	want := `43770 5:6 "x" 7`
	step(os.MkdirAll(upper, 0o700)) // cut here
	for range 2 {
		step(makeUpper(o))
		if got := shows(); got != want {
			t.Fatalf("the upper layer is %s, want %s", got, want)
		}
	}

	step(os.Chmod(upper, 0o755))
	step(os.Chown(upper, 8, 9))
	step(unix.Removexattr(upper, "trusted.app"))
	step(os.Chmod(image, 0o700))
	step(makeUpper(o))
	if got, want := shows(), `40755 8:9 "" 7`; got != want {
		t.Errorf("the owner's change is undone: %s, want %s", got, want)
	}
	if info, err := os.Stat(work); err != nil || !info.IsDir() {
		t.Errorf("the work directory: %v", err)
	}
}

// A directory that the configuration binds somewhere is not bound by its name too; the
// two that every state has are.
func TestExplicitBindsComeFirst(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"db", "home", "other"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	side, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer side.Close()
	b, _ := testBoot(&person{}, config.State{})
	b.cfg.Binds.Extra = []config.ExtraBind{{From: "encrypted/db", To: "/var/lib/db"}, {From: "encrypted/home", To: "/srv/home"}, {From: "encrypted/other/x", To: "/x"}}
	m := &binder{}
	b.sys.Mounter = m
	if err := b.bindAll(side, encryptedDir, nil, nil); err != nil {
		t.Fatal(err)
	}
	if want := []string{"/home", "/other"}; !slices.Equal(m.to, want) {
		t.Errorf("bound are %q, want %q", m.to, want)
	}
}
