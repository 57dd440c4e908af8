package kmod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Inserter puts one module file into the kernel.
type Inserter interface {
	Insert(path string) error
}

// Kernel is the Inserter of the running kernel, finit_module(2). u-root's
// kmodule would bring its decompressors into PID 1.
type Kernel struct{}

var _ Inserter = Kernel{}

// Insert loads a module; one that is loaded already is no error.
func (Kernel) Insert(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// ErrRelease means that the modules belong to another kernel than the one that
// runs.
var ErrRelease = errors.New("modules of another kernel")

// CheckRelease compares the list with the running kernel.
func (l List) CheckRelease() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("cannot ask for the kernel's release: %w", err)
	}
	if running := unix.ByteSliceToString(u.Release[:]); running != l.Release {
		return fmt.Errorf("%w: they are for %s, %s runs", ErrRelease, l.Release, running)
	}
	return nil
}

// Loader loads the modules of a list, each at most once, dependencies first.
// It may be used by several goroutines.
type Loader struct {
	list    List
	sys     string
	insert  Inserter
	modules []module
	slots   chan struct{} // bounds how many modules are inserted at a time
}

type module struct {
	once sync.Once
	err  error
}

// NewLoader returns a loader for the modules of a list that Parse accepted; sys
// is "/sys" on a real machine.
func NewLoader(list List, sys string, insert Inserter) *Loader {
	return &Loader{
		list:    list,
		sys:     sys,
		insert:  insert,
		modules: make([]module, len(list.Modules)),
		slots:   make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
}

// LoadGroup loads all modules of a group. Of group base, hash functions come
// before the rest: the kernel checks every later module's signature with them.
// All modules are tried; the error names each that failed, and why.
func (l *Loader) LoadGroup(ctx context.Context, g Group) error {
	var first, rest []int
	for i, m := range l.list.Modules {
		switch {
		case m.Group != g:
		case strings.HasPrefix(m.Name, "sha"):
			first = append(first, i)
		default:
			rest = append(rest, i)
		}
	}
	return errors.Join(append(l.loadAll(ctx, first), l.loadAll(ctx, rest)...)...)
}

// loadAll loads modules and returns the errors of those that failed. With more
// than one processor, those that do not depend on each other load in parallel.
func (l *Loader) loadAll(ctx context.Context, indexes []int) []error {
	var wg sync.WaitGroup
	if cap(l.slots) > 1 {
		for _, i := range indexes {
			wg.Go(func() { _ = l.load(ctx, i) })
		}
	}
	wg.Wait()
	var errs []error
	for _, i := range indexes {
		if err := l.load(ctx, i); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// load loads a module after its dependencies. The result stays: who comes
// second waits for the first and gets the same. Dependencies have smaller
// indexes, so nobody waits in a circle.
func (l *Loader) load(ctx context.Context, i int) error {
	m := &l.modules[i]
	m.once.Do(func() { m.err = l.loadOnce(ctx, i) })
	return m.err
}

func (l *Loader) loadOnce(ctx context.Context, i int) (err error) {
	desc := l.list.Modules[i]
	defer func() {
		// In a goroutine a panic would be the end of the program; and sync.Once
		// would take the module for a loaded one.
		if p := recover(); p != nil {
			err = fmt.Errorf("cannot load module %s: internal error: %v", desc.Name, p)
		}
	}()
	for _, d := range desc.Deps {
		if err := l.load(ctx, d); err != nil {
			return fmt.Errorf("cannot load module %s: %w", desc.Name, err)
		}
	}
	l.slots <- struct{}{}
	defer func() { <-l.slots }()
	if ctx.Err() != nil {
		return fmt.Errorf("cannot load module %s: %w", desc.Name, context.Cause(ctx))
	}
	if err := l.insert.Insert(desc.Path); err != nil {
		return fmt.Errorf("cannot load module %s: %w", desc.Name, err)
	}
	return nil
}

// LoadForDevices loads the drivers that the devices in sysfs ask for, until
// loading brings no new device that asks for one. A driver that fails is a
// warning: the device it is for may be one that the boot does not need.
func (l *Loader) LoadForDevices(ctx context.Context) (warnings []error, err error) {
	tried := make(map[int]bool)
	for {
		aliases, err := Modaliases(l.sys)
		if err != nil {
			return warnings, err
		}
		more, found := l.loadMatching(ctx, aliases, tried)
		warnings = append(warnings, more...)
		if ctx.Err() != nil {
			return warnings, fmt.Errorf("cannot load drivers: %w", context.Cause(ctx))
		}
		if !found {
			return warnings, nil
		}
	}
}

// LoadModaliases loads the drivers for modaliases that came with uevents.
func (l *Loader) LoadModaliases(ctx context.Context, aliases []string) (warnings []error) {
	warnings, _ = l.loadMatching(ctx, aliases, make(map[int]bool))
	return warnings
}

// loadMatching loads the drivers for aliases that are not in tried yet, and
// tells whether there were any.
func (l *Loader) loadMatching(ctx context.Context, aliases []string, tried map[int]bool) (warnings []error, found bool) {
	var indexes []int
	for i, m := range l.list.Modules {
		if m.Group == GroupDriver && !tried[i] && matchAny(m.Aliases, aliases) {
			tried[i] = true
			indexes = append(indexes, i)
		}
	}
	return l.loadAll(ctx, indexes), len(indexes) > 0
}

func matchAny(patterns, aliases []string) bool {
	for _, a := range aliases {
		for _, p := range patterns {
			if Match(p, a) {
				return true
			}
		}
	}
	return false
}

// Modaliases lists the modaliases of all devices in sysfs, each once. They
// stand in /sys/bus/*/devices/*/modalias, because only devices of a bus have
// drivers, and for the processors, whose features ask for accelerated ciphers,
// in /sys/devices/system/cpu/modalias.
func Modaliases(sys string) ([]string, error) {
	buses, err := os.ReadDir(filepath.Join(sys, "bus"))
	if err != nil {
		return nil, fmt.Errorf("cannot list buses: %w", err)
	}
	files := []string{filepath.Join(sys, "devices", "system", "cpu", "modalias")}
	for _, bus := range buses {
		dir := filepath.Join(sys, "bus", bus.Name(), "devices")
		devices, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("cannot list devices: %w", err)
		}
		for _, d := range devices {
			files = append(files, filepath.Join(dir, d.Name(), "modalias"))
		}
	}
	var list []string
	seen := make(map[string]bool)
	for _, f := range files {
		// Many devices have none, and a device may go away meanwhile.
		b, err := os.ReadFile(f)
		alias := strings.TrimSuffix(string(b), "\n")
		if err != nil || alias == "" || seen[alias] {
			continue
		}
		seen[alias] = true
		list = append(list, alias)
	}
	return list, nil
}
