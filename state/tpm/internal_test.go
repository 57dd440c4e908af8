package tpm

import (
	"bytes"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

func TestPBKDF2(t *testing.T) {
	salt := []byte("0123456789abcdef0123456789abcdef")
	want, err := pbkdf2.Key(sha256.New, "1234", salt, pinIterations, 32)
	if err != nil {
		t.Fatal(err)
	}
	if got := pbkdf2SHA256([]byte("1234"), salt); !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

func TestAuthValueDropsTrailingZeros(t *testing.T) {
	for i := range 100000 { // one hash in 256 ends with a zero byte
		pin := []byte{byte(i), byte(i >> 8), byte(i >> 16)}
		sum := sha256.Sum256(pin)
		if sum[31] != 0 || sum[30] == 0 {
			continue
		}
		got, err := authValue(Token{PIN: true}, pin)
		if err != nil || !bytes.Equal(got, sum[:31]) {
			t.Errorf("got %x, %v, want %x", got, err, sum[:31])
		}
		return
	}
	t.Fatal("no PIN with such a hash")
}

func TestMarkCodec(t *testing.T) {
	m := Mark{Volume: [16]byte{1, 15: 2}}
	data := m.encode()
	want := "7365616c726f6f740000000100000000" + "01000000000000000000000000000002"
	if got := hex.EncodeToString(data[:32]); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, err := parseMark(data); err != nil || got != m {
		t.Errorf("parseMark: got %v, %v", got, err)
	}
	for _, at := range []int{0, 11, 12, 32, 63} {
		changed := bytes.Clone(data)
		changed[at]++
		if got, err := parseMark(changed); !errors.Is(err, ErrMark) || got != (Mark{}) {
			t.Errorf("byte %d changed: got %v, %v, want ErrMark", at, got, err)
		}
	}
}

func sampleSRK(t testing.TB) SRK {
	t.Helper()
	public := eccPrimary(true)
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
	})
	name, err := tpm2.ObjectName(&public)
	if err != nil {
		t.Fatal(err)
	}
	return SRK{Handle: SRKHandle, Name: name.Buffer, public: public}
}

func TestParseReference(t *testing.T) {
	srk := sampleSRK(t)
	handle, name, err := parseReference(srk.Reference())
	if err != nil || handle != SRKHandle || !bytes.Equal(name, srk.Name) {
		t.Errorf("got %#x, %x, %v", handle, name, err)
	}
	ref := srk.Reference()
	if whole, cut := (Token{SRK: ref}).StorageKey(), (Token{SRK: ref[:9]}).StorageKey(); !bytes.Equal(whole, srk.Name) || cut != nil || (Token{}).StorageKey() != nil {
		t.Errorf("StorageKey() = %x, of half a reference %x", whole, cut)
	}
	for n := range len(ref) {
		if _, name, err := parseReference(ref[:n]); !errors.Is(err, ErrToken) || name != nil {
			t.Errorf("cut to %d bytes: got %x, %v, want ErrToken", n, name, err)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	f.Add(sampleSRK(f).Reference())
	f.Add([]byte{0x81, 0, 0, 1, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		handle, name, err := parseReference(data)
		if err != nil && (handle != 0 || name != nil || !errors.Is(err, ErrToken)) {
			t.Fatalf("got %#x, %x beside error %v", handle, name, err)
		}
	})
}

// What the TPM or someone on its bus says is the SRK.
func FuzzNewSRK(f *testing.F) {
	srk := sampleSRK(f)
	f.Add(tpm2.Marshal(srk.public), srk.Name)
	f.Add(tpm2.Marshal(srk.public), []byte{})
	f.Add(tpm2.Marshal(rsaPrimary(true)), []byte{})
	f.Add([]byte{0, 1, 0, 0xb, 0, 0, 0, 0}, []byte{})
	f.Fuzz(func(t *testing.T, area, name []byte) {
		if public, err := tpm2.Unmarshal[tpm2.TPMTPublic](area); err == nil && len(name) == 0 {
			if right, err := tpm2.ObjectName(public); err == nil {
				name = right.Buffer // let the fuzzer pass the check of the Name
			}
		}
		got, err := newSRK(SRKHandle, area, name)
		if err != nil && (!reflect.DeepEqual(got, SRK{}) || !errors.Is(err, ErrSRK)) {
			t.Fatalf("got %+v beside error %v", got, err)
		}
		if err == nil { // what is accepted is used to salt sessions: no panic there
			if key, err := tpm2.ImportEncapsulationKey(&got.public); err == nil {
				tpm2.CreateEncryptedSalt(rand.Reader, key)
			}
		}
	})
}

func FuzzCheckSealed(f *testing.F) {
	sealed := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: sealedAttributes(),
		AuthPolicy: tpm2.TPM2BDigest{Buffer: make([]byte, 32)},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: make([]byte, 32)}),
	}
	if _, err := checkSealed(tpm2.Marshal(sealed), [32]byte{}); err != nil {
		f.Fatal(err)
	}
	f.Add(tpm2.Marshal(sealed))
	f.Fuzz(func(t *testing.T, area []byte) {
		got, err := checkSealed(area, [32]byte{})
		if err != nil && (!reflect.DeepEqual(got, tpm2.TPMTPublic{}) || !errors.Is(err, ErrToken)) {
			t.Fatalf("got %+v beside error %v", got, err)
		}
	})
}
