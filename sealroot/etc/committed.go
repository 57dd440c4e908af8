package etc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"sealroot/mount"
	"sealroot/state/layout"
	"sealroot/state/seed"
)

// Committed notes that an image was committed: when another one takes over, what was
// changed under it is changed there too. Where the layer is not that image's (an image
// whose merge failed runs on another one's) nothing is noted.
func Committed(volume, image string) error {
	m := merger{}
	defer m.close()
	merge, live, err := m.current(volume)
	if err != nil || merge == nil || live.image != image {
		return err
	}
	err = unix.Unlinkat(int(merge.Fd()), trialFile, 0)
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	if err == nil {
		err = syncDirs(merge)
	}
	if err != nil {
		return fmt.Errorf("cannot note that the image of /etc was committed: %w", err)
	}
	// crash point: before is there without a trial, and goes at the next commit or merge
	return seed.Remove(m.kept, beforeDir)
}

// current opens the directory of the merge that the live upper layer comes from; nil
// when there was none.
func (m *merger) current(volume string) (merge *os.File, live owner, err error) {
	root, err := mount.OpenRoot(volume)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, owner{}, nil
	}
	if err != nil {
		return nil, owner{}, err
	}
	m.opened = append(m.opened, root)
	m.volume = root
	upper, err := m.dir(root, layout.Etc)
	if err != nil || upper == nil {
		return nil, owner{}, err
	}
	if live, err = readOwner(upper); err != nil || live.image == "" {
		return nil, owner{}, err
	}
	if m.kept, err = m.dir(root, layout.EtcKept); err != nil || m.kept == nil {
		return nil, live, err
	}
	merge, err = m.dir(m.kept, live.image+"/"+mergeDir(live.merge))
	return merge, live, err
}
