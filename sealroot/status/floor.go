package status

import "fmt"

// Floor is the rollback floor.
type Floor struct {
	Value int  `json:"value"`
	Known bool `json:"known"` // false: the TPM has lost it, and does not unlock the state
	// Asked is what the next boot raises it to; Value or less when nothing is asked.
	Asked int `json:"asked"`
	// Running is the security version of the image that runs.
	Running int `json:"running"`
}

func (s *Status) readFloor(in Input) {
	if s.report == nil || s.report.Floor == nil {
		return
	}
	f := s.report.Floor
	s.Floor = &Floor{Value: f.Value, Known: f.Known, Asked: in.FloorAsked, Running: s.report.Root.SecurityVersion}
	if in.FloorErr != nil {
		s.problem("cannot read the rollback floor that was asked for: %v", in.FloorErr)
	}
}

// text is the row of status.
func (f Floor) text() string {
	text := fmt.Sprintf("%d, this image has security version %d", f.Value, f.Running)
	if !f.Known {
		text = "NOT KNOWN: the TPM does not unlock the state (docs/recovery.md)"
	}
	if f.Asked > f.Value {
		text += fmt.Sprintf("; %d from the next boot on", f.Asked)
	}
	return text
}

// todo is what a person may do about it, "" for nothing.
func (f Floor) todo() string {
	if f.Known && f.Running > max(f.Value, f.Asked) {
		return fmt.Sprintf("security version %d runs and the rollback floor is %d: sealroot commit raises it, or says which slot holds it back", f.Running, max(f.Value, f.Asked))
	}
	return ""
}
