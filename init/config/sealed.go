package config

import (
	"slices"
	"strconv"
	"strings"
)

// SealedPIN is the last word of SealedUnder where a PIN is needed.
const SealedPIN = "pin"

// SealedUnder is in one line what an image opens the state by with the TPM, and
// whether a PIN is needed: two images open the same volume only when theirs are
// equal, or with signed policies name a common key. keys are the fingerprints of
// the PCR policy keys in hex, the present one first, which signed policies have.
func (s State) SealedUnder(keys ...string) string {
	if !s.can(UnlockTPM2) {
		return "nothing"
	}
	words := []string{s.TPM2.Policy}
	if s.TPM2.Signed() {
		words = append(words, keys...)
	} else {
		for _, pcr := range slices.Sorted(slices.Values(s.TPM2.PCRs)) {
			words = append(words, strconv.Itoa(pcr))
		}
	}
	if s.TPM2.PIN {
		words = append(words, SealedPIN)
	}
	return strings.Join(words, " ")
}

// SignedWords takes a line of SealedUnder apart where the policy is a signed one.
func SignedWords(sealed string) (policy string, keys []string, pin bool) {
	words := strings.Fields(sealed)
	if len(words) == 0 || !(TPM2{Policy: words[0]}).Signed() {
		return "", nil, false
	}
	keys = words[1:]
	if n := len(keys); n > 0 && keys[n-1] == SealedPIN {
		keys, pin = keys[:n-1], true
	}
	return words[0], keys, pin
}

// PerImage lists those of fixed PCRs that another image changes.
func (c *Config) PerImage(pcrs []int) []int {
	return slices.DeleteFunc(slices.Clone(pcrs), func(pcr int) bool { return !c.OfImage(pcr) })
}

// OfImage says whether another image changes a PCR.
func (c *Config) OfImage(pcr int) bool {
	switch pcr {
	case c.Trust.MeasurePCR, 9: // the root; its initramfs
		return true
	case 8: // GRUB's commands
		return c.Boot.Loader == LoaderGRUB
	case 4, 11: // the unified kernel image
		return c.Boot.Loader != LoaderGRUB
	}
	return false
}
