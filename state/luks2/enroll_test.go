package luks2

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"testing"
)

const smallSize = 4 << 20

// tpmToken has the form of a token of systemd-tpm2, with content of its own.
func tpmToken(content string) func(int) ([]byte, error) {
	return func(keyslot int) ([]byte, error) {
		return fmt.Appendf(nil, `{"type":"systemd-tpm2","keyslots":["%d"],"tpm2-blob":%q}`, keyslot, content), nil
	}
}

// enrolled is a volume as provisioning makes it: TPM in keyslot 0, recovery key
// in 1; and a passphrase in 2.
// The disk is a small one, as it is searched often.
func enrolled(t testing.TB) (*memDisk, *Header) {
	t.Helper()
	rand := &testRand{state: 30}
	h := must[*Header](t)(Format(FormatParams{UUID: testUUID, VolumeKey: testKey(), DataOffset: 2 << 20, Rand: rand}))
	h = must[*Header](t)(h.AddKeyslot(0, testKey(), []byte("secret"), RandomSecretKDF(), rand))
	d := &memDisk{make([]byte, smallSize)}
	h = must[*Header](t)(WriteNew(d, h, rand))
	n := must[*Header](t)(h.AddToken(0, must[[]byte](t)(tpmToken("first")(0))))
	n = must[*Header](t)(n.AddKeyslot(1, testKey(), []byte("recovery"), RandomSecretKDF(), rand))
	n = must[*Header](t)(n.AddToken(1, RecoveryToken(1)))
	n = must[*Header](t)(n.AddKeyslot(2, testKey(), []byte("human"), RandomSecretKDF(), rand))
	return d, must[*Header](t)(Update(d, h, n, rand))
}

func enrolment(passphrase string) Enrolment {
	return Enrolment{
		VolumeKey: testKey(), Passphrase: []byte(passphrase), KDF: RandomSecretKDF(),
		Token: tpmToken("second"), Rand: &testRand{state: uint64(len(passphrase)) << 8},
	}
}

// openedBy lists the keyslots that a passphrase opens.
func openedBy(h *Header, passphrase string) []int {
	var ids []int
	for _, k := range h.Keyslots() {
		if _, err := h.Unlock(k.ID, []byte(passphrase)); err == nil {
			ids = append(ids, k.ID)
		}
	}
	return ids
}

// TestEnroll adds a way to open beside the present one, and then in its place.
// cryptsetup judges each header.
func TestEnroll(t *testing.T) {
	d, h := enrolled(t)
	rand := &testRand{state: 32}
	beside, keyslot, token, err := h.Enroll(enrolment("second"))
	if err != nil || keyslot != 3 || token != 2 {
		t.Fatalf("got keyslot %d, token %d, %v, want 3 and 2", keyslot, token, err)
	}
	beside = must[*Header](t)(Apply(d, smallSize, h, beside, rand))
	judge(t, d, map[string]bool{"secret": true, "second": true, "recovery": true, "human": true})
	if got := beside.TokensOfType("systemd-tpm2"); !slices.Equal(got, []int{0, 2}) {
		t.Errorf("got tokens %v of the TPM, want 0 and 2", got)
	}

	e := enrolment("the third")
	e.RetireTokens = beside.TokensOfType("systemd-tpm2")
	place, keyslot, token, err := beside.Enroll(e)
	if err != nil || keyslot != 0 || token != 0 {
		t.Fatalf("got keyslot %d, token %d, %v, want those that became free", keyslot, token, err)
	}
	place = must[*Header](t)(Apply(d, smallSize, beside, place, rand))
	judge(t, d, map[string]bool{"secret": false, "second": false, "the third": true, "recovery": true, "human": true})
	checkGone(t, d, beside, place)

	e = enrolment("human 2")
	e.Token, e.RetireKeyslots = nil, []int{2}
	changed, keyslot, _, err := place.Enroll(e)
	if err != nil || keyslot != 2 {
		t.Fatalf("got keyslot %d, %v, want 2", keyslot, err)
	}
	last := must[*Header](t)(Apply(d, smallSize, place, changed, rand))
	judge(t, d, map[string]bool{"human": false, "human 2": true, "the third": true, "recovery": true})
	checkGone(t, d, place, last)

	alone := must[*Header](t)(last.Retire([]int{1}, []int{2}))
	alone = must[*Header](t)(Apply(d, smallSize, last, alone, rand))
	judge(t, d, map[string]bool{"human 2": false, "the third": true, "recovery": false})
	checkGone(t, d, last, alone)
	if got := alone.Keyslots(); len(got) != 1 || got[0].ID != 0 {
		t.Errorf("got keyslots %+v, want 0 alone", got)
	}
}

