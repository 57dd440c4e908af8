package main

import (
	"errors"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/volume"
	"sealroot/slots/manifest"
)

func TestNextOpens(t *testing.T) {
	sealed := func(policy string, pcrs ...int) config.Config {
		return config.Config{
			Boot: config.Boot{Loader: config.LoaderUKI}, Trust: config.Trust{MeasurePCR: 13},
			State: config.State{Unlock: []string{config.UnlockTPM2}, TPM2: config.TPM2{Policy: policy, PCRs: pcrs}},
		}
	}
	grub := func(c config.Config) config.Config {
		c.Boot.Loader = config.LoaderGRUB
		return c
	}
	token := func(next volume.Prospect, pcrs ...int) volume.Token {
		return volume.Token{ID: 0, PCRs: pcrs, NextBoot: next}
	}
	withPIN := sealed(config.PolicyPCRs, 7)
	withPIN.State.TPM2.PIN = true
	signed7 := sealed(config.PolicySignedPCR11And7)
	under := func(keys ...string) (list []volume.Token) {
		for i, key := range keys {
			list = append(list, volume.Token{ID: i, PCRs: []int{7}, NextBoot: volume.Yes, Key: key})
		}
		return list
	}
	signedPIN := sealed(config.PolicySignedPCR11And7)
	signedPIN.State.TPM2.PIN = true
	for _, c := range []struct {
		name   string
		cfg    config.Config
		set    string
		tokens []volume.Token
		why    string
		// records are previous keys that the TPM's records need.
		records []string
	}{
		{"signed", signed7, "signed-pcr11+7 aa", []volume.Token{token(volume.Yes, 7)}, "", nil},
		{"builder_did_not_tell", signed7, "", []volume.Token{token(volume.Yes, 7)}, "", nil},
		{"another_key", signed7, "signed-pcr11+7 bb", []volume.Token{token(volume.Yes, 7)}, "sealed under", nil},
		{"another_policy", signed7, "signed-pcr11+4 aa", []volume.Token{token(volume.Yes, 7)}, "sealed under", nil},
		{"not_by_the_tpm_any_more", signed7, "nothing", []volume.Token{token(volume.Yes, 7)}, "sealed under", nil},
		{"every_uki_changes_pcr_4", sealed(config.PolicySignedPCR11And4), "signed-pcr11+4 aa", []volume.Token{token(volume.Yes, 4, 12)}, "PCR [4]", nil},
		{"another_token_stays_good", sealed(config.PolicySignedPCR11And4), "signed-pcr11+4 aa", []volume.Token{token(volume.Yes, 4, 12), token(volume.Yes, 7)}, "", nil},
		{"fixed_pcr_11", sealed(config.PolicyPCRs, 7, 11), "pcrs 7 11", []volume.Token{token(volume.Yes, 7, 11, 15)}, "PCR [11]", nil},
		{"the_tpm_does_not_open_it_now_either", sealed(config.PolicySignedPCR11And4), "signed-pcr11+4 bb", []volume.Token{token(volume.No, 4, 12)}, "", nil},
		{"needs_its_pin", signed7, "signed-pcr11+7 bb", []volume.Token{token(volume.NeedsPerson, 7)}, "sealed under", nil},
		{"adopted_under_grub", grub(sealed(config.PolicyPCRs, 7)), "pcrs 7 14", []volume.Token{token(volume.Yes, 7, 15)}, "", nil},
		{"not_under_a_uki", sealed(config.PolicyPCRs, 7), "pcrs 7 14", []volume.Token{token(volume.Yes, 7, 15)}, "sealed under", nil},
		{"not_asked_any_more", grub(sealed(config.PolicyPCRs, 7)), "nothing", []volume.Token{token(volume.Yes, 7, 15)}, "sealed under", nil},
		{"pin_set", grub(sealed(config.PolicyPCRs, 7)), "pcrs 7 pin", []volume.Token{token(volume.Yes, 7, 15)}, "sealed under", nil},
		{"pin_taken_off", grub(withPIN), "pcrs 7 14", []volume.Token{token(volume.NeedsPerson, 7, 15)}, "sealed under", nil},
		{"pin_stays", grub(withPIN), "pcrs 7 pin", []volume.Token{token(volume.NeedsPerson, 7, 15)}, "", nil},
		{"adopted_with_a_pin", grub(withPIN), "pcrs 7 14 pin", []volume.Token{token(volume.NeedsPerson, 7, 15)}, "", nil},
		{"blank", grub(sealed(config.PolicyPCRs, 7)), " ", []volume.Token{token(volume.Yes, 7, 15)}, "sealed under", nil},
		{"nobody_knows", signed7, "signed-pcr11+7 bb", []volume.Token{token(volume.NotKnown, 7)}, "", nil},
		// The policy key is rolled over: "aa" is the present one of the image that runs.
		{"both_keys", signed7, "signed-pcr11+7 bb aa", under("aa"), "", nil},
		{"both_keys_and_a_pin", signedPIN, "signed-pcr11+7 bb aa pin", under("aa"), "", nil},
		{"both_keys_and_no_pin", signedPIN, "signed-pcr11+7 bb aa", under("aa"), "sealed under", nil},
		{"new_key_only", signed7, "signed-pcr11+7 bb", under("aa"), "sealed under", nil},
		{"token_under_the_previous_one", signed7, "signed-pcr11+7 aa", under("zz"), `"signed-pcr11+7 zz" (sealroot state status`, []string{"zz"}},
		{"two_keys_of_which_one_is_needed", signed7, "signed-pcr11+7 bb zz", under("zz"), "", []string{"zz"}},
		{"enrolled_and_not_restarted", signed7, "signed-pcr11+7 aa", under("aa"), `"signed-pcr11+7 zz aa"`, []string{"zz"}},
		{"enrolled_and_restarted", signed7, "signed-pcr11+7 aa", under("aa"), "", nil},
		{"a_token_under_each", signed7, "signed-pcr11+7 aa", under("zz", "aa"), "", nil},
		{"back_to_the_image_of_before", signed7, "signed-pcr11+7 zz", under("aa"), "sealed under", nil},
	} {
		err := nextOpens(c.cfg, "aa", c.records, manifest.Manifest{Version: "2", Sealed: c.set}, c.tokens)
		if (err != nil) != (c.why != "") || err != nil && (!errors.Is(err, bootset.ErrRefused) || !strings.Contains(err.Error(), c.why)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.why)
		}
	}
}

