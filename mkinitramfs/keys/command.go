package keys

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"
)

// The keys that a Command signs with, as its first argument names them.
const (
	NameImage = "image"
	NamePCR   = "pcr"
	NameDB    = "db"
)

// ErrCommand means that a sign command gave no usable signature.
var ErrCommand = errors.New("the sign command gave no usable signature")

// commandTime bounds one signature: a person may have to touch a token.
const commandTime = 5 * time.Minute

// heldTime is how long standard output is read on once the command has ended: what
// it leaves behind, such as an agent, may hold it for ever.
const heldTime = 3 * time.Second

// maxSignature bounds what a sign command prints, in bytes.
const maxSignature = 4 << 10

// Command is a builder's program that signs with keys which are in no file, as
// those of an HSM or of a signing service. It is started without a shell, as
//
//	COMMAND image sha256     signs root hashes and manifests
//	COMMAND pcr sha256       signs PCR policies
//	COMMAND NAME sha256      the same, by a key of before: see PreviousName
//	COMMAND db IN OUT        signs the EFI program IN for Secure Boot, into OUT
//
// All but the last get a digest (32 bytes) on standard input and print the
// signature over it: PKCS#1 v1.5 for RSA, ASN.1 DER for ECDSA, nothing else.
type Command struct {
	Argv   []string
	Stderr io.Writer // for what the command says to a person

	limit time.Duration // of one signature; 0 is commandTime
}

// ParseCommand splits a command line at white space; there is no quoting.
// A line without a word is nil.
func ParseCommand(line string, stderr io.Writer) *Command {
	argv := strings.Fields(line)
	if len(argv) == 0 {
		return nil
	}
	return &Command{Argv: argv, Stderr: stderr}
}

// Signer returns the key of this name; public is its public half, against which
// every signature is checked. The errors of Sign wrap ErrCommand.
func (c *Command) Signer(ctx context.Context, name string, public crypto.PublicKey) crypto.Signer {
	return commandKey{c, ctx, name, public}
}

// commandKey lives for one build only, whose context it keeps: crypto.Signer
// has no place for one.
type commandKey struct {
	command *Command
	ctx     context.Context
	name    string
	public  crypto.PublicKey
}

func (k commandKey) Public() crypto.PublicKey { return k.public }

func (k commandKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 || len(digest) != crypto.SHA256.Size() {
		return nil, fmt.Errorf("cannot sign a digest of %d bytes by command, only SHA-256: %w", len(digest), ErrCommand)
	}
	out := &limited{}
	if err := k.command.run(k.ctx, bytes.NewReader(digest), out, k.name, "sha256"); err != nil {
		return nil, err
	}
	signature := out.text
	if !verifies(k.public, digest, signature) {
		return nil, fmt.Errorf("cannot use the %d bytes that %q printed: they are no signature by the key whose public half is here: %w",
			len(signature), k.command.line(k.name, "sha256"), ErrCommand)
	}
	return signature, nil
}

func verifies(public crypto.PublicKey, digest, signature []byte) bool {
	switch key := public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest, signature) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest, signature)
	}
	return false
}

// SignEFI has the EFI program in signed for Secure Boot, into out, which the
// caller verifies.
func (c *Command) SignEFI(ctx context.Context, in, out string) error {
	return c.run(ctx, nil, c.Stderr, NameDB, in, out)
}

func (c *Command) run(ctx context.Context, stdin io.Reader, stdout io.Writer, args ...string) error {
	limit := cmp.Or(c.limit, commandTime)
	timed, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done within %s", limit))
	defer cancel()
	// It gets no process group of its own, which could be killed whole: only the
	// one in the foreground may ask for a PIN at the terminal.
	cmd := exec.CommandContext(timed, c.Argv[0], append(c.Argv[1:len(c.Argv):len(c.Argv)], args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, c.Stderr
	cmd.WaitDelay = heldTime
	err := cmd.Run()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return nil // callers check what it gave, whoever still holds its output
	}
	if cause := context.Cause(timed); cause != nil {
		err = cause
	}
	return fmt.Errorf("cannot sign with %q: %w: %w", c.line(args...), ErrCommand, err)
}

func (c *Command) line(args ...string) string {
	return strings.Join(append(c.Argv[:len(c.Argv):len(c.Argv)], args...), " ")
}

// limited keeps at most maxSignature bytes. It embeds no buffer, whose ReadFrom
// would read past the limit.
type limited struct{ text []byte }

func (l *limited) Write(p []byte) (int, error) {
	if len(l.text)+len(p) > maxSignature {
		return 0, fmt.Errorf("more than %d bytes of output", maxSignature)
	}
	l.text = append(l.text, p...)
	return len(p), nil
}

// LoadPublicKey reads a public key (PEM, PKIX).
func LoadPublicKey(path string) (crypto.PublicKey, error) {
	block, err := readPEM(path)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("cannot read public key %s: %w", path, ErrFormat)
	}
	return key, nil
}
