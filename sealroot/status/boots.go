package status

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"sealroot/init/report"
	"sealroot/sealroot/boots"
	"sealroot/slots"
)

// Boot is one of the last boots.
type Boot struct {
	BootID   string               `json:"boot_id"`
	Running  bool                 `json:"running"`            // it is this boot
	Number   int                  `json:"number,omitempty"`   // in the order they were kept
	Recorded string               `json:"recorded,omitempty"` // when it was kept, RFC 3339, by a clock that may have been wrong
	Slot     string               `json:"slot"`
	Version  string               `json:"version,omitempty"` // of the image that ran
	Reason   string               `json:"reason"`            // as boot.json: committed, trial, fallback, last-resort
	Degraded bool                 `json:"degraded,omitempty"`
	Ended    string               `json:"ended,omitempty"` // why it never reached the real init
	FellBack *report.Fallback     `json:"fell_back,omitempty"`
	Failures []report.Failure     `json:"failures,omitempty"`
	Disagree *report.Disagreement `json:"disagreement,omitempty"`
	LeftOut  []LeftOut            `json:"layers_left_out,omitempty"` // but those that were turned off
}

// LeftOut is a layer that a boot went on without.
type LeftOut struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

func (l LeftOut) String() string { return "layer " + l.Name + " left out: " + l.Why }

// leftOut are the layers that a report misses.
func leftOut(r report.Report) []LeftOut {
	var list []LeftOut
	for _, l := range r.Layers {
		if l.LeftOut != "" && l.LeftOut != report.LayerOff {
			why := strings.TrimPrefix(l.LeftOut, "cannot use layer "+l.Name+": ")
			list = append(list, LeftOut{Name: printable(l.Name), Why: printable(why)})
		}
	}
	return list
}

// LastFallback is the newest boot on record that was not the slot's that should
// have run.
type LastFallback struct {
	BootID   string `json:"boot_id"`
	Recorded string `json:"recorded,omitempty"`
	From     string `json:"from"`
	Reason   string `json:"reason"`
	Class    string `json:"class"`
}

// readBoots puts the boots in order: those kept on the state partition, those
// in the boot log that ended before it could be reached, and this one.
func (s *Status) readBoots(in Input) {
	if in.BootsErr != nil {
		s.problem("not all boot reports: %v", in.BootsErr)
	}
	var this string
	if s.report != nil {
		this = s.report.BootID
	}
	seen := map[string]bool{}
	add := func(r report.Report, kept boots.Report) {
		if id := r.BootID; id != "" && !seen[id] {
			seen[id] = true
			s.Boots = append(s.Boots, bootOf(r, kept, s.report != nil && id == this))
		}
	}
	var current boots.Report
	for _, kept := range in.Boots {
		var r report.Report
		switch err := json.Unmarshal(kept.Text, &r); {
		case err != nil:
			s.problem("cannot read the report of boot %s: %v", kept.BootID, err)
		case s.report != nil && r.BootID == this:
			current = kept
		default:
			add(r, kept)
		}
	}
	for _, text := range in.Log.Reports {
		var r report.Report
		if err := json.Unmarshal(text, &r); err != nil {
			s.problem("cannot read a report in the boot log: %v", err)
			continue
		}
		add(r, boots.Report{})
	}
	if s.report != nil {
		add(*s.report, current)
	}
	s.Boots = s.Boots[max(0, len(s.Boots)-boots.Keep):]
	for _, b := range s.Boots {
		if f := b.FellBack; f != nil {
			s.LastFallback = &LastFallback{b.BootID, b.Recorded, f.From, f.Reason, f.Class}
		}
	}
}

// bootOf takes from a report what tells of a boot; most of it was on a disk
// that anybody may have written.
func bootOf(r report.Report, kept boots.Report, running bool) Boot {
	b := Boot{
		BootID: printable(r.BootID), Running: running, Number: kept.Number,
		Slot: printable(r.Slot.Name), Version: printable(r.Root.ImageVersion), Reason: printable(r.Slot.Reason),
		Degraded: r.Degraded, Ended: printable(r.Ended), LeftOut: leftOut(r),
	}
	if !kept.Recorded.IsZero() {
		b.Recorded = kept.Recorded.UTC().Format(time.RFC3339)
	}
	if f := r.FellBack; f != nil {
		b.FellBack = &report.Fallback{From: printable(f.From), Reason: printable(f.Reason), Class: printable(f.Class)}
	}
	if d := r.Disagreement; d != nil {
		b.Disagree = &report.Disagreement{Loaded: printable(d.Loaded), Wanted: printable(d.Wanted), Why: printable(d.Why)}
	}
	for _, f := range r.Failures {
		b.Failures = append(b.Failures, report.Failure{
			Stage: printable(f.Stage), Slot: printable(f.Slot), Class: printable(f.Class), Error: printable(f.Error),
		})
	}
	return b
}

// bootTable lists the last boots, the newest first.
func (s Status) bootTable(b *strings.Builder) {
	// this boot alone is told of above
	if len(s.Boots) == 0 || len(s.Boots) == 1 && s.Boots[0].Running {
		return
	}
	b.WriteString("\nlast boots, the newest first:\n")
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	for i := len(s.Boots) - 1; i >= 0; i-- {
		v := s.Boots[i]
		when, mark := strings.TrimSuffix(strings.Replace(v.Recorded, "T", " ", 1), "Z"), " "
		if v.Running {
			mark = "*"
		}
		fmt.Fprintf(w, "%s %s\t%s\t%s\t%s\t%s\n", mark, cmp.Or(when, "-"), cmp.Or(v.Slot, "-"), cmp.Or(v.Version, "-"),
			cmp.Or(v.Reason, "-"), cmp.Or(v.remark(), "-"))
	}
	w.Flush()
}

// remark is what was not as it should be in a boot.
func (v Boot) remark() string {
	var words []string
	if v.Ended != "" {
		words = append(words, "ended: "+v.Ended)
	}
	if f := v.FellBack; f != nil {
		words = append(words, fmt.Sprintf("fell back from slot %s: %s", f.From, f.Reason))
	}
	if v.Degraded {
		words = append(words, "degraded")
	}
	for _, l := range v.LeftOut {
		words = append(words, l.String())
	}
	if len(words) == 0 && len(v.Failures) > 0 {
		words = append(words, v.Failures[0].Error)
	}
	return strings.Join(words, "; ")
}

// kernelOf names a slot's kernel.
func kernelOf(loaded string) string {
	if loaded == slots.UnknownKernel {
		return "a kernel that belongs to no slot"
	}
	return "the kernel of slot " + loaded
}
