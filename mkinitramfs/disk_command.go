package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sealroot/mkinitramfs/disk"
	"sealroot/mkinitramfs/keys"
	"sealroot/mkinitramfs/tools"
	"sealroot/mkinitramfs/uki"
)

// slotFlags are the options that exist for each slot.
type slotFlags struct {
	rootfs, kernel, kernelVersion, modulesDir, config string
}

func (s *slotFlags) register(fs *flag.FlagSet, prefix, of string) {
	fs.StringVar(&s.rootfs, prefix+"rootfs", "", "root file system"+of+": directory, tar (plain, gzip, xz, zstd), or - for a tar on stdin")
	fs.StringVar(&s.kernel, prefix+"kernel", "", "kernel"+of+" (bzImage)")
	fs.StringVar(&s.kernelVersion, prefix+"kernel-version", "", "kernel release"+of+" (default: read from the kernel)")
	fs.StringVar(&s.modulesDir, prefix+"modules-dir", "", "directory with lib/modules/<release>"+of+" (default: the root)")
	fs.StringVar(&s.config, prefix+"config", "", "configuration"+of+" (YAML)")
}

// orElse takes from other what is not given. A kernel and its modules belong
// together.
func (s *slotFlags) orElse(other slotFlags) {
	if s.kernel == "" {
		s.kernel, s.kernelVersion = other.kernel, other.kernelVersion
		if s.modulesDir == "" {
			s.modulesDir = other.modulesDir
		}
	}
	if s.config == "" {
		s.config = other.config
	}
}

func (s *slotFlags) input(cmdline, extra string, rootModules bool) (disk.SlotInput, error) {
	cfg, err := loadConfig(s.config)
	if err != nil {
		return disk.SlotInput{}, err
	}
	return disk.SlotInput{
		Rootfs: s.rootfs, Kernel: s.kernel, KernelVersion: s.kernelVersion, ModulesDir: s.modulesDir,
		Config: cfg, ConfigDir: filepath.Dir(s.config), Cmdline: cmdline, Extra: extra, RootModules: rootModules,
	}, nil
}

// size is a flag in bytes with the suffixes K, M and G.
type size int64

func (s *size) String() string { return strconv.FormatInt(int64(*s), 10) }

