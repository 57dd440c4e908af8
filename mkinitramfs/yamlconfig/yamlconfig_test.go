package yamlconfig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
)

func read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestLoadExamples(t *testing.T) {
	uki, err := Load("testdata/uki.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if uki.Boot.Loader != config.LoaderUKI || uki.State.TPM2.Policy != config.PolicySignedPCR11And7 ||
		uki.Version != "2026.11.1" || uki.State.Recovery != config.RecoveryLater ||
		!slices.Equal(uki.State.OnFailure, []string{"prompt", "degraded"}) || uki.Boot.CommitDeadline.String() != "10m" {
		t.Errorf("Load(uki.yaml) = %+v", uki)
	}
	bios, err := Load("testdata/bios.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if bios.Boot.Loader != config.LoaderGRUB || bios.State.TPM2.Policy != config.PolicyPCRs || len(bios.State.TPM2.PCRs) != 0 ||
		bios.State.TPM2.WithoutMeasuredBoot != config.AcceptTheft {
		t.Errorf("Load(bios.yaml) = %+v", bios)
	}
	for _, c := range []*config.Config{uki, bios} {
		text, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := config.Parse(text); err != nil {
			t.Errorf("PID 1 would refuse what mkinitramfs writes: %v", err)
		}
	}
	if c, err := Load("testdata/missing.yaml"); !errors.Is(err, os.ErrNotExist) || c != nil {
		t.Errorf("Load of a missing file = %v, %v; want %v", c, err, os.ErrNotExist)
	}
}

func TestScalarsAreReadAsTheFieldAsks(t *testing.T) {
	text := strings.NewReplacer(
		"version: 2026.11.1", "version: 1.10",
		"etc: overlay", "etc: overlay\nsecurity_version: 010",
		"recovery: later", "recovery: none\n  fsck: no\n  auto_resize: both",
		"tries: 3", "tries: 7\n  commit_deadline: 1h\n  recount: false",
	).Replace(read(t, "uki.yaml"))
	c, err := Parse("x.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if c.Version != "1.10" || c.SecurityVersion != 10 || c.State.Recovery != "none" || c.State.Fsck != "no" || c.State.AutoResize != "both" ||
		c.Boot.Tries != 7 || c.Boot.CommitDeadline.String() != "1h" {
		t.Errorf("Parse = %+v", c)
	}
}

func TestErrors(t *testing.T) {
	for _, test := range []struct {
		name, old, new string
		want           []string // of the lines of the error
	}{
		{"misspelled_key", "  loader:", "  laoder:", []string{"x.yaml: line 7: boot.laoder: unknown key; did you mean loader?"}},
		{"key_of_another_section", "etc: overlay", "policy: pcrs", []string{"x.yaml: line 27: policy: unknown key; did you mean state.tpm2.policy?"}},
		{"key_in_capitals", "etc: overlay", "Etc: overlay", []string{"x.yaml: line 27: Etc: unknown key; did you mean etc?"}},
		{"key_of_nobody", "  filesystem: squashfs", "  compression: zstd",
			[]string{"x.yaml: line 13: root.compression: unknown key; known here: filesystem, hash, on_corruption, partitions, partuuids, source, verity"}},
		{"key_twice", "  tries: 3", "  tries: 3\n  loader: grub", []string{"x.yaml: line 10: boot.loader: given twice, first on line 7"}},
		{"kernel", "etc: overlay", "kernel: {release: x}", []string{"x.yaml: line 27: kernel: filled in by mkinitramfs; leave it out"}},
		{"tries_0", "tries: 3", "tries: 0", []string{"x.yaml: line 9: boot.tries: must be more than zero; leave the key out to get its default"}},
		{"tries_hexadecimal", "tries: 3", "tries: 0x3", []string{`x.yaml: line 9: boot.tries: "0x3" is not a whole number`}},
		{"no_value", "etc: overlay", "etc:", []string{"x.yaml: line 27: etc: has no value; leave the key out to get its default"}},
		{"null", "etc: overlay", "etc: ~", []string{"x.yaml: line 27: etc: has no value; leave the key out to get its default"}},
		{"yes_for_true", "  tries: 3", "  recount: yes", []string{`x.yaml: line 9: boot.recount: "yes" is neither true nor false`}},
		{"word_for_a_list", "unlock: [tpm2, recovery-key]", "unlock: tpm2", []string{"x.yaml: line 20: state.unlock: a list is needed; write it as [one, two]"}},
		{"list_for_a_word", "etc: overlay", "etc: [overlay]", []string{"x.yaml: line 27: etc: a single value is needed"}},
		{"word_for_a_section", "etc: overlay", "binds: none", []string{"x.yaml: line 27: binds: a mapping of keys to values is needed"}},
		{"duration_without_unit", "  tries: 3", "  commit_deadline: 600", []string{`x.yaml: line 9: boot.commit_deadline: cannot read "600" as a duration such as 10m`}},
		{"duration_0", "  tries: 3", "  commit_deadline: 0s", []string{"x.yaml: line 9: boot.commit_deadline: must be more than zero; leave the key out to get its default"}},
		{"anchor", "etc: overlay", "etc: &x overlay", []string{"x.yaml: line 27: etc: anchors and aliases are not accepted; write the value out"}},
		{"merge_key", "etc: overlay", "<<: {etc: overlay}", []string{"x.yaml: line 27: <<: unknown key; " +
			"known here: binds, boot, build, etc, layers, layers_allowed, modules, name, overlays, root, security_version, state, trust, version"}},
		{"second_document", "etc: overlay", "---\netc: overlay", []string{"x.yaml: line 27: text behind the end of the first document"}},
		{"not_yaml", "etc: overlay", "etc: [", []string{"x.yaml: not YAML: near line 26: did not find expected ',' or ']'"}},
		{"ostree", "source: verity", "source: ostree", []string{"x.yaml: line 12: root.source: ostree is not supported by this version; supported: verity, usr-verity"}},
		{"entry_of_a_list", "[virtio, nvme, usb, ahci]", "\n  - virtio\n  - floppy",
			[]string{`x.yaml: line 32: modules.sets[1]: "floppy" is unknown; choose virtio, nvme, usb, ahci, tpm or watchdog`}},
		{"missing_key_points_at_its_section", "  create: first-boot\n", "",
			[]string{"x.yaml: line 18: state.create: missing; choose first-boot, never or none"}},
		{"several_at_once", "loader: uki\n  store: gpt", "loader: grub\n  store: bls", []string{
			"x.yaml: line 8: boot.store: bls does not go with boot.loader grub: it is the names of the files that systemd-boot counts in; use gpt, or boot.loader: systemd-boot",
			"x.yaml: line 22: state.tpm2.policy: signed-pcr11+7 needs a UKI: GRUB measures nothing into PCR 11; use boot.loader: uki, or policy pcrs",
			"x.yaml: line 21: state.tpm2.tpm_without_measured_boot: missing: with boot.loader grub nobody measures the initramfs that the TPM gives the key to: " +
				"who can write to the disk can read the state; use a UKI with a signed policy, with grub set state.tpm2.pin, unlock by recovery-key or passphrase, or accept it: accept-theft-by-disk-edit",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			good := read(t, "uki.yaml")
			if strings.Count(good, test.old) != 1 {
				t.Fatalf("%q stands %d times in uki.yaml; want once", test.old, strings.Count(good, test.old))
			}
			c, err := Parse("x.yaml", []byte(strings.Replace(good, test.old, test.new, 1)))
			if c != nil || !errors.Is(err, config.ErrInvalid) {
				t.Fatalf("Parse = %v, %v; want %v", c, err, config.ErrInvalid)
			}
			if got, want := err.Error(), strings.Join(test.want, "\n"); got != want {
				t.Errorf("Parse =\n%s\nwant\n%s", got, want)
			}
		})
	}
	for name, text := range map[string]string{
		"empty": "", "only_a_comment": "# nothing\n", "list": "[a]", "word": "a", "too_long": strings.Repeat("#", maxSize+1), "nul": "a: \x00",
	} {
		t.Run(name, func(t *testing.T) {
			if c, err := Parse("x.yaml", []byte(text)); c != nil || !errors.Is(err, config.ErrInvalid) {
				t.Errorf("Parse = %v, %v; want %v", c, err, config.ErrInvalid)
			}
		})
	}
}

// A layer for development builds is in no other, and lines are those of the file.
func TestLayerOfDevelopment(t *testing.T) {
	const layers = "etc: overlay\nlayers:\n  - {name: debug, image: debug.raw, build: development}\n  - {name: tools, image: tools.raw}\n"
	for _, tt := range []struct{ build, layers, want, refused string }{
		{"production", layers, "tools", ""},
		{"development", layers, "debug tools", ""},
		{"production", strings.Replace(layers, "tools,", "To ols,", 1), "", `layers[1].name: "To ols" is not a name of a layer`},
		{"development", strings.Replace(layers, "build: development", "build: production", 1), "", `layers[0].build: "production" is unknown`},
	} {
		text := strings.NewReplacer("build: production", "build: "+tt.build, "etc: overlay\n", tt.layers).Replace(read(t, "uki.yaml"))
		c, err := Parse("x.yaml", []byte(text))
		if tt.refused != "" {
			line := 1 + strings.Count(text[:strings.Index(text, "  - {name: debug")], "\n") + strings.Count(tt.refused[:len("layers[1]")], "1")
			if want := fmt.Sprintf("x.yaml: line %d: %s", line, tt.refused); err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%s: %v, want %s", tt.build, err, want)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", tt.build, err)
		}
		var names []string
		for _, l := range c.Layers {
			names = append(names, l.Name)
		}
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("a %s build has layers %q, want %q", tt.build, got, tt.want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"loader", "loader", 0},
		{"laoder", "loader", 2}, {"tires", "tries", 2}, {"trys", "tries", 2}, {"unlok", "unlock", 1}, {"kitten", "sitting", 3},
	} {
		if got := distance(test.a, test.b); got != test.want {
			t.Errorf("distance(%q, %q) = %d; want %d", test.a, test.b, got, test.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(read(f, "uki.yaml")))
	f.Add([]byte(read(f, "bios.yaml")))
	f.Add([]byte("? [a]\n: b\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse("x", text)
		if (err == nil) != (c != nil) {
			t.Fatalf("Parse = %v, %v", c, err)
		}
		if err != nil && err.Error() == "" {
			t.Fatal("an error without text")
		}
	})
}
