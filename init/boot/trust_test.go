package boot

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/slots"
	"sealroot/verity/signature"
	"sealroot/verity/signature/sign"
	"sealroot/verity/signature/signaturetest"
)

// newSigner is a key with a certificate that expired long ago.
func newSigner(t *testing.T, serial int64) signaturetest.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signaturetest.Of(t, key, serial, time.Unix(1e9, 0))
}

// signed is the content of a signature partition over hash.
func signed(t *testing.T, s signaturetest.Signer, hash []byte) []byte {
	t.Helper()
	text, err := sign.RootHash(hash, s.Cert, s.Key)
	if err != nil {
		t.Fatal(err)
	}
	return append(text, make([]byte, 100)...)
}

// putCertificate adds the certificate of a role to an initramfs in dir.
func putCertificate(t *testing.T, dir string, role config.Role, s signaturetest.Signer) {
	t.Helper()
	path := filepath.Join(dir, string(role), s.Cert.SerialNumber.String()+".crt")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, s.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Who vouches for a root, and who does not. Each refusal has its control: the
// same partition is accepted once its certificate has the right role.
func TestTrustedHash(t *testing.T) {
	image, second, layer, dev, stranger := newSigner(t, 1), newSigner(t, 2), newSigner(t, 3), newSigner(t, 4), newSigner(t, 0x5a5a)
	usr := newSigner(t, 5)
	dir := t.TempDir()
	putCertificate(t, dir, config.RoleRoot, image)
	putCertificate(t, dir, config.RoleRoot, second)
	putCertificate(t, dir, config.RoleLayer, layer)
	putCertificate(t, dir, config.RoleDev, dev)
	putCertificate(t, dir, config.RoleUsr, usr)
	hash, other := bytes.Repeat([]byte{0xa1}, 32), bytes.Repeat([]byte{0xb2}, 32)
	text := func(h []byte) string { return hex.EncodeToString(h) }
	production := config.Config{Build: config.Production, Trust: config.Trust{Root: []string{"image.crt"}, Layer: []string{"l.crt"}, Dev: []string{"d.crt"}}}
	development := production
	development.Build = config.Development
	ofUsr := production
	ofUsr.Root.Source, ofUsr.Trust.Usr = config.SourceUsrVerity, []string{"u.crt"}
	production.Trust.Usr = ofUsr.Trust.Usr
	pinned := production
	pinned.Root.Hash = text(hash)
	forged := bytes.Replace(signed(t, image, other), []byte(text(other)), []byte(text(hash)), 1)

	for _, tc := range []struct {
		name      string
		cfg       config.Config
		onLine    string // root hash of a vouched command line
		partition []byte
		source    string
		err       error
		says      string // in the error
	}{
		{"signed", production, "", signed(t, image, hash), sourceSignature, nil, ""},
		{"signed_with_second_certificate", production, "", signed(t, second, hash), sourceSignature, nil, ""},
		{"signed_by_stranger", production, "", signed(t, stranger, hash), "", signature.ErrUnknownSigner, "serial 5a5a"},
		{"layer_certificate", production, "", signed(t, layer, hash), "", signature.ErrUnknownSigner, `role "layer"`},
		{"layer_certificate_in_development", development, "", signed(t, layer, hash), "", signature.ErrUnknownSigner, `role "layer"`},
		{"development_image_in_production", production, "", signed(t, dev, hash), "", signature.ErrUnknownSigner, `role "dev"`},
		{"development_image_in_development", development, "", signed(t, dev, hash), sourceSignature, nil, ""},
		{"production_image_in_development", development, "", signed(t, image, hash), sourceSignature, nil, ""},
		{"usr_certificate_on_a_root", production, "", signed(t, usr, hash), "", signature.ErrUnknownSigner, `role "usr", which vouches for no root here`},
		{"usr", ofUsr, "", signed(t, usr, hash), sourceSignature, nil, ""},
		{"root_certificate_on_a_usr", ofUsr, "", signed(t, image, hash), "", signature.ErrUnknownSigner, `role "root", which vouches for no usr here`},
		{"stranger_on_a_usr", ofUsr, "", signed(t, stranger, hash), "", signature.ErrUnknownSigner, "serial 5a5a"},
		{"usr_on_the_vouched_line", ofUsr, text(hash), make([]byte, 4096), sourceCommandLine, nil, ""},
		{"signature_of_another_root", production, "", forged, "", signature.ErrBadSignature, ""},
		{"unsigned", production, "", make([]byte, 4096), "", signature.ErrFormat, "empty"},
		{"pinned", pinned, "", signed(t, image, hash), sourceConfiguration, nil, ""},
		{"pinned_unsigned", pinned, "", make([]byte, 4096), sourceConfiguration, nil, ""},
		{"pinned_and_signed_by_stranger", pinned, "", signed(t, stranger, hash), sourceConfiguration, nil, ""},
		// The configuration is not overruled by a good signature.
		{"on_the_vouched_line", production, text(hash), make([]byte, 4096), sourceCommandLine, nil, ""},
		{"on_the_vouched_line_and_another_root_well_signed", production, text(hash), signed(t, image, other), "", errOtherRoot, "b2b2"},
		{"configuration_before_the_vouched_line", pinned, text(other), signed(t, image, hash), sourceConfiguration, nil, ""},
		{"pinned_and_another_root_well_signed", pinned, "", signed(t, image, other), "", errOtherRoot, "b2b2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := trustedHash(&tc.cfg, tc.onLine, tc.partition, dir)
			if !errors.Is(err, tc.err) || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Fatalf("trustedHash = %v, want %v that says %q", err, tc.err, tc.says)
			}
			if tc.err != nil {
				if got.hash != nil {
					t.Errorf("a hash %x comes with the error", got.hash)
				}
				return
			}
			if !bytes.Equal(got.hash, hash) || got.source != tc.source {
				t.Errorf("got %x by %s, want %x by %s", got.hash, got.source, hash, tc.source)
			}
			if names := !bytes.Equal(tc.partition, make([]byte, 4096)); got.confirmed != names {
				t.Errorf("confirmed by the signature partition: %t, want %t", got.confirmed, names)
			}
		})
	}

	asUsr := t.TempDir()
	putCertificate(t, asUsr, config.RoleUsr, image)
	if got, err := trustedHash(&ofUsr, "", signed(t, image, hash), asUsr); err != nil || !bytes.Equal(got.hash, hash) {
		t.Errorf("control: the certificate for roots in the role for /usr: %v, want its /usr accepted", err)
	}
	for role, s := range map[string]signaturetest.Signer{"stranger": stranger, "layer": layer, "development": dev, "usr": usr} {
		control := t.TempDir()
		putCertificate(t, control, config.RoleRoot, s)
		cfg := production
		if got, err := trustedHash(&cfg, "", signed(t, s, hash), control); err != nil || !bytes.Equal(got.hash, hash) {
			t.Errorf("control: %s as a certificate for roots: %v, want its root accepted", role, err)
		}
	}
}

