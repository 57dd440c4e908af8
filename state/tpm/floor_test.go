package tpm_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/tpmtest"
)

const (
	floorIndex = "0x1c05ea2"
	// volume is the identity of the volume that the floors of these tests are for.
	volume = "0123456789abcdef0123456789abcdef"
)

func floorOf(value int) tpm.Floor { return tpm.Floor{Value: value, Volume: [32]byte([]byte(volume))} }

// floorMachine is a machine in its initramfs, with the policy and the signatures
// of its image.
func floorMachine(t *testing.T) (*tpmtest.Machine, *tpm.TPM, tpm.Policy, pcrsig.File) {
	t.Helper()
	m, chip := machine(t)
	key, pem := newKey(t)
	return m, chip, tpm.Policy{SignedPCRs: []int{11}, PublicKey: pem, PCRs: []int{7}}, sign(t, key)
}

func wantFloor(t *testing.T, chip *tpm.TPM, policy tpm.Policy, want int, wantErr error) {
	t.Helper()
	f := floorOf(want)
	if wantErr != nil {
		f = tpm.Floor{}
	}
	if got, err := chip.ReadFloor(t.Context(), policy); got != f || !errors.Is(err, wantErr) || wantErr == nil && err != nil {
		t.Errorf("ReadFloor = %+v, %v, want %+v, %v", got, err, f, wantErr)
	}
}

func TestFloorRises(t *testing.T) {
	m, chip, policy, sigs := floorMachine(t)
	wantFloor(t, chip, policy, 0, tpm.ErrUnpinned)
	for _, step := range []struct{ raise, want int }{{0, 0}, {2, 2}, {1, 2}, {7, 7}} {
		if err := chip.RaiseFloor(t.Context(), policy, sigs, floorOf(step.raise)); err != nil {
			t.Fatalf("RaiseFloor(%d): %v", step.raise, err)
		}
		wantFloor(t, chip, policy, step.want, nil)
	}
	// Other people's tools read it, without a password.
	dir := t.TempDir()
	m.MustRun(dir, "tpm2_nvread", floorIndex, "-C", floorIndex, "-o", "floor")
	if got, err := os.ReadFile(filepath.Join(dir, "floor")); err != nil || string(got) != "srf2\x00\x00\x00\x07"+volume {
		t.Errorf("tpm2_nvread says %q, %v", got, err)
	}
	// For another volume it is written anew, and not lowered either.
	other := tpm.Floor{Value: 2, Volume: [32]byte{1}}
	if err := chip.RaiseFloor(t.Context(), policy, sigs, other); err != nil {
		t.Fatal(err)
	}
	other.Value = 7
	if got, err := chip.ReadFloor(t.Context(), policy); got != other || err != nil {
		t.Errorf("ReadFloor = %+v, %v, want %+v", got, err, other)
	}
	if err := chip.RaiseFloor(t.Context(), policy, sigs, floorOf(0)); err != nil {
		t.Fatal(err)
	}
	m.Reset()
	boot(t, chip)
	wantFloor(t, chip, policy, 7, nil)
	// Once the machine is handed over nobody writes it, the floor can still be read.
	if _, err := chip.Cap(t.Context(), nil, 11, 15); err != nil {
		t.Fatal(err)
	}
	if err := chip.RaiseFloor(t.Context(), policy, sigs, floorOf(8)); !errors.Is(err, tpm.ErrPCRsChanged) {
		t.Errorf("RaiseFloor after the cap: %v, want ErrPCRsChanged", err)
	}
	wantFloor(t, chip, policy, 7, nil)
}

// The same under literal PCRs, among them the one that is at zero until the cap.
func TestFloorUnderLiteralPCRs(t *testing.T) {
	_, chip := machine(t)
	policy := tpm.Policy{PCRs: []int{15}, Values: tpm.Values{15: nil}}
	if err := chip.RaiseFloor(t.Context(), policy, nil, floorOf(3)); err != nil {
		t.Fatal(err)
	}
	if _, err := chip.Cap(t.Context(), nil, 11, 15); err != nil {
		t.Fatal(err)
	}
	wantFloor(t, chip, policy, 3, nil)
	if err := chip.RaiseFloor(t.Context(), policy, nil, floorOf(4)); !errors.Is(err, tpm.ErrPCRsChanged) {
		t.Errorf("RaiseFloor after the cap: %v, want ErrPCRsChanged", err)
	}
}

