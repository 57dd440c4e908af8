// Registers copies a secret for so long that the Go scheduler wants its thread for others,
// wipes both copies, and tells how often its memory has the secret all the same: what
// copies has it in registers, and with a signal the kernel saves these on a stack.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

const (
	tries  = 20
	busy   = 40 * time.Millisecond // more than the ten of a time slice
	secret = 32                    // bytes
)

// at is a byte of the secret, which is nowhere else as a whole.
func at(i int) byte { return byte(i*37+11) ^ 0xa5 }

func main() {
	found := 0
	for range tries {
		done := make(chan struct{})
		go func() {
			runtime.LockOSThread() // its stacks are its own, and stay
			copied()
			close(done)
			select {}
		}()
		<-done
		n, err := left()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		found += n
	}
	fmt.Println(found)
}

// copied copies the secret, and wipes it.
func copied() {
	from, to := make([]byte, secret), make([]byte, secret)
	for i := range from {
		from[i] = at(i)
	}
	for end := time.Now().Add(busy); time.Now().Before(end); {
		for range 100_000 {
			move(to, from)
		}
	}
	clear(from)
	clear(to)
}

// move is a copy of bytes whose number the compiler does not know: by registers that follow
// each other.
//
//go:noinline
func move(to, from []byte) { copy(to, from) }

// left counts the secret in the memory of this process, where registers are saved.
func left() (n int, err error) {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return 0, err
	}
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		return 0, err
	}
	defer mem.Close()
	block := make([]byte, 64<<10)
	for line := range strings.Lines(string(maps)) {
		var begin, end int64
		var flags string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &begin, &end, &flags); err != nil || !strings.HasPrefix(flags, "rw") {
			continue
		}
		for ; begin < end; begin += int64(len(block)) {
			got, _ := mem.ReadAt(block[:min(int64(len(block)), end-begin)], begin)
			for i := 0; i+secret <= got; i += 8 {
				if isSecret(block[i:]) {
					n++
				}
			}
		}
	}
	return n, nil
}

func isSecret(b []byte) bool {
	for i := range secret {
		if b[i] != at(i) {
			return false
		}
	}
	return true
}
