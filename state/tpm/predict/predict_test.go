package predict

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"testing"

	"sealroot/state/tpm/pcrsig"
)

func values(t *testing.T, im Image) map[int]map[When]string {
	t.Helper()
	list, err := Values(im, []pcrsig.Bank{pcrsig.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	got := map[int]map[When]string{}
	for _, v := range list {
		if got[v.PCR] == nil {
			got[v.PCR] = map[When]string{}
		}
		if _, twice := got[v.PCR][v.When]; twice {
			t.Errorf("PCR %d is predicted twice", v.PCR)
		}
		got[v.PCR][v.When] = v.Digests[pcrsig.SHA256]
	}
	return got
}

// extended is what a PCR holds after these events.
func extended(t *testing.T, start []byte, events ...string) string {
	t.Helper()
	v, err := pcrsig.Extend(pcrsig.SHA256, start, events...)
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(v)
}

func TestValues(t *testing.T) {
	zero := make([]byte, 32)
	im := Image{
		Sections: []pcrsig.Section{{Name: ".linux", Data: []byte("kernel")}},
		RootHash: bytes.Repeat([]byte{0xab}, 32), SecurityVersion: 3, RootPCR: 13,
	}
	root := extended(t, zero, "sealroot:root:"+hex.EncodeToString(im.RootHash)+":3")
	got := values(t, im)
	if want := extended(t, zero, ".linux\x00", "kernel", "enter-initrd"); got[11][Initrd] != want {
		t.Errorf("PCR 11 in the initramfs %s, want %s", got[11][Initrd], want)
	}
	if want := extended(t, zero, ".linux\x00", "kernel", "enter-initrd", "leave-initrd", "sealroot-capped"); got[11][Booted] != want {
		t.Errorf("PCR 11 after it %s, want %s", got[11][Booted], want)
	}
	if got[12][Booted] != hex.EncodeToString(zero) || got[13][Booted] != root {
		t.Errorf("PCR 12 %s, 13 %s, want zero and %s", got[12][Booted], got[13][Booted], root)
	}
	im.RootPCR, im.Sections = 12, nil
	got = values(t, im)
	if got[12][Booted] != root || got[13] != nil {
		t.Errorf("the root in PCR 12: %v", got)
	}
	if want := extended(t, zero, "sealroot-capped"); got[11][Booted] != want || got[11][Initrd] != "" {
		t.Errorf("PCR 11 without a stub: %v, want %s when booted", got[11], want)
	}
}

func TestLater(t *testing.T) {
	booted := make([]byte, 32)
	for _, words := range [][]string{nil, {"sysinit"}, {"sysinit", "ready"}} {
		got, ok := Later(pcrsig.SHA256, hex.EncodeToString(booted), extended(t, booted, words...))
		if !ok || !slices.Equal(got, words) {
			t.Errorf("after %v: got %v, %v", words, got, ok)
		}
	}
	if got, ok := Later(pcrsig.SHA256, hex.EncodeToString(booted), extended(t, booted, "ready")); ok {
		t.Errorf("words out of order are taken for %v", got)
	}
}

func FuzzReadUKI(f *testing.F) {
	f.Add([]byte("MZ"))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := ReadUKI(bytes.NewReader(data))
		if err != nil && (list != nil || !errors.Is(err, ErrUKI)) {
			t.Errorf("%d sections beside %v", len(list), err)
		}
	})
}
