package disk

import (
	"errors"
	"fmt"
	"testing"

	"sealroot/init/config"
	"sealroot/slots/manifest"
)

// More layers than the manifest of a slot has room for are refused before anything is built.
func TestTooManyImages(t *testing.T) {
	var c config.Config
	for i := range manifest.MaxLayers {
		c.Layers = append(c.Layers, config.Layer{Name: fmt.Sprintf("layer-%d", i), Image: "layer.raw"},
			config.Layer{Name: fmt.Sprintf("own-%d", i), From: config.LayerFromVolume, Verity: config.LayerUnverified})
	}
	if err := checkLayers(&c); err != nil {
		t.Errorf("checkLayers() of as many as fit = %v", err)
	}
	c.Layers = append(c.Layers, config.Layer{Name: "one-more", Image: "layer.raw"})
	if err := checkLayers(&c); !errors.Is(err, ErrOptions) {
		t.Errorf("checkLayers() of one more = %v, want %v", err, ErrOptions)
	}
}

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
