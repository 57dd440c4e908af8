package config

import "testing"

func TestRollbackFloorNeedsAPolicyThatOutlivesAnUpdate(t *testing.T) {
	floor := []string{"trust.rollback_floor"}
	check(t, goodUKI, []row{
		{"with_secure_boot", func(c *Config) { c.Trust.RollbackFloor, c.SecurityVersion = true, 1 }, nil},
		{"nothing_to_compare", func(c *Config) { c.Trust.RollbackFloor = true }, floor},
		{"bound_to_pcr_4", func(c *Config) {
			c.Trust.RollbackFloor, c.SecurityVersion, c.State.TPM2.Policy = true, 1, PolicySignedPCR11And4
		}, floor},
		{"no_tpm", func(c *Config) {
			c.Trust.RollbackFloor, c.SecurityVersion = true, 1
			c.State = State{Create: CreateNever, Unlock: []string{UnlockPassphrase}, Recovery: RecoveryNone}
		}, floor},
	})
	check(t, goodGRUB, []row{
		{"guard_against_mistakes", func(c *Config) { c.Trust.RollbackFloor, c.SecurityVersion = true, 1 }, nil},
		{"bound_to_files", func(c *Config) {
			c.Trust.RollbackFloor, c.SecurityVersion, c.State.TPM2.PCRs = true, 1, []int{7, 9}
		}, floor},
		{"bound_to_the_root", func(c *Config) {
			c.Trust.RollbackFloor, c.SecurityVersion, c.State.TPM2.PCRs, c.Trust.MeasurePCR = true, 1, []int{7, 14}, 14
		}, floor},
	})
}

func TestMeasurePCR(t *testing.T) {
	var c Config
	if got := c.WithDefaults().Trust.MeasurePCR; got != 13 {
		t.Errorf("default %d, want 13", got)
	}
	legal := map[int]bool{8: true, 12: true, 13: true, 14: true}
	for pcr := -1; pcr <= 24; pcr++ {
		if pcr == 0 {
			continue // the default
		}
		c := goodUKI()
		c.Trust.MeasurePCR = pcr
		c = c.WithDefaults()
		if err := c.Validate(); (err == nil) != legal[pcr] {
			t.Errorf("PCR %d with a UKI: %v", pcr, err)
		}
	}
	check(t, goodUKI, []row{
		{"load_options", func(c *Config) { c.Trust.MeasurePCR, c.State.TPM2.Policy = 12, PolicySignedPCR11And4 }, []string{"trust.measure_pcr"}},
	})
	check(t, goodGRUB, []row{
		{"grub_commands", func(c *Config) { c.Trust.MeasurePCR = 8 }, []string{"trust.measure_pcr"}},
		{"shim_without_shim", func(c *Config) { c.Trust.MeasurePCR = 14 }, nil},
	})
}
