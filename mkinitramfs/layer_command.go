package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"sealroot/init/config"
	"sealroot/mkinitramfs/disk"
	"sealroot/mkinitramfs/keys"
	"sealroot/mkinitramfs/layer"
	"sealroot/mkinitramfs/tools"
	"sealroot/mkinitramfs/yamlconfig"
)

// loadConfig reads a configuration, and the root hashes of the layers that it names by
// their images.
func loadConfig(path string) (*config.Config, error) {
	cfg, err := yamlconfig.Load(path)
	if err != nil {
		return nil, err
	}
	if err := layer.FillIn(cfg, filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("%s: layers: %w", path, err)
	}
	return cfg, nil
}

// assignments are NAME=VALUE options.
type assignments map[string]string

func (a assignments) String() string { return "" }

func (a assignments) Set(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok || name == "" || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" || strings.ContainsAny(value, "\"\\$`\n") {
		return fmt.Errorf("%q is not NAME=VALUE as os-release has it", text)
	}
	a[name] = value
	return nil
}

// layerCommand makes the image of a layer.
func layerCommand(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("sealroot-mkinitramfs layer", flag.ContinueOnError)
	in := disk.LayerInput{For: map[string]string{}}
	fs.StringVar(&in.Name, "name", "", "name of the layer, as the configuration has it")
	fs.StringVar(&in.Tree, "tree", "", "what lies over the root: directory, whose files all become root's (0:0); tar (plain, gzip, xz, zstd) with the owners that it names; - for a tar on stdin")
	fs.StringVar(&in.Version, "version", "", "version, shown to people")
	fs.StringVar(&in.Filesystem, "filesystem", "squashfs", "squashfs or erofs")
	fs.Var(assignments(in.For), "for", "NAME=VALUE for the extension-release file of a tree without one, such as ID=debian or VERSION_ID=12; may be repeated")
	fs.StringVar(&in.Output, "o", "", "image to write")
	keysDir := fs.String("keys", "", "key directory: image.key signs")
	signCommand := fs.String("sign-command", "", "program that signs in place of the secret key; split at spaces, started without a shell")
	if err := parse(fs, args, stderr, "name", "tree", "keys", "o"); err != nil {
		return err
	}
	if err := (config.Layer{Name: in.Name, Filesystem: in.Filesystem}).Check(); err != nil {
		return wrong(stderr, "%v", err)
	}
	signing, err := disk.LoadSigning(ctx, *keysDir, nil, keys.ParseCommand(*signCommand, stderr))
	if err != nil {
		return err
	}
	stamp, err := disk.BuildTime()
	if err != nil {
		return err
	}
	b := &disk.Builder{Tools: tools.New(), Stdin: stdin, Log: stderr, Signing: signing, Time: stamp}
	hash, err := b.Layer(ctx, in)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%x\n", hash)
	return err
}
