package boot

import (
	"time"

	"sealroot/init/report"
)

// stages takes the time of each stage for the report.
type stages struct {
	start time.Time
	began moment // the same for systemd
	list  []report.Stage
}

// begin notes the start of a stage and returns what ends it.
func (s *stages) begin(name string) func() {
	from := time.Since(s.start)
	return func() {
		s.list = append(s.list, report.Stage{
			Name: name, Start: from.Microseconds(), End: time.Since(s.start).Microseconds(),
		})
	}
}
