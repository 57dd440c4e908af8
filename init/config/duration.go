package config

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Duration is a span of time that is written in YAML and JSON as Go writes
// it: "10m", "90s". A bare number is an error: nobody could tell its unit.
type Duration time.Duration

// String is the shortest spelling: "10m", not "10m0s".
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText returns String.
func (d Duration) MarshalText() ([]byte, error) {
	return []byte(d.String()), nil
}

// MarshalJSON returns String as a JSON string.
func (d Duration) MarshalJSON() ([]byte, error) {
	return json.Marshal(d.String())
}

// UnmarshalText reads what MarshalText wrote.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("cannot read %.40q as a duration such as 10m", text)
	}
	*d = Duration(v)
	return nil
}

// UnmarshalJSON reads a JSON string that UnmarshalText accepts.
func (d *Duration) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("cannot read %.40q as a duration: a string such as \"10m\" is needed", data)
	}
	return d.UnmarshalText([]byte(s))
}
