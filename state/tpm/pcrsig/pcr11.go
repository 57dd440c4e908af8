// Package pcrsig computes the PCR 11 of a unified kernel image (UKI) and makes,
// reads and searches signatures of PCR values: tpm2-pcr-signature.json of
// systemd-measure(1) and systemd-stub(7). It talks to no TPM.
package pcrsig

import (
	"crypto"
	"errors"
	"fmt"
)

// Words that are measured into PCR 11 as boot goes on (systemd-pcrphase(8)).
const (
	PhaseEnterInitrd = "enter-initrd"
	PhaseLeaveInitrd = "leave-initrd"
)

// ErrSection is returned for a section list that no stub would measure: an
// unknown name, a name twice, or no .linux.
var ErrSection = errors.New("invalid UKI section")

// Section is one PE section of a UKI.
type Section struct {
	Name string // with its dot: ".linux"
	Data []byte // as in the file, without the padding to the file alignment
}

// measured lists the sections that systemd's stub measures, in the order in
// which it does. Each version of the stub knows a prefix of history, never
// another order. .pcrsig is not measured: it holds the signature of the result.
func measured() []string {
	return []string{
		".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb",
		".uname", ".sbat", ".pcrpkey", ".profile", ".hwids",
	}
}

// PCR11 returns the value of PCR 11 in bank after systemd's stub has measured
// sections and then the phase words were measured, beginning at zero. For each
// section the name with a NUL and then the content are measured. The order of
// the argument does not matter; .pcrsig may be among the sections and is not
// measured. The caller passes only sections that the stub in use knows: stub 252
// measures .linux .osrel .cmdline .initrd .splash .dtb .pcrpkey and ignores
// others. Errors are ErrBank and ErrSection.
func PCR11(bank Bank, sections []Section, phases ...string) ([]byte, error) {
	hash, err := bank.Hash()
	if err != nil {
		return nil, err
	}
	byName := make(map[string][]byte, len(sections))
	for _, s := range sections {
		if _, ok := byName[s.Name]; ok {
			return nil, fmt.Errorf("%w: %s is given twice", ErrSection, s.Name)
		}
		byName[s.Name] = s.Data
	}
	if _, ok := byName[".linux"]; !ok {
		return nil, fmt.Errorf("%w: .linux is missing", ErrSection)
	}
	pcr := make([]byte, hash.Size())
	seen := 0
	for _, name := range measured() {
		data, ok := byName[name]
		if !ok {
			continue
		}
		seen++
		pcr = extend(hash, pcr, append([]byte(name), 0))
		pcr = extend(hash, pcr, data)
	}
	if _, ok := byName[".pcrsig"]; ok {
		seen++
	}
	if seen != len(byName) {
		return nil, fmt.Errorf("%w: unknown name among %d sections", ErrSection, len(sections))
	}
	return extendPhases(hash, pcr, phases), nil
}

func extendPhases(hash crypto.Hash, pcr []byte, phases []string) []byte {
	for _, phase := range phases {
		pcr = extend(hash, pcr, []byte(phase))
	}
	return pcr
}
