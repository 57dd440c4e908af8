package manifest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sealroot/slots/gpt"
	"sealroot/verity/signature"
	"sealroot/verity/signature/sign"
	"sealroot/verity/signature/signaturetest"
)

func example() Manifest {
	m := Manifest{
		Name: "kiosk", Version: "2026.11.1~rc1", SecurityVersion: 3, Architecture: Architecture,
		KernelRelease: "6.1.0-28-amd64", RootHash: bytes.Repeat([]byte{0xab}, 32),
		Layout: &Layout{Loader: "systemd-boot", Store: "bls", Partitions: "labels", TreeAtMiB: 256, Filesystem: "erofs"},
		System: &System{ID: "debian", VersionID: "12", LayersAllowed: "site app-* *"},
		Sealed: "signed-pcr11+7 " + strings.Repeat("ab", 32), StatePartition: StateBtrfs,
	}
	m.Layers = []Layer{
		{Name: "tools-2", RootHash: bytes.Repeat([]byte{0xcd}, 32), File: "layer-tools-2.raw", Size: 4096, SHA256: sha256.Sum256([]byte("tools"))},
		{Name: "site", RootHash: bytes.Repeat([]byte{0xcf}, 32), Parts: []Part{{Name: Signature, File: "s.sig", Size: 9}, {Name: Verity, File: "s.verity", Size: 8}, {Name: Root, File: "s.squashfs", Size: 7}}},
		{Name: "apps", RootHash: bytes.Repeat([]byte{0xce}, 64), File: "apps", Size: 1},
	}
	for i, n := range Names() {
		m.Parts = append(m.Parts, Part{n, "file-" + string(n), int64(i) + 1, sha256.Sum256([]byte(n))})
	}
	return m
}

func encoded(t testing.TB, m Manifest) string {
	t.Helper()
	text, err := Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestEncodeParse(t *testing.T) {
	want := example()
	text := encoded(t, want)
	got, err := Parse([]byte(text))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("Parse() = %+v, %v; want %+v", got, err, want)
	}
	want.Layout, want.Layers, want.Sealed, want.System, want.StatePartition = nil, nil, "", nil, ""
	if got, err := Parse([]byte(encoded(t, want))); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("without a layout: Parse() = %+v, %v", got, err)
	}
	want = example()
	mixed := example()
	mixed.Parts[0], mixed.Parts[4] = mixed.Parts[4], mixed.Parts[0]
	if other := encoded(t, mixed); other != text {
		t.Errorf("parts in another order are written as\n%s", other)
	}
	extended := strings.Replace(text, `"layers"`, `"x-note": {"deep": [1, "two", null]}, "layers"`, 1)
	if got, err := Parse([]byte(extended)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("with an extension: Parse() = %+v, %v", got, err)
	}
}

