package disk

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sealroot/init/config"
	"sealroot/mkinitramfs/atomicfile"
	"sealroot/mkinitramfs/layer"
	"sealroot/slots/manifest"
	"sealroot/verity"
	"sealroot/verity/osrelease"
	"sealroot/verity/signature/sign"
)

// LayerInput is what a layer is made from.
type LayerInput struct {
	Name       string
	Tree       string // directory, whose files become root's, tar or "-"
	Version    string
	Filesystem string
	// For are variables of the layer's extension-release (ID, VERSION_ID, …), which a
	// tree without that file gets.
	For    map[string]string
	Output string
}

// Layer makes the image of a layer and returns its root hash.
func (b *Builder) Layer(ctx context.Context, in LayerInput) (rootHash []byte, err error) {
	out, err := atomicfile.Create(in.Output, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Discard() }()
	work, err := os.MkdirTemp(filepath.Dir(in.Output), ".sealroot-build-")
	if err != nil {
		return nil, fmt.Errorf("cannot make work directory: %w", err)
	}
	defer os.RemoveAll(work)
	p := parts{dir: work, fs: in.Filesystem, role: string(config.RoleRoot)}
	slot := SlotInput{Config: &config.Config{Name: "layer " + in.Name, Version: in.Version}}
	if err := b.layerTree(ctx, in, slot, p, work); err != nil {
		return nil, err
	}
	packed, closeAll, err := b.layerParts(slot, p)
	if err != nil {
		return nil, err
	}
	err = layer.Pack(out.File, packed)
	if err := errors.Join(err, closeAll()); err != nil {
		return nil, err
	}
	return packed.RootHash, out.Commit()
}

// layerTree makes the file system.
func (b *Builder) layerTree(ctx context.Context, in LayerInput, slot SlotInput, p parts, work string) error {
	from, newest, err := b.stampOf(in.Tree, work)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	err, runErr := filling(r, w,
		func() error { return copyLayer(from, tar.NewWriter(w), in, b) },
		func() error { return b.makeImage(ctx, r, slot, &p, newest, work) })
	if err != nil && !errors.Is(err, errReaderGone) {
		return err
	}
	return runErr
}

// copyLayer copies a tree and adds the extension-release that it lacks. Whose the files of
// a folder are says nothing of the machines, and a directory's owner there is the layer's:
// they become root's.
func copyLayer(from string, out *tar.Writer, in LayerInput, b *Builder) error {
	info, err := os.Stat(from)
	if err != nil {
		return fmt.Errorf("cannot open the tree of layer %s: %w", in.Name, err)
	}
	source, err := openRoot(from)
	if err != nil {
		return err
	}
	defer source.Close()
	release, dirs, files := osrelease.ExtensionPath(in.Name), map[string]bool{}, 0
	has, owners := false, newOwners()
	for r := tar.NewReader(source); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("cannot read the tar of layer %s: %w", in.Name, err)
		}
		name, err := cleanName(h.Name)
		if err != nil {
			return err
		}
		if name == "." || h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if h.Typeflag == tar.TypeLink {
			if h.Linkname, err = cleanName(h.Linkname); err != nil {
				return err
			}
		}
		files++
		dirs[name] = h.Typeflag == tar.TypeDir
		has = has || name == release
		h.Name = name
		if info.IsDir() {
			if err := owners.toRoot(h); err != nil {
				return err
			}
			//lint:ignore SA1019 what a reader has made of PAXRecords the writer adds to them
			h.Xattrs = nil
			for _, acl := range []string{"access", "default"} { // they name users too
				delete(h.PAXRecords, "SCHILY.xattr.system.posix_acl_"+acl)
			}
		}
		if h.Typeflag == tar.TypeDir {
			h.Name += "/"
		}
		if err := out.WriteHeader(h); err != nil {
			return fmt.Errorf("cannot pack %s: %w", name, err)
		}
		if _, err := io.Copy(out, r); err != nil {
			return fmt.Errorf("cannot pack %s: %w", name, err)
		}
	}
	if files == 0 {
		return fmt.Errorf("cannot make a layer of an empty tree: %w", ErrRoot)
	}
	if owners.others > 0 {
		fmt.Fprintln(b.Log, "warning:", owners.warning(in.Name))
	}
	if !has {
		if err := addRelease(out, release, dirs, in, b); err != nil {
			return err
		}
	}
	return out.Close()
}