// judge lets cryptsetup look at a header: from either copy alone, which it would
// repair, and with each passphrase.
func judge(t *testing.T, d *memDisk, passphrases map[string]bool) {
	t.Helper()
	path := d.file(t)
	if out, code := cryptsetup(t, "", "luksDump", path); code != 0 {
		t.Errorf("luksDump: exit status %d: %s", code, out)
	}
	for passphrase, want := range passphrases {
		if got := opens(t, path, passphrase); got != want {
			t.Errorf("cryptsetup opens with %q: got %v, want %v", passphrase, got, want)
		}
		for offset := range 2 {
			torn := &memDisk{bytes.Clone(d.b)}
			torn.b[offset*minHeaderBytes+5000] ^= 1
			if got := opens(t, torn.file(t), passphrase); got != want {
				t.Errorf("cryptsetup opens with %q from one copy alone: got %v, want %v", passphrase, got, want)
			}
		}
	}
}

// checkGone: of keyslots that old has and new has not, neither material nor salt
// is anywhere on the disk.
func checkGone(t *testing.T, d *memDisk, old, new *Header) {
	t.Helper()
	checked := 0
	for id, material := range old.material {
		if bytes.Equal(new.material[id], material) {
			if !bytes.Contains(d.b, material) {
				t.Errorf("control: the material of keyslot %d, which stays, is not found", id)
			}
			continue
		}
		checked++
		for off := 0; off < len(material); off += 4096 {
			if bytes.Contains(d.b, material[off:][:32]) {
				t.Errorf("byte %d of the material of removed keyslot %d is still on the disk", off, id)
				break
			}
		}
		if bytes.Contains(d.b, []byte(base64.StdEncoding.EncodeToString(old.meta.keyslots[id].salt))) {
			t.Errorf("the salt of removed keyslot %d is still on the disk", id)
		}
	}
	if checked == 0 {
		t.Error("no keyslot was removed")
	}
}

func TestEnrollRefuses(t *testing.T) {
	_, h := enrolled(t)
	change := func(fn func(e *Enrolment)) Enrolment {
		e := enrolment("x")
		fn(&e)
		return e
	}
	broken := errors.New("broken")
	tests := []struct {
		name string
		e    Enrolment
		want error
	}{
		{"other_volume_key", change(func(e *Enrolment) { e.VolumeKey = make([]byte, 64) }), ErrVolumeKey},
		{"cost", change(func(e *Enrolment) { e.KDF.Iterations = 1 }), ErrKDFCost},
		{"missing_token", change(func(e *Enrolment) { e.RetireTokens = []int{7} }), ErrNoSuchToken},
		{"missing_keyslot", change(func(e *Enrolment) { e.RetireKeyslots = []int{7} }), ErrNoSuchKeyslot},
		{"keyslot_of_a_token_that_stays", change(func(e *Enrolment) { e.RetireKeyslots = []int{1} }), ErrHeader},
		{"no_token", change(func(e *Enrolment) { e.Token = func(int) ([]byte, error) { return nil, broken } }), broken},
		{"token_of_another_keyslot", change(func(e *Enrolment) { e.Token = func(int) ([]byte, error) { return RecoveryToken(9), nil } }), ErrHeader},
		{"no_randomness", change(func(e *Enrolment) { e.Rand = bytes.NewReader(nil) }), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n, _, _, err := h.Enroll(tt.e)
			if n != nil || err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got a header: %v, %v, want %v", n != nil, err, tt.want)
			}
		})
	}
	if n, err := h.Retire([]int{0, 1}, []int{2}); !errors.Is(err, ErrLastKeyslot) || n != nil {
		t.Errorf("all keyslots: got %v, want ErrLastKeyslot", err)
	}
	// A keyslot that two tokens name goes with the second of them.
	two := must[*Header](t)(h.AddToken(2, must[[]byte](t)(tpmToken("two")(0))))
	one := must[*Header](t)(two.Retire([]int{0}, nil))
	if got := openedBy(one, "secret"); !slices.Equal(got, []int{0}) {
		t.Errorf("keyslot of a token that stays: opened %v", got)
	}
	if none := must[*Header](t)(one.Retire([]int{2}, nil)); len(openedBy(none, "secret")) != 0 {
		t.Error("keyslot without its last token is left")
	}
}

