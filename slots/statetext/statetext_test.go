package statetext

import (
	"errors"
	"slices"
	"testing"

	"sealroot/slots"
)

func TestParse(t *testing.T) {
	tests := []struct {
		name, text string
		ok         bool
	}{
		{"one", "a:1:0:1", true},
		{"two", "a:2:0:1,b:3:3:0", true},
		{"not_the_first_letters", "c:0:0:0,x:15:15:1", true},
		{"empty", "", false},
		{"comma_behind", "a:1:0:1,", false},
		{"newline", "a:1:0:1\n", false},
		{"priority_16", "a:16:0:1", false},
		{"tries_16", "a:1:16:1", false},
		{"negative", "a:-1:0:1", false},
		{"leading_zero", "a:01:0:1", false},
		{"plus", "a:+1:0:1", false},
		{"flag_2", "a:1:0:2", false},
		{"flag_is_missing", "a:1:0", false},
		{"twice", "a:1:0:1,a:1:0:1", false},
		{"order", "b:1:0:1,a:1:0:1", false},
		{"name", "ab:1:0:1", false},
		{"upper_case", "A:1:0:1", false},
		{"no_name", ":1:0:1", false},
		{"space", "a: 1:0:1", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			list, err := Parse(tt.text)
			if (err == nil) != tt.ok || err != nil && (!errors.Is(err, ErrFormat) || list != nil) {
				t.Fatalf("got %v, %v", list, err)
			}
			if err == nil && Format(list) != tt.text {
				t.Errorf("got %s, want %s", Format(list), tt.text)
			}
		})
	}
}

func TestForAndMerge(t *testing.T) {
	const text = "a:2:0:1,b:3:3:0"
	list, err := For([]string{"a", "b"}, text)
	if err != nil {
		t.Fatal(err)
	}
	for _, names := range [][]string{nil, {"a"}, {"a", "b", "c"}, {"b", "a"}} {
		if _, err := For(names, text); !errors.Is(err, ErrFormat) {
			t.Errorf("slots %v: got %v, want ErrFormat", names, err)
		}
	}
	after, err := Merge(list, []slots.Slot{{Name: "b"}})
	if err != nil || Format(after) != "a:2:0:1,b:0:0:0" || Format(list) != text {
		t.Errorf("got %v, %v; before: %v", after, err, list)
	}
	if _, err := Merge(list, []slots.Slot{{Name: "c"}}); !errors.Is(err, slots.ErrUnknownSlot) {
		t.Errorf("got %v, want ErrUnknownSlot", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{"a:2:0:1,b:3:3:0", "z:15:15:1", "", "a:1:0", "a:1:0:1,,", "a:999999999999999999999:0:1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		list, err := Parse(text)
		if err != nil {
			if list != nil {
				t.Fatal("error with a value")
			}
			return
		}
		if again, err := Parse(Format(list)); err != nil || !slices.Equal(again, list) || Format(list) != text {
			t.Fatalf("%q: got %v, again %v, %v", text, list, again, err)
		}
	})
}
