package config

import (
	"slices"
	"testing"
)

func TestSealedUnder(t *testing.T) {
	for _, tt := range []struct {
		name  string
		state State
		want  string
	}{
		{"not_sealed", State{Unlock: []string{UnlockPassphrase}}, "nothing"},
		{"signed", State{Unlock: []string{UnlockTPM2}, TPM2: TPM2{Policy: PolicySignedPCR11And7}}, "signed-pcr11+7 ab"},
		{"fixed", State{Unlock: []string{UnlockTPM2}, TPM2: TPM2{Policy: PolicyPCRs, PCRs: []int{9, 8}}}, "pcrs 8 9"},
		{"signed_with_a_pin", State{Unlock: []string{UnlockTPM2}, TPM2: TPM2{Policy: PolicySignedPCR11And7, PIN: true}}, "signed-pcr11+7 ab pin"},
		{"fixed_with_a_pin", State{Unlock: []string{UnlockTPM2}, TPM2: TPM2{Policy: PolicyPCRs, PCRs: []int{7}, PIN: true}}, "pcrs 7 pin"},
		{"none_named", State{Unlock: []string{UnlockTPM2}, TPM2: TPM2{Policy: PolicyPCRs}}, "pcrs"},
	} {
		if got := tt.state.SealedUnder("ab"); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestSignedWords(t *testing.T) {
	two := State{Unlock: []string{UnlockTPM2}, TPM2: TPM2{Policy: PolicySignedPCR11And7, PIN: true}}
	for _, tt := range []struct {
		line, policy string
		keys         []string
		pin          bool
	}{
		{two.SealedUnder("ab", "cd"), PolicySignedPCR11And7, []string{"ab", "cd"}, true},
		{"signed-pcr11+4 ab", PolicySignedPCR11And4, []string{"ab"}, false},
		{"signed-pcr11+7 pin", PolicySignedPCR11And7, []string{}, true},
		{"signed-pcr11+7", PolicySignedPCR11And7, []string{}, false},
		{"pcrs 7 pin", "", nil, false},
		{"nothing", "", nil, false},
		{" ", "", nil, false},
	} {
		if policy, keys, pin := SignedWords(tt.line); policy != tt.policy || !slices.Equal(keys, tt.keys) || pin != tt.pin {
			t.Errorf("%q: %q, %q, %v, want %+v", tt.line, policy, keys, pin, tt)
		}
	}
}

func TestPerImage(t *testing.T) {
	for _, tt := range []struct {
		loader     Loader
		pcrs, want []int
	}{
		{LoaderUKI, []int{7}, nil},
		{LoaderUKI, []int{4, 12}, []int{4}},
		{LoaderSystemdBoot, []int{7, 11, 13}, []int{11, 13}},
		{LoaderGRUB, []int{4, 7}, nil},
		{LoaderGRUB, []int{8, 9, 15}, []int{8, 9}},
	} {
		c := Config{Boot: Boot{Loader: tt.loader}, Trust: Trust{MeasurePCR: 13}}
		if got := c.PerImage(tt.pcrs); !slices.Equal(got, tt.want) {
			t.Errorf("%s, %v: %v, want %v", tt.loader, tt.pcrs, got, tt.want)
		}
	}
}
