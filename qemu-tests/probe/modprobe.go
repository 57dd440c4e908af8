package main

import (
	"bufio"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// modprobe is what the kernel starts as /sbin/modprobe when a mount, for one,
// needs a module: the last argument is a module's name or an alias without
// wildcards. A real system has the real one.
func modprobe(args []string) error {
	name := args[len(args)-1]
	dir := "/usr/lib/modules/" + release() + "/"
	if err := lines(dir+"modules.alias", func(fields []string) {
		if len(fields) == 3 && fields[0] == "alias" && fields[1] == name {
			name = fields[2]
		}
	}); err != nil {
		return err
	}
	var files []string // dependencies come after what needs them
	if err := lines(dir+"modules.dep", func(fields []string) {
		if moduleName(fields[0]) == moduleName(name) {
			fields[0] = strings.TrimSuffix(fields[0], ":")
			files = fields
		}
	}); err != nil {
		return err
	}
	if files == nil {
		return fmt.Errorf("no module %s", name)
	}
	for _, file := range slices.Backward(files) {
		f, err := os.Open(dir + file)
		if err != nil {
			return err
		}
		flags := 0
		if !strings.HasSuffix(file, ".ko") {
			flags = unix.MODULE_INIT_COMPRESSED_FILE
		}
		err = unix.FinitModule(int(f.Fd()), "", flags)
		f.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}

// moduleName is the name of a module whose file, or name, is given.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".")
	return strings.ReplaceAll(name, "-", "_")
}

// lines hands the words of each line of a file to a function.
func lines(name string, take func(fields []string)) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		if fields := strings.Fields(s.Text()); len(fields) > 0 {
			take(fields)
		}
	}
	return s.Err()
}
