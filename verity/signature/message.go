package signature

import (
	"crypto"
	_ "crypto/sha256" // for hashByOID
	_ "crypto/sha512" // for hashByOID
	"encoding/asn1"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	tag "golang.org/x/crypto/cryptobyte/asn1"
)

// The message is PKCS#7 SignedData (RFC 2315, RFC 5652) in DER. It is read here
// because the bytes come from a disk that an attacker may write, and PID 1 must
// not panic: smallstep/pkcs7, which signs (package sign), turns BER into DER
// first and reads past the end of crafted input, and compares signing times
// with validity dates.

var (
	signedDataOID    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	dataOID          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	contentTypeOID   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	messageDigestOID = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	context0         = tag.Tag(0).Constructed().ContextSpecific()
	context1         = tag.Tag(1).Constructed().ContextSpecific()
)

// signerInfo is what counts of the SignerInfo of RFC 5652, 5.3.
type signerInfo struct {
	issuer      []byte // DER of the name
	serial      []byte // content of the DER integer
	digest      asn1.ObjectIdentifier
	signedAttrs []byte // the element with its [0] tag; nil when there is none
	signature   []byte
}

// parseMessage returns the only signer of a detached message. Its error is
// ErrFormat.
func parseMessage(der []byte) (signerInfo, error) {
	in := cryptobyte.String(der)
	var outer, content, sd cryptobyte.String
	var kind asn1.ObjectIdentifier
	if !in.ReadASN1(&outer, tag.SEQUENCE) || !outer.ReadASN1ObjectIdentifier(&kind) {
		return signerInfo{}, errMalformed()
	}
	if !in.Empty() {
		return signerInfo{}, fmt.Errorf("%w: trailing bytes in the message", ErrFormat)
	}
	if !kind.Equal(signedDataOID) {
		return signerInfo{}, fmt.Errorf("%w: not signed data", ErrFormat)
	}
	if !outer.ReadASN1(&content, context0) || !outer.Empty() ||
		!content.ReadASN1(&sd, tag.SEQUENCE) || !content.Empty() {
		return signerInfo{}, errMalformed()
	}
	return parseSignedData(sd)
}

func parseSignedData(sd cryptobyte.String) (signerInfo, error) {
	var encapsulated, signers, first cryptobyte.String
	if !sd.SkipASN1(tag.INTEGER) || !sd.SkipASN1(tag.SET) ||
		!sd.ReadASN1(&encapsulated, tag.SEQUENCE) || !encapsulated.SkipASN1(tag.OBJECT_IDENTIFIER) ||
		!sd.SkipOptionalASN1(context0) || !sd.SkipOptionalASN1(context1) || // certificates, CRLs
		!sd.ReadASN1(&signers, tag.SET) || !sd.Empty() {
		return signerInfo{}, errMalformed()
	}
	if !encapsulated.Empty() {
		return signerInfo{}, fmt.Errorf("%w: not detached", ErrFormat)
	}
	if !signers.ReadASN1(&first, tag.SEQUENCE) {
		return signerInfo{}, fmt.Errorf("%w: no signer", ErrFormat)
	}
	if !signers.Empty() {
		return signerInfo{}, fmt.Errorf("%w: more than one signer", ErrFormat)
	}
	return parseSigner(first)
}

func parseSigner(in cryptobyte.String) (signerInfo, error) {
	var info signerInfo
	var sid, issuer, serial, digest, attrs, sig cryptobyte.String
	if !in.SkipASN1(tag.INTEGER) ||
		!in.ReadASN1(&sid, tag.SEQUENCE) ||
		!sid.ReadASN1Element(&issuer, tag.SEQUENCE) || !sid.ReadASN1(&serial, tag.INTEGER) || !sid.Empty() || len(serial) == 0 ||
		!in.ReadASN1(&digest, tag.SEQUENCE) || !digest.ReadASN1ObjectIdentifier(&info.digest) {
		return signerInfo{}, errMalformed()
	}
	if in.PeekASN1Tag(context0) && !in.ReadASN1Element(&attrs, context0) {
		return signerInfo{}, errMalformed()
	}
	if !in.SkipASN1(tag.SEQUENCE) || !in.ReadASN1(&sig, tag.OCTET_STRING) ||
		!in.SkipOptionalASN1(context1) || !in.Empty() {
		return signerInfo{}, errMalformed()
	}
	info.issuer, info.serial, info.signedAttrs, info.signature = issuer, serial, attrs, sig
	return info, nil
}

// messageDigest returns the digest in signed attributes (RFC 5652, 11): it must
// be there exactly once, as must the content type, which must be plain data.
func messageDigest(element []byte) ([]byte, error) {
	in := cryptobyte.String(element)
	var attributes cryptobyte.String
	if !in.ReadASN1(&attributes, context0) {
		return nil, errMalformed()
	}
	var digests, types int
	var digest cryptobyte.String
	for !attributes.Empty() {
		var attribute, values cryptobyte.String
		var kind, content asn1.ObjectIdentifier
		if !attributes.ReadASN1(&attribute, tag.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&kind) ||
			!attribute.ReadASN1(&values, tag.SET) || !attribute.Empty() {
			return nil, fmt.Errorf("%w: malformed signed attributes", ErrFormat)
		}
		switch {
		case kind.Equal(messageDigestOID):
			digests++
			if !values.ReadASN1(&digest, tag.OCTET_STRING) || !values.Empty() {
				return nil, fmt.Errorf("%w: malformed signed attributes", ErrFormat)
			}
		case kind.Equal(contentTypeOID):
			types++
			if !values.ReadASN1ObjectIdentifier(&content) || !values.Empty() || !content.Equal(dataOID) {
				return nil, fmt.Errorf("%w: signed content is not data", ErrFormat)
			}
		}
	}
	if digests != 1 || types != 1 {
		return nil, fmt.Errorf("%w: signed attributes lack digest or content type", ErrFormat)
	}
	return digest, nil
}

// errMalformed says no more: what is wrong with the shape helps nobody at a
// console.
func errMalformed() error { return fmt.Errorf("%w: malformed message", ErrFormat) }

// hashByOID knows SHA-256, SHA-384 and SHA-512 (RFC 5754); others are ErrWeak.
func hashByOID(oid asn1.ObjectIdentifier) (crypto.Hash, error) {
	switch oid.String() {
	case "2.16.840.1.101.3.4.2.1":
		return crypto.SHA256, nil
	case "2.16.840.1.101.3.4.2.2":
		return crypto.SHA384, nil
	case "2.16.840.1.101.3.4.2.3":
		return crypto.SHA512, nil
	}
	return 0, fmt.Errorf("%w: hash algorithm %.60s", ErrWeak, oid)
}
