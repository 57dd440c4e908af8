package main

import (
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// background starts a program that goes on after the answer, with what it says in FILE:
// background FILE PROGRAM ARGUMENT…
func background(words []string) error {
	if len(words) < 3 {
		return errors.New("usage: background FILE PROGRAM ARGUMENT…")
	}
	f, err := os.Create(words[1])
	if err != nil {
		return err
	}
	defer f.Close()
	const path = "/usr/sbin:/usr/bin:/sbin:/bin"
	if err := os.Setenv("PATH", path); err != nil { // as for program
		return err
	}
	cmd := exec.Command(words[2], words[3:]...)
	cmd.Stdout, cmd.Stderr, cmd.Env = f, f, []string{"PATH=" + path}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // its parent has to
	return nil
}

// writeAtRate writes so many bytes to a file, so many MiB per second, and has them on the
// disk. It tells how long that took. What a stall has kept it from writing it does not
// make up for: that would be faster. Without room it waits for some, so many seconds in all.
func writeAtRate(name, bytes, rate, patience string) (took time.Duration, err error) {
	left, err1 := strconv.ParseInt(bytes, 10, 64)
	mib, err2 := strconv.ParseInt(rate, 10, 64)
	waits, err3 := strconv.Atoi(patience)
	if err := errors.Join(err1, err2, err3); err != nil {
		return 0, err
	}
	f, err := os.Create(name)
	if err != nil {
		return 0, err
	}
	block := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{})
	began := time.Now()
	for due := began; left > 0 && err == nil; due = due.Add(time.Second / time.Duration(mib)) {
		early := time.Until(due)
		time.Sleep(early)
		if early < -100*time.Millisecond {
			due = time.Now()
		}
		random.Read(block)
		var n int
		n, err = f.Write(block[:min(left, int64(len(block)))])
		left -= int64(n)
		if errors.Is(err, unix.ENOSPC) && waits > 0 {
			waits, err = waits-1, nil
			time.Sleep(time.Second)
		}
	}
	err = errors.Join(err, f.Sync(), f.Close())
	return time.Since(began), err
}
