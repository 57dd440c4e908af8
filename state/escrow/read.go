package escrow

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	tag "golang.org/x/crypto/cryptobyte/asn1"
)

// MaxMessage is the most that is read of an escrow file, in bytes.
const MaxMessage = 64 << 10

// ErrFormat: the bytes are no message that this package knows.
var ErrFormat = errors.New("not an escrowed recovery key (CMS EnvelopedData)")

// Message is what can be seen of a message without a private key.
type Message struct {
	recipients []identity
}

// Parse looks into a message in DER. Nothing but its outline is checked, and
// anybody could have made it. Its error is ErrFormat.
func Parse(der []byte) (Message, error) {
	bad := fmt.Errorf("%w: malformed", ErrFormat)
	in := cryptobyte.String(der)
	var info, kind, content, data, set cryptobyte.String
	if len(der) > MaxMessage || !in.ReadASN1(&info, tag.SEQUENCE) || !in.Empty() ||
		!info.ReadASN1Element(&kind, tag.OBJECT_IDENTIFIER) || string(kind) != oidEnvelopedData ||
		!info.ReadASN1(&content, derConstructed) || !info.Empty() ||
		!content.ReadASN1(&data, tag.SEQUENCE) || !content.Empty() ||
		!data.SkipASN1(tag.INTEGER) || !data.ReadASN1(&set, tag.SET) || !data.SkipASN1(tag.SEQUENCE) {
		return Message{}, bad
	}
	var m Message
	for !set.Empty() {
		var r, name, issuer, serial cryptobyte.String
		if !set.ReadASN1(&r, tag.SEQUENCE) || !r.SkipASN1(tag.INTEGER) || !r.ReadASN1(&name, tag.SEQUENCE) ||
			!name.ReadASN1Element(&issuer, tag.SEQUENCE) || !name.ReadASN1(&serial, tag.INTEGER) {
			return Message{}, bad
		}
		m.recipients = append(m.recipients, identity{bytes.Clone(issuer), bytes.Clone(serial)})
	}
	if len(m.recipients) == 0 {
		return Message{}, bad
	}
	return m, nil
}

// Recipients is how many certificates the message names.
func (m Message) Recipients() int { return len(m.recipients) }

// Names tells whether the message is for the certificate with this issuer and
// serial number, as NewRecipient takes them.
func (m Message) Names(issuer, serial []byte) bool {
	for _, r := range m.recipients {
		if bytes.Equal(r.issuer, issuer) && bytes.Equal(r.serial, serial) {
			return true
		}
	}
	return false
}
