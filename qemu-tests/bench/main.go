// Command bench is `make bench`: it measures the guest time from the kernel's
// "Run /init as init process" to the first instruction of the real init, both
// in printk's clock, with one guest instruction per nanosecond (QEMU's
// -icount), so that a figure says the same on every machine.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"sealroot/qemu-tests/machine"
)

func main() {
	var b bench
	flag.StringVar(&b.build, "build", "build", "folder with the programs; everything is written to its folder bench")
	flag.StringVar(&b.kernel, "kernel", "", "folder with vmlinuz and lib/modules")
	flag.StringVar(&b.goTool, "go", "scripts/go", "the go command")
	flag.IntVar(&b.runs, "runs", 2, "runs of each: they show how far a figure repeats")
	flag.Parse()
	if err := b.run(); err != nil {
		fmt.Fprintf(os.Stderr, "sealroot: error: %v\n", err)
		os.Exit(1)
	}
}

// countInstructions are QEMU's options for a clock that counts instructions,
// which it does for one processor only; and for the processor that all figures are of.
var countInstructions = []string{"-icount", "shift=0,sleep=on", "-smp", "1", "-cpu", "max,cx16=off"}

type bench struct {
	build, kernel, goTool string
	runs                  int
}

// result is one boot.
type result struct {
	ms       float64
	unlocked string
	modules  []string // in the order in which they were loaded
}

func (b *bench) run() error {
	if err := b.prepare(); err != nil {
		return err
	}
	verity, err := b.image("verity", verityOnly)
	if err != nil {
		return err
	}
	verity.Args = countInstructions
	sealed, err := b.image("sealed", withTPM)
	if err != nil {
		return err
	}
	fmt.Printf("Guest time from /init to the first instruction of the real init (1 instruction = 1 ns), Linux %s:\n", filepath.Base(b.kernel))
	fmt.Printf("%-58s %9s %8s   %s\n", "", "guest ms", "modules", "each run")
	sealroot, err := b.row("sealroot, verity only (no volume: it goes on degraded)", verity, "degraded")
	if err != nil {
		return err
	}
	floor, err := b.floor("floor-all", verity, sealroot.modules)
	if err != nil {
		return err
	}
	if _, err := b.row("floor: the system calls, the same modules, one after another", floor, "nothing"); err != nil {
		return err
	}
	least, err := b.floor("floor-least", verity, without(sealroot.modules, stateModules...))
	if err != nil {
		return err
	}
	if _, err := b.row("floor without the modules that only a state needs", least, "nothing"); err != nil {
		return err
	}
	for i := range b.runs {
		large, err := b.image("first-"+strconv.Itoa(i+1), withTPM, "--state-size", "40G")
		if err != nil {
			return err
		}
		large.Args = countInstructions
		if err := b.first(i+1, large); err != nil {
			return err
		}
	}
	// The first boot makes the volume; that of this machine is not measured.
	if _, err := b.boot(sealed, "first"); err != nil {
		return err
	}
	sealed.Args = countInstructions
	if _, err := b.row("sealroot, state unlocked by the TPM (*)", sealed, "tpm2"); err != nil {
		return err
	}
	fmt.Println("(*) the TPM is a program of the host: while it works, real time passes, so this row does not repeat exactly.")
	if err := b.sizes(verity, floor); err != nil {
		return err
	}
	return b.trees()
}

// row measures a machine and prints its row. The figure is the least of the
// runs: what a busy host adds, while the guest waits for the disk, is not ours.
func (b *bench) row(name string, m machine.Config, unlocked string) (result, error) {
	var least result
	var each []string
	for i := range b.runs {
		r, err := b.boot(m, strconv.Itoa(i+1))
		if err != nil {
			return result{}, fmt.Errorf("%s: %w", name, err)
		}
		if r.unlocked != unlocked {
			return result{}, fmt.Errorf("%s: the state was unlocked by %s, want %s", name, r.unlocked, unlocked)
		}
		if i == 0 || r.ms < least.ms {
			least = r
		}
		each = append(each, fmt.Sprintf("%.1f", r.ms))
	}
	fmt.Printf("%-58s %9.1f %8d   %s\n", name, least.ms, len(least.modules), strings.Join(each, " "))
	return least, nil
}

// first measures a machine's first boot, which makes half of the state partition a
// volume.
func (b *bench) first(n int, m machine.Config) error {
	r, err := b.boot(m, "first")
	if err == nil && r.unlocked != "created" {
		err = fmt.Errorf("the state was unlocked by %s, want created", r.unlocked)
	}
	if err != nil {
		return fmt.Errorf("first boot: %w", err)
	}
	fmt.Printf("%-58s %9.1f %8d\n", fmt.Sprintf("first boot %d, makes a state of 20 GiB (*)", n), r.ms, len(r.modules))
	return nil
}

// The lines of the reader.
var (
	saidUnlocked = regexp.MustCompile(`bench: unlocked (\S+)\.\n`)
	saidModules  = regexp.MustCompile(`bench: modules (.*)\.\n`)
	saidTimes    = regexp.MustCompile(`bench: init (\d+) real-init (\d+) microseconds\.\n`)
)

// boot boots a machine once.
func (b *bench) boot(m machine.Config, name string) (r result, err error) {
	logName := filepath.Join(m.Dir, "console-"+name+".log")
	log, err := os.Create(logName)
	if err != nil {
		return result{}, err
	}
	defer log.Close()
	m.Log = log
	g, err := machine.Start(m)
	if err != nil {
		return result{}, err
	}
	defer g.Kill()
	const patience = 5 * time.Minute
	unlocked, err1 := g.Expect(saidUnlocked, patience)
	modules, err2 := g.Expect(saidModules, time.Minute)
	times, err3 := g.Expect(saidTimes, time.Minute)
	if err := cmp.Or(err1, err2, err3); err != nil {
		return result{}, fmt.Errorf("%w\nthe last lines of the console (all of it: %s):\n%s", err, logName, g.Tail(15))
	}
	began, err1 := strconv.ParseFloat(times[1], 64)
	arrived, err2 := strconv.ParseFloat(times[2], 64)
	if err := errors.Join(err1, err2); err != nil {
		return result{}, fmt.Errorf("the guest's kernel log: %w", err)
	}
	r = result{ms: (arrived - began) / 1000, unlocked: unlocked[1], modules: strings.Fields(modules[1])}
	return r, g.Wait(time.Minute)
}

// sizes prints how large the parts are.
func (b *bench) sizes(verity, floor machine.Config) error {
	fmt.Println("\nSizes in bytes:")
	for _, f := range []struct{ name, path string }{
		{"init", filepath.Join(b.build, "init")},
		{"initramfs, zstd", verity.Initrd},
		{"initramfs of the floor, not compressed", floor.Initrd},
	} {
		st, err := os.Stat(f.path)
		if err != nil {
			return err
		}
		fmt.Printf("%-58s %9d\n", f.name, st.Size())
	}
	raw, err := output("zstd", "-dc", verity.Initrd)
	if err != nil {
		return err
	}
	fmt.Printf("%-58s %9d\n", "initramfs, not compressed", len(raw))
	return nil
}
