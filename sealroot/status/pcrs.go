package status

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/predict"
)

// PCRs is what `sealroot status --pcrs` compares.
type PCRs struct {
	// Predicted are the values that the image of the running slot gives.
	Predicted  []predict.Value
	PredictErr error // why not all could be predicted
	// Actual are the machine's, in lower-case hex.
	Actual    map[pcrsig.Bank]map[int]string
	ActualErr error
}

// PCR is one PCR of one bank.
type PCR struct {
	PCR       int    `json:"pcr"`
	Bank      string `json:"bank"`
	Actual    string `json:"actual"`
	Predicted string `json:"predicted"`
	// Matches: the PCR has the value that the image gives, or has got only words
	// of systemd since.
	Matches bool `json:"matches"`
	// Later are words that systemd measured after the hand-over.
	Later []string `json:"later,omitempty"`
	What  string   `json:"what"` // what was measured, in words
}

// readPCRs compares each active bank with the prediction.
func (s *Status) readPCRs(in *PCRs) {
	if in == nil {
		return
	}
	s.PCRs = []PCR{}
	if in.PredictErr != nil {
		s.problem("not all PCRs can be predicted: %v", in.PredictErr)
	}
	if in.ActualErr != nil {
		s.problem("cannot read the PCRs: %v", in.ActualErr)
	}
	for _, v := range in.Predicted {
		if v.When != predict.Booted {
			continue
		}
		for _, bank := range pcrsig.Banks() {
			actual, ok := in.Actual[bank][v.PCR]
			if !ok {
				continue
			}
			p := PCR{PCR: v.PCR, Bank: string(bank), Actual: printable(actual), Predicted: v.Digests[bank], What: v.What}
			p.Matches = p.Actual == p.Predicted
			if v.PCR == pcrsig.PCRKernel {
				p.Later, p.Matches = predict.Later(bank, p.Predicted, p.Actual)
			}
			s.PCRs = append(s.PCRs, p)
		}
	}
}

// pcrTable has the values themselves only where they differ.
func (s Status) pcrTable(b *strings.Builder) {
	if s.PCRs == nil {
		return
	}
	b.WriteString("\n")
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  PCR\tbank\tresult\tmeasured by this image")
	for _, p := range s.PCRs {
		result, what := "as predicted", p.What
		if !p.Matches {
			result = "DIFFERS"
			what += "\n  \t\tis\t" + p.Actual + "\n  \t\tpredicted\t" + p.Predicted
		} else if len(p.Later) > 0 {
			what += "; then by systemd: " + strings.Join(p.Later, ", ")
		}
		fmt.Fprintf(w, "  %d\t%s\t%s\t%s\n", p.PCR, p.Bank, result, what)
	}
	w.Flush()
}

// differs lists the PCRs that are not as predicted, without repeats.
func (s Status) differs() []int {
	var list []int
	for _, p := range s.PCRs {
		if !p.Matches {
			list = append(list, p.PCR)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
