package disk

import (
	"testing"

	"sealroot/init/config"
)

func TestStatePartitionOfManifest(t *testing.T) {
	for want, s := range map[string]config.State{
		"":      {Create: config.CreateFirstBoot, PartitionFilesystem: "ext4"},
		"btrfs": {Create: config.CreateFirstBoot, PartitionFilesystem: "btrfs"},
		"none":  {Create: config.CreateNone, PartitionFilesystem: "btrfs"},
	} {
		if got := statePartition(s); got != want {
			t.Errorf("statePartition(%+v) = %q, want %q", s, got, want)
		}
	}
}