// Whoever acts as owner can take the floor away, but not put another in its
// place: what is not written under the policy is not believed.
func TestForgedFloorIsNotBelieved(t *testing.T) {
	for _, tt := range []struct {
		name  string
		forge func(m *tpmtest.Machine, dir string)
		want  error
	}{
		{"control", func(*tpmtest.Machine, string) {}, nil},
		{"written_as_owner", func(m *tpmtest.Machine, dir string) {
			if out, err := m.Run(dir, "tpm2_nvwrite", floorIndex, "-C", "o", "-i", "zero"); err == nil {
				t.Errorf("the owner may write: %s", out)
			}
		}, nil},
		{"undefined", func(*tpmtest.Machine, string) {}, tpm.ErrUnpinned},
		{"redefined_and_written", func(m *tpmtest.Machine, dir string) {
			m.MustRun(dir, "tpm2_nvdefine", floorIndex, "-C", "o", "-s", "40", "-g", "sha256", "-a", "ownerwrite|authwrite|authread|no_da")
			m.MustRun(dir, "tpm2_nvwrite", floorIndex, "-C", floorIndex, "-i", "zero")
		}, tpm.ErrUnpinned},
		{"redefined_under_the_same_policy", func(m *tpmtest.Machine, dir string) {
			m.MustRun(dir, "tpm2_nvdefine", floorIndex, "-C", "o", "-s", "40", "-g", "sha256", "-a", "policywrite|authread|no_da", "-L", "policy")
		}, tpm.ErrUnpinned},
		{"redefined_under_the_same_policy_with_a_password", func(m *tpmtest.Machine, dir string) {
			m.MustRun(dir, "tpm2_nvdefine", floorIndex, "-C", "o", "-s", "40", "-g", "sha256", "-a", "policywrite|authread|no_da", "-L", "policy", "-p", "theirs")
		}, tpm.ErrUnpinned},
		{"the_same_policy_and_another_writer", func(m *tpmtest.Machine, dir string) {
			m.MustRun(dir, "tpm2_nvdefine", floorIndex, "-C", "o", "-s", "40", "-g", "sha256", "-a", "policywrite|authwrite|authread|no_da", "-L", "policy")
			m.MustRun(dir, "tpm2_nvwrite", floorIndex, "-C", floorIndex, "-i", "zero")
		}, tpm.ErrUnpinned},
		{"under_a_policy_of_their_own", func(m *tpmtest.Machine, dir string) {
			m.MustRun(dir, "tpm2_startauthsession", "-S", "s")
			m.MustRun(dir, "tpm2_policycommandcode", "-S", "s", "-L", "own", "TPM2_CC_NV_Write")
			m.MustRun(dir, "tpm2_flushcontext", "s")
			m.MustRun(dir, "tpm2_nvdefine", floorIndex, "-C", "o", "-s", "40", "-g", "sha256", "-a", "policywrite|authread|no_da", "-L", "own")
			m.MustRun(dir, "tpm2_startauthsession", "-S", "s", "--policy-session")
			m.MustRun(dir, "tpm2_policycommandcode", "-S", "s", "TPM2_CC_NV_Write")
			m.MustRun(dir, "tpm2_nvwrite", floorIndex, "-C", floorIndex, "-P", "session:s", "-i", "zero")
			m.MustRun(dir, "tpm2_flushcontext", "s")
		}, tpm.ErrUnpinned},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, chip, policy, sigs := floorMachine(t)
			if err := chip.RaiseFloor(t.Context(), policy, sigs, floorOf(5)); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "zero"), []byte("srf2\x00\x00\x00\x00"+volume), 0o600); err != nil {
				t.Fatal(err)
			}
			// The policy can be read by anybody.
			public, err := tpm.FloorPolicy(chip)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "policy"), public, 0o600); err != nil {
				t.Fatal(err)
			}
			if tt.want != nil {
				m.MustRun(dir, "tpm2_nvundefine", floorIndex, "-C", "o")
			}
			tt.forge(m, dir)
			if tt.want == nil {
				wantFloor(t, chip, policy, 5, nil)
				return
			}
			wantFloor(t, chip, policy, 0, tt.want)
			// PID 1, where a person has vouched for the machine, sets it anew.
			if err := chip.RaiseFloor(t.Context(), policy, sigs, floorOf(5)); err != nil {
				t.Fatal(err)
			}
			wantFloor(t, chip, policy, 5, nil)
		})
	}
}

// Another signer's image, or other firmware settings, do not write it.
func TestFloorIsTheWritersOnly(t *testing.T) {
	_, chip, policy, sigs := floorMachine(t)
	if err := chip.RaiseFloor(t.Context(), policy, sigs, floorOf(5)); err != nil {
		t.Fatal(err)
	}
	other, _ := newKey(t)
	if err := chip.RaiseFloor(t.Context(), policy, sign(t, other), floorOf(6)); !errors.Is(err, tpm.ErrPolicy) {
		t.Errorf("with another key's signatures: %v, want ErrPolicy", err)
	}
	wantFloor(t, chip, policy, 5, nil)
	if err := chip.Extend(t.Context(), 7, []byte("Secure Boot is off")); err != nil {
		t.Fatal(err)
	}
	wantFloor(t, chip, policy, 0, tpm.ErrUnpinned)
}
