package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	statuspkg "sealroot/sealroot/status"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/predict"
)

// predictor is a machine that knows what its running image measures.
type predictor interface {
	// Image is what decides the PCRs; an error beside it says what is missing.
	Image() (predict.Image, error)
}

// comparePCRs reads the PCRs and what the running image gives.
func (e Env) comparePCRs(m Machine, r report.Report) *statuspkg.PCRs {
	var c statuspkg.PCRs
	c.Actual, c.ActualErr = readPCRs(e.TPM)
	if r.BootPath == report.PathKexec {
		c.PredictErr = fmt.Errorf("this kernel was started by kexec: they hold what more than one boot has measured")
		return &c
	}
	p, ok := m.(predictor)
	if !ok {
		c.PredictErr = fmt.Errorf("this disk's image is not known: %w", bootset.ErrRefused)
		return &c
	}
	im, missing := p.Image()
	if len(im.RootHash) == 0 {
		c.PredictErr = missing
		return &c
	}
	// Each bank costs a pass over the whole kernel image.
	active := slices.DeleteFunc(pcrsig.Banks(), func(b pcrsig.Bank) bool { return c.Actual[b] == nil })
	values, err := predict.Values(im, active)
	c.PredictErr = errors.Join(missing, err)
	for _, v := range values {
		if missing == nil || v.PCR == im.RootPCR {
			c.Predicted = append(c.Predicted, v)
		}
	}
	return &c
}

// readPCRs reads the PCRs of all banks that the kernel shows, in lower-case hex
// (Documentation/ABI/stable/sysfs-class-tpm of the kernel).
func readPCRs(tpm string) (map[pcrsig.Bank]map[int]string, error) {
	all := map[pcrsig.Bank]map[int]string{}
	for _, bank := range pcrsig.Banks() {
		values := map[int]string{}
		for pcr := range pcrsig.PCRCount {
			text, err := os.ReadFile(filepath.Join(tpm, "pcr-"+string(bank), strconv.Itoa(pcr)))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			values[pcr] = strings.ToLower(strings.TrimSpace(string(text)))
		}
		if len(values) > 0 {
			all[bank] = values
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("there is no TPM 2.0 with PCRs at %s", tpm)
	}
	return all, nil
}
