// Package predict computes what PCR 11, 12 and that of the root will hold when
// PID 1 has handed over, from an image alone: for policies, for remote verifiers,
// and for `sealroot status --pcrs`. PID 1 does not use it, and it talks to no TPM.
package predict

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"strings"

	"sealroot/state/tpm/pcrsig"
)

// Image is what decides the PCRs.
type Image struct {
	// Sections are those of the unified kernel image that its stub measures; none
	// when the kernel is started in another way.
	Sections        []pcrsig.Section
	Role            string // of the image: pcrsig.RoleUsr, else RoleRoot
	RootHash        []byte
	SecurityVersion int
	RootPCR         int // trust.measure_pcr
	Layers          []Layer
}

// Layer is what is measured of one.
type Layer struct{ Name, RootHash string }

// mounted are the texts that RootPCR is extended with.
func (im Image) mounted() []string {
	texts := []string{pcrsig.RootEvent(cmp.Or(im.Role, pcrsig.RoleRoot), im.RootHash, im.SecurityVersion)}
	for _, l := range im.Layers {
		texts = append(texts, pcrsig.LayerEvent(l.Name, l.RootHash))
	}
	return texts
}

// When says at which moment of the boot a value is there.
type When string

// The moments.
const (
	// Initrd is while PID 1 of the initramfs works: what signed policies hold.
	Initrd When = "initrd"
	// Booted is from the hand-over to the real init on.
	Booted When = "booted"
)

// Value is one PCR at one moment, by bank in lower-case hex.
type Value struct {
	PCR     int                    `json:"pcr"`
	When    When                   `json:"when"`
	Digests map[pcrsig.Bank]string `json:"digests"`
	// What was measured, in words.
	What string `json:"what"`
}

// Values predicts the PCRs in the banks given. PCR 12 is predicted as it is when
// nobody passes a command line, credentials or extensions from outside. Errors
// are pcrsig's.
func Values(im Image, banks []pcrsig.Bank) ([]Value, error) {
	mounted := im.mounted()
	stub := len(im.Sections) > 0
	var list []Value
	if stub {
		list = append(list, Value{PCR: pcrsig.PCRKernel, When: Initrd, What: "unified kernel image, " + pcrsig.PhaseEnterInitrd})
	}
	closed := pcrsig.WordCapped
	if stub {
		closed = fmt.Sprintf("unified kernel image, %s, %s, %s", pcrsig.PhaseEnterInitrd, pcrsig.PhaseLeaveInitrd, pcrsig.WordCapped)
	}
	list = append(list, Value{PCR: pcrsig.PCRKernel, When: Booted, What: closed})
	if im.RootPCR != pcrOutside {
		list = append(list, Value{PCR: pcrOutside, When: Booted, What: "nothing passed from outside"})
	}
	list = append(list, Value{PCR: im.RootPCR, When: Booted, What: strings.Join(mounted, ", ")})
	for i := range list {
		v := &list[i]
		v.Digests = make(map[pcrsig.Bank]string, len(banks))
		for _, bank := range banks {
			digest, err := im.digest(bank, *v, mounted)
			if err != nil {
				return nil, fmt.Errorf("cannot predict PCR %d: %w", v.PCR, err)
			}
			v.Digests[bank] = hex.EncodeToString(digest)
		}
	}
	return list, nil
}

// pcrOutside is where the stub measures what is not part of its image.
const pcrOutside = 12

func (im Image) digest(bank pcrsig.Bank, v Value, mounted []string) ([]byte, error) {
	hash, err := bank.Hash()
	if err != nil {
		return nil, err
	}
	zero := make([]byte, hash.Size())
	switch {
	case v.PCR == im.RootPCR:
		return pcrsig.Extend(bank, zero, mounted...)
	case v.PCR == pcrOutside:
		return zero, nil
	case len(im.Sections) == 0:
		return pcrsig.Extend(bank, zero, pcrsig.WordCapped)
	}
	words := []string{pcrsig.PhaseEnterInitrd}
	if v.When == Booted {
		words = append(words, pcrsig.PhaseLeaveInitrd, pcrsig.WordCapped)
	}
	return pcrsig.PCR11(bank, im.Sections, words...)
}

// Later returns the words that systemd measures into PCR 11 after the hand-over
// if value, lower-case hex, is booted with some of them: none, one or more. ok is
// false when it is another value.
func Later(bank pcrsig.Bank, booted, value string) (words []string, ok bool) {
	now, err := hex.DecodeString(booted)
	if err != nil {
		return nil, false
	}
	later := []string{"sysinit", "ready", "shutdown", "final"}
	for i := 0; ; i++ {
		if hex.EncodeToString(now) == value {
			return later[:i], true
		}
		if i == len(later) {
			return nil, false
		}
		if now, err = pcrsig.Extend(bank, now, later[i]); err != nil {
			return nil, false
		}
	}
}