// The order of a set's files: what is checked before a slot changes, then what is
// written into it.
func TestFiles(t *testing.T) {
	want := "manifest.json manifest.sig layer-tools-2.raw apps file-verity-sig file-verity file-root s.sig s.verity s.squashfs file-kernel file-initrd file-uki"
	if got := strings.Join(example().Files(), " "); got != want {
		t.Errorf("files %s, want %s", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	bare := example()
	bare.Layers = nil
	good := encoded(t, bare)
	layers := func(name, file string, n int) string {
		one := fmt.Sprintf(`{"name": %q, "root_hash": "%064d", "file": %q, "size": 1, "sha256": "%064d"}`, name, 0, file, 0)
		return `"layers": [` + strings.Join(slices.Repeat([]string{one}, n), ", ") + `]`
	}
	oneLayer := strings.TrimSuffix(strings.TrimPrefix(layers("x", "l.raw", 1), `"layers": [`), `]`)
	inParts := fmt.Sprintf(`{"name": "x", "root_hash": "%064d", "parts": [`, 0)
	for i, n := range LayerParts() {
		inParts += strings.Repeat(", ", min(i, 1)) + fmt.Sprintf(`{"name": %q, "file": "x-%s", "size": 1, "sha256": "%064d"}`, n, n, 0)
	}
	inParts += "]}"
	replace := func(old, with string) string {
		t.Helper()
		if !strings.Contains(good, old) {
			t.Fatalf("the example has no %s", old)
		}
		return strings.Replace(good, old, with, 1)
	}
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", "not a JSON object"},
		{"null", "null", "not a JSON object"},
		{"array", "[]", "not a JSON object"},
		{"cut", good[:len(good)/2], ""},
		{"text_behind", good + "{}", "text behind"},
		{"too_long", good + strings.Repeat(" ", MaxSize), "bytes, at most"},
		{"other_schema", replace(`"schema": 1`, `"schema": 2`), "schema 2"},
		{"schema_as_text", replace(`"schema": 1`, `"schema": "1"`), "no number"},
		{"unknown_key", replace(`"layers"`, `"later": 1, "layers"`), "unknown key"},
		{"key_twice", replace(`"layers"`, `"name": "other", "layers"`), "twice"},
		{"key_in_capitals", replace(`"name": "kiosk"`, `"Name": "kiosk"`), "unknown key"},
		{"extension_twice", replace(`"layers"`, `"x-a": 1, "x-a": 2, "layers"`), "twice"},
		{"layout_as_text", replace(`"x-layout": {`, `"x-layout": "", "x-other": {`), "not a JSON object"},
		{"layout_without_a_store", replace(`"store": "bls",`, ``), "no store"},
		{"layout_with_another_key", replace(`"store": "bls"`, `"store": "bls", "later": 1`), "unknown key"},
		{"system_of_odd_words", replace(`"version_id": "12"`, `"version_id": "1\n2"`), "x-system"},
		{"system_allows_odd_names", replace(`"site app-* *"`, `"site ../app"`), "x-system"},
		{"half_a_system", replace(`"version_id": "12",`, ``), "no version_id"},
		{"odd_state_partition", replace(`"x-state-partition": "btrfs`, `"x-state-partition": "btr fs`), "x-state-partition"},
		{"sealed_under_odd_words", replace(`"signed-pcr11+7 ab`, `"signed\npcr ab`), "x-sealed"},
		{"layout_with_odd_words", replace(`"store": "bls"`, `"store": "b l"`), "in x-layout"},
		{"layout_before_the_image", replace(`"tree_at_mib": 256`, `"tree_at_mib": -1`), "in x-layout"},
		{"no_version", replace(`"version": "2026.11.1~rc1",`, ``), "no version"},
		{"layer_without_sum", replace(`"layers": []`, `"layers": [`+strings.Replace(oneLayer, `, "sha256"`, `, "x-sha256"`, 1)+`]`), "a sha256 or parts"},
		{"layer_with_file_and_parts", replace(`"layers": []`, `"layers": [`+strings.Replace(inParts, `"parts"`, `"file": "x", "size": 1, "parts"`, 1)+`]`), "a file too"},
		{"layer_with_sum_and_parts", replace(`"layers": []`, `"layers": [`+strings.Replace(oneLayer, `"name"`, `"parts": [], "name"`, 1)+`]`), "a sha256 or parts"},
		{"layer_without_parts", replace(`"layers": []`, `"layers": [{"name": "x", "root_hash": "`+strings.Repeat("0", 64)+`", "parts": []}]`), "not all that a layer has"},
		{"layer_with_a_kernel", replace(`"layers": []`, `"layers": [`+strings.Replace(inParts, `"root", `, `"kernel", `, 1)+`]`), "unknown part"},
		{"layer_with_the_parts_of_another", replace(`"layers": []`, `"layers": [`+inParts+`, `+strings.Replace(inParts, `"name": "x"`, `"name": "y"`, 1)+`]`), "file name"},
		{"half_a_layer", replace(`"layers": []`, `"layers": [{"name": "x"}]`), "has no root_hash"},
		{"layer_name", replace(`"layers": []`, layers("../x", "l.raw", 1)), "layer name"},
		{"layer_twice", replace(`"layers": []`, layers("x", "l.raw", 2)), "layer name"},
		{"layer_in_a_part's_place", replace(`"layers": []`, layers("x", "manifest.sig", 1)), "file name"},
		{"layer_with_a_path", replace(`"layers": []`, layers("x", "../x", 1)), "file name"},
		{"too_many_layers", replace(`"layers": []`, layers("x", "l.raw", MaxLayers+1)), "does not know"},
		{"upper_case_hash", replace("abab", "ABAB"), "lower-case hex"},
		{"short_hash", replace("abab", ""), "root_hash of 30 bytes"},
		{"negative_size", replace(`"size": 3`, `"size": -3`), "-3 bytes"},
		{"fraction", replace(`"size": 3`, `"size": 3.5`), "whole number"},
		{"huge_size", replace(`"size": 3`, `"size": 1099511627777`), "bytes"},
		{"size_over_64_bits", replace(`"size": 3`, `"size": 18446744073709551619`), "whole number"},
		{"path_as_file", replace(`"file-root"`, `"../root"`), "file name"},
		{"hidden_file", replace(`"file-root"`, `".root"`), "file name"},
		{"manifest_as_part", replace(`"file-root"`, `"manifest.json"`), "file name"},
		{"file_twice", replace(`"file-root"`, `"file-verity"`), "file name"},
		{"unknown_part", replace(`"name": "uki"`, `"name": "boot"`), "unknown part"},
		{"part_twice", replace(`"name": "uki"`, `"name": "initrd"`), "twice or out of order"},
		{"control_character", replace("2026.11.1~rc1", `1\u001b[2J`), "version"},
		{"name_with_slash", replace("kiosk", "a/b"), "name"},
		{"key_missing_in_part", replace(`"size": 3,`, ``), "has no size"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := Parse([]byte(c.text))
			if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want %v with %q", err, ErrFormat, c.want)
			}
			if !reflect.DeepEqual(m, Manifest{}) {
				t.Errorf("got %+v beside the error", m)
			}
		})
	}
}

func TestEncodeRefusesWhatParseRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Manifest)
	}{
		{"no_root", func(m *Manifest) { m.Parts = m.Parts[:2] }},
		{"kernel_alone", func(m *Manifest) { m.Parts = append(m.Parts[:4:4], m.Parts[5]) }},
		{"nothing_to_start", func(m *Manifest) { m.Parts = m.Parts[:3] }},
		{"no_name", func(m *Manifest) { m.Name = "" }},
		{"negative_security_version", func(m *Manifest) { m.SecurityVersion = -1 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := example()
			c.change(&m)
			if text, err := Encode(m); !errors.Is(err, ErrFormat) {
				t.Errorf("got %s, %v; want %v", text, err, ErrFormat)
			}
		})
	}
}

func TestOpen(t *testing.T) {
	s, other := signaturetest.New(t), signaturetest.New(t)
	text := []byte(encoded(t, example()))
	message, err := Sign(text, s.Cert, s.Key)
	if err != nil {
		t.Fatal(err)
	}
	trusted := []*signature.Certificate{s.Parsed}
	rootHash, err := sign.RootHash(example().RootHash, s.Cert, s.Key)
	if err != nil {
		t.Fatal(err)
	}
	overHash, err := signature.Parse(rootHash)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name          string
		text, message []byte
		certs         []*signature.Certificate
		want          error
	}{
		{"good", text, message, trusted, nil},
		{"changed", bytes.Replace(text, []byte(`"security_version": 3`), []byte(`"security_version": 4`), 1), message, trusted, signature.ErrBadSignature},
		{"space_added", append(bytes.Clone(text), ' '), message, trusted, signature.ErrBadSignature},
		{"signed_by_somebody_else", text, message, []*signature.Certificate{other.Parsed}, signature.ErrBadSignature},
		{"nobody_is_trusted", text, message, nil, signature.ErrUnknownSigner},
		{"no_signature", text, nil, trusted, signature.ErrFormat},
		{"signature_of_a_root_hash", text, overHash.PKCS7, trusted, signature.ErrBadSignature},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, by, err := Open(c.text, c.message, c.certs)
			if !errors.Is(err, c.want) {
				t.Fatalf("got error %v, want %v", err, c.want)
			}
			if c.want == nil && (by != s.Parsed || !reflect.DeepEqual(m, example())) {
				t.Errorf("got %+v by %v", m, by.Subject)
			}
			if c.want != nil && !reflect.DeepEqual(m, Manifest{}) {
				t.Errorf("got %+v beside the error", m)
			}
		})
	}
	if _, err := Sign([]byte("{}"), s.Cert, s.Key); !errors.Is(err, ErrFormat) {
		t.Errorf("Sign({}): got error %v, want %v", err, ErrFormat)
	}
	if _, err := Sign(text, other.Cert, s.Key); !errors.Is(err, signature.ErrBadSignature) {
		t.Errorf("Sign() with another's key: got error %v, want %v", err, signature.ErrBadSignature)
	}
}

// openssl is the judge of manifest.sig.
func TestOpensslVerifies(t *testing.T) {
	s := signaturetest.New(t)
	text := []byte(encoded(t, example()))
	message, err := Sign(text, s.Cert, s.Key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	verify := func(content []byte) error {
		return exec.Command("openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", file("sig", message),
			"-content", file("text", content), "-certfile", file("crt.der", s.Cert.Raw), "-noverify", "-certsout", "/dev/null", "-out", "/dev/null").Run()
	}
	if err := verify(text); err != nil {
		t.Errorf("openssl refuses the signature: %v", err)
	}
	if err := verify(append(text, ' ')); err == nil {
		t.Error("openssl takes the signature for another text: the test shows nothing")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(encoded(f, example())))
	f.Add([]byte(`{"schema":1,"parts":[{"name":"root"}],"layers":[[]]}`))
	f.Add([]byte(`{"x-":{"a":[[[]]]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil {
			if !errors.Is(err, ErrFormat) || !reflect.DeepEqual(m, Manifest{}) {
				t.Fatalf("got %+v, %v", m, err)
			}
			return
		}
		again, err := Parse([]byte(encoded(t, m)))
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("%+v is read back as %+v, %v", m, again, err)
		}
	})
}

// Each part of a layer has a partition of its own, and what a loader reads has none.
func TestPartition(t *testing.T) {
	taken := map[gpt.Part]Name{}
	for _, name := range Names() {
		part, ok := name.Partition()
		if ok != slices.Contains(LayerParts(), name) {
			t.Errorf("%s: partition %d, %v", name, part, ok)
		}
		if other := taken[part]; ok && other != "" {
			t.Errorf("%s and %s go into the same partition", name, other)
		} else if ok {
			taken[part] = name
		}
	}
	if part, ok := Root.Partition(); part != gpt.Data || !ok {
		t.Errorf("the root goes into partition %d, %v", part, ok)
	}
}