// TestStateOpens: with the volume of a machine and its TPM.
func TestStateOpens(t *testing.T) {
	s := newSealed(t)
	s.config.Boot.Loader, s.config.Trust.MeasurePCR = config.LoaderGRUB, 13
	s.status() // writes report and configuration
	c := &command{env: s.env, stdout: &strings.Builder{}}
	m := manifest.Manifest{Version: "2", RootHash: make([]byte, 32), Sealed: "pcrs 7"}
	if err := c.stateOpens(t.Context(), *s.report, m); err != nil {
		t.Errorf("PCR 7 stays: %v", err)
	}
	m.Sealed = "nothing"
	if err := c.stateOpens(t.Context(), *s.report, m); !errors.Is(err, bootset.ErrRefused) {
		t.Errorf("another policy: %v", err)
	}
	r := *s.report
	r.State.UUID = ""
	if err := c.stateOpens(t.Context(), r, m); err != nil {
		t.Errorf("without a volume: %v", err)
	}
}

// Only where a person can let the trial of a refused image in, install says so.
func TestLockedState(t *testing.T) {
	for _, tt := range []struct {
		name   string
		policy string
		steps  []string
		why    error
		says   bool
	}{
		{"another_uki", config.PolicySignedPCR11And4, []string{"prompt", "degraded"}, errPerImage, true},
		{"nobody_is_asked", config.PolicySignedPCR11And4, []string{"degraded"}, errPerImage, false},
		{"refused_for_something_else", config.PolicySignedPCR11And4, []string{"prompt"}, bootset.ErrRefused, false},
		{"a_token_that_somebody_else_bound_to_pcr_4", config.PolicySignedPCR11And7, []string{"prompt"}, errPerImage, false},
	} {
		s := newSealed(t)
		s.config.Boot.Loader, s.config.State.TPM2, s.config.State.OnFailure = config.LoaderUKI, config.TPM2{Policy: tt.policy}, tt.steps
		s.status() // writes report and configuration
		c := &command{env: s.env, stdout: &strings.Builder{}}
		if got := c.lockedState("; ", tt.why); strings.Contains(got, "recovery key") != tt.says || (got == "") == tt.says {
			t.Errorf("%s: %q, want that it tells of the trial: %v", tt.name, got, tt.says)
		}
	}
}
