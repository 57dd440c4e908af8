package machine

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ErrAgent says that the guest's agent did not answer as it should.
var ErrAgent = errors.New("no answer of the agent")

// agent speaks with the program behind the guest's second serial port, line by
// line. After each start of the guest it says "ready <boot id>". A request is
// "<number> <base64 of a command>", its answer
// "<number> <exit status> <base64 of the output>".
// AddAgent has it for a guest with systemd, the command probe for one without.
type agent struct {
	mu      sync.Mutex
	w       io.Writer
	bootID  string // of the last "ready"
	seen    string // boot ID that the last call used
	next    int
	answers map[int]answer
	changed chan struct{}
	closed  bool
}

type answer struct {
	status int
	output []byte
}

func newAgent() *agent {
	return &agent{next: 1, answers: make(map[int]answer), changed: make(chan struct{})}
}

// over has what is sent go to w.
func (a *agent) over(w io.Writer) { a.update(func() { a.w = w }) }

// end says that no answer comes any more.
func (a *agent) end() { a.update(func() { a.closed = true }) }

// readFrom takes answers until r ends; another reader may follow.
func (a *agent) readFrom(r io.Reader) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		a.update(func() { a.take(strings.Fields(lines.Text())) })
	}
}

func (a *agent) update(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	close(a.changed)
	a.changed = make(chan struct{})
}

// take handles one line. A port that firmware or kernel wrote to gives noise.
func (a *agent) take(fields []string) {
	if len(fields) == 2 && fields[0] == "ready" {
		a.bootID = fields[1]
		return
	}
	if len(fields) < 2 || len(fields) > 3 {
		return
	}
	id, err1 := strconv.Atoi(fields[0])
	status, err2 := strconv.Atoi(fields[1])
	if err1 != nil || err2 != nil {
		return
	}
	var output []byte
	if len(fields) == 3 {
		var err error
		if output, err = base64.StdEncoding.DecodeString(fields[2]); err != nil {
			return
		}
	}
	a.answers[id] = answer{status, output}
}

// wait waits until done, called with the lock held, says true.
func (a *agent) wait(deadline <-chan time.Time, done func() bool) error {
	for {
		a.mu.Lock()
		ok, closed, changed := done(), a.closed, a.changed
		a.mu.Unlock()
		switch {
		case ok:
			return nil
		case closed:
			return ErrEnded
		}
		select {
		case <-changed:
		case <-deadline:
			return ErrAgent
		}
	}
}

// waitReady waits until the agent of a boot that no call has used answers. That
// it was ready once is not enough: it may be that of a boot which is over
// already, and what it is sent is lost.
func (a *agent) waitReady(timeout time.Duration) error {
	deadline := time.After(timeout)
	for {
		var boot string
		err := a.wait(deadline, func() bool { boot = a.bootID; return boot != a.seen })
		var id int
		if err == nil {
			// The empty line ends what a boot before may have left half read.
			id, err = a.send("", "\n")
		}
		answered := false
		if err == nil {
			err = a.wait(deadline, func() bool {
				if _, answered = a.answers[id]; answered {
					a.seen = boot
				}
				return answered || a.bootID != boot
			})
		}
		if err != nil {
			return fmt.Errorf("the agent is not ready after %s: %w", timeout, err)
		}
		if answered {
			return nil
		}
	}
}

// send sends one command, after what comes before it, and returns its number.
func (a *agent) send(command, before string) (id int, err error) {
	a.mu.Lock()
	id = a.next
	a.next++
	w := a.w
	a.mu.Unlock()
	_, err = fmt.Fprintf(w, "%s%d %s\n", before, id, base64.StdEncoding.EncodeToString([]byte(command)))
	return id, err
}

// post sends one command whose answer nobody waits for. The first call after a
// start waits for the agent.
func (a *agent) post(command string, deadline <-chan time.Time) (id int, err error) {
	err = a.wait(deadline, func() bool { a.seen = a.bootID; return a.bootID != "" })
	if err == nil {
		id, err = a.send(command, "")
	}
	if err != nil {
		return 0, fmt.Errorf("cannot run %q in the guest: %w", command, err)
	}
	return id, nil
}

// run runs one command. The first call after a start waits for the agent.
func (a *agent) run(command string, timeout time.Duration) (answer, error) {
	deadline := time.After(timeout)
	id, err := a.post(command, deadline)
	if err != nil {
		return answer{}, err
	}
	var got answer
	err = a.wait(deadline, func() (ok bool) { got, ok = a.answers[id]; return ok })
	if err != nil {
		return answer{}, fmt.Errorf("cannot run %q in the guest within %s: %w", command, timeout, err)
	}
	return got, nil
}
