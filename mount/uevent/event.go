// Package uevent hears from the kernel about devices that appear.
package uevent

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// ErrMessage means that a message is not a uevent of the kernel.
var ErrMessage = errors.New("bad uevent")

// MaxMessage bounds a message: the kernel's own buffer for the variables is
// 2048 bytes (UEVENT_BUFFER_SIZE, include/linux/kobject.h), the header is a path.
const MaxMessage = 16 << 10

// Event is a message of the kernel about one device.
type Event struct {
	Action string            // add, change, remove, bind, …
	Path   string            // below /sys, e.g. /devices/…/block/vda
	Env    map[string]string // variables: SUBSYSTEM, MODALIAS, DEVNAME, …
}

// Parse reads one message: "action@path", NUL, and then "KEY=value" with a NUL
// after each (lib/kobject_uevent.c). The header must agree with the variables
// ACTION and DEVPATH. Messages of udev, which begin with "libudev", are refused.
func Parse(msg []byte) (Event, error) {
	if len(msg) == 0 || len(msg) > MaxMessage {
		return Event{}, fmt.Errorf("%w: %d bytes", ErrMessage, len(msg))
	}
	if msg[len(msg)-1] != 0 {
		return Event{}, fmt.Errorf("%w: no NUL at its end", ErrMessage)
	}
	fields := bytes.Split(msg[:len(msg)-1], []byte{0})
	action, path, ok := strings.Cut(string(fields[0]), "@")
	if !ok || action == "" || !strings.HasPrefix(path, "/") {
		return Event{}, fmt.Errorf("%w: header %q", ErrMessage, fields[0])
	}
	e := Event{Action: action, Path: path, Env: make(map[string]string, len(fields)-1)}
	for _, f := range fields[1:] {
		key, value, ok := strings.Cut(string(f), "=")
		if !ok || key == "" {
			return Event{}, fmt.Errorf("%w: variable %q", ErrMessage, f)
		}
		e.Env[key] = value
	}
	if e.Env["ACTION"] != action || e.Env["DEVPATH"] != path {
		return Event{}, fmt.Errorf("%w: header and variables disagree", ErrMessage)
	}
	return e, nil
}
