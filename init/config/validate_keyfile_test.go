package config

import "testing"

func goodKeyFile() Config {
	c := goodUKI()
	c.State = State{
		Create: CreateFirstBoot, Unlock: []string{UnlockKeyFile, UnlockRecoveryKey}, Recovery: RecoveryLater,
		KeyFile: KeyFile{Partition: "0e1f0203-0405-4607-8809-0a0b0c0d0e0f", Path: "keys/kiosk.key"},
	}
	return c
}

func TestValidateKeyFile(t *testing.T) {
	check(t, goodKeyFile, []row{
		{"path", func(*Config) {}, nil},
		{"alone", func(c *Config) { c.State.Unlock, c.State.Recovery = []string{UnlockKeyFile}, RecoveryNone }, nil},
		{"raw", func(c *Config) { c.State.KeyFile.Path, c.State.KeyFile.Offset, c.State.KeyFile.Size = "", 4096, 64 }, nil},
		{"ext4", func(c *Config) { c.State.KeyFile.Filesystem = "ext4" }, nil},
		{"other_filesystem", func(c *Config) { c.State.KeyFile.Filesystem = "ntfs" }, []string{"state.key_file.filesystem"}},
		{"no_place", func(c *Config) { c.State.KeyFile = KeyFile{} }, []string{"state.key_file.partition", "state.key_file"}},
		{"mbr", func(c *Config) { c.State.KeyFile.Partition = "1234abcd-01" }, []string{"state.key_file.partition"}},
		{"capitals", func(c *Config) { c.State.KeyFile.Partition = "0E1F0203-0405-4607-8809-0A0B0C0D0E0F" }, []string{"state.key_file.partition"}},
		{"absolute", func(c *Config) { c.State.KeyFile.Path = "/keys" }, []string{"state.key_file.path"}},
		{"climbs", func(c *Config) { c.State.KeyFile.Path = "../keys" }, []string{"state.key_file.path"}},
		{"short", func(c *Config) { c.State.KeyFile.Path, c.State.KeyFile.Size = "", 31 }, []string{"state.key_file"}},
		{"long", func(c *Config) { c.State.KeyFile.Path, c.State.KeyFile.Size = "", 8193 }, []string{"state.key_file"}},
		{"before_the_partition", func(c *Config) { c.State.KeyFile.Path, c.State.KeyFile.Size, c.State.KeyFile.Offset = "", 64, -1 }, []string{"state.key_file"}},
		{"raw_with_filesystem", func(c *Config) {
			c.State.KeyFile.Path, c.State.KeyFile.Size, c.State.KeyFile.Filesystem = "", 64, "vfat"
		}, []string{"state.key_file.filesystem"}},
		{"both_places", func(c *Config) { c.State.KeyFile.Size = 64 }, []string{"state.key_file"}},
		{"not_asked_for", func(c *Config) { c.State.Unlock = []string{UnlockRecoveryKey} }, []string{"state.create", "state.key_file", "state.recovery"}},
		{"with_tpm2", func(c *Config) {
			c.State.Unlock, c.State.TPM2 = []string{UnlockTPM2, UnlockKeyFile, UnlockRecoveryKey}, TPM2{Policy: PolicySignedPCR11And7}
		}, []string{"state.unlock"}},
		{"floor_needs_a_tpm", func(c *Config) { c.Trust.RollbackFloor, c.SecurityVersion = true, 1 }, []string{"trust.rollback_floor"}},
	})
}

func TestValidatePlain(t *testing.T) {
	plain := func() Config {
		c := goodUKI()
		c.State = State{Create: CreateFirstBoot, Unlock: []string{UnlockPlain}, Recovery: RecoveryNone}
		return c
	}
	check(t, plain, []row{
		{"alone", func(*Config) {}, nil},
		{"recovery_need_not_be_said", func(c *Config) { c.State.Recovery = "" }, nil},
		{"with_tpm2", func(c *Config) {
			c.State.Unlock, c.State.TPM2 = []string{UnlockPlain, UnlockTPM2}, TPM2{Policy: PolicySignedPCR11And7}
		}, []string{"state.unlock"}},
		{"recovery", func(c *Config) { c.State.Recovery = RecoveryShow }, []string{"state.recovery"}},
		{"prompt", func(c *Config) { c.State.OnFailure = []string{FailurePrompt, FailureHalt} }, []string{"state.on_failure[0]"}},
	})
}
