package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"sealroot/state/layout"
	"sealroot/state/luks2"
)

// A prebuilt volume is made where an image is built, offline, and may lie on any
// number of disks; `sealroot state create` makes it. Who has the image or the disk
// before its first boot can read and exchange all of it, so a first boot takes one
// thing from it: how much is to be reserved. No key, keyslot or file of it gets into
// the machine's own volume, which is made as where there is none (Create), and then
// takes its place. No secret lies on the disk for that. A machine never opens it: all
// copies of the image have one volume key, and no change of keyslots makes that another.
//
// Crash points:
//
//  1. what the file holds behind its header is given back, sync. The header still
//     says that it is prebuilt: the next boot begins anew.
//  2. the escrow of its recovery key is removed, and a new file that a cut has left
//  3. the new file, whole and on stable storage, gets a name of its own
//  4. it is renamed over the prebuilt one, sync

// prebuiltType is the type of the token of a prebuilt volume.
const prebuiltType = "sealroot-prebuilt"

// Prebuilt is what counts of a prebuilt volume.
type Prebuilt struct {
	Reserved int64 // bytes, as in Sizes; 0: none that makes sense
}

// prebuiltToken is the token's JSON.
type prebuiltToken struct {
	Type     string   `json:"type"`
	Keyslots []string `json:"keyslots"`
	Reserved int64    `json:"reserved,string"`
}

// Token is the LUKS2 token by which a prebuilt volume is known.
func (p Prebuilt) Token() ([]byte, error) {
	return json.Marshal(prebuiltToken{prebuiltType, []string{}, p.Reserved})
}

// PrebuiltOf returns the prebuilt volume of that header, nil when it is not one.
func PrebuiltOf(h *luks2.Header) *Prebuilt {
	for _, t := range h.Tokens() {
		if t.Type != prebuiltType {
			continue
		}
		var token prebuiltToken
		if err := json.Unmarshal(t.JSON, &token); err != nil {
			token.Reserved = 0 // then it has no wish
		}
		return &Prebuilt{max(token.Reserved, 0)}
	}
	return nil
}

// readPrebuilt is PrebuiltOf the file's header, and where its data begins.
func readPrebuilt(f *os.File) (p *Prebuilt, data int64, err error) {
	info, err := f.Stat()
	if err != nil {
		return nil, 0, fmt.Errorf("cannot inspect %s: %w", ImageName, err)
	}
	h, err := luks2.Read(f, info.Size())
	switch {
	case err == nil:
		return PrebuiltOf(h), int64(h.DataOffset()), nil
	case errors.Is(err, luks2.ErrNotLUKS2), errors.Is(err, luks2.ErrHeader), errors.Is(err, luks2.ErrUnsupported):
		return nil, 0, nil
	}
	return nil, 0, fmt.Errorf("cannot read %s: %w", ImageName, err)
}

// emptyPrebuilt gives back the room of the prebuilt volume in dir. What is not one is
// not touched. Errors: ErrInUse, fs.ErrExist.
func emptyPrebuilt(dir *os.File) error {
	f, err := OpenImage(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	p, data, err := readPrebuilt(f)
	if err != nil {
		return err
	}
	if p == nil {
		return fmt.Errorf("cannot replace %s, which is not a prebuilt volume: %w", ImageName, os.ErrExist)
	}
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("cannot inspect %s: %w", ImageName, err)
	}
	if err := Release(f, data, info.Size()); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("cannot sync %s: %w", ImageName, err)
	}
	// crash point: its header, and nothing in it
	for _, name := range [...]string{EscrowName, Placed(dir, layout.NewImage)} {
		if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("cannot remove %s: %w", name, err)
		}
	}
	return nil
}

// giveImage names a new volume that is on stable storage.
func giveImage(f, dir *os.File, replace bool) error {
	if !replace {
		return give(f, dir, Placed(dir, ImageName))
	}
	fresh, name := Placed(dir, layout.NewImage), Placed(dir, ImageName)
	if err := give(f, dir, fresh); err != nil {
		return err
	}
	// crash point: both are there, and the prebuilt one has the name
	if err := unix.Renameat(int(dir.Fd()), fresh, int(dir.Fd()), name); err != nil {
		return fmt.Errorf("cannot rename %s to %s: %w", fresh, name, err)
	}
	return nil
}
