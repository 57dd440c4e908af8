package luks2

import (
	"fmt"
	"io"
)

// The recovery key of systemd-cryptenroll(1): 32 random bytes in modhex, whose
// letters sit on the same keys of every Latin keyboard, in 8 groups of 8. The
// text with its dashes is the passphrase of the keyslot.
const (
	modhex           = "cbdefghijklnrtuv"
	recoveryBytes    = 32
	recoveryGroup    = 8
	recoveryLetters  = 2 * recoveryBytes
	RecoveryKeyBytes = recoveryLetters + recoveryLetters/recoveryGroup - 1 // of the text
	// RecoveryTokenType is the type of the token of a recovery keyslot.
	RecoveryTokenType = "systemd-recovery"
)

// RecoveryToken is the token that says that a keyslot is opened by a recovery
// key; it has no field of its own.
func RecoveryToken(keyslot int) []byte {
	return fmt.Appendf(nil, `{"type":%q,"keyslots":["%d"]}`, RecoveryTokenType, keyslot)
}

// GenerateRecoveryKey makes a new recovery key of RecoveryKeyBytes letters and
// dashes. The caller wipes it.
func GenerateRecoveryKey(rand io.Reader) ([]byte, error) {
	var secret [recoveryBytes]byte
	defer clear(secret[:])
	if _, err := io.ReadFull(rand, secret[:]); err != nil {
		return nil, fmt.Errorf("cannot make recovery key: %w", err)
	}
	key := make([]byte, 0, RecoveryKeyBytes)
	for i, b := range secret {
		if i > 0 && i%(recoveryGroup/2) == 0 {
			key = append(key, '-')
		}
		key = append(key, modhex[b>>4], modhex[b&15])
	}
	return key, nil
}

// NormalizeRecoveryKey brings what a person typed into the form that opens the
// keyslot: upper case, missing or misplaced dashes and blanks are forgiven.
// Otherwise ErrRecoveryKey. The caller wipes both.
func NormalizeRecoveryKey(typed []byte) ([]byte, error) {
	key := make([]byte, 0, RecoveryKeyBytes)
	letters := 0
	for _, c := range typed {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		switch {
		case c == '-' || c == ' ' || c == '\t' || c == '\r' || c == '\n':
			continue
		case !isModhex(c) || letters == recoveryLetters:
			clear(key)
			return nil, ErrRecoveryKey
		}
		if letters > 0 && letters%recoveryGroup == 0 {
			key = append(key, '-')
		}
		key = append(key, c)
		letters++
	}
	if letters != recoveryLetters {
		clear(key)
		return nil, ErrRecoveryKey
	}
	return key, nil
}

func isModhex(c byte) bool {
	for i := range len(modhex) {
		if modhex[i] == c {
			return true
		}
	}
	return false
}