// An initramfs that does not know the signer of another slot's root may be older
// than the key: that slot's own one is asked before the image is blamed.
func TestUnknownSignerUnderAnotherSlotsKernel(t *testing.T) {
	for _, tc := range []struct {
		name    string
		loaded  string
		foreign bool
		err     error
		want    slots.Class
	}{
		{"own_kernel", "b", false, signature.ErrUnknownSigner, slots.ImageFailure},
		{"nobody_says_whose_kernel", "", false, signature.ErrUnknownSigner, slots.ImageFailure},
		{"kernel_of_a", "a", true, signature.ErrUnknownSigner, slots.EnvironmentFailure},
		{"kernel_of_a_tied_to_its_root", "a", true, errOtherRoot, slots.EnvironmentFailure},
		{"tied_to_another_root_than_its_own", "b", false, errOtherRoot, slots.ImageFailure},
		{"kernel_of_a_and_forged", "a", true, signature.ErrBadSignature, slots.ImageFailure},
		{"kernel_of_a_and_unsigned", "a", true, signature.ErrFormat, slots.ImageFailure},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := &boot{report: &report.Report{}}
			b.slots.observed.Loaded = tc.loaded
			class, reason := classOf(b.notVouched(t.Context(), "b", tc.foreign, tc.err))
			if class != tc.want || (class == slots.EnvironmentFailure) != (reason == slots.WrongKernel) {
				t.Errorf("class %s, reason %s; want class %s", class, reason, tc.want)
			}
		})
	}
}

