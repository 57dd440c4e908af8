package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/install"
	"sealroot/sealroot/schematest"
	"sealroot/slots"
	"sealroot/slots/manifest"
	"sealroot/verity/signature/signaturetest"
)

// blank is a machine whose slots hold nothing but zeros.
type blank struct {
	*fake
	replicate string // boot.replicate of its configuration
}

func (b blank) Tries() int                   { return 3 }
func (b blank) Replicates(after string) bool { return after == b.replicate }
func (b blank) Install(changed func(place, slot string)) (install.Machine, error) {
	set, err := b.BootSet(changed)
	return install.Machine{Machine: set, Disk: b, ESP: noESP{}}, err
}

func (b blank) OpenPart(string, manifest.Name, bool) (install.Partition, error) {
	return zeros{bytes.NewReader(make([]byte, 1<<20))}, nil
}

func (b blank) OpenLayer(string, string, manifest.Name, bool) (install.Partition, error) {
	return nil, install.ErrNoPartition
}

type zeros struct{ *bytes.Reader }

func (zeros) WriteAt([]byte, int64) (int, error) { return 0, errors.New("written") }
func (zeros) Sync() error                        { return nil }
func (zeros) Forget() error                      { return nil }
func (zeros) Close() error                       { return nil }

type noESP struct{}

func (noESP) Needs() []install.BootFile                   { return nil }
func (noESP) With(bool, func(install.Folder) error) error { return errors.New("no ESP") }

// certificates is a folder with one certificate.
func certificates(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "image.crt"), signaturetest.New(t).PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// onBlank runs a command on a blank machine that runs slot a.
func onBlank(t *testing.T, ctx context.Context, stdin io.Reader, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return onConfigured(t, ctx, "", stdin, args...)
}

// onConfigured is the same with boot.replicate.
func onConfigured(t *testing.T, ctx context.Context, replicate string, stdin io.Reader, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	dir := t.TempDir()
	text, err := (&report.Report{Schema: 1, Name: "kiosk", Slot: report.Slot{Name: "a"}}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	env := Env{
		Stdin: stdin, Version: "v1", Report: filepath.Join(dir, "boot.json"), Lock: filepath.Join(dir, "lock"),
		Open: func(Where) (Machine, error) {
			list := []slots.Slot{{Name: "a", Priority: 2, Successful: true}, {Name: "b", Priority: 1, Successful: true}}
			return blank{&fake{list: list}, replicate}, nil
		},
	}
	if err := os.WriteFile(env.Report, text, 0o644); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	code = Main(ctx, args, &out, &errs, env)
	return code, out.String(), errs.String()
}

func TestInstallCommands(t *testing.T) {
	trust := certificates(t)
	for _, c := range []struct {
		name string
		args []string
		code int
		want string // in standard error
	}{
		{"no_tar", []string{"install", "-", "--trust", trust}, exitBad, "ends before manifest.json"},
		{"no_such_file", []string{"install", "/nonexistent", "--trust", trust}, exitFailed, "cannot open the image"},
		{"no_certificates", []string{"install", "-", "--trust", "/nonexistent"}, exitFailed, "--trust names another folder"},
		{"nothing_to_install", []string{"install"}, exitUsage, "DIR|FILE|-"},
		{"repair_the_running_slot", []string{"repair", "a", "--trust", trust}, exitRefused, "never written"},
		{"repair_no_slot", []string{"repair", "c", "--trust", trust}, exitUsage, "no slot"},
		{"replicate_from_a_blank_slot", []string{"replicate", "--trust", trust}, exitBad, "the partition is empty"},
		{"verify_blank", []string{"verify", "b", "--trust", trust}, exitBad, "slot b"},
		{"verify_no_slot", []string{"verify", "c", "--trust", trust}, exitUsage, "no slot"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, _, stderr := onBlank(t, context.Background(), strings.NewReader(""), c.args...)
			if code != c.code || !strings.Contains(stderr, c.want) {
				t.Errorf("exit status %d, %q; want %d with %q", code, stderr, c.code, c.want)
			}
			_, stdout, _ := onBlank(t, context.Background(), strings.NewReader(""), append(c.args, "--json")...)
			fitsResult(t, stdout)
		})
	}
}

