package exit

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Put copies the running program into dir as Program, whole or not at all.
func Put(dir string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot put the exit program into %s: %w", dir, err)
		}
	}()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(filepath.Join(dir, ".shutdown"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	defer to.Close()
	if _, err := io.Copy(to, from); err != nil {
		return err
	}
	if err := to.Close(); err != nil { // a file that is open for writing is not executed
		return err
	}
	return os.Rename(to.Name(), filepath.Join(dir, Program))
}
