package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// softwareTPM is a running swtpm. It ends by itself when QEMU closes the
// control socket.
type softwareTPM struct {
	process *process
	socket  string
	tmp     string
	bus     *bus // nil for none
}

// startTPM starts a TPM 2.0 whose state is in dir, which is made when missing, with
// between, unless that is nil, before it.
func startTPM(dir string, between Bus) (*softwareTPM, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the TPM's directory: %w", err)
	}
	// A socket's path has at most 107 bytes; test directories are longer.
	tmp, err := os.MkdirTemp("/tmp", "srtpm")
	if err != nil {
		return nil, fmt.Errorf("cannot make the TPM's socket: %w", err)
	}
	t := &softwareTPM{tmp: tmp, socket: filepath.Join(tmp, "s")}
	t.process, err = startProcess("swtpm", []string{"socket", "--tpm2", "--terminate",
		"--tpmstate", "dir=" + dir, "--ctrl", "type=unixio,path=" + t.socket})
	if err != nil {
		t.remove()
		return nil, err
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(t.socket); err == nil {
			return t, t.put(between)
		}
		if t.process.ended() || time.Now().After(deadline) {
			t.process.kill()
			t.remove()
			return nil, fmt.Errorf("cannot start the TPM: %w", t.process.wait(0))
		}
	}
}

// put puts something before the TPM; without an error only it answers to the socket.
func (t *softwareTPM) put(between Bus) (err error) {
	if between == nil {
		return nil
	}
	path := filepath.Join(t.tmp, "bus")
	if t.bus, err = startBus(path, t.socket, between); err != nil {
		t.process.kill()
		t.remove()
		return err
	}
	t.socket = path
	return nil
}

// stop waits for the TPM to write its state and end, as it does after QEMU's end.
func (t *softwareTPM) stop() {
	if errors.Is(t.process.wait(time.Minute), ErrStillRunning) {
		t.process.kill()
	}
	t.remove()
}

func (t *softwareTPM) remove() {
	if t.bus != nil {
		t.bus.listener.Close()
	}
	os.RemoveAll(t.tmp)
}
