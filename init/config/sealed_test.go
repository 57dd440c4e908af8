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

func TestParseSealed(t *testing.T) {
	two := State{Unlock: []string{UnlockTPM2}, TPM2: TPM2{Policy: PolicySignedPCR11And7, PIN: true}}
	for _, tt := range []struct {
		line string
		want Sealed
		keys []string
	}{
		{two.SealedUnder("ab", "cd"), Sealed{PolicySignedPCR11And7, []string{"ab", "cd"}, true}, []string{"ab", "cd"}},
		{"signed-pcr11+4 ab", Sealed{PolicySignedPCR11And4, []string{"ab"}, false}, []string{"ab"}},
		{"signed-pcr11+7 pin", Sealed{PolicySignedPCR11And7, nil, true}, nil},
		{"signed-pcr11+7", Sealed{PolicySignedPCR11And7, nil, false}, nil},
		{"pcrs 7 14 pin", Sealed{PolicyPCRs, []string{"7", "14"}, true}, nil},
		{"pcrs pin", Sealed{PolicyPCRs, nil, true}, nil},
		{SealedNothing, Sealed{Policy: SealedNothing}, nil},
		{"", Sealed{}, nil},
	} {
		got := ParseSealed(tt.line)
		if got.Policy != tt.want.Policy || !slices.Equal(got.Rest, tt.want.Rest) || got.PIN != tt.want.PIN || !slices.Equal(got.Keys(), tt.keys) {
			t.Errorf("%q: %+v with keys %q, want %+v with %q", tt.line, got, got.Keys(), tt.want, tt.keys)
		}
		if got.String() != tt.line {
			t.Errorf("%q becomes %q", tt.line, got)
		}
	}
	if got := ParseSealed(" "); got.Policy != "" || got.Rest != nil || got.PIN {
		t.Errorf("of a blank line: %+v", got)
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