// TestRetireByAListThatGrew: the token of the TPM names the keyslots of a person too,
// and their tokens are gone. Only what the caller names goes.
func TestRetireByAListThatGrew(t *testing.T) {
	_, h := enrolled(t)
	h = must[*Header](t)(h.RemoveToken(1))
	grown := bytes.Replace(must[[]byte](t)(tpmToken("secret")(0)), []byte(`"keyslots":["0"]`), []byte(`"keyslots":["0","1","2"]`), 1)
	h = must[*Header](t)(must[*Header](t)(h.RemoveToken(0)).AddToken(0, grown))
	if got := h.Tokens()[0].Keyslots; len(got) != 3 {
		t.Fatalf("the token names %v", got)
	}
	e := enrolment("new")
	e.RetireTokens = []int{0}
	n, _, _, err := h.Enroll(e)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"human", "recovery", "new"} {
		if len(openedBy(n, secret)) == 0 {
			t.Errorf("nothing is opened by %q any more", secret)
		}
	}
	if n = must[*Header](t)(h.Retire([]int{0}, []int{2})); len(openedBy(n, "human")) != 0 || len(openedBy(n, "recovery")) == 0 {
		t.Error("keyslot 2 was named, and 1 was not")
	}
}

// TestApplySeesOthers: a program that wrote the header in between.
func TestApplySeesOthers(t *testing.T) {
	d, h := enrolled(t)
	rand := &testRand{state: 33}
	mine := must[*Header](t)(h.Retire([]int{0}, nil))
	theirs, _, _, err := h.Enroll(enrolment("theirs"))
	if err != nil {
		t.Fatal(err)
	}
	must[*Header](t)(Update(d, h, theirs, rand))
	before := bytes.Clone(d.b)
	if n, err := Apply(d, smallSize, h, mine, rand); !errors.Is(err, ErrChanged) || n != nil {
		t.Errorf("got %v, want ErrChanged", err)
	}
	if !bytes.Equal(d.b, before) {
		t.Error("it was written all the same")
	}
	// A disk that loses writes.
	d, h = enrolled(t)
	if n, err := Apply(&lossyDisk{memDisk: d, from: 3}, smallSize, h, must[*Header](t)(h.Retire([]int{0}, nil)), rand); !errors.Is(err, ErrChanged) || n != nil {
		t.Errorf("lost write: got %v, want ErrChanged", err)
	}
}

// lossyDisk does nothing from its nth write on and says it did.
type lossyDisk struct {
	*memDisk
	from int
}

func (d *lossyDisk) WriteAt(b []byte, off int64) (int, error) {
	if d.from--; d.from <= 0 {
		return len(b), nil
	}
	return d.memDisk.WriteAt(b, off)
}

