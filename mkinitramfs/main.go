// Command mkinitramfs builds what a sealroot machine boots: the initramfs, and
// whole disk images with it. It is installed as sealroot-mkinitramfs, because
// Debian's initramfs-tools owns the bare name.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

const usage = `sealroot-mkinitramfs builds what a sealroot machine boots.

  sealroot-mkinitramfs -o FILE --kernel-version V --modules-dir DIR --config FILE
        an initramfs: PID 1, its configuration, the kernel modules it needs
  sealroot-mkinitramfs keys DIR
        the keys of an image builder, and which of them are secret
  sealroot-mkinitramfs disk --rootfs DIR|TAR|- --kernel FILE --config FILE --keys DIR -o disk.img
        a bootable A/B disk image from a root file system
  sealroot-mkinitramfs parts --rootfs DIR|TAR|- --kernel FILE --config FILE --keys DIR -o DIR|FILE.tar|-
        the parts of one version, signed, as sealroot install takes them
  sealroot-mkinitramfs layer --name NAME --tree DIR|TAR|- --keys DIR -o FILE
        the image of a layer over the root; prints its root hash
  sealroot-mkinitramfs check-root [--config FILE] [--kernel RELEASE] [--json] DIR|TAR|-
        what in a root file system will hurt once it is an image
  sealroot-mkinitramfs predict [--json] DISK|PARTS|UKI
        the values of PCR 11, 12 and 13 that an image will have
  sealroot-mkinitramfs tools
        the helper programs that the above run, and whether they are installed

COMMAND -h lists the options of a command.
`

// errUsage means that the command line was wrong and that this was said.
var errUsage = errors.New("wrong usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// Main runs one command and returns the exit status: 0, 1 when it could not
// be done, 2 when the command line is wrong.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	err := run(ctx, args, stdin, stdout, stderr)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		return 2
	}
	fmt.Fprintf(stderr, "sealroot-mkinitramfs: %v\n", err)
	return 1
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return errUsage
	}
	switch args[0] {
	case "-h", "--help", "help":
		fmt.Fprint(stdout, usage)
		return nil
	case "keys":
		return keysCommand(args[1:], stdout, stderr)
	case "disk":
		return diskCommand(ctx, args[1:], stdin, stderr)
	case "parts":
		return partsCommand(ctx, args[1:], stdin, stdout, stderr)
	case "layer":
		return layerCommand(ctx, args[1:], stdin, stdout, stderr)
	case "check-root":
		return checkRootCommand(ctx, args[1:], stdin, stdout, stderr)
	case "predict":
		return predictCommand(ctx, args[1:], stdout, stderr)
	case "tools":
		return toolsCommand(args[1:], stdout, stderr)
	}
	if !strings.HasPrefix(args[0], "-") {
		fmt.Fprintf(stderr, "sealroot-mkinitramfs: unknown command %q\n\n%s", args[0], usage)
		return errUsage
	}
	return initramfsCommand(ctx, args, stderr)
}

// parse parses flags that take no further arguments and checks that the
// required ones were given.
func parse(fs *flag.FlagSet, args []string, stderr io.Writer, required ...string) error {
	fs.SetOutput(stderr)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage // flag has printed it
	}
	if fs.NArg() > 0 {
		return wrong(stderr, "unexpected argument %q", fs.Arg(0))
	}
	for _, name := range required {
		if fs.Lookup(name).Value.String() == "" {
			return wrong(stderr, "missing -%s (%s)", name, fs.Lookup(name).Usage)
		}
	}
	return nil
}

// wrong says what is wrong with a command line.
func wrong(stderr io.Writer, format string, args ...any) error {
	fmt.Fprintf(stderr, "sealroot-mkinitramfs: "+format+"\n", args...)
	return errUsage
}
