package keyring

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWith(t *testing.T) {
	const desc = "sealroot:00000000-test"
	key := bytes.Repeat([]byte{7}, 64)
	var id int
	err := With(desc, key, func() error {
		// As dm-crypt looks for it.
		var err error
		if id, err = unix.RequestKey("logon", desc, "", 0); err != nil {
			t.Fatalf("request_key: %v", err)
		}
		if _, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, make([]byte, 64), 0); !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("reading the key: got %v, want EOPNOTSUPP", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// The kernel's collector may not have been there yet: then it is revoked.
	_, err = unix.KeyctlString(unix.KEYCTL_DESCRIBE, id)
	if !errors.Is(err, unix.EKEYREVOKED) && !errors.Is(err, unix.ENOKEY) {
		t.Errorf("the key afterwards: got %v, want it revoked or gone", err)
	}
	if bytes.Equal(key, make([]byte, 64)) {
		t.Error("the caller's key was wiped: it is the caller's")
	}
}

func TestWithDropsTheKeyAfterAnError(t *testing.T) {
	const desc = "sealroot:00000000-error"
	broken := errors.New("broken")
	var id int
	err := With(desc, []byte("key"), func() error {
		var err error
		if id, err = unix.RequestKey("logon", desc, "", 0); err != nil {
			t.Fatal(err)
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	// The kernel's collector may not have been there yet: then it is revoked.
	_, err = unix.KeyctlString(unix.KEYCTL_DESCRIBE, id)
	if !errors.Is(err, unix.EKEYREVOKED) && !errors.Is(err, unix.ENOKEY) {
		t.Errorf("the key afterwards: got %v, want it revoked or gone", err)
	}
}

func TestWithRefusesDescriptions(t *testing.T) {
	for _, desc := range []string{"", "plain", ":x", "x:", "a:b c", "a:b\n", "a:\xff", "a:" + strings.Repeat("x", 300)} {
		err := With(desc, []byte("key"), func() error { t.Error("used"); return nil })
		if !errors.Is(err, ErrDescription) {
			t.Errorf("%q: got %v, want %v", desc, err, ErrDescription)
		}
	}
}