// The command line is the builder's own only when it is that of this image, byte
// for byte, and the boot path or the policy tells when it is not.
func TestLineVouched(t *testing.T) {
	const line = "ro gpt panic=10 init=/usr/bin/other"
	signed7, signed4 := config.TPM2{Policy: config.PolicySignedPCR11And7}, config.TPM2{Policy: config.PolicySignedPCR11And4}
	for _, tc := range []struct {
		name, line string
		embedded   string
		tpm        config.TPM2
		path       bootPath
		ok         bool
	}{
		{"secure_boot", line, line, signed7, pathUKISecureBoot, true},
		{"with_the_kernels_newline", line + "\n", line, signed7, pathUKISecureBoot, true},
		{"policy_with_pcr_12", line, line, signed4, pathUKI, true},
		{"pcr_12_by_name", line, line, config.TPM2{Policy: config.PolicyPCRs, PCRs: []int{4, 12}}, pathUKI, true},
		{"secure_boot_off", line, line, signed7, pathUKI, false},
		{"one_more_word", line + " x", line, signed7, pathUKISecureBoot, false},
		{"one_more_space", line + " ", line, signed7, pathUKISecureBoot, false},
		{"one_byte", strings.ToUpper(line), line, signed7, pathUKISecureBoot, false},
		{"nothing_embedded", "", "", signed7, pathUKISecureBoot, false},
		{"no_uki", line, line, signed4, pathUnmeasured, false},
		{"grub", line, line, signed4, pathGRUBEFI, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := &config.Config{State: config.State{TPM2: tc.tpm}, Kernel: &config.Kernel{Cmdline: tc.embedded}}
			if err := lineVouched(cfg, tc.line, tc.path); (err == nil) != tc.ok || err != nil && !errors.Is(err, errForeignLine) {
				t.Errorf("lineVouched = %v, want ok %v", err, tc.ok)
			}
		})
	}
	if err := lineVouched(&config.Config{}, "", pathUKISecureBoot); !errors.Is(err, errForeignLine) {
		t.Errorf("without a kernel in the configuration: %v", err)
	}
}

// A line that is not the builder's changes neither root nor init, and is told.
func TestHonourCommandLine(t *testing.T) {
	const line = "ro init=/usr/bin/other"
	for _, tc := range []struct{ name, cmdline, line, init string }{
		{"measured", config.CmdlineMeasured, line, "/usr/bin/other"},
		{"measured_and_foreign", config.CmdlineMeasured, line + " x", defaultInit},
		{"ignored", "ignore", line, defaultInit},
	} {
		b := &boot{report: &report.Report{}, sys: &System{Log: NewLog(&bytes.Buffer{})}, cmdText: tc.line,
			fw: firmware{EFI: true, Stub: true, SecureBoot: true},
			cfg: &config.Config{Boot: config.Boot{Loader: config.LoaderUKI},
				Trust: config.Trust{Cmdline: tc.cmdline}, Kernel: &config.Kernel{Cmdline: line}}}
		b.honourCommandLine()
		if got := b.initPath(); got != tc.init {
			t.Errorf("%s: init %s, want %s", tc.name, got, tc.init)
		}
		if told := strings.Contains(strings.Join(b.report.Warnings, "\n"), "not honoured"); told != (tc.name == "measured_and_foreign") {
			t.Errorf("%s: warnings %q", tc.name, b.report.Warnings)
		}
	}
}
