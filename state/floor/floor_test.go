package floor

import (
	"errors"
	"testing"
)

func TestDecide(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   Known
		want Next
	}{
		{"nothing_asked", Known{TPM: 2, Running: 3}, Next{Floor: 2}},
		{"asked_again", Known{TPM: 2, Asked: 2, Running: 2}, Next{Floor: 2}},
		{"raised", Known{TPM: 1, Asked: 2, Running: 2}, Next{Write: true, Floor: 2}},
		{"raised_under_a_newer_one", Known{TPM: 1, Asked: 2, Running: 5}, Next{Write: true, Floor: 2}},
		{"an_older_volume_asks_for_less", Known{TPM: 3, Asked: 1, Running: 3}, Next{Floor: 3}},
		{"more_than_what_runs", Known{TPM: 1, Asked: 9, Running: 2}, Next{Floor: 1, Waits: true}},
		{"below", Known{TPM: 3, Running: 2}, Next{Refuse: true, Floor: 3}},
		{"new_machine", Known{Lost: true, Running: 7}, Next{Write: true}},
		{"lost", Known{Lost: true, Asked: 2, Running: 2}, Next{Write: true, Floor: 2}},
		{"another_volumes", Known{TPM: 3, Lost: true, Asked: 1, Running: 3}, Next{Write: true, Floor: 3}},
		{"lost_and_below", Known{Lost: true, Asked: 2, Running: 1}, Next{Refuse: true, Floor: 2}},
	} {
		if got := Decide(tt.in); got != tt.want {
			t.Errorf("%s: Decide(%+v) = %+v, want %+v", tt.name, tt.in, got, tt.want)
		}
	}
}

// Whatever is asked, the floor does not go down, and what runs stays at or above
// what is written.
func TestFloorOnlyRises(t *testing.T) {
	for tpm := range 4 {
		for asked := range 4 {
			for running := range 4 {
				for _, lost := range []bool{false, true} {
					k := Known{TPM: tpm, Lost: lost, Asked: asked, Running: running}
					n := Decide(k)
					if n.Floor < tpm || n.Write && n.Floor > running || n.Refuse && n.Write || !lost && n.Refuse != (running < tpm) {
						t.Errorf("Decide(%+v) = %+v", k, n)
					}
				}
			}
		}
	}
}

func TestParse(t *testing.T) {
	for _, n := range []int{0, 7, 1<<31 - 1} {
		if got, err := Parse(Format(n)); err != nil || got != n {
			t.Errorf("Parse(Format(%d)) = %d, %v", n, got, err)
		}
	}
	for _, text := range []string{"", "\n", "1", "-1\n", "+1\n", "01\n", " 1\n", "1\n\n", "2147483648\n", "x\n", "1_0\n"} {
		if got, err := Parse([]byte(text)); !errors.Is(err, ErrFormat) || got != 0 {
			t.Errorf("Parse(%q) = %d, %v, want ErrFormat", text, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("12\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		n, err := Parse(text)
		if err != nil && n != 0 {
			t.Errorf("%d beside %v", n, err)
		}
		if err == nil && string(Format(n)) != string(text) {
			t.Errorf("%q reads as %d", text, n)
		}
	})
}
