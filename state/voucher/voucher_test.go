package voucher

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestVoucher(t *testing.T) {
	secret, token := bytes.Repeat([]byte("s"), secretBytes), []byte(`{"type":"systemd-tpm2"}`)
	ours, theirs := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	text, err := Spend(New(secret, token), ours)
	if err != nil || bytes.Contains(text, secret) {
		t.Fatalf("Spend() = %q, %v, want it without the secret", text, err)
	}
	spent, got, err := Token(bytes.NewReader(text))
	if err != nil || !bytes.Equal(got, token) {
		t.Fatalf("Token() = %q, %v, want %q", got, err, token)
	}
	other := bytes.Repeat([]byte("t"), secretBytes)
	for _, tt := range []struct {
		name           string
		secret, volume []byte
		good           bool
	}{{"ours", secret, ours, true}, {"another_volume", secret, theirs, false}, {"another_secret", other, ours, false}} {
		if good := For(spent, tt.secret, tt.volume); good != tt.good {
			t.Errorf("%s: good for the volume: %v, want %v", tt.name, good, tt.good)
		}
	}
	if bytes.Equal(Record(secret), Record(other)) || len(Record(secret)) != 32 {
		t.Error("Record() of two secrets is one")
	}
}

func FuzzToken(f *testing.F) {
	for _, text := range []string{"", strings.Repeat("x", 32), strings.Repeat("x", 33), strings.Repeat("x", MaxSize+1)} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		spent, token, err := Token(bytes.NewReader(text))
		if good := len(text) > 32 && len(text) <= MaxSize; good != (err == nil) || err != nil && (spent != nil || token != nil || !errors.Is(err, ErrFormat)) {
			t.Errorf("Token() of %d bytes = %d, %d bytes, %v", len(text), len(spent), len(token), err)
		}
		if _, err := Spend(text, nil); (err == nil) != (len(text) > secretBytes && len(text) <= MaxSize) {
			t.Errorf("Spend() of %d bytes: %v", len(text), err)
		}
	})
}
