package config

import (
	"errors"
	"fmt"
	"strings"
)

// ErrInvalid is in the chain of every error about the configuration's content.
var ErrInvalid = errors.New("configuration not accepted")

// Problem is one thing that is wrong, said to the person who wrote it. It wraps
// ErrInvalid. Several come joined; Problems takes them apart again.
type Problem struct {
	Path   string // key, as in state.tpm2.pcrs[0]; "" for the whole
	Line   int    // 1-based line of the text, 0 when there is none
	Reason string
	Remedy string // what to do about it; may be ""
}

// Error puts the four parts into one line.
func (p *Problem) Error() string {
	var b strings.Builder
	if p.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", p.Line)
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Reason)
	if p.Remedy != "" {
		b.WriteString("; " + p.Remedy)
	}
	return b.String()
}

// Unwrap returns ErrInvalid.
func (p *Problem) Unwrap() error { return ErrInvalid }

// Problems returns every Problem in the tree of err, in order.
func Problems(err error) []*Problem {
	switch e := err.(type) {
	case nil:
		return nil
	case *Problem:
		return []*Problem{e}
	case interface{ Unwrap() []error }:
		var all []*Problem
		for _, err := range e.Unwrap() {
			all = append(all, Problems(err)...)
		}
		return all
	}
	return Problems(errors.Unwrap(err))
}
