package disk

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sealroot/mkinitramfs/atomicfile"
	"sealroot/slots/manifest"
)

// WriteParts makes the boot set of one version, for `sealroot install`. output
// is a folder that does not exist yet; or a tar: a name that ends in .tar, or
// "-", which writes it to stdout. Equal inputs give equal bytes, but for
// signatures for Secure Boot, which hold their time. Folder and file appear when
// they are complete.
func (b *Builder) WriteParts(ctx context.Context, in SlotInput, output string, stdout io.Writer) error {
	if err := b.checkInput(in, false); err != nil {
		return err
	}
	near := filepath.Dir(filepath.Clean(output))
	if output == "-" {
		near = "" // where temporary files are kept
	} else if _, err := os.Lstat(output); err == nil && !isTar(output) {
		return fmt.Errorf("cannot write parts to %s: %w", output, fs.ErrExist)
	}
	work, err := os.MkdirTemp(near, ".sealroot-build-")
	if err != nil {
		return fmt.Errorf("cannot make work directory: %w", err)
	}
	defer os.RemoveAll(work)
	p, err := b.buildParts(ctx, in, work)
	if err != nil {
		return err
	}
	err = b.step("write to "+output, func() error {
		switch {
		case output == "-":
			return b.tarParts(ctx, p, stdout)
		case isTar(output):
			return b.tarFile(ctx, p, output)
		}
		return moveParts(p, output)
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(b.Log, "%s: %s %s, kernel %s, root image of %d MiB, root hash %x\n", output,
		in.Config.Name, in.Config.Version, p.release, p.rootSize/mib, p.rootHash)
	return nil
}

func isTar(output string) bool { return strings.HasSuffix(output, ".tar") }

// moveParts gives the folder of the set its place.
func moveParts(p parts, output string) error {
	err := errors.Join(
		writePart(filepath.Join(p.dir, manifest.File), p.manifest),
		writePart(filepath.Join(p.dir, manifest.SignatureFile), p.signed))
	if err != nil {
		return err
	}
	for _, f := range p.files {
		if filepath.Dir(f.path) == p.dir {
			continue
		}
		if err := f.copyTo(p.dir); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return fmt.Errorf("cannot write parts: %w", err)
	}
	for _, e := range entries {
		if err := finish(filepath.Join(p.dir, e.Name())); err != nil {
			return err
		}
	}
	if err := os.Chmod(p.dir, 0o755); err != nil {
		return fmt.Errorf("cannot write parts: %w", err)
	}
	if err := os.Rename(p.dir, output); err != nil {
		return fmt.Errorf("cannot write parts: %w", err)
	}
	return nil
}

func (l setFile) copyTo(dir string) error {
	from, err := os.Open(l.path)
	if err != nil {
		return fmt.Errorf("cannot write layer: %w", err)
	}
	defer from.Close()
	to, err := os.OpenFile(filepath.Join(dir, l.name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("cannot write layer: %w", err)
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}

// finish makes a part readable for everybody, and durable.
func finish(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("cannot write parts: %w", err)
	}
	if err := errors.Join(f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("cannot write parts: %w", err)
	}
	return nil
}

func (b *Builder) tarFile(ctx context.Context, p parts, output string) error {
	out, err := atomicfile.Create(output, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = out.Discard() }()
	if err := b.tarParts(ctx, p, out); err != nil {
		return err
	}
	return out.Commit()
}

// tarParts writes the set as a tar, in the order in which an installation that
// reads a stream needs the files.
func (b *Builder) tarParts(ctx context.Context, p parts, to io.Writer) error {
	w := tar.NewWriter(to)
	add := func(name string, size int64, from io.Reader) error {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("cannot pack %s: %w", name, err)
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: b.Time}
		err := w.WriteHeader(h)
		if err == nil {
			_, err = io.Copy(w, from)
		}
		if err != nil {
			return fmt.Errorf("cannot pack %s: %w", name, err)
		}
		return nil
	}
	for _, f := range []struct{ name, text string }{
		{manifest.File, string(p.manifest)}, {manifest.SignatureFile, string(p.signed)},
	} {
		if err := add(f.name, int64(len(f.text)), strings.NewReader(f.text)); err != nil {
			return err
		}
	}
	for _, file := range p.files {
		f, err := os.Open(file.path)
		if err != nil {
			return fmt.Errorf("cannot pack part: %w", err)
		}
		info, err := f.Stat()
		if err == nil {
			err = add(file.name, info.Size(), f)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("cannot pack parts: %w", err)
	}
	return nil
}