// TestPowerCutWhileReplacing: the TPM's keyslot and token are replaced, and the
// power cut at every operation: the old or the new one opens, and once the
// update is finished nothing of a keyslot that is not in the header is left.
func TestPowerCutWhileReplacing(t *testing.T) {
	base, h := enrolled(t)
	e := enrolment("second")
	e.RetireTokens = h.TokensOfType("systemd-tpm2")
	n, _, _, err := h.Enroll(e)
	if err != nil {
		t.Fatal(err)
	}
	saw := map[string]int{}
	for left := 0; ; left++ {
		d := &crashDisk{stable: bytes.Clone(base.b), left: left}
		rand := &testRand{state: 34}
		_, err := Update(d, h, n, rand)
		if err != nil && !errors.Is(err, errPowerCut) {
			t.Fatal(err)
		}
		for name, choose := range survivals() {
			when := fmt.Sprintf("cut after %d, %s", left, name)
			after := d.after(choose)
			got := must[*Header](t)(Read(after, smallSize))
			old, new := openedBy(got, "secret"), openedBy(got, "second")
			blob := string(got.Tokens()[0].JSON)
			switch {
			case len(old) == 1 && len(new) == 0 && bytes.Contains([]byte(blob), []byte("first")):
				saw["old"]++
			case len(old) == 0 && len(new) == 1 && bytes.Contains([]byte(blob), []byte("second")):
				saw["new"]++
			default:
				t.Errorf("%s: old opens %v, new opens %v, token %s", when, old, new, blob)
			}
			if len(openedBy(got, "recovery")) != 1 || len(openedBy(got, "human")) != 1 {
				t.Errorf("%s: a keyslot that stays does not open", when)
			}
			if got.Interrupted() {
				saw["interrupted"]++
			}
			wasOld := len(old) == 1
			got = must[*Header](t)(Update(after, got, got, rand))
			if !wasOld {
				checkGone(t, after, h, got)
			}
			if got.Interrupted() || must[*Header](t)(Read(after, smallSize)).Interrupted() {
				t.Errorf("%s: still interrupted", when)
			}
		}
		if err == nil {
			break
		}
	}
	if saw["old"] == 0 || saw["new"] == 0 || saw["interrupted"] == 0 {
		t.Errorf("not all states were seen: %v", saw)
	}
}

// TestLeftoverIsWipedByTheNextUpdate also when that one is cut short too, and
// never where a keyslot is: the older copy is anybody's.
func TestLeftoverIsWipedByTheNextUpdate(t *testing.T) {
	base, h := enrolled(t)
	n := must[*Header](t)(h.Retire([]int{0}, nil))
	// The update reaches the first copy and not the wipe.
	d := &crashDisk{stable: bytes.Clone(base.b), left: 2}
	if _, err := Update(d, h, n, &testRand{state: 35}); !errors.Is(err, errPowerCut) {
		t.Fatal(err)
	}
	cut := d.after(func(int) bool { return false })
	got := must[*Header](t)(Read(cut, smallSize))
	if len(got.Keyslots()) != 2 || !got.Interrupted() || !bytes.Contains(cut.b, h.material[0]) {
		t.Fatalf("control: %d keyslots, interrupted %v, want the material left behind", len(got.Keyslots()), got.Interrupted())
	}
	next, _, _, err := got.Enroll(enrolment("next"))
	if err != nil {
		t.Fatal(err)
	}
	for left := 0; ; left++ {
		d := &crashDisk{stable: bytes.Clone(cut.b), left: left}
		_, err := Update(d, got, next, &testRand{state: 36})
		for name, choose := range survivals() {
			after := d.after(choose)
			again := must[*Header](t)(Read(after, smallSize))
			last := must[*Header](t)(Update(after, again, again, &testRand{state: 37}))
			if len(openedBy(last, "human")) != 1 || len(openedBy(last, "recovery")) != 1 {
				t.Errorf("cut after %d, %s: a keyslot that stays does not open", left, name)
			}
			checkGone(t, after, h, last)
		}
		if err == nil {
			break
		}
	}
	// An older copy that names areas of keyslots in use.
	d2, h2 := enrolled(t)
	c := must[diskCopy](t)(readCopy(d2, minHeaderBytes, magicSecond, smallSize))
	c.seqid--
	c.json = bytes.ReplaceAll(c.json, []byte(`"offset":"32768"`), []byte(`"offset":"1048576"`))
	c.json = bytes.ReplaceAll(c.json, []byte(`"offset":"290816"`), []byte(`"offset":"32768"`))
	d2.WriteAt(c.encode(minHeaderBytes, magicSecond, make([]byte, hdrSaltBytes)), minHeaderBytes)
	d2.b[1048576+4096] = 1
	got2 := must[*Header](t)(Read(d2, smallSize))
	must[*Header](t)(Update(d2, got2, got2, &testRand{state: 38}))
	back := must[*Header](t)(Read(d2, smallSize))
	for id, material := range h2.material {
		if !bytes.Equal(back.material[id], material) {
			t.Errorf("keyslot %d was wiped", id)
		}
	}
	if d2.b[1048576+4096] == 1 && d2.b[1048576+4097] == 0 {
		t.Error("control: the area that no keyslot uses was not wiped")
	}
}
