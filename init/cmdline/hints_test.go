package cmdline

import (
	"errors"
	"testing"
)

func TestPartitions(t *testing.T) {
	const id = "6b1c2f3e-0a0b-4c0d-8e0f-123456789abc"
	for _, tc := range []struct{ line, role, data, hash string }{
		{"ro quiet", "usr", "", ""},
		{"systemd.verity_usr_data=PARTUUID=6B1C2F3E-0A0B-4C0D-8E0F-123456789ABC systemd.verity_usr_hash=PARTLABEL=usr_1-verity", "usr", "PARTUUID=" + id, "PARTLABEL=usr_1-verity"},
		{"systemd.verity_root_data=/dev/disk/by-partuuid/" + id, "root", "PARTUUID=" + id, ""},
		{"systemd.verity_root_hash=/dev/disk/by-partlabel/a", "root", "", "PARTLABEL=a"},
		{"systemd.verity_root_data=PARTLABEL=a systemd.verity_root_data=PARTLABEL=a", "root", "PARTLABEL=a", ""},
		{"-- systemd.verity_root_data=x", "root", "", ""},
	} {
		data, hash, err := Partitions(tc.line, tc.role)
		if err != nil || data != tc.data || hash != tc.hash {
			t.Errorf("%s: %q, %q, %v, want %q, %q", tc.line, data, hash, err, tc.data, tc.hash)
		}
	}
	for _, line := range []string{
		"systemd.verity_root_data=PARTLABEL=a", "systemd.verity_usr_data=/dev/sda1", "systemd.verity_usr_data=PARTUUID=x",
		"systemd.verity_usr_data=", "systemd.verity_usr_data", "systemd.verity_usr_data=PARTLABEL=a systemd.verity_usr_data=PARTLABEL=b",
		"systemd.verity_usr_options=ignore-corruption", "systemd.verity_usr_data=PARTLABEL=../a",
	} {
		if data, hash, err := Partitions(line, "usr"); !errors.Is(err, ErrHint) || data+hash != "" {
			t.Errorf("%s: %q, %q, %v, want %v", line, data, hash, err, ErrHint)
		}
	}
}
