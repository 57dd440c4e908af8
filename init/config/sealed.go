package config

import (
	"slices"
	"strconv"
	"strings"
)

// SealedUnder is in one line what an image opens the state by without a person: two
// images open the same volume only when theirs are equal. key is the fingerprint of
// the PCR policy key in hex, which signed policies have.
func (s State) SealedUnder(key string) string {
	switch {
	case !s.can(UnlockTPM2):
		return "nothing"
	case s.TPM2.Signed():
		return s.TPM2.Policy + " " + key
	}
	words := []string{s.TPM2.Policy}
	for _, pcr := range slices.Sorted(slices.Values(s.TPM2.PCRs)) {
		words = append(words, strconv.Itoa(pcr))
	}
	return strings.Join(words, " ")
}

// PerImage lists those of fixed PCRs that another image changes.
func (c *Config) PerImage(pcrs []int) []int {
	changes := []int{c.Trust.MeasurePCR}
	if c.Boot.Loader == LoaderGRUB {
		changes = append(changes, 8, 9) // commands and files
	} else {
		changes = append(changes, 4, 9, 11) // the unified kernel image, its initramfs
	}
	return slices.DeleteFunc(slices.Clone(pcrs), func(pcr int) bool { return !slices.Contains(changes, pcr) })
}
