package main

import (
	"fmt"
	"slices"
	"strings"
)

// choice is a flag that takes one of a few words.
type choice struct {
	word string // "": not given
	of   []string
}

func (c *choice) String() string { return c.word }

func (c *choice) Set(text string) error {
	if !slices.Contains(c.of, text) {
		return fmt.Errorf("choose from %s", strings.Join(c.of, ", "))
	}
	c.word = text
	return nil
}
