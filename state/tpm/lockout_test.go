package tpm_test

import (
	"strings"
	"testing"

	"sealroot/state/tpm"
)

// What is left is the TPM's limit less what its own tool says it counts.
func TestTriesLeft(t *testing.T) {
	m, chip := machine(t)
	m.MustRun("", "tpm2_dictionarylockout", "-s", "-n", "5", "-t", "1000", "-l", "1000")
	secret := newSecret(t)
	token := seal(t, chip, tpm.Policy{PCRs: []int{7}, PIN: true}, secret, []byte("1234"))
	for _, tt := range []struct {
		left int
		says string
	}{{5, "TPM2_PT_LOCKOUT_COUNTER: 0x0\n"}, {4, "TPM2_PT_LOCKOUT_COUNTER: 0x1\n"}, {3, "TPM2_PT_LOCKOUT_COUNTER: 0x2\n"}} {
		left, err := chip.TriesLeft(t.Context())
		if got := m.MustRun("", "tpm2_getcap", "properties-variable"); err != nil || left != tt.left || !strings.Contains(got, tt.says) {
			t.Errorf("TriesLeft() = %d, %v, want %d and %q in %s", left, err, tt.left, tt.says, got)
		}
		unseal(t, chip, token, nil, []byte("wrong"), secret, tpm.ErrPIN)
	}
}
