package config

import "testing"

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
	check(t, goodGRUB, []row{
		{"grub_commands", func(c *Config) { c.Trust.MeasurePCR = 8 }, []string{"trust.measure_pcr"}},
		{"shim_without_shim", func(c *Config) { c.Trust.MeasurePCR = 14 }, nil},
	})
}
