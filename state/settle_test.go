package state

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/layout"
	"sealroot/state/luks2"
)

// What the record says was given back is reserved again where no balloon holds it, and
// only there.
func TestSettle(t *testing.T) {
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	const inside = 64 << 20
	key := make([]byte, 64)
	h, err := luks2.Format(luks2.FormatParams{UUID: uuidText([16]byte{1}), VolumeKey: key, SectorSize: BlockSize, Rand: strings.NewReader(strings.Repeat("x", 4096))})
	if err != nil {
		t.Fatal(err)
	}
	begin := int64(h.DataOffset())
	dir := t.TempDir()
	image, err := os.Create(filepath.Join(dir, "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	if err := Reserve(image, 0, begin+inside); err != nil {
		t.Fatal(err)
	}
	if err := image.Truncate(begin + inside); err != nil {
		t.Fatal(err)
	}
	device := run("losetup", "--show", "--find", "--direct-io=on", "--sector-size=4096", "-o", fmt.Sprint(begin), image.Name())
	defer run("losetup", "-d", device)
	run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-E", "nodiscard", device)
	where := filepath.Join(dir, "mounted")
	balloons := filepath.Join(where, layout.Balloons)
	if err := os.Mkdir(where, 0o700); err != nil {
		t.Fatal(err)
	}
	run("mount", "-o", "nodiscard,noinit_itable", device, where)
	defer run("umount", where)
	run("mkdir", "-p", balloons)
	run("fallocate", "-l", "8M", filepath.Join(balloons, "00000001"))
	run("sync", "-f", where)
	outer, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer outer.Close()
	root, err := os.Open(where)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	disk, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	list, err := files.List(root, inside)
	if err != nil || len(list) != 1 || list[0].Err != nil {
		t.Fatalf("List = %+v, %v", list, err)
	}
	held := balloon.Shift(files.Held(list), begin)
	// All of the second half is said to be given back, and the balloon.
	given := balloon.Join(held, []balloon.Range{{Start: begin + inside/2, End: begin + inside}})
	for _, r := range given {
		if err := Release(image, r.Start, r.End); err != nil {
			t.Fatal(err)
		}
	}
	v := &Volume{image: image, Header: h, Reserved: begin + inside - balloon.Total(given), givenBack: given, crypt: plainDevice{disk, inside}}
	v.Superblock = Superblock{Type: Ext4, Bytes: inside}
	v.Settle(outer, root)
	there, merr := files.Reserved(image, 0, begin+inside)
	holes := balloon.Without([]balloon.Range{{Start: 0, End: begin + inside}}, there)
	if err := errors.Join(v.ReadOnly, merr); err != nil || fmt.Sprint(holes) != fmt.Sprint(held) || v.Reserved != begin+inside-8<<20 {
		t.Errorf("holes %v, want %v; %d reserved; %v", holes, held, v.Reserved, err)
	}
	// Written to, it is a balloon no more.
	f, err := os.OpenFile(filepath.Join(balloons, "00000001"), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.Write(key)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	v.givenBack = held
	v.Settle(outer, root)
	if n, err := allocated(image); err != nil || n < begin+inside || v.ReadOnly != nil {
		t.Errorf("%d bytes are reserved, want %d: %v, %v", n, begin+inside, err, v.ReadOnly)
	}
	// Without the folder nothing is known of any balloon.
	v.ReadOnly = nil
	if err := unix.Fallocate(int(image.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, given[len(given)-1].Start, 4096); err != nil {
		t.Fatal(err)
	}
	run("rm", "-r", balloons)
	v.givenBack = given
	if v.Settle(outer, root); v.ReadOnly != nil {
		t.Error(v.ReadOnly)
	}
	if n, err := allocated(image); err != nil || n < begin+inside {
		t.Errorf("%d bytes are reserved, want %d: %v", n, begin+inside, err)
	}
	// The journal has made it larger: that is reserved too.
	v.givenBack, v.Superblock.Bytes = nil, inside-8<<20
	if err := Release(image, begin+inside-8<<20, begin+inside); err != nil {
		t.Fatal(err)
	}
	v.Settle(outer, root)
	if n, err := allocated(image); err != nil || n < begin+inside || v.ReadOnly != nil || v.Reserved != begin+inside {
		t.Errorf("%d bytes are reserved, %d said, want %d: %v, %v", n, v.Reserved, begin+inside, err, v.ReadOnly)
	}
	// Larger than its devices: these are made by the next boot.
	v.crypt = plainDevice{disk, inside - 8<<20}
	if v.Settle(outer, root); !errors.Is(v.ReadOnly, ErrDamaged) {
		t.Errorf("larger than its devices: %v, want %v", v.ReadOnly, ErrDamaged)
	}
}
