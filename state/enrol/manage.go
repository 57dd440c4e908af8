package enrol

import (
	"fmt"
	"io"

	"sealroot/state/tpm"
)

const (
	// ManageTokenType is the type of the token of the keyslot that the manage key
	// opens: with state.manage_key root on the running system changes keyslots by it.
	ManageTokenType = "sealroot-manage"
	// ManageKeyBytes is its length.
	ManageKeyBytes = 44
)

// ManageToken is the token that says that a keyslot is opened by the manage key.
func ManageToken(keyslot int) []byte {
	return fmt.Appendf(nil, `{"type":"`+ManageTokenType+`","keyslots":["%d"]}`, keyslot)
}

// NewManageKey makes a manage key: base64 of 32 random bytes, which cryptsetup
// takes as a key file. The caller wipes it.
func NewManageKey(random io.Reader) ([]byte, error) {
	var secret [32]byte
	defer clear(secret[:])
	if _, err := io.ReadFull(random, secret[:]); err != nil {
		return nil, err
	}
	return tpm.Passphrase(secret[:]), nil
}
