//go:build !followslinks

package mount

import "golang.org/x/sys/unix"

// confined keeps a lookup below its root and off symbolic links. The build tag
// "followslinks" turns it off for the one test that shows what then happens; no
// product is built with it.
const confined = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS
