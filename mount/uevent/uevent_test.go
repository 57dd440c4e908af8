package uevent

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// virtioAdd is what the kernel sends for a virtio device.
const virtioAdd = "add@/devices/pci0000:00/0000:00:02.0/virtio0\x00ACTION=add\x00DEVPATH=/devices/pci0000:00/0000:00:02.0/virtio0\x00SUBSYSTEM=virtio\x00MODALIAS=virtio:d00000002v00001AF4\x00SEQNUM=815\x00"

func TestParse(t *testing.T) {
	tests := []struct {
		name string
		msg  string
		want Event
		err  error
	}{
		{"add", virtioAdd, Event{
			Action: "add", Path: "/devices/pci0000:00/0000:00:02.0/virtio0",
			Env: map[string]string{
				"ACTION": "add", "DEVPATH": "/devices/pci0000:00/0000:00:02.0/virtio0",
				"SUBSYSTEM": "virtio", "MODALIAS": "virtio:d00000002v00001AF4", "SEQNUM": "815",
			},
		}, nil},
		{"equals_sign_in_value", "change@/a\x00ACTION=change\x00DEVPATH=/a\x00X=b=c\x00", Event{
			Action: "change", Path: "/a", Env: map[string]string{"ACTION": "change", "DEVPATH": "/a", "X": "b=c"},
		}, nil},
		{"empty", "", Event{}, ErrMessage},
		{"no_nul", "add@/a\x00ACTION=add\x00DEVPATH=/a", Event{}, ErrMessage},
		{"udev", "libudev\x00\xfe\xed\xca\xfe\x00", Event{}, ErrMessage},
		{"no_action", "@/a\x00ACTION=\x00DEVPATH=/a\x00", Event{}, ErrMessage},
		{"relative_path", "add@a\x00ACTION=add\x00DEVPATH=a\x00", Event{}, ErrMessage},
		{"header_lies", "add@/a\x00ACTION=add\x00DEVPATH=/b\x00", Event{}, ErrMessage},
		{"no_variables", "add@/a\x00", Event{}, ErrMessage},
		{"not_a_variable", "add@/a\x00ACTION=add\x00DEVPATH=/a\x00word\x00", Event{}, ErrMessage},
		{"no_name", "add@/a\x00ACTION=add\x00DEVPATH=/a\x00=x\x00", Event{}, ErrMessage},
		{"too_long", virtioAdd + strings.Repeat("x", MaxMessage) + "\x00", Event{}, ErrMessage},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse([]byte(tt.msg))
			if !errors.Is(err, tt.err) {
				t.Errorf("got error %v, want %v", err, tt.err)
			}
			if got.Action != tt.want.Action || got.Path != tt.want.Path || !maps.Equal(got.Env, tt.want.Env) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(virtioAdd))
	f.Add([]byte("add@/a\x00ACTION=add\x00DEVPATH=/a\x00"))
	f.Add([]byte("libudev\x00"))
	f.Add([]byte{0})
	f.Fuzz(func(t *testing.T, msg []byte) {
		e, err := Parse(msg)
		if err != nil && (e.Action != "" || e.Path != "" || e.Env != nil) {
			t.Errorf("got %+v with error %v", e, err)
		}
		if err == nil && (e.Action == "" || e.Env["DEVPATH"] != e.Path) {
			t.Errorf("accepted %+v", e)
		}
	})
}

// poke asks the kernel to send an event for a device that every machine has.
func poke(t *testing.T, action string) {
	t.Helper()
	if err := os.WriteFile("/sys/class/mem/zero/uevent", []byte(action), 0); err != nil {
		t.Fatalf("run as root: %v", err)
	}
}

func TestListen(t *testing.T) {
	l, err := Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	poked := false
	err = WaitFor(ctx, "the event of /dev/zero", l, func(events []Event) (bool, error) {
		if !poked {
			poked = true
			poke(t, "change")
		}
		for _, e := range events {
			if e.Action == "change" && e.Env["DEVNAME"] == "zero" && filepath.Base(e.Path) == "zero" {
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestNextEndsWithItsContextAndNoOther(t *testing.T) {
	l, err := Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(20*time.Millisecond, func() { cancel(reason) })
	for {
		// Others' events may come first.
		if _, err = l.Next(ctx); err != nil {
			break
		}
	}
	if !errors.Is(err, reason) {
		t.Errorf("got %v, want %v", err, reason)
	}
	// The deadline of the call before does not hold for this one.
	ctx2, cancel2 := context.WithTimeout(t.Context(), time.Minute)
	defer cancel2()
	poke(t, "change")
	if _, err := l.Next(ctx2); err != nil {
		t.Errorf("the call after: %v", err)
	}
}

// scripted is a Source of given batches.
type scripted struct {
	batches [][]Event
	err     error
}

func (s *scripted) Next(ctx context.Context) ([]Event, error) {
	if len(s.batches) == 0 {
		if s.err != nil {
			return nil, s.err
		}
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	b := s.batches[0]
	s.batches = s.batches[1:]
	return b, nil
}

func TestWaitFor(t *testing.T) {
	broken := errors.New("broken")
	disk := Event{Action: "add", Path: "/devices/vda"}
	batches := func() [][]Event { return [][]Event{{{Action: "add"}}, nil, {disk}} }
	seenDisk := func(events []Event) (bool, error) {
		return len(events) == 1 && events[0].Path == disk.Path, nil
	}
	tests := []struct {
		name  string
		src   *scripted
		check func([]Event) (bool, error)
		err   error
		left  int // batches that were not asked for
	}{
		{"there_already", &scripted{batches: batches()}, func([]Event) (bool, error) { return true, nil }, nil, 3},
		{"appears_late", &scripted{batches: batches()}, seenDisk, nil, 0},
		{"never", &scripted{}, seenDisk, ErrTimeout, 0},
		{"check_fails", &scripted{batches: batches()}, func([]Event) (bool, error) { return false, broken }, broken, 3},
		{"source_fails", &scripted{err: broken}, seenDisk, broken, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			limit := time.Minute
			if tt.err == ErrTimeout {
				limit = 50 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			err := WaitFor(ctx, "the boot disk", tt.src, tt.check)
			if !errors.Is(err, tt.err) {
				t.Errorf("got %v, want %v", err, tt.err)
			}
			if err != nil && !strings.Contains(err.Error(), "the boot disk") {
				t.Errorf("got %q, want what was waited for in it", err)
			}
			if got := len(tt.src.batches); got != tt.left {
				t.Errorf("%d batches are left, want %d", got, tt.left)
			}
		})
	}
}
