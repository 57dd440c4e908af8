package boot

import (
	"errors"
	"fmt"
	"syscall"

	"sealroot/slots"
)

// stageError is why a stage could not go on. Its class decides what the boot
// does about it: another slot, another try, or the state's own ladder.
type stageError struct {
	class  slots.Class
	reason slots.Reason
	err    error
}

func (e *stageError) Error() string { return e.err.Error() }
func (e *stageError) Unwrap() error { return e.err }

// imageError is a fault of the slot itself, unless the cause is the disk: a
// device that cannot be read says nothing about the image on it.
func imageError(reason slots.Reason, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	if isEnvironment(err) {
		return &stageError{slots.EnvironmentFailure, slots.IOError, err}
	}
	return &stageError{slots.ImageFailure, reason, err}
}

func environmentError(reason slots.Reason, format string, args ...any) error {
	return &stageError{slots.EnvironmentFailure, reason, fmt.Errorf(format, args...)}
}

func stateError(reason slots.Reason, format string, args ...any) error {
	return &stageError{slots.StateFailure, reason, fmt.Errorf(format, args...)}
}

// isEnvironment tells errors of the machine from errors of what is on its
// disk. EIO is not among them: dm-verity returns it for a block that does not
// match, and the raw partitions are read before it is set up, where it is
// wrapped by rawReadError.
func isEnvironment(err error) bool {
	var raw *rawReadError
	return errors.As(err, &raw) ||
		errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.ENXIO) || errors.Is(err, syscall.ENODEV) ||
		errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// isDamage tells errors of a damaged file system, as the kernel words them.
func isDamage(err error) bool {
	return errors.Is(err, syscall.EUCLEAN) || errors.Is(err, syscall.EBADMSG)
}

// rawReadError marks a failed read of a raw partition.
type rawReadError struct{ err error }

func (e *rawReadError) Error() string { return e.err.Error() }
func (e *rawReadError) Unwrap() error { return e.err }

// classOf returns class and reason of an error; one that says nothing is the
// environment's, which never counts against a committed slot.
func classOf(err error) (slots.Class, slots.Reason) {
	var s *stageError
	if errors.As(err, &s) {
		return s.class, s.reason
	}
	return slots.EnvironmentFailure, slots.IOError
}
