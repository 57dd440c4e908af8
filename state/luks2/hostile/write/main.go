// Command write puts the hostile LUKS2 headers of package hostile into the
// files of a directory, NAME.img, and prints a line for each: its name and a
// piece of the text with which it must be refused. good.img, which the others
// are made from, must be accepted; its passphrase is hostile.Passphrase.
//
//	go run ./state/luks2/hostile/write DIR
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"sealroot/state/luks2/hostile"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: write DIR")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "cannot write hostile headers:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	good, err := hostile.Good()
	if err != nil {
		return err
	}
	if err := good.WriteFile(filepath.Join(dir, "good.img")); err != nil {
		return err
	}
	for _, c := range hostile.Cases() {
		img, err := c.Make(good)
		if err != nil {
			return err
		}
		if err := img.WriteFile(filepath.Join(dir, c.Name+".img")); err != nil {
			return err
		}
		fmt.Printf("%s\t%s\n", c.Name, c.Reason)
	}
	return nil
}
