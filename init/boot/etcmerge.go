package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/state/layerlist"
	"sealroot/state/layout"
	"sealroot/state/seed"
)

// mergeTime is how long a merge of /etc may take.
const mergeTime = 2 * time.Minute

// mergeProgram is the command that does it.
const mergeProgram = "/usr/bin/sealroot"

var (
	errNoMerge  = errors.New("the image has no " + mergeProgram)
	errUnmerged = errors.New("it did not finish")
	errWaits    = errors.New("it waits until no layer is missing or damaged")
)

// mergeEtc has the upper layer of /etc made that of the image that runs, where it is
// another one's. The root's own command does it, so that PID 1 has no parser of what
// users write into /etc. If that fails the layer stays as it was, as it always did
// before there was a merge, and the next boot tries again; foreign tells that this boot
// must not write to it: it is on trial, or the layer is that of another image's trial, and
// goes when a merge puts back what was there before.
func (b *boot) mergeEtc(ctx context.Context, volume *os.File, image mount.Place) (foreign bool) {
	if b.report.Degraded || b.cfg.State.Create == config.CreateNone {
		return false
	}
	id, err := b.etcIdentity(), error(nil)
	ours, free, tried := etcOwner(volume, id)
	if _, pending := readIn(volume, layout.EtcPending(id), 0); !ours || pending == nil {
		putBack := tried && !ours
		err = b.runMerge(ctx, id, image, putBack)
		if ours, free, tried = etcOwner(volume, id); ours && putBack && errors.Is(err, errWaits) {
			err = nil // what waited was a merge, and none is needed
		}
	}
	what := "the next boot goes on with the image's new directories for /var"
	if ours {
		b.report.EtcImage = id
	} else {
		what = "/etc is not merged with that of this image, what the machine changed hides the image's"
		if err == nil {
			err = errUnmerged
		}
	}
	if err != nil {
		b.warn("%s: %v", what, err)
	}
	return !ours && !free && (tried || b.onTrial())
}

// onTrial: the slot is, or the layers are. A slot that nobody has committed is not kept by
// running as the last resort. boot.store fixed has every slot committed.
func (b *boot) onTrial() bool {
	s := b.report.Slot
	return s.Trial || s.Name != "" && !s.Successful || b.layersTried
}

// etcIdentity names what the image's /etc comes from: the root hash, which says the
// configuration's layers too, for the root's os-release names them; and those in use, where
// they are others. One that is damaged counts as there.
func (b *boot) etcIdentity() string {
	id, used, others := b.report.Root.RootHash, "", false
	for _, l := range b.report.Layers {
		own := l.Source == ""
		in := l.LeftOut == "" || own && l.LeftOut != report.LayerOff && !l.Absent
		if in {
			used += l.Name + " " + l.RootHash + "\n"
		}
		others = others || in != own
	}
	if list := layerlist.ID([]byte(used)); others && len(id) > len(list) {
		id = id[:len(id)-len(list)] + list
	}
	return id
}

// etcOwner tells whether the upper layer of /etc was merged for an image, or is free: for
// nobody, and empty; and whether it is of a trial that nobody has committed.
func etcOwner(volume *os.File, id string) (ours, free, tried bool) {
	upper, err := mount.OpenBeneath(volume, layout.Etc, unix.O_RDONLY|unix.O_DIRECTORY, mount.Strict)
	if err != nil {
		return false, false, false
	}
	defer upper.Close()
	owner, err := seed.Attribute(upper, layout.EtcOwner)
	_, empty := upper.Readdirnames(1)
	whose, merge, _ := strings.Cut(owner, " ")
	_, mark := readIn(volume, layout.EtcTrial(whose, merge), 0)
	return whose == id, err == nil && owner == "" && errors.Is(empty, io.EOF), mark == nil
}

// runMerge runs the command, with /proc, which it reaches extended attributes by. putBack
// tells that there may be a layer to put back, which needs no image's /etc.
func (b *boot) runMerge(ctx context.Context, id string, image mount.Place, putBack bool) error {
	// What a damaged layer has in /etc would pass for gone, and be back with the layer.
	// What the machine itself added or turned off does not come back by waiting, nor does
	// what is not for this system.
	waits := slices.ContainsFunc(b.report.Layers, func(l report.Layer) bool {
		return l.LeftOut != "" && l.LeftOut != report.LayerOff && l.Source == "" && !l.Absent
	})
	if waits && !putBack {
		return errWaits
	}
	proc := mount.Filesystem{Type: "proc", Source: "proc", Attr: mount.NoSUID | mount.NoDev | mount.NoExec}
	if err := b.sys.Mounter.MountIn(proc, mount.Place{Root: newRoot, Path: "proc"}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, mergeTime)
	defer cancel()
	argv := []string{mergeProgram, "etc-merge", "--image", id,
		"--from", image.Root[len(newRoot):] + "/" + image.Path, "--volume", encryptedDir[len(newRoot):]}
	if b.onTrial() {
		argv = append(argv, "--trial")
	}
	if waits {
		argv = append(argv, "--put-back")
	}
	result, err := b.sys.RunProgram(ctx, newRoot, argv...)
	last := ""
	for line := range bytes.Lines(result.Output) {
		last = clean(string(bytes.TrimSpace(line)))
		if text, ok := strings.CutPrefix(last, "warning: "); ok {
			b.warn("%s", text)
		} else if text, ok := strings.CutPrefix(last, "conflict: "); !ok {
			b.sys.Log.Info("etc: %s", last)
		} else if len(b.report.EtcConflicts) < report.MaxEtcConflicts {
			b.report.EtcConflicts = append(b.report.EtcConflicts, text)
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = errNoMerge
	case err == nil && result.Status != 0:
		err = fmt.Errorf("%s ends with status %d: %.300s", mergeProgram, result.Status, last)
	case err == nil && waits:
		err = errWaits
	}
	return errors.Join(err, b.sys.Mounter.Unmount(newRoot+"/proc"))
}
