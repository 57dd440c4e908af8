package promises

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// written has a Writer make n files more.
func written(t *testing.T, dir string, n int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// Err is asked once before each file.
	made, err := Writer{Dir: dir, Keep: 4, Most: 5000, Rand: rand.New(rand.NewPCG(1, uint64(n)))}.Run(&counted{ctx, n})
	if err != nil || made != n {
		t.Fatalf("Run() = %d, %v, want %d", made, err, n)
	}
}

// counted is a context that ends when it was asked so often.
type counted struct {
	context.Context
	left int
}

func (c *counted) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

func TestCheck(t *testing.T) {
	path := func(t *testing.T, dir string, number int) string {
		t.Helper()
		list, err := files(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range list {
			if f.number == number {
				return filepath.Join(dir, f.name)
			}
		}
		t.Fatalf("no file %d", number)
		return ""
	}
	remove := func(n int) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Remove(path(t, dir, n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	short := func(n int) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Truncate(path(t, dir, n), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name     string
		files    int
		change   func(t *testing.T, dir string)
		told     int
		promised int
		want     error
	}{
		{"nothing", 0, nil, 0, 0, nil},
		{"one_is_no_promise_yet", 1, short(1), 0, 0, nil},
		{"three", 3, nil, 0, 2, nil},
		{"ten_of_which_four_stay", 10, nil, 0, 3, nil},
		{"the_last_one_torn", 10, short(10), 0, 3, nil},
		{"the_last_one_not_there", 3, remove(3), 0, 1, nil},
		{"a_promise_torn", 10, short(9), 0, 0, ErrBroken},
		{"a_promise_gone", 10, remove(8), 0, 0, ErrBroken},
		{"the_oldest_gone", 10, remove(7), 0, 0, ErrBroken},
		{"the_first_gone", 3, remove(1), 0, 0, ErrBroken},
		{"the_last_one_told_of", 10, nil, 10, 4, nil},
		{"an_older_one_told_of", 10, short(10), 9, 3, nil},
		{"one_told_of_and_torn", 10, short(10), 10, 0, ErrBroken},
		{"one_told_of_and_gone", 10, remove(10), 10, 0, ErrBroken},
		{"all_gone", 0, nil, 3, 0, ErrBroken},
		{"what_nobody_made", 3, func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "f-x"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, 0, 0, ErrBroken},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			written(t, dir, tt.files)
			if tt.change != nil {
				tt.change(t, dir)
			}
			if got, err := Check(dir, 4, tt.told); got != tt.promised || !errors.Is(err, tt.want) {
				t.Errorf("Check() = %d, %v, want %d, %v", got, err, tt.promised, tt.want)
			}
		})
	}
}

// A Writer goes on where one before a power cut stopped, also with a torn last file.
func TestRunGoesOn(t *testing.T) {
	dir := t.TempDir()
	written(t, dir, 6)
	list, err := files(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, list[3].name), 1); err != nil {
		t.Fatal(err)
	}
	written(t, dir, 2)
	list, err = files(dir)
	if err != nil || len(list) != 4 || list[3].number != 7 {
		t.Fatalf("files %+v, %v, want 4 to 7", list, err)
	}
	if n, err := Check(dir, 4, 0); n != 3 || err != nil {
		t.Errorf("Check() = %d, %v, want 3", n, err)
	}
}

func TestTold(t *testing.T) {
	block := make([]byte, 512)
	if n, err := Told(block); n != 0 || err != nil {
		t.Errorf("Told() of nothing = %d, %v", n, err)
	}
	for _, want := range []int{17, 123, 4} {
		clear(block)
		copy(block, Mark(want))
		if n, err := Told(block); n != want || err != nil {
			t.Errorf("Told() = %d, %v, want %d", n, err, want)
		}
	}
}
