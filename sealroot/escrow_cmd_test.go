package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sealroot/init/report"
	"sealroot/state"
	"sealroot/state/escrow"
	"sealroot/verity/signature"
	"sealroot/verity/signature/signaturetest"
)

func TestStateEscrow(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	crt := signaturetest.Of(t, key, 7, time.Now().Add(time.Hour)).PEM()
	certs, err := signature.ParseCertificates(crt)
	if err != nil {
		t.Fatal(err)
	}
	to, err := escrow.NewRecipient(certs[0].Issuer, certs[0].Serial, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	message, err := escrow.Seal(rand.Reader, []byte("the key"), []escrow.Recipient{to})
	if err != nil {
		t.Fatal(err)
	}
	put := func(t *testing.T, path string, content []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	booted := running(func(r *report.Report) { r.State.UUID = "6b5d1e3c-4a55-4f0e-9d7c-2f8f1d0a9b11" })
	for _, tt := range []struct {
		name      string
		message   []byte // nil: no file
		crt       []byte // nil: none in this image
		link      bool
		terminal  bool
		args      string
		code      int
		out, errs string
	}{
		{"as_text", message, crt, false, true, "state escrow", exitOK, "Volume: 6b5d1e3c", ""},
		{"whose", message, crt, false, true, "state escrow", exitOK, `Recipient: "CN=`, ""},
		{"der", message, crt, false, false, "state escrow --der", exitOK, string(message), ""},
		{"der_on_a_terminal", message, crt, false, true, "state escrow --der", exitUsage, "", "is a terminal"},
		{"another_certificate", message, signaturetest.Of(t, key, 8, time.Now().Add(time.Hour)).PEM(), false, true, "state escrow", exitOK, "Recipients not known here: 1", "somebody exchanged it"},
		{"no_certificate", message, nil, false, true, "state escrow", exitOK, "-----BEGIN CMS-----", "cannot tell whom"},
		{"none", nil, crt, false, true, "state escrow", exitRefused, "", "no escrowed recovery key"},
		{"not_a_message", []byte("words"), crt, false, true, "state escrow", exitFailed, "", "malformed"},
		{"too_long", make([]byte, escrow.MaxMessage+1), crt, false, true, "state escrow", exitFailed, "", "kind or size"},
		{"symlink", message, crt, true, true, "state escrow", exitFailed, "", "symbolic link"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := world{report: booted, terminal: tt.terminal, before: func(env Env) {
				path := filepath.Join(env.State, state.EscrowName)
				if tt.message != nil && !tt.link {
					put(t, path, tt.message)
				}
				if tt.link {
					put(t, path+".real", tt.message)
					if err := os.Symlink(path+".real", path); err != nil {
						t.Fatal(err)
					}
				}
				if tt.crt != nil {
					put(t, filepath.Join(env.Escrow, "escrow.crt"), tt.crt)
				}
			}}
			code, stdout, stderr, _ := w.run(t, strings.Fields(tt.args)...)
			if code != tt.code || !strings.Contains(stdout, tt.out) || !strings.Contains(stderr, tt.errs) {
				t.Errorf("exit %d, stdout %q, stderr %q; want %d, %q, %q", code, stdout, stderr, tt.code, tt.out, tt.errs)
			}
			if tt.code != exitOK || tt.name == "der" {
				return
			}
			// What stands before the message is no hindrance to openssl.
			cmd := exec.Command("openssl", "cms", "-cmsout", "-inform", "PEM", "-outform", "DER")
			cmd.Stdin = strings.NewReader(stdout)
			if out, err := cmd.Output(); err != nil || !bytes.Equal(out, message) {
				t.Errorf("openssl reads %d bytes, %v; want the message of %d", len(out), err, len(message))
			}
		})
	}
}
