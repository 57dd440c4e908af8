package signature

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	tag "golang.org/x/crypto/cryptobyte/asn1"

	"sealroot/publickey"
)

// Certificate is what counts of a certificate (X.509, RFC 5280) here: its key,
// and by what a message names it. Whoever put it into the initramfs vouches for
// it: its own signature, its extensions and its dates mean nothing.
type Certificate struct {
	Raw     []byte // the whole, DER
	Subject string // for a person, as "CN=sealroot image signing"
	Key     crypto.PublicKey
	// Issuer and Serial are what a message names the certificate by.
	Issuer []byte // DER of the name
	Serial []byte // content of the DER integer
}

// Equal says that both are the same certificate.
func (c *Certificate) Equal(d *Certificate) bool { return bytes.Equal(c.Raw, d.Raw) }

// ParseCertificate reads a certificate in DER. Errors: ErrCertificate, ErrWeak.
func ParseCertificate(der []byte) (*Certificate, error) {
	bad := fmt.Errorf("%w: malformed", ErrCertificate)
	in := cryptobyte.String(der)
	var outer, tbs, serial, subject, issuer, key cryptobyte.String
	if !in.ReadASN1(&outer, tag.SEQUENCE) || !in.Empty() ||
		!outer.ReadASN1(&tbs, tag.SEQUENCE) ||
		!outer.SkipASN1(tag.SEQUENCE) || !outer.SkipASN1(tag.BIT_STRING) || !outer.Empty() ||
		!tbs.SkipOptionalASN1(tag.Tag(0).Constructed().ContextSpecific()) || // version
		!tbs.ReadASN1(&serial, tag.INTEGER) ||
		!tbs.SkipASN1(tag.SEQUENCE) || // algorithm of its own signature
		!tbs.ReadASN1Element(&issuer, tag.SEQUENCE) ||
		!tbs.SkipASN1(tag.SEQUENCE) || // dates
		!tbs.ReadASN1Element(&subject, tag.SEQUENCE) ||
		!tbs.ReadASN1Element(&key, tag.SEQUENCE) || len(serial) == 0 {
		return nil, bad
	}
	public, err := publickey.Parse(key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	c := &Certificate{
		Raw: bytes.Clone(der), Subject: nameOf(subject), Key: public,
		Issuer: bytes.Clone(issuer), Serial: bytes.Clone(serial),
	}
	if err := c.checkKey(); err != nil {
		return nil, err
	}
	return c, nil
}

// checkKey refuses short RSA keys (ErrWeak). Of the elliptic curves only those
// that are strong enough are known at all.
func (c *Certificate) checkKey() error {
	if key, ok := c.Key.(*rsa.PublicKey); ok && key.N.BitLen() < 2048 {
		return fmt.Errorf("%w: RSA key of %d bits in %.200q", ErrWeak, key.N.BitLen(), c.Subject)
	}
	return nil
}

// verify says whether the key of c signed a digest.
func (c *Certificate) verify(hash crypto.Hash, digest, sig []byte) bool {
	switch key := c.Key.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, hash, digest, sig) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest, sig)
	}
	return false
}

// nameOf is a name for a person to read, "CN=image key,O=Example": parts of
// which the attribute is not a usual one are left out.
func nameOf(der []byte) string {
	in := cryptobyte.String(der)
	var name cryptobyte.String
	if !in.ReadASN1(&name, tag.SEQUENCE) {
		return "unreadable name"
	}
	text := ""
	for !name.Empty() {
		var set, pair, kind, value cryptobyte.String
		var form tag.Tag
		if !name.ReadASN1(&set, tag.SET) || !set.ReadASN1(&pair, tag.SEQUENCE) ||
			!pair.ReadASN1(&kind, tag.OBJECT_IDENTIFIER) || !pair.ReadAnyASN1(&value, &form) {
			return "unreadable name"
		}
		attribute, ok := attributeNames[string(kind)]
		if !ok {
			continue
		}
		if text != "" {
			text = "," + text // RFC 4514 begins with the last one
		}
		text = attribute + "=" + string(bytes.ToValidUTF8(value, []byte("?"))) + text
	}
	return text
}

// attributeNames are those of RFC 4514, by the bytes of their identifier 2.5.4.n.
var attributeNames = map[string]string{
	"\x55\x04\x03": "CN", "\x55\x04\x05": "SERIALNUMBER", "\x55\x04\x06": "C", "\x55\x04\x07": "L",
	"\x55\x04\x08": "ST", "\x55\x04\x0a": "O", "\x55\x04\x0b": "OU",
}
