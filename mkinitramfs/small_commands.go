package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"sealroot/mkinitramfs/atomicfile"
	"sealroot/mkinitramfs/disk"
	"sealroot/mkinitramfs/initramfs"
	"sealroot/mkinitramfs/keys"
	"sealroot/mkinitramfs/modules"
	"sealroot/mkinitramfs/tools"
	"sealroot/verity/osrelease"
)

// initramfsCommand writes one initramfs.
func initramfsCommand(ctx context.Context, args []string, stderr io.Writer) error {
	fs := flag.NewFlagSet("sealroot-mkinitramfs", flag.ContinueOnError)
	out := fs.String("o", "", "initramfs to write")
	release := fs.String("kernel-version", "", "kernel release, as uname -r prints it")
	modulesDir := fs.String("modules-dir", "", "directory with lib/modules/<release>")
	configPath := fs.String("config", "", "configuration (YAML)")
	keysDir := fs.String("keys", "", "key directory; certificates are looked up beside the configuration first")
	initPath := fs.String("init", "", "PID 1 (default: the file init beside this program)")
	compress := choice{string(initramfs.Zstd), []string{string(initramfs.Zstd), string(initramfs.None)}}
	fs.Var(&compress, "compress", "zstd or none")
	rootfs := fs.String("rootfs", "", "root that it is for (directory or tar): its layers are compared with that; needed with boot.watchdog.handover")
	if err := parse(fs, args, stderr, "o", "kernel-version", "modules-dir", "config"); err != nil {
		return err
	}
	cfg, err := loadConfig(*configPath)
	if err != nil {
		return err
	}
	if err := disk.CheckWatchdog(cfg, *rootfs); err != nil {
		return err
	}
	if err := disk.CheckLayers(ctx, tools.New(), cfg, *rootfs, *release, stderr); err != nil {
		return err
	}
	if *initPath, err = findInit(*initPath); err != nil {
		return err
	}
	in, err := initramfs.Gather(ctx, initramfs.Sources{
		Config: cfg, ConfigDir: filepath.Dir(*configPath), KeysDir: *keysDir, Init: *initPath,
		ModulesDir: *modulesDir, Release: *release, Depmod: depmod(tools.New()),
	})
	if err != nil {
		return err
	}
	records, err := initramfs.Records(in)
	if err != nil {
		return err
	}
	f, err := atomicfile.Create(*out, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = f.Discard() }()
	if err := initramfs.Write(f, records, initramfs.Compression(compress.word)); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("cannot write initramfs: %w", err)
	}
	fmt.Fprintf(stderr, "%s: %d modules, %.1f MiB\n", *out, len(in.Modules.Modules), float64(info.Size())/(1<<20))
	if layers := cfg.LayerSet(); layers != "" {
		fmt.Fprintf(stderr, "the root's /%s needs the line %s=%s\n", osrelease.Path, osrelease.LayersKey, layers)
	}
	return f.Commit()
}

// findInit returns the path of PID 1: the one named, else the one that was
// built beside this program.
func findInit(path string) (string, error) {
	if path != "" {
		return path, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("cannot find init: %w", err)
	}
	path = filepath.Join(filepath.Dir(self), "init")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("cannot find init beside %s; name it with --init: %w", self, err)
	}
	return path, nil
}

// depmod runs the real depmod.
func depmod(r tools.Runner) modules.Depmod {
	return func(ctx context.Context, baseDir, release string) error {
		return r.Run(ctx, nil, "depmod", "-b", baseDir, release)
	}
}

// keysCommand makes a key directory.
func keysCommand(args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("sealroot-mkinitramfs keys DIR", flag.ContinueOnError)
	fs.SetOutput(stderr)
	name := fs.String("name", "sealroot", "name in the certificates' subjects")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if fs.NArg() != 1 {
		fmt.Fprintln(stderr, "usage: sealroot-mkinitramfs keys [-name NAME] DIR")
		return errUsage
	}
	dir := fs.Arg(0)
	if err := keys.Generate(dir, *name, time.Now()); err != nil {
		return err
	}
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	for _, f := range keys.Files() {
		kind := "public"
		if f.Secret {
			kind = "SECRET"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", filepath.Join(dir, f.Name), kind, f.Purpose)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(stdout, "Whoever has a SECRET file can make images that your machines trust: keep them off the machines, with a backup.")
	return err
}

// toolsCommand lists the helper programs.
func toolsCommand(args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("sealroot-mkinitramfs tools", flag.ContinueOnError)
	if err := parse(fs, args, stderr); err != nil {
		return err
	}
	r := tools.New()
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	for _, t := range tools.Table() {
		path, err := r.Find(t.Name)
		if err != nil {
			path = "missing"
		}
		fmt.Fprintf(w, "%s\t%s\t%s %s\t%s\n", t.Name, path, t.Package, t.MinVersion, t.Purpose)
	}
	for _, d := range tools.DataFiles() {
		path, err := r.Data(d)
		if err != nil {
			path = "missing"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", filepath.Base(d.Path), path, d.Package, d.Purpose)
	}
	return w.Flush()
}
