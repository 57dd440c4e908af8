package disk

import (
	"errors"
	"fmt"
	"io"
	"os"

	"sealroot/init/cmdline"
	"sealroot/init/config"
	"sealroot/mkinitramfs/rootcheck"
)

// ReadTree reads what rootcheck judges of a root: a directory, a tar (plain, gzip,
// xz or zstd), or "-" for a tar on stdin.
func ReadTree(source string, stdin io.Reader) (*rootcheck.Tree, error) {
	in := io.NopCloser(stdin)
	if source != "-" {
		info, err := os.Stat(source)
		if err != nil {
			return nil, fmt.Errorf("cannot open root: %w", err)
		}
		if info.IsDir() {
			return rootcheck.ReadDir(source)
		}
		if in, err = os.Open(source); err != nil {
			return nil, fmt.Errorf("cannot open root: %w", err)
		}
	}
	r, err := decompressTar(in)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return rootcheck.ReadTar(r, nil)
}

// beside has read look at what is written to w. wait must be called when all is
// written, or was given up; it returns what read did.
func beside(w io.Writer, read func(io.Reader) error) (both io.Writer, wait func() error) {
	r, copied := io.Pipe()
	result := make(chan error, 1)
	go func() {
		err := read(r)
		// What is written goes on, whatever was found.
		_, _ = io.Copy(io.Discard, r)
		result <- err
	}()
	return io.MultiWriter(w, copied), func() error {
		_ = copied.Close()
		return <-result
	}
}

// judged reads an image's tree from its tar as it is written to w, with all that the
// builder adds. judge must be called in the end; complete says that the tar was
// written whole, for nothing is true of a part of it.
func (b *Builder) judged(w io.Writer, in SlotInput, p parts) (both io.Writer, judge func(complete bool) error) {
	want := rootcheck.Want{Config: in.Config, Init: initOf(in), Built: true, Ignore: b.Ignore, Layers: p.layers, BootKernel: p.release}
	if in.RootModules {
		want.Kernel = p.release
	}
	rename := func(name string) string { return name }
	if in.Config.Root.Usr() {
		rename = fromUsr
	}
	var tree *rootcheck.Tree
	both, wait := beside(w, func(r io.Reader) (err error) {
		tree, err = rootcheck.ReadTar(r, rename)
		return err
	})
	return both, func(complete bool) error {
		if err := wait(); err != nil || !complete {
			return err
		}
		return tell(b.Log, rootcheck.Judge(tree, want))
	}
}

// initOf is the program that PID 1 will hand over to, "" for the default.
func initOf(in SlotInput) string {
	if in.Config.Trust.Cmdline != config.CmdlineMeasured {
		return ""
	}
	return cmdline.ParseVouched(in.Cmdline, string(in.Config.Root.ImageRole())).Init
}

// tell prints warnings, and refuses an image for errors.
func tell(log io.Writer, found []rootcheck.Finding) error {
	var unusable []error
	for _, f := range found {
		if f.Severity == rootcheck.Error {
			unusable = append(unusable, fmt.Errorf("cannot use the root: %s (%s): %s; %s: %w", f.Path, f.Rule, f.What, f.Remedy, ErrRoot))
		} else {
			fmt.Fprintln(log, f)
		}
	}
	return errors.Join(unusable...)
}
