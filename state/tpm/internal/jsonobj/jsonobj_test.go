package jsonobj_test

import (
	"errors"
	"testing"

	"sealroot/state/tpm/internal/jsonobj"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name, data string
		members    int
		want       error
	}{
		{"empty_object", "{}", 0, nil},
		{"spaces", " { \"a\" : [1, {\"a\":2}] , \"A\" : null } \n", 2, nil},
		{"duplicate", `{"a":1,"a":2}`, 0, jsonobj.ErrDuplicate},
		{"duplicate_by_escape", `{"a":1,"\u0061":2}`, 0, jsonobj.ErrDuplicate},
		{"nothing", "", 0, jsonobj.ErrSyntax},
		{"array", "[]", 0, jsonobj.ErrSyntax},
		{"cut", `{"a":1`, 0, jsonobj.ErrSyntax},
		{"two", "{}{}", 0, jsonobj.ErrSyntax},
		{"nul", "{}\x00", 0, jsonobj.ErrSyntax},
		{"number_as_key", "{1:2}", 0, jsonobj.ErrSyntax},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := jsonobj.Parse([]byte(tc.data))
			if !errors.Is(err, tc.want) || len(got) != tc.members || err != nil && got != nil {
				t.Errorf("got %v, %v, want %d members, %v", got, err, tc.members, tc.want)
			}
		})
	}
}