// addRelease writes the extension-release and the directories that it needs.
func addRelease(out *tar.Writer, release string, dirs map[string]bool, in LayerInput, b *Builder) error {
	if len(in.For) == 0 {
		return fmt.Errorf("cannot tell what layer %s is for: it has no /%s; add one, or give --for ID=…: %w", in.Name, release, ErrRoot)
	}
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(in.For)) {
		fmt.Fprintf(&text, "%s=%q\n", name, in.For[name])
	}
	if in.Version != "" {
		fmt.Fprintf(&text, "IMAGE_VERSION=%q\n", in.Version)
	}
	for at := filepath.Dir(release); at != "."; at = filepath.Dir(at) {
		if isDir, there := dirs[at]; there && !isDir {
			return fmt.Errorf("cannot add /%s: /%s is not a directory: %w", release, at, ErrRoot)
		}
	}
	elements := strings.Split(filepath.Dir(release), "/")
	for i := range elements {
		at := strings.Join(elements[:i+1], "/")
		if dirs[at] {
			continue
		}
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: at + "/", Mode: 0o755, ModTime: b.Time}); err != nil {
			return fmt.Errorf("cannot pack %s: %w", at, err)
		}
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: release, Mode: 0o644, ModTime: b.Time, Size: int64(text.Len())}
	err := out.WriteHeader(h)
	if err == nil {
		_, err = io.WriteString(out, text.String())
	}
	if err != nil {
		return fmt.Errorf("cannot pack %s: %w", release, err)
	}
	return nil
}

// layerParts makes hash tree and signature.
func (b *Builder) layerParts(slot SlotInput, p parts) (packed layer.Parts, closeAll func() error, err error) {
	data, err := os.Open(p.path(manifest.Root))
	if err != nil {
		return layer.Parts{}, nil, fmt.Errorf("cannot read the file system: %w", err)
	}
	tree, err := os.Create(p.path(manifest.Verity))
	if err != nil {
		return layer.Parts{}, nil, errors.Join(fmt.Errorf("cannot write hash tree: %w", err), data.Close())
	}
	closeAll = func() error { return errors.Join(data.Close(), tree.Close()) }
	packed, err = b.protectLayer(slot, data, tree)
	if err != nil {
		return layer.Parts{}, nil, errors.Join(err, closeAll())
	}
	return packed, closeAll, nil
}

func (b *Builder) protectLayer(slot SlotInput, data, tree *os.File) (layer.Parts, error) {
	size, err := data.Seek(0, io.SeekEnd)
	if err != nil {
		return layer.Parts{}, fmt.Errorf("cannot read the file system: %w", err)
	}
	params, err := verity.NewParams(size, saltOf(slot, ""), uuidOf(slot, ""))
	if err != nil {
		return layer.Parts{}, err
	}
	hash, err := verity.Format(data, params, tree)
	if err != nil {
		return layer.Parts{}, fmt.Errorf("cannot write hash tree: %w", err)
	}
	treeSize, err := tree.Seek(0, io.SeekEnd)
	if err != nil {
		return layer.Parts{}, fmt.Errorf("cannot write hash tree: %w", err)
	}
	signature, err := sign.RootHash(hash, b.Signing.ImageCert, b.Signing.ImageKey)
	if err != nil {
		return layer.Parts{}, err
	}
	signature = bytes.TrimRight(signature, "\x00")
	return layer.Parts{Data: data, DataSize: size, Tree: tree, TreeSize: treeSize, RootHash: hash, Signature: signature}, nil
}
