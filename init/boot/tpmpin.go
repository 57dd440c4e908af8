package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"sealroot/state/tpm"
)

// Limits of the TPM's PIN. The tries are those of one boot, over all tokens: a wrong
// one counts towards the TPM's lockout.
const (
	pinTries  = 3
	pinRounds = 3 // in which a new one is chosen
	pinLeast  = 4 // bytes of a new one
)

// errNoPIN: nobody typed a PIN.
var errNoPIN = errors.New("no PIN was typed")

// unsealWithPIN asks a person for the PIN and opens with it the first of the tokens
// whose secret the TPM gives for it: anybody may have put tokens of their own beside
// the machine's. open is what follows; the tokens are checked already (usable).
// It notes why a token did not open. nil: none has.
func (b *boot) unsealWithPIN(ctx context.Context, tokens []usableToken, open func(t usableToken, secret []byte) ([]byte, error)) (key []byte) {
	if len(tokens) == 0 {
		return nil
	}
	if !oneStorageKey(tokens) {
		for _, t := range tokens {
			b.refuse(t, errOtherKeys)
		}
		return nil
	}
	r := pinRound{left: tokens}
	err := b.askPIN(ctx, func(pin []byte) error {
		return r.try(b.pinsLeft(ctx, len(r.left)), func(t usableToken) (err error) {
			key, err = b.unsealAndOpen(ctx, t, pin, open)
			return err
		}, b.refuse)
	})
	if err != nil {
		for _, t := range r.left {
			b.refuse(t, err)
		}
	}
	return key
}

// askPIN asks for the PIN until try takes one, or the tries of this boot are used
// up. Errors: errNoPIN, tpm.ErrPIN, tpm.ErrLockedOut, those of try.
func (b *boot) askPIN(ctx context.Context, try func(pin []byte) error) (err error) {
	switch {
	case b.pinTries >= pinTries:
		return fmt.Errorf("%w: %d wrong PINs in this boot", tpm.ErrPIN, b.pinTries)
	case b.pinUnanswered:
		return errNoPIN // anybody may have put another token there: it does not ask again
	}
	defer func() { b.pinUnanswered = errors.Is(err, errNoPIN) }()
	c, err := b.openConsole()
	if err != nil {
		return fmt.Errorf("%w: %w", errNoPIN, err)
	}
	defer c.Close()
	defer b.watchDrivers(ctx)() // a USB keyboard may appear later than the disk
	// Who switches off in front of a question has not seen the slot fail.
	again := b.giveBack()
	defer again()
	c.Flush() // no noise of the boot counts as a try
	for range promptTries {
		c.Print("\nsealroot: type the PIN of this machine (it is not shown) and press Enter: ")
		line, err := c.ReadLine(ctx, keyLimit)
		c.Print("\n")
		if err != nil {
			return fmt.Errorf("%w: %w", errNoPIN, err)
		}
		if len(line) == 0 {
			continue // it would be refused, and must not count
		}
		err = try(line)
		clear(line[:cap(line)])
		switch {
		case errors.Is(err, tpm.ErrLockedOut):
			c.Print("sealroot: the TPM takes no PIN for a while: too many were wrong. Leave the machine on and wait, or use the recovery key.\n")
			return err
		case !errors.Is(err, tpm.ErrPIN):
			return err
		case errors.Is(err, errNotAll):
			c.Print("sealroot: that is not the PIN, or not for the token that it was tried on. Type it again: it does not count yet.\n")
			c.Flush()
			continue
		}
		b.pinTries++
		if b.pinTries >= pinTries {
			c.Print("sealroot: that is not the PIN.\n")
			return fmt.Errorf("%d wrong PINs: %w", b.pinTries, err)
		}
		c.Print(fmt.Sprintf("sealroot: that is not the PIN. Tries left: %d.\n", pinTries-b.pinTries))
		c.Flush()
	}
	return errNoPIN
}

// firstPIN asks for the PIN of a volume that is made now. Without an answer there is
// no volume: one that opens by nothing but a recovery key is not what was configured,
// and the next boot asks again.
func (b *boot) firstPIN(ctx context.Context) ([]byte, error) {
	if !b.cfg.State.TPM2.PIN {
		return nil, nil
	}
	c, err := b.openConsole()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoPIN, err)
	}
	defer c.Close()
	defer b.watchDrivers(ctx)()
	again := b.giveBack()
	defer again()
	return b.newPIN(ctx, c)
}

// newPIN has a person choose a PIN, where the configuration wants one; the caller
// wipes it. Errors: errNoPIN.
func (b *boot) newPIN(ctx context.Context, c Console) ([]byte, error) {
	if !b.cfg.State.TPM2.PIN {
		return nil, nil
	}
	c.Print(fmt.Sprintf("\nsealroot: this machine asks for a PIN at every boot. Choose one of %d characters or more.\n", pinLeast))
	for range pinRounds {
		var typed [2][]byte
		wipe := func() {
			for _, line := range typed {
				clear(line[:cap(line)])
			}
		}
		c.Flush() // what came before was not typed as a PIN, and was shown perhaps
		for i, question := range [...]string{"sealroot: new PIN (it is not shown): ", "sealroot: the same once more: "} {
			c.Print(question)
			var err error
			typed[i], err = c.ReadLine(ctx, keyLimit)
			c.Print("\n")
			if err != nil {
				wipe()
				return nil, fmt.Errorf("%w: %w", errNoPIN, err)
			}
		}
		switch {
		case len(typed[0]) < pinLeast:
			c.Print("sealroot: that is too short.\n")
		case !bytes.Equal(typed[0], typed[1]):
			c.Print("sealroot: the two are not the same.\n")
		default:
			pin := bytes.Clone(typed[0])
			wipe()
			return pin, nil
		}
		wipe()
	}
	return nil, fmt.Errorf("%w: %d times not a good one", errNoPIN, pinRounds)
}
