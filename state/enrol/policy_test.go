package enrol

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/state/tpm/pcrsig"
)

func TestPolicyThatTheBootPathDoesNotBackIsRefused(t *testing.T) {
	exception := config.AcceptTheft
	for _, tt := range []struct {
		name, policy, exception string
		path                    Path
		pcrs                    []int
		ok                      bool
	}{
		{"signed_7_with_secure_boot", "signed-pcr11+7", "", UKISecureBoot, nil, true},
		{"signed_7_without_secure_boot", "signed-pcr11+7", "", UKI, nil, false},
		{"signed_4_without_secure_boot", "signed-pcr11+4", "", UKI, nil, true},
		{"signed_4_under_grub", "signed-pcr11+4", "", GRUBEFI, nil, false},
		{"pcrs_8_and_9_under_efi_grub", "pcrs", "", GRUBEFI, []int{8, 9}, true},
		{"other_pcrs_under_efi_grub", "pcrs", "", GRUBEFI, []int{7}, false},
		{"pcr_7_with_secure_boot", "pcrs", "", UKISecureBoot, []int{7}, true},
		{"pcr_7_without_secure_boot", "pcrs", "", UKI, []int{7}, false},
		{"pcr_4_without_load_options", "pcrs", "", UKI, []int{4}, false},
		{"pcr_4_and_7_without_secure_boot", "pcrs", "", UKI, []int{4, 7}, false},
		{"pcr_4_until_secure_boot_is_switched_off", "pcrs", "", UKISecureBoot, []int{4}, false},
		{"pcr_4_and_12", "pcrs", "", UKI, []int{4, 12}, true},
		{"pcr_4_with_the_named_exception", "pcrs", exception, UKI, []int{4}, true},
		{"pcrs_under_bios", "pcrs", "", Unmeasured, []int{8, 9}, false},
		{"pcrs_under_bios_with_the_named_exception", "pcrs", exception, Unmeasured, nil, true},
		{"pcrs_under_bios_with_a_pin", "pcrs", "pin", Unmeasured, nil, true},
		{"pcrs_8_under_efi_grub_with_a_pin", "pcrs", "pin", GRUBEFI, []int{8}, true},
		// Seals to what any unsigned kernel gets then, whose initramfs asks for the PIN.
		{"pcr_7_with_a_pin_and_secure_boot_switched_off", "pcrs", "pin uki", UKI, []int{7}, false},
		{"pcr_7_with_a_pin_and_no_variable_of_the_stub", "pcrs", "pin uki", Unmeasured, []int{7}, false},
		{"pcr_7_with_a_pin_and_secure_boot", "pcrs", "pin uki", UKISecureBoot, []int{7}, true},
		{"pcr_4_and_12_with_a_pin", "pcrs", "pin uki", UKI, []int{4, 12}, true},
		{"grub_and_a_variable_of_the_stub_with_a_pin", "pcrs", "pin", UKI, []int{8}, false},
		{"signed_7_without_secure_boot_with_a_pin", "signed-pcr11+7", "pin", UKI, nil, false},
		{"pcrs_under_bios_with_another_word", "pcrs", "yes", Unmeasured, nil, false},
		{"kexec_with_the_named_exception", "pcrs", exception, Kexec, nil, false},
		{"kexec_with_a_pin", "pcrs", "pin", Kexec, nil, false},
		{"kexec_of_a_uki", "signed-pcr11+7", "", Kexec, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, loader := config.TPM2{Policy: tt.policy, PCRs: tt.pcrs, WithoutMeasuredBoot: tt.exception}, config.LoaderGRUB
			c.PIN = strings.HasPrefix(tt.exception, "pin")
			if strings.HasSuffix(tt.exception, "uki") {
				loader = config.LoaderUKI
			}
			err := Backed(loader, c, tt.path)
			if (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrNotBacked) {
				t.Errorf("Backed() = %v, want ok %v", err, tt.ok)
			}
		})
	}
}

// Whatever the configuration says, the policy holds a PCR that init extends.
func TestEveryPolicyIsCapped(t *testing.T) {
	for _, c := range []config.TPM2{
		{Policy: "signed-pcr11+7"}, {Policy: "signed-pcr11+4"}, {Policy: "pcrs"},
		{Policy: "pcrs", PCRs: []int{8, 9}}, {Policy: "pcrs", PCRs: []int{15}},
	} {
		p, err := Policy(c, []byte("key"))
		if err != nil || !p.Capped() {
			t.Errorf("Policy(%+v) = %+v, %v; want a capped policy", c, p, err)
		}
	}
	// Without Secure Boot, load options stand in for the command line of a UKI,
	// and PCR 4 and 11 stay as they were.
	if p, err := Policy(config.TPM2{Policy: "signed-pcr11+4"}, []byte("key")); err != nil || !slices.Equal(p.PCRs, []int{4, 12}) {
		t.Errorf("Policy(signed-pcr11+4) = %+v, %v; want PCRs 4 and 12", p, err)
	}
	if p, err := Policy(config.TPM2{Policy: "signed-pcr11"}, nil); err == nil {
		t.Errorf("Policy(signed-pcr11) = %+v, want an error: PCR 11 alone can be replayed", p)
	}
	p, _ := Policy(config.TPM2{Policy: "pcrs"}, nil)
	if v, ok := p.Values[pcrsig.PCRVolume]; !slices.Equal(p.PCRs, []int{pcrsig.PCRVolume}) || !ok || v != nil {
		t.Errorf("empty list of PCRs gives %+v, want PCR 15 at zero", p)
	}
}
