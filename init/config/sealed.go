package config

import (
	"slices"
	"strconv"
	"strings"
)

// SealedNothing is the policy of an image that opens nothing with the TPM.
const SealedNothing = "nothing"

// sealedPIN is the last word of the line where a PIN is needed.
const sealedPIN = "pin"

// Sealed is what an image opens the state by with the TPM.
type Sealed struct {
	Policy string   // as in state.tpm2.policy, or SealedNothing
	Rest   []string // of a signed policy the keys, as in SealedUnder; else PCRs
	PIN    bool     // one is needed
}

// String is Sealed in one line, for ParseSealed.
func (s Sealed) String() string {
	words := append([]string{s.Policy}, s.Rest...)
	if s.PIN {
		words = append(words, sealedPIN)
	}
	return strings.Join(words, " ")
}

// Keys are the fingerprints of the PCR policy keys of a signed policy, the present one
// first; none of any other.
func (s Sealed) Keys() []string {
	if !(TPM2{Policy: s.Policy}).Signed() {
		return nil
	}
	return s.Rest
}

// ParseSealed takes a line of SealedUnder apart. Of a blank one, as an image has whose
// builder did not say, it is the zero value.
func ParseSealed(line string) Sealed {
	words := strings.Fields(line)
	if len(words) == 0 {
		return Sealed{}
	}
	s := Sealed{Policy: words[0], Rest: words[1:]}
	if n := len(s.Rest); n > 0 && s.Rest[n-1] == sealedPIN {
		s.Rest, s.PIN = s.Rest[:n-1], true
	}
	return s
}

// SealedUnder is in one line what an image opens the state by with the TPM, and
// whether a PIN is needed: two images open the same volume only when theirs are
// equal, or with signed policies name a common key. keys are the fingerprints of
// the PCR policy keys in hex, the present one first, which signed policies have.
func (s State) SealedUnder(keys ...string) string {
	if !s.can(UnlockTPM2) {
		return SealedNothing
	}
	sealed := Sealed{Policy: s.TPM2.Policy, PIN: s.TPM2.PIN}
	if s.TPM2.Signed() {
		sealed.Rest = keys
	} else {
		for _, pcr := range slices.Sorted(slices.Values(s.TPM2.PCRs)) {
			sealed.Rest = append(sealed.Rest, strconv.Itoa(pcr))
		}
	}
	return sealed.String()
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
