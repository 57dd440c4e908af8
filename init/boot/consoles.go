package boot

import (
	"context"
	"time"
)

// Console talks to the person in front of the machine; init/console is the
// real one.
type Console interface {
	Print(text string)
	// PrintSecret shows bytes that stay the caller's and are nowhere else.
	PrintSecret(text []byte)
	// PrintSecretIf does so on those that are not smaller.
	PrintSecretIf(columns, rows int, text []byte)
	Clear()
	WaitKey(ctx context.Context, idle time.Duration) error
	ReadLine(ctx context.Context, idle time.Duration) ([]byte, error)
	Flush()
	Close() error
}

// keyLimit is how long a question waits without a key press.
const keyLimit = 10 * time.Minute
