package mount_test

import (
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/mount"
	"sealroot/mount/mounttest"
)

func TestEarlyTrace(t *testing.T) {
	var r mounttest.Recorder
	undo, err := mount.Early().Mount(&r)
	if err != nil {
		t.Fatal(err)
	}
	if err := undo(); err != nil {
		t.Fatal(err)
	}
	want := `mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount -t devtmpfs -o nosuid,strictatime,mode=0755 devtmpfs /dev
mount -t devpts -o nosuid,noexec,strictatime,mode=0620,gid=5,ptmxmode=000 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev,strictatime,mode=1777 tmpfs /dev/shm
mount -t tmpfs -o nosuid,nodev,strictatime,mode=0755 tmpfs /run
umount /run
umount /dev/shm
umount /dev/pts
umount /dev
umount /sys
umount /proc
`
	if got := r.Trace(); got != want {
		t.Errorf("trace\ngot:\n%s\nwant:\n%s", got, want)
	}
}

func TestTableUndoesWhenAPointFails(t *testing.T) {
	broken := errors.New("broken")
	table := mount.Early()
	for n := 1; n <= len(table); n++ {
		r := mounttest.Recorder{FailAt: n, FailWith: broken}
		undo, err := table.Mount(&r)
		if !errors.Is(err, broken) || undo != nil {
			t.Errorf("step %d: got undo %t, error %v, want no undo and %v", n, undo != nil, err, broken)
		}
		steps := r.Steps()
		if len(steps) != 2*n-1 {
			t.Fatalf("step %d: got %d steps, want %d: %q", n, len(steps), 2*n-1, steps)
		}
		for i := range n - 1 {
			if got, want := steps[n+i], "umount "+table[n-2-i].Where; got != want {
				t.Errorf("step %d: undo %d: got %q, want %q", n, i, got, want)
			}
		}
	}
}

func TestTableJoinsErrorsOfUndo(t *testing.T) {
	r := mounttest.Recorder{FailAt: 7, FailWith: unix.EBUSY}
	undo, err := mount.Early().Mount(&r)
	if err != nil {
		t.Fatal(err)
	}
	if err := undo(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("got error %v, want EBUSY", err)
	}
	if got := r.Steps(); got[len(got)-1] != "umount /proc" {
		t.Errorf("undo stopped at the first error: %q", got)
	}
}

func TestParseAttr(t *testing.T) {
	all := mount.ReadOnly | mount.NoSUID | mount.NoDev | mount.NoExec | mount.NoATime | mount.NoSymfollow
	tests := []struct {
		name  string
		words []string
		want  mount.Attr
		err   error
	}{
		{"none", nil, 0, nil},
		{"two", []string{"nosuid", "nodev"}, mount.NoSUID | mount.NoDev, nil},
		{"all", all.Names(), all, nil},
		{"unknown", []string{"nosuid", "suid"}, 0, mount.ErrOption},
		{"several_in_one_word", []string{"nosuid,nodev"}, 0, mount.ErrOption},
		{"empty_word", []string{""}, 0, mount.ErrOption},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := mount.ParseAttr(tt.words)
			if got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %v, %v, want %v, %v", got, err, tt.want, tt.err)
			}
		})
	}
	if got := len(all.Names()); got != 6 {
		t.Errorf("got %d names, want 6", got)
	}
}

func TestOverlayValidate(t *testing.T) {
	p := func(path string) mount.Place { return mount.Place{Root: "/r", Path: path} }
	many := slices.Repeat([]mount.Place{p("l")}, mount.MaxLower+1)
	tests := []struct {
		name string
		o    mount.Overlay
		err  error
	}{
		{"upper", mount.Overlay{Lower: []mount.Place{p("l")}, Upper: p("u"), Work: p("w")}, nil},
		{"read_only", mount.Overlay{Lower: []mount.Place{p("l"), p("m")}}, nil},
		{"no_lower", mount.Overlay{Upper: p("u"), Work: p("w")}, mount.ErrOverlay},
		{"no_work", mount.Overlay{Lower: []mount.Place{p("l")}, Upper: p("u")}, mount.ErrOverlay},
		{"no_upper", mount.Overlay{Lower: []mount.Place{p("l")}, Work: p("w")}, mount.ErrOverlay},
		{"work_is_upper", mount.Overlay{Lower: []mount.Place{p("l")}, Upper: p("u"), Work: p("u")}, mount.ErrOverlay},
		{"one_lower_alone", mount.Overlay{Lower: []mount.Place{p("l")}}, mount.ErrOverlay},
		{"too_many", mount.Overlay{Lower: many}, mount.ErrOverlay},
		{"relative_root", mount.Overlay{Lower: []mount.Place{{Root: "r", Path: "l"}}, Upper: p("u"), Work: p("w")}, mount.ErrOverlay},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.o.Validate(); !errors.Is(err, tt.err) {
				t.Errorf("got %v, want %v", err, tt.err)
			}
		})
	}
}

func TestSwitchRootTrace(t *testing.T) {
	const head = `mount --make-rprivate /
mount --move /dev /new/dev
mount --move /proc /new/proc
mount --move /sys /new/sys
mount --move /run /new/run
hold /
pivot_root /new
`
	tests := []struct {
		name string
		r    *mounttest.Recorder
		want string
	}{
		{"pivot", &mounttest.Recorder{}, head + "mount --make-rshared /\n"},
		{"before_7_0", &mounttest.Recorder{NoPivot: true}, head + "mount --move /new / and chroot\nfree the initramfs\nmount --make-rshared /\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			warning, err := mount.SwitchRoot("/new", tt.r)
			if warning != nil || err != nil {
				t.Fatalf("got %v, %v, want no error", warning, err)
			}
			if got := tt.r.Trace(); got != tt.want {
				t.Errorf("trace\ngot:\n%s\nwant:\n%s", got, tt.want)
			}
		})
	}
}

func TestSwitchRootStopsAtTheFirstError(t *testing.T) {
	broken := errors.New("broken")
	const free = 9 // the one step whose failure is a warning
	for n := 1; n <= 10; n++ {
		r := mounttest.Recorder{NoPivot: true, FailAt: n, FailWith: broken}
		warning, err := mount.SwitchRoot("/new", &r)
		if n == free {
			if err != nil || !errors.Is(warning, broken) {
				t.Errorf("free: got %v, %v, want a warning", warning, err)
			}
			continue
		}
		if !errors.Is(err, broken) {
			t.Errorf("step %d: got %v, want %v", n, err, broken)
		}
		if got := len(r.Steps()); got != n {
			t.Errorf("step %d: got %d steps, want none after the failed one: %q", n, got, r.Steps())
		}
	}
}

func TestSwitchRootDoesNotFallBackFromOtherErrors(t *testing.T) {
	r := mounttest.Recorder{FailAt: 7, FailWith: unix.EPERM}
	if _, err := mount.SwitchRoot("/new", &r); !errors.Is(err, unix.EPERM) {
		t.Errorf("got %v, want EPERM", err)
	}
	if got := r.Steps(); got[len(got)-1] != "failed: pivot_root /new" {
		t.Errorf("went on after %q", got)
	}
}