func (s *size) Set(text string) error {
	number, unit := text, int64(1)
	if i := strings.IndexAny(text, "KMG"); i >= 0 && i == len(text)-1 {
		number = text[:i]
		unit = map[byte]int64{'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30}[text[i]]
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > (1<<62)/unit {
		return fmt.Errorf("%q is not a size such as 512M or 4G", text)
	}
	*s = size(n * unit)
	return nil
}

// layerSizes are sizes by name of a layer.
type layerSizes map[string]int64

func (l *layerSizes) String() string { return "" }

func (l *layerSizes) Set(text string) error {
	name, of, ok := strings.Cut(text, "=")
	if !ok {
		return fmt.Errorf("%q is not NAME=SIZE", text)
	}
	var n size
	if err := n.Set(of); err != nil {
		return err
	}
	if *l == nil {
		*l = layerSizes{}
	}
	(*l)[name] = int64(n)
	return nil
}

// stateSize is a size, or 0 for no partition at all.
type stateSize struct {
	size
	none bool
}

func (s *stateSize) Set(text string) error {
	if s.none = text == "0"; s.none {
		s.size = 0
		return nil
	}
	return s.size.Set(text)
}

// buildFlags are the options of everything that is built from a root.
type buildFlags struct {
	a                                   slotFlags
	cmdline, extra, keys, out           string
	init, secureBootKey, secureBootCert string
	signCommand                         string
	noRootModules                       bool
	ignore                              rules
}

func (f *buildFlags) register(fs *flag.FlagSet, out string) {
	f.a.register(fs, "", "")
	fs.StringVar(&f.cmdline, "cmdline", "", "further kernel parameters, as \"console=ttyS0 quiet\"")
	fs.StringVar(&f.extra, "extra", "", "directory of files to add to the root, or to replace there; owned by root")
	fs.StringVar(&f.keys, "keys", "", "key directory (sealroot-mkinitramfs keys)")
	fs.StringVar(&f.out, "o", "", out)
	fs.StringVar(&f.init, "init", "", "PID 1 (default: the file init beside this program)")
	fs.StringVar(&f.secureBootKey, "secureboot-key", "", "key for Secure Boot (default: db.key of the key directory)")
	fs.StringVar(&f.secureBootCert, "secureboot-cert", "", "certificate for Secure Boot")
	fs.StringVar(&f.signCommand, "sign-command", "", "program that signs in place of the secret keys, as with an HSM; split at spaces, started without a shell")
	fs.BoolVar(&f.noRootModules, "no-root-modules", false, "do not put kernel modules into a root that has none")
	f.ignore.register(fs)
}

// required are the options without which nothing is built.
func required() []string { return []string{"rootfs", "kernel", "config", "keys", "o"} }

// together refuses options that do not go together.
func (f *buildFlags) together(stderr io.Writer) error {
	if (f.secureBootKey == "") != (f.secureBootCert == "") {
		return wrong(stderr, "cannot sign for Secure Boot with only one of --secureboot-key and --secureboot-cert: give both, or neither")
	}
	return nil
}

// builder makes what the build runs with.
func (f *buildFlags) builder(ctx context.Context, stdin io.Reader, stderr io.Writer) (*disk.Builder, error) {
	var secure *uki.SecureBoot
	if f.secureBootKey != "" {
		secure = &uki.SecureBoot{Key: f.secureBootKey, Cert: f.secureBootCert}
	}
	signing, err := disk.LoadSigning(ctx, f.keys, secure, keys.ParseCommand(f.signCommand, stderr))
	if err != nil {
		return nil, err
	}
	initPath, err := findInit(f.init)
	if err != nil {
		return nil, err
	}
	stamp, err := disk.BuildTime()
	if err != nil {
		return nil, err
	}
	return &disk.Builder{
		Tools: tools.New(), Stdin: stdin, Log: stderr, Init: initPath, Signing: signing, Time: stamp, Now: time.Now(),
		Ignore: f.ignore,
	}, nil
}

// partsCommand writes the boot set of one version.
func partsCommand(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("sealroot-mkinitramfs parts", flag.ContinueOnError)
	var f buildFlags
	f.register(fs, "set to write: a folder that does not exist, FILE.tar, or - for a tar on stdout")
	if err := parse(fs, args, stderr, required()...); err != nil {
		return err
	}
	if err := f.together(stderr); err != nil {
		return err
	}
	in, err := f.a.input(f.cmdline, f.extra, !f.noRootModules)
	if err != nil {
		return err
	}
	b, err := f.builder(ctx, stdin, stderr)
	if err != nil {
		return err
	}
	return b.WriteParts(ctx, in, f.out, stdout)
}

// diskFlags is everything that the disk command can be told.
type diskFlags struct {
	buildFlags
	b                 slotFlags
	state             choice
	rootSize, espSize size
	stateSize         stateSize
	diskSize          size
	layerSizes        layerSizes
}

func (f *diskFlags) register(fs *flag.FlagSet) {
	f.buildFlags.register(fs, "disk image to write")
	f.b.register(fs, "slot-b-", " of slot b")
	f.state.of = []string{string(disk.Good), string(disk.Trial), string(disk.Off)}
	fs.Var(&f.state, "slot-b", "how slot b begins: good (the default), trial or off")
	fs.Var(&f.rootSize, "root-size", "size of a root slot (default: 1.5 times the image)")
	fs.Var(&f.layerSizes, "layer-size", "NAME=SIZE: size of the partition of a layer with from: partition (default: 1.5 times its image); may be given several times")
	fs.Var(&f.espSize, "esp-size", "size of the EFI system partition (default: three boot sets)")
	fs.Var(&f.stateSize, "state-size", "size of the state partition (default: 1G); 0: the first boot adds it, as large as the medium lets it")
	fs.Var(&f.diskSize, "size", "size of the disk; the state partition gets what is left")
}

// diskCommand builds a disk image.
func diskCommand(ctx context.Context, args []string, stdin io.Reader, stderr io.Writer) error {
	fs := flag.NewFlagSet("sealroot-mkinitramfs disk", flag.ContinueOnError)
	var f diskFlags
	f.register(fs)
	if err := parse(fs, args, stderr, required()...); err != nil {
		return err
	}
	if err := f.together(stderr); err != nil {
		return err
	}
	options, err := f.options()
	if err != nil {
		return err
	}
	b, err := f.builder(ctx, stdin, stderr)
	if err != nil {
		return err
	}
	return b.Disk(ctx, options)
}

// together is that of buildFlags, for slot b too.
func (f *diskFlags) together(stderr io.Writer) error {
	switch {
	case f.a.rootfs == "-" && f.b.rootfs == "-":
		return wrong(stderr, "cannot read two roots from stdin: give one of them as a folder or a file")
	case f.b.rootfs == "" && (f.b != slotFlags{} || f.state.word != ""):
		return wrong(stderr, "cannot fill slot b without --slot-b-rootfs: give that too, or no option of slot b")
	case f.b.kernel == "" && f.b.kernelVersion != "":
		return wrong(stderr, "cannot use --slot-b-kernel-version without --slot-b-kernel: slot b has the kernel of slot a then, and its release; leave it out, or give both")
	}
	return f.buildFlags.together(stderr)
}

// options turns the flags into what is to be built.
func (f *diskFlags) options() (disk.Options, error) {
	o := disk.Options{
		BState: disk.SlotState(cmp.Or(f.state.word, string(disk.Good))), Output: f.out,
		Sizes: disk.Sizes{Root: int64(f.rootSize), ESP: int64(f.espSize), State: int64(f.stateSize.size), Disk: int64(f.diskSize), NoState: f.stateSize.none, Layers: f.layerSizes},
	}
	var err error
	if o.A, err = f.a.input(f.cmdline, f.extra, !f.noRootModules); err != nil {
		return disk.Options{}, err
	}
	if f.b.rootfs == "" {
		return o, nil
	}
	f.b.orElse(f.a)
	b, err := f.b.input(f.cmdline, f.extra, !f.noRootModules)
	if err != nil {
		return disk.Options{}, err
	}
	o.B = &b
	return o, nil
}
