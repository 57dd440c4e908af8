package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/sealroot/sharing"
	"sealroot/state"
	"sealroot/state/balance"
	"sealroot/state/layout"
	"sealroot/state/luks2"
	"sealroot/state/resize"
)

// Resizer is the open volume of this boot.
type Resizer interface {
	resize.Resizer
	ResizeTo(ctx context.Context, want func(resize.Sizes) int64) (resize.Sizes, error)
	Sync() error
	Close() error
}

// serviceMemory is what the service's heap is kept to, in bytes.
const serviceMemory = 6 << 20

func balanceState(c *command) action {
	watch := c.flags.Bool("watch", false, "go on until stopped (sealroot-state.service)")
	configured := c.flags.Bool("configured", false, "resize nothing unless state.auto_resize of the configuration is grow or both")
	return func(ctx context.Context, _ []string) error {
		r, err := c.booted()
		if err != nil {
			return err
		}
		cfg, err := c.env.configuration()
		if err != nil {
			return err
		}
		auto := cfg.State.AutoResize
		if *watch {
			withoutHugePages()
		}
		limits := balance.Defaults()
		var file *sharing.LimitsIn
		// What is only a guard does not need the file.
		if limits.GapOnly = *configured && auto != config.AutoResizeGrow && auto != config.AutoResizeBoth; !limits.GapOnly {
			file = c.limits(auto)
			// The service reads it itself, and guards also where it is wrong.
			if !*watch {
				if limits, _, err = file.Reread(); err != nil {
					return err
				}
			}
		}
		v, err := c.env.Volume(state.DeviceSize(cfg.State.Device), c.manageVolumeKey)
		if err != nil {
			return refusedResize(notOpen(r, err))
		}
		defer v.Close()
		s := &sharing.Service{
			Volume: sharing.Resized{Resizer: v}, Limits: limits, Keep: sharing.OpenDecisions(c.env.Decisions),
			Tell: func(text string) { c.say("%s", text) }, Now: time.Now,
		}
		if file != nil {
			s.Reread = file.Reread
		}
		if !*watch {
			return refusedResize(c.balanceOnce(ctx, s))
		}
		if err := resize.Reclaim(ctx, v); err != nil {
			c.say("%v", err)
		}
		return c.watchState(ctx, s)
	}
}

// manageVolumeKey is the volume key where nobody can be asked: with state.device classic.
func (c *command) manageVolumeKey(h *luks2.Header) ([]byte, error) {
	if key := c.allowByManageKey(h); key != nil {
		return key, nil
	}
	return nil, fmt.Errorf("no manage key opens the volume: %w", errNoAuthority)
}

// withoutHugePages starts the program anew without transparent huge pages: one for each
// of the Go runtime's tables, which are there before main, is most of what a small
// service needs. Where that fails it needs more.
func withoutHugePages() {
	if off, err := unix.PrctlRetInt(unix.PR_GET_THP_DISABLE, 0, 0, 0, 0); err != nil || off != 0 {
		return
	}
	if unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0) == nil {
		_ = unix.Exec("/proc/self/exe", os.Args, os.Environ())
	}
}

// limits are those of the file and of state.auto_resize: grow never gives back.
func (c *command) limits(auto string) *sharing.LimitsIn {
	return &sharing.LimitsIn{Path: c.env.Limits, GiveBack: auto != config.AutoResizeGrow}
}

func (c *command) balanceOnce(ctx context.Context, s *sharing.Service) error {
	d, err := s.Pass(ctx)
	if d.Action == balance.None {
		c.say("%s", sharing.Sentence(d, nil))
	}
	c.result.Data = struct {
		Action balance.Action `json:"action"`
		Bytes  int64          `json:"bytes,omitempty"`
		Reason string         `json:"reason"`
	}{d.Action, d.Size, d.Reason}
	return err
}

func (c *command) watchState(ctx context.Context, s *sharing.Service) error {
	debug.SetMemoryLimit(serviceMemory)
	debug.SetGCPercent(20)
	runtime.GOMAXPROCS(1) // each more has memory of its own
	writes, err := sharing.WatchWrites(c.env.State, c.env.volume())
	if err != nil {
		c.say("%v; looking at intervals only", err)
		writes = nil
	} else {
		defer writes.Close()
	}
	var device *sharing.Device
	node, err := sharing.DeviceOf(c.env.volume())
	if err == nil && node != "" {
		device, err = sharing.WatchDevice(node)
	}
	if err != nil {
		c.say("%v; a stray resize2fs is noticed at the next look", err)
	} else if device != nil {
		defer device.Close()
	}
	s.Wait, s.Rest = sharing.Waiter(writes, device), debug.FreeOSMemory
	return s.Watch(ctx)
}

// space is what partition and volume have, nil where no volume is open, and what
// stands in the way of telling.
func (c *command) space(s config.State) (*sharing.Sides, error) {
	auto := s.AutoResize
	v, err := c.env.Volume(state.DeviceSize(s.Device), nil)
	if errors.Is(err, resize.ErrNotOpen) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer v.Close()
	sizes, busy := v.Measure()
	if busy != nil && (!errors.Is(busy, resize.ErrBusy) || sizes.Spanned == 0) {
		return nil, busy
	}
	limits, _, problem := c.limits(auto).Reread()
	past, err := sharing.ReadDecisions(c.env.Decisions)
	if err != nil {
		return nil, err
	}
	d, _ := balance.Decide(limits, balance.History{}, sharing.Terms(sizes), time.Now())
	sides := sharing.Look(sizes, limits, auto, past, d)
	if busy != nil { // a repair may take long
		sides.Now = "nothing: another program resizes the volume"
	}
	if problem != nil {
		sides.LimitsProblem = problem.Error()
	}
	return &sides, busy
}

// columns is how wide the terminal is, and whether it takes no more than ASCII.
func columns(getenv func(string) string) (width int, ascii bool) {
	width = 80
	if size, err := unix.IoctlGetWinsize(int(os.Stdout.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
		width = int(size.Col)
	} else if n, err := strconv.Atoi(getenv("COLUMNS")); err == nil && n > 0 {
		width = n
	}
	return width, !utf8Locale(getenv)
}

// utf8Locale goes by the variable that counts (locale(7)).
func utf8Locale(getenv func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if value := strings.ToUpper(getenv(name)); value != "" {
			return strings.Contains(value, "UTF-8") || strings.Contains(value, "UTF8")
		}
	}
	return false
}

func openVolume(where string) func(state.DeviceSize, resize.Key) (Resizer, error) {
	return func(device state.DeviceSize, key resize.Key) (Resizer, error) {
		v, err := resize.Open(resize.Places{State: where, Lock: layout.ResizeLock, Device: device, Key: key, Undisturbed: undisturbed})
		if err != nil {
			return nil, fmt.Errorf("cannot open the volume: %w", err)
		}
		return v, nil
	}
}
