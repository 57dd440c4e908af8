package efi

import (
	"testing"
)

func TestTakeFactoryReset(t *testing.T) {
	const name = "FactoryReset-8cf2644b-4b0b-428f-9387-6d876050dc67"
	for _, tt := range []struct {
		name, value string
		asks        bool
	}{
		{"systemd", "t\x00\x00\x00", true},
		{"yes", "Y\x00e\x00s\x00", true},
		{"no", "n\x00o\x00\x00\x00", false},
		{"empty", "", false},
		{"odd", "t\x00\x00", false},
		{"long", string(make([]byte, 8192)), false},
	} {
		m := &memory{vars: map[string][]byte{name: []byte(tt.value)}}
		if asked, err := TakeFactoryReset(m); asked != tt.asks || err != nil {
			t.Errorf("%s: got %v, %v, want %v", tt.name, asked, err, tt.asks)
		}
		if _, there := m.vars[name]; there {
			t.Errorf("%s: the variable is still there", tt.name)
		}
		if asked, err := TakeFactoryReset(m); asked || err != nil {
			t.Errorf("%s: the second time: got %v, %v, want false", tt.name, asked, err)
		}
	}
}
