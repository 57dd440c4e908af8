package guid

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
)

func TestBytesOfTheSystemPartition(t *testing.T) {
	// the bytes are those in UEFI 2.10, table 5.7, as any hex dump of an ESP entry shows them
	const text, disk = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "28732ac11ff8d211ba4b00a0c93ec93b"
	g, err := Parse("C12A7328-f81f-11d2-BA4B-00A0C93EC93B")
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(g[:]); got != disk {
		t.Errorf("bytes: got %s, want %s", got, disk)
	}
	if got := g.String(); got != text {
		t.Errorf("text: got %s, want %s", got, text)
	}
}

func TestFromText(t *testing.T) {
	// the first half of a root hash, as systemd-repart names the data partition
	b, err := hex.DecodeString("88dd5b56abc1f4dba6572aff28f74b13")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := FromText([16]byte(b)).String(), "88dd5b56-abc1-f4db-a657-2aff28f74b13"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestBadText(t *testing.T) {
	for _, s := range []string{"", "c12a7328", "c12a7328-f81f-11d2-ba4b-00a0c93ec93g", "c12a7328xf81f-11d2-ba4b-00a0c93ec93b"} {
		if g, err := Parse(s); !errors.Is(err, ErrFormat) || !g.IsZero() {
			t.Errorf("%q: got %v, %v, want zero and ErrFormat", s, g, err)
		}
	}
}

func TestRandomIsVersion4(t *testing.T) {
	g, err := Random(bytes.NewReader(bytes.Repeat([]byte{0xff}, 16)))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := g.String(), "ffffffff-ffff-4fff-bfff-ffffffffffff"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := Random(bytes.NewReader(nil)); err == nil {
		t.Error("an empty source made a GUID")
	}
}
