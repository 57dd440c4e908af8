package boot

import (
	"encoding/hex"
	"errors"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/state/layout"
)

// An /etc that is read-only, or in memory, keeps no machine-id(5): the real init would
// make another one at each boot, and take each for the first. There the volume keeps it;
// where that is in memory too it is a new one at each boot.

// machineID is that of the image, if it has one, else that of the volume, which is made
// where it is missing.
//
// Crash point: it is on stable storage before anything uses it.
func (b *boot) machineID(volume *os.File, image mount.Place) ([]byte, error) {
	for _, p := range [...]mount.Place{
		{Root: image.Root, Path: image.Path + machineID},
		{Root: encryptedDir, Path: layout.MachineID},
		{Root: encryptedDir, Path: layout.Etc + machineID}, // of an image with etc: overlay
	} {
		if id := readID(p); id != nil {
			return id, nil
		}
	}
	var id [16]byte
	if _, err := io.ReadFull(b.sys.Rand, id[:]); err != nil {
		return nil, err
	}
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // as a UUID of version 4
	text := []byte(hex.EncodeToString(id[:]) + "\n")
	if b.volume.readOnly() {
		return text, nil
	}
	if err := unix.Mkdirat(int(volume.Fd()), layout.Private, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	return text, replaceFile(volume, layout.MachineID, text)
}

const machineID = "/machine-id"

// readID reads a file with an ID; nil for all else.
func readID(p mount.Place) []byte {
	root, err := mount.OpenRoot(p.Root)
	if err != nil {
		return nil
	}
	defer root.Close()
	text, _ := readIn(root, p.Path, 64) // without an ID as one that cannot be read
	id := strings.TrimSuffix(string(text), "\n")
	if raw, err := hex.DecodeString(id); err != nil || len(raw) != 16 || strings.Trim(id, "0") == "" {
		return nil
	}
	return []byte(id + "\n")
}

// putID gives an upper layer in memory the machine's ID.
func (b *boot) putID(volume *os.File, image, upper mount.Place) error {
	id, err := b.machineID(volume, image)
	if err != nil {
		return err
	}
	return os.WriteFile(upper.Root+"/"+upper.Path+machineID, id, 0o444)
}

// bindID gives a read-only /etc the machine's ID.
func (b *boot) bindID(volume *os.File, image mount.Place) error {
	id, err := b.machineID(volume, image)
	if err != nil {
		return err
	}
	const file, where = runDir + machineID, "/etc" + machineID
	if err := writeFile(file, id); err != nil {
		return err
	}
	attr := mount.ReadOnly | mount.NoSUID | mount.NoDev | mount.NoExec
	err = b.sys.Mounter.Bind(mount.Bind{From: mount.Place{Root: runDir, Path: machineID}, To: mount.Place{Root: newRoot, Path: where}, Attr: attr})
	if err == nil {
		b.noteMount(report.Mount{What: file, Where: where, Type: "bind", Options: attr.Names()})
	}
	return err
}
