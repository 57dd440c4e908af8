package disk

import (
	"archive/tar"
	"fmt"
	"os"
)

// folderOwners gives the files of a folder to root.
type folderOwners struct {
	uid, gid int    // of who builds
	others   int    // files that were neither root's nor those of who builds
	example  string // one of them
}

func newOwners() *folderOwners { return &folderOwners{uid: os.Geteuid(), gid: os.Getegid()} }

// toRoot gives a file to root. With its bits setuid and setgid a program of somebody else
// would then run as root on every machine, for which chown(2) takes them away: such a file
// is refused with ErrRoot.
func (o *folderOwners) toRoot(h *tar.Header) error {
	user, group := h.Uid != 0 && h.Uid != o.uid, h.Gid != 0 && h.Gid != o.gid
	if h.Typeflag == tar.TypeReg && (user && h.Mode&0o4000 != 0 || group && h.Mode&0o2000 != 0) {
		return fmt.Errorf("cannot make /%s root's: it is of %d:%d with mode %04o, so whoever runs it would be root; give the tree as a tar, which keeps owners: %w",
			h.Name, h.Uid, h.Gid, h.Mode&0o7777, ErrRoot)
	}
	if (user || group) && h.Typeflag != tar.TypeLink { // a further name of one that was counted
		if o.others++; o.example == "" {
			o.example = fmt.Sprintf("/%s of %d:%d", h.Name, h.Uid, h.Gid)
		}
	}
	h.Uid, h.Gid = 0, 0
	return nil
}

// warning says what others had, for people.
func (o *folderOwners) warning(layer string) string {
	return fmt.Sprintf("layer %s: files that are neither root's nor yours become root's: %d, such as %s; a tar keeps owners", layer, o.others, o.example)
}
