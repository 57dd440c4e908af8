package esp

import (
	"math"
	"strconv"
	"strings"
)

// Counter is the part "+left-done" of a file name (Boot Loader Specification,
// "Boot Counting"). The zero value is a name without a counter.
type Counter struct {
	Counted bool // there is a counter
	Left    int  // boots left; 0 is a bad entry
	Done    int  // boots so far
	HasDone bool // "-done" is written; without it Done is 0
}

// Counting is the counter that this program writes.
func Counting(left, done int) Counter {
	return Counter{Counted: true, Left: left, Done: done, HasDone: true}
}

// String is the counter as it stands in a name, "" without one.
func (c Counter) String() string {
	switch {
	case !c.Counted:
		return ""
	case !c.HasDone:
		return "+" + strconv.Itoa(c.Left)
	}
	return "+" + strconv.Itoa(c.Left) + "-" + strconv.Itoa(c.Done)
}

// ParseCounter reads what follows the '+': "left" or "left-done". Leading zeros
// are read, as systemd-boot does.
func ParseCounter(s string) (Counter, bool) {
	left, done, both := strings.Cut(s, "-")
	c := Counter{Counted: true, HasDone: both}
	var ok bool
	if c.Left, ok = number(left); !ok {
		return Counter{}, false
	}
	if both {
		if c.Done, ok = number(done); !ok {
			return Counter{}, false
		}
	}
	return c, true
}

// number reads digits only: no sign, no space, and no more than an int32, which
// is what the specification allows.
func number(s string) (int, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return int(n), err == nil && n <= math.MaxInt32
}
