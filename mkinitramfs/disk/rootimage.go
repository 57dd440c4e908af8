package disk

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"sealroot/mkinitramfs/modules"
	"sealroot/slots/guid"
	"sealroot/slots/manifest"
	"sealroot/verity/osrelease"
)

// The file systems of root images.
const (
	squashfs = "squashfs"
	erofs    = "erofs"
)

func filesystemOf(in SlotInput) string { return in.Config.WithDefaults().Root.Filesystem }

// imagePrograms are the helper programs that make a root image.
func imagePrograms(fs string) []string {
	if fs == erofs {
		return []string{"mkfs.erofs", "fakeroot", "bsdtar"}
	}
	if os.Geteuid() == 0 {
		return []string{"sqfstar"}
	}
	return []string{"sqfstar", "fakeroot"}
}

// sqfstar is the command of a user that makes a squashfs of a tar on stdin, but for the
// file to write. The top directory gets the owner who runs it: of squashfs-tools 4.5 the
// options for that do nothing.
func sqfstar(uid int) []string {
	command := []string{"sqfstar", "-comp", "zstd", "-b", "128K", "-reproducible",
		"-root-mode", "0755", "-root-uid", "0", "-root-gid", "0",
		"-exit-on-error", "-no-progress", "-quiet"}
	if uid != 0 {
		command = append([]string{"fakeroot", "--"}, command...)
	}
	return command
}

// errReaderGone tells the filter that nobody reads its output any more.
var errReaderGone = errors.New("the program that makes the image has ended")

// rootImage streams the root through the filter into what makes the image.
func (b *Builder) rootImage(ctx context.Context, in SlotInput, p *parts, dir string) error {
	edit := rootEdit{
		release: p.release, needModules: in.RootModules, extra: in.Extra, now: b.Time, usr: in.Config.Root.Usr(), firstBoot: in.Config.KeepsEtc(),
		osRelease: map[string]string{
			"IMAGE_ID":                   strconv.Quote(in.Config.Name),
			"IMAGE_VERSION":              strconv.Quote(in.Config.Version),
			osrelease.SecurityVersionKey: strconv.Itoa(in.Config.SecurityVersion),
		},
	}
	if layers := in.Config.LayerSet(); layers != "" {
		edit.osRelease[osrelease.LayersKey] = layers
	}
	if in.ModulesDir == "" {
		edit.keepModules = modulesDir(in, dir)
	} else if in.RootModules {
		tree, err := modules.Open(ctx, in.ModulesDir, p.release, b.depmod)
		if err != nil {
			return err
		}
		edit.addModules = tree
	}
	from, newest, err := b.stampOf(in.Rootfs, dir)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	image, fed := whileWriting(w, in.Config.Boot.Watchdog, edit.usr)
	image, judge := b.judged(image, in, *p)
	leftOut := ""
	err, runErr := filling(r, w, func() error {
		open := func() (io.ReadCloser, error) { return openRoot(from) }
		found, err := filterRoot(open, tar.NewWriter(image), edit)
		p.osRelease, leftOut = found.osRelease, found.leftOut
		return err
	}, func() error { return b.makeImage(ctx, r, in, p, newest, dir) })
	unfed := fed()
	unusable := judge(err == nil && runErr == nil)
	// When the filter failed by itself, that is the cause of the program's error.
	if err != nil && !errors.Is(err, errReaderGone) {
		return err
	}
	if err := errors.Join(runErr, unfed); err != nil {
		return err
	}
	if unusable != nil {
		return unusable
	}
	info, err := os.Stat(p.path(manifest.Root))
	if err != nil {
		return fmt.Errorf("cannot read root image: %w", err)
	}
	p.rootSize = info.Size()
	if leftOut != "" {
		fmt.Fprintln(b.Log, "warning:", leftOut)
	}
	return nil
}

// filling has fill write to w what read takes from r, and returns what became of each;
// fill's error is errReaderGone where read has ended before it.
func filling(r *io.PipeReader, w *io.PipeWriter, fill, read func() error) (filled, taken error) {
	done := make(chan error, 1)
	go func() {
		err := fill()
		w.CloseWithError(err)
		done <- err
	}()
	taken = read()
	_ = r.CloseWithError(errReaderGone)
	return <-done, taken
}

// makeImage makes the file system out of a tar. Its time stamps are at most
// newest, in Unix time: both programs give the root directory the present one
// and take this variable as the bound of all.
func (b *Builder) makeImage(ctx context.Context, r io.Reader, in SlotInput, p *parts, newest int64, dir string) error {
	run := b.Tools.WithEnv("SOURCE_DATE_EPOCH=" + strconv.FormatInt(newest, 10))
	if p.fs == squashfs {
		command := append(sqfstar(os.Geteuid()), p.path(manifest.Root))
		return run.Run(ctx, r, command[0], command[1:]...)
	}
	// mkfs.erofs reads a folder; only from version 1.7 on it reads a tar, which
	// Debian 12 does not have. fakeroot remembers owners and devices that an
	// ordinary user cannot make. It loses the type of a file whose extended
	// attributes are set before its owner, as GNU tar does.
	id := sha256.Sum256([]byte("erofs: " + seedOf(in, p.release)))
	return run.Run(ctx, r, "fakeroot", "--", "sh", "-c", erofsScript, "sh",
		filepath.Join(dir, "root"), p.path(manifest.Root), guid.GUID(uuidFrom([16]byte(id[:16]))).String())
}

// erofsScript unpacks the tar on stdin into $1, which it makes, and puts the
// image into $2, with UUID $3. Blocks have 4096 bytes, as mkfs.erofs makes them.
const erofsScript = `set -eu
PATH=$PATH:/usr/sbin:/sbin
mkdir -m 0755 "$1"
bsdtar -x -p -f - -C "$1" --numeric-owner --same-owner
mkfs.erofs -zlz4hc -U"$3" "$2" "$1" >&2
rm -rf "$1"`
