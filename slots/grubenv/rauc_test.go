package grubenv

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sealroot/slots"
	"sealroot/slots/statetext"
)

// judge is Debian's rauc: its service on a message bus of its own.
type judge struct {
	env     string   // path of the environment block
	environ []string // of rauc
}

// start starts a program that ends with the test.
func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (scripts/deps installs what tests need)", err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
}

func newJudge(t *testing.T) judge {
	t.Helper()
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	j := judge{env: file("grubenv", block(header))}
	conf := file("system.conf", fmt.Appendf(nil, `[system]
compatible=sealroot
bootloader=grub
grubenv=%s
statusfile=%s
mountprefix=%s
[keyring]
path=%s
[slot.rootfs.0]
device=%s
type=raw
bootname=A
[slot.rootfs.1]
device=%s
type=raw
bootname=B
`, j.env, filepath.Join(dir, "status"), filepath.Join(dir, "mount"), file("cert.pem", certificate(t)), file("a", nil), file("b", nil)))

	bus := exec.Command("dbus-daemon", "--session", "--nofork", "--print-address")
	address, err := bus.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, bus)
	line, err := bufio.NewReader(address).ReadString('\n')
	if err != nil {
		t.Fatalf("no message bus: %v", err)
	}
	// rauc takes the session's bus when it is told that it was started from it
	j.environ = append(os.Environ(), "DBUS_SESSION_BUS_ADDRESS="+strings.TrimSpace(line), "DBUS_STARTER_BUS_TYPE=session", "LC_ALL=C")
	service := exec.Command("rauc", "-c", conf, "service", "--override-boot-slot=A")
	service.Env = j.environ
	start(t, service)
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if _, err := j.try("status"); err == nil {
			return j
		} else if time.Now().After(end) {
			t.Fatalf("rauc's service does not answer: %v", err)
		}
	}
}

// certificate is what rauc wants as a keyring.
func certificate(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func (j judge) try(args ...string) (string, error) {
	cmd := exec.Command("rauc", args...)
	cmd.Env = j.environ
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("rauc %v: %w\n%s", args, err, out)
	}
	return string(out), err
}

func (j judge) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := j.try(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// says is rauc's primary slot and which slots are good.
func (j judge) says(t *testing.T) string {
	t.Helper()
	primary := ""
	names, states := map[string]string{}, map[string]string{}
	for line := range strings.Lines(j.run(t, "status", "--output-format=shell")) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, "'")
		if n, ok := strings.CutPrefix(key, "RAUC_SLOT_BOOTNAME_"); ok {
			names[n] = value
		} else if n, ok := strings.CutPrefix(key, "RAUC_SLOT_BOOT_STATUS_"); ok {
			states[n] = value
		} else if key == "RAUC_BOOT_PRIMARY" {
			primary = map[string]string{"rootfs.0": "A", "rootfs.1": "B", "": "none"}[value]
		}
	}
	state := map[string]string{}
	for n, name := range names {
		state[name] = states[n]
	}
	return fmt.Sprintf("primary %s, A %s, B %s", primary, state["A"], state["B"])
}

func TestSlotsJudgeRAUC(t *testing.T) {
	j := newJudge(t)
	f, err := os.OpenFile(j.env, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := Store{File: f, Scheme: RAUC, Names: names()}
	good := func(name string, priority int) slots.Slot {
		return slots.Slot{Name: name, Priority: priority, Successful: true}
	}
	for _, tt := range []struct {
		name string
		list []slots.Slot
		want string
	}{
		{"new_disk", []slots.Slot{good("a", 1), {Name: "b"}}, "primary A, A good, B bad"},
		{"both_good", []slots.Slot{good("a", 1), good("b", 2)}, "primary B, A good, B good"},
		{"on_trial", []slots.Slot{good("a", 1), {Name: "b", Priority: 2, Tries: 3}}, "primary A, A good, B bad"},
		{"given_up", []slots.Slot{good("a", 1), {Name: "b", Priority: 2}}, "primary A, A good, B bad"},
		{"other_way", []slots.Slot{{Name: "a"}, good("b", 15)}, "primary B, A bad, B good"},
		{"nothing_good", []slots.Slot{{Name: "a"}, {Name: "b"}}, "primary none, A bad, B bad"},
	} {
		if err := s.Save(tt.list); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if got := j.says(t); got != tt.want {
			t.Errorf("%s: rauc says %q, want %q", tt.name, got, tt.want)
		}
		if d, ok := slots.Default(tt.list); ok && !strings.HasPrefix(tt.want, "primary "+upper(d.Name)) {
			t.Errorf("%s: the loader's default is %s, rauc's primary another", tt.name, d.Name)
		}
	}
	for _, tt := range []struct{ mark, slot, before, want string }{
		{"mark-good", "other", "a:1:0:1 b:2:3:0", "a:1:0:1 b:2:0:1"},
		{"mark-bad", "other", "a:1:0:1 b:2:3:0", "a:1:0:1 b:0:0:0"},
		{"mark-bad", "other", "a:2:0:1 b:1:0:1", "a:2:0:1 b:0:0:0"},
		{"mark-active", "other", "a:2:0:1 b:1:0:1", "a:1:0:1 b:2:0:1"},
		{"mark-active", "other", "a:1:0:1 b:0:0:0", "a:1:0:1 b:2:1:0"},
		{"mark-good", "booted", "a:3:0:1 b:9:3:0", "a:3:0:1 b:9:3:0"}, // it was
	} {
		if err := s.Save(long(t, tt.before)); err != nil {
			t.Fatal(err)
		}
		j.run(t, "status", tt.mark, tt.slot)
		got, err := s.Load()
		if err != nil || short(got) != tt.want {
			t.Errorf("%s of %s in %s: got %s, %v, want %s", tt.mark, tt.slot, tt.before, short(got), err, tt.want)
		}
	}
}

// long reads what short writes.
func long(t *testing.T, text string) []slots.Slot {
	t.Helper()
	list, err := statetext.Parse(strings.ReplaceAll(text, " ", ","))
	if err != nil {
		t.Fatal(err)
	}
	return list
}
