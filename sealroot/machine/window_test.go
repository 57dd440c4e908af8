package machine

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"sealroot/sealroot/bootset"
	"sealroot/sealroot/install"
)

// memory is a partition in memory.
type memory struct {
	b      []byte
	closed bool
}

func (m *memory) Size() int64                             { return int64(len(m.b)) }
func (m *memory) Sync() error                             { return nil }
func (m *memory) Forget() error                           { return nil }
func (m *memory) Close() error                            { m.closed = true; return nil }
func (m *memory) ReadAt(b []byte, off int64) (int, error) { return bytes.NewReader(m.b).ReadAt(b, off) }
func (m *memory) WriteAt(b []byte, off int64) (int, error) {
	return copy(m.b[off:], b), nil
}

func TestWindow(t *testing.T) {
	m := &memory{b: []byte("imagetree")}
	front, err := newWindow(m, 0, 5)
	if err != nil {
		t.Fatal(err)
	}
	rest, err := newWindow(m, 5, m.Size())
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	for _, c := range []struct {
		w    install.Partition
		want string
	}{{front, "image"}, {rest, "tree"}} {
		if n, err := c.w.ReadAt(b, 0); string(b[:n]) != c.want || err != io.EOF || c.w.Size() != int64(len(c.want)) {
			t.Errorf("ReadAt = %q, %v, size %d; want %q and EOF", b[:n], err, c.w.Size(), c.want)
		}
		for _, off := range []int64{-1, 1, 100} {
			if _, err := c.w.WriteAt(make([]byte, len(c.want)), off); err == nil {
				t.Errorf("WriteAt(%d) outside of the window is no error", off)
			}
		}
	}
	if _, err := rest.WriteAt([]byte("TR"), 0); err != nil || string(m.b) != "imageTRee" {
		t.Errorf("WriteAt = %v, the partition holds %q", err, m.b)
	}
	if m.closed {
		t.Error("closed while in use")
	}
	for _, end := range []int64{10, 0} {
		if w, err := newWindow(m, 0, end); !errors.Is(err, bootset.ErrRefused) || w != nil || !m.closed {
			t.Errorf("newWindow to %d = %v, %v, closed %v; want %v and it closed", end, w, err, m.closed, bootset.ErrRefused)
		}
	}
}
