package etc

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/state/layout"
	"sealroot/state/seed"
)

// ErrIdentity: what should name an image does not.
var ErrIdentity = errors.New("not the name of an image")

// owner is the image that an upper layer was merged for, and the number of that
// merge. The zero value is that of a layer nobody merged.
type owner struct {
	image string
	merge uint64
}

func (o owner) String() string { return fmt.Sprintf("%s %d", o.image, o.merge) }

// isIdentity tells whether a name is one that PID 1 gives images: hex digits.
func isIdentity(name string) bool {
	return len(name) >= 16 && len(name) <= 128 && strings.Trim(name, "0123456789abcdef") == ""
}

// parseOwner reads the attribute; what it cannot read is nobody's.
func parseOwner(text string) owner {
	image, number, _ := strings.Cut(text, " ")
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil || n == 0 || !isIdentity(image) {
		return owner{}
	}
	return owner{image, n}
}

func readOwner(dir *os.File) (owner, error) {
	text, err := seed.Attribute(dir, layout.EtcOwner)
	return parseOwner(text), err
}

func writeOwner(dir *os.File, o owner) error {
	if err := unix.Fsetxattr(int(dir.Fd()), layout.EtcOwner, []byte(o.String()), 0); err != nil {
		return fmt.Errorf("cannot set extended attribute %s: %w", layout.EtcOwner, err)
	}
	return nil
}