// Whether a commit is followed by a copy is the configuration's to say; a person
// who asks for a copy gets one.
func TestReplicateAsConfigured(t *testing.T) {
	trust := certificates(t)
	for _, c := range []struct {
		name, replicate, args string
		code                  int
		want                  string
	}{
		{"not_configured", "", "replicate --quick --configured", exitOK, "nothing is copied"},
		{"another_occasion", config.ReplicateFailedInstall, "replicate --quick --configured", exitOK, "nothing is copied"},
		{"after_a_commit", config.ReplicateCommit, "replicate --quick --configured", exitBad, "the partition is empty"},
		{"by_hand", "", "replicate --quick", exitBad, "the partition is empty"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append(strings.Fields(c.args), "--trust", trust)
			code, stdout, stderr := onConfigured(t, context.Background(), c.replicate, nil, args...)
			if code != c.code || !strings.Contains(stdout+stderr, c.want) {
				t.Errorf("exit status %d, %q, %q; want %d with %q", code, stdout, stderr, c.code, c.want)
			}
			_, stdout, _ = onConfigured(t, context.Background(), c.replicate, nil, append(args, "--json")...)
			fitsResult(t, stdout)
		})
	}
}

// fitsResult holds what --json printed to docs/result.schema.json.
func fitsResult(t *testing.T, stdout string) {
	t.Helper()
	schema, err := os.ReadFile("../docs/result.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range schematest.Check(schema, []byte(stdout)) {
		t.Error(problem)
	}
}

func TestVerifyJSON(t *testing.T) {
	code, stdout, _ := onBlank(t, context.Background(), nil, "verify", "--json", "--trust", certificates(t))
	var got struct {
		Schema int  `json:"schema"`
		OK     bool `json:"ok"`
		Data   []struct {
			Slot  string `json:"slot"`
			OK    *bool  `json:"ok"`
			Error string `json:"error"`
		} `json:"data"`
	}
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatalf("%v: %s", err, stdout)
	}
	fitsResult(t, stdout)
	if code != exitBad || got.Schema != 1 || got.OK || len(got.Data) != 2 {
		t.Fatalf("exit status %d, %s", code, stdout)
	}
	for i, slot := range []string{"a", "b"} {
		if d := got.Data[i]; d.Slot != slot || d.OK == nil || *d.OK || d.Error == "" {
			t.Errorf("got %+v, want slot %s, not ok, and why", d, slot)
		}
	}
}

// Of the slot that runs the layers are verified too that the machine added and has.
func TestAddedLayers(t *testing.T) {
	got := addedLayers(report.Report{Layers: []report.Layer{
		{Name: "low", RootHash: "ab"}, {Name: "dir", Source: report.LayerAdded}, {Name: "extra", RootHash: "cd", Source: report.LayerAdded},
		{Name: "evil", RootHash: "ef", Source: report.LayerAdded, LeftOut: "nobody has signed it"},
	}})
	if len(got) != 1 || got[0].Name != "extra" || !bytes.Equal(got[0].RootHash, []byte{0xcd}) {
		t.Errorf("got %+v, want extra", got)
	}
}

// Ctrl-C ends an install that waits for standard input.
func TestInstallIsInterruptible(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	silent, w := io.Pipe()
	defer w.Close()
	done, trust := make(chan string), certificates(t)
	go func() {
		_, _, stderr := onBlank(t, ctx, silent, "install", "-", "--trust", trust)
		done <- stderr
	}()
	cancel()
	select {
	case stderr := <-done:
		if !strings.Contains(stderr, context.Canceled.Error()) {
			t.Errorf("got %q, want that it was cancelled", stderr)
		}
	case <-time.After(time.Minute):
		t.Error("it still waits")
	}
}
