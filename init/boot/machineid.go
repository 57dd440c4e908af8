package boot

import (
	"cmp"
	"encoding/hex"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/mount"
	"sealroot/state/layout"
)

const machineID = "/machine-id"

// bindID gives an /etc that is read-only, or in memory, the machine's identity
// (machine-id(5)), unless the image has one: the real init would make another one at each
// boot, and take each for the first. The volume keeps it; where that is in memory too it
// is a new one at each boot. An /etc that keeps its own, and has none yet, gets what the
// volume keeps: the machine was that one under an image before.
//
// Crash point: it is on stable storage before anything uses it.
func (b *boot) bindID(volume *os.File) error {
	root, err := mount.OpenRoot(newRoot)
	if err != nil {
		return err
	}
	defer root.Close()
	const inVolume = layout.State + "/" + layout.Volume + "/"
	if readID(root, layout.Etc+machineID) != "" {
		return nil
	}
	if b.cfg.Etc == config.EtcOverlay && b.ofVolume() {
		id := readID(root, inVolume+layout.MachineID)
		var st unix.Stat_t
		if err := unix.Fstatat(int(volume.Fd()), layout.Etc+machineID, &st, unix.AT_SYMLINK_NOFOLLOW); id == "" || err != unix.ENOENT {
			return nil // root of the running system may have begun anew
		}
		etc, err := openDir(newRoot + "/etc")
		if err != nil {
			return err
		}
		defer etc.Close()
		return replaceIn(etc, machineID[1:], []byte(id+"\n"), 0o444)
	}
	id := cmp.Or(readID(root, inVolume+layout.MachineID), readID(root, inVolume+layout.Etc+machineID)) // that of an image with etc: overlay
	if id == "" {
		var raw [16]byte
		if _, err := io.ReadFull(b.sys.Rand, raw[:]); err != nil {
			return err
		}
		raw[6], raw[8] = raw[6]&0x0f|0x40, raw[8]&0x3f|0x80 // as a UUID of version 4
		id = hex.EncodeToString(raw[:])
		if !b.volume.readOnly() {
			_ = unix.Mkdirat(int(volume.Fd()), layout.Private, 0o700) // or it is there
			err = replaceFile(volume, layout.MachineID, []byte(id))
		}
	}
	if err == nil {
		err = writeFile(runDir+machineID, []byte(id+"\n"))
	}
	if err == nil {
		err = b.bind(mount.Place{Root: runDir, Path: machineID[1:]}, "/etc"+machineID, mount.ReadOnly|mount.NoSUID|mount.NoDev|mount.NoExec)
	}
	return err
}

// readID reads a file with an ID; "" for all else.
func readID(root *os.File, path string) string {
	text, _ := readIn(root, path, 64) // without an ID as one that cannot be read
	id := strings.TrimSpace(string(text))
	if raw, err := hex.DecodeString(id); err != nil || len(raw) != 16 || strings.Trim(id, "0") == "" {
		return ""
	}
	return id
}
