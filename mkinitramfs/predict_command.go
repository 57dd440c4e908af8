package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"

	"sealroot/mkinitramfs/built"
	"sealroot/mkinitramfs/tools"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/predict"
)

// prediction is the JSON form of predict.
type prediction struct {
	Schema          int             `json:"schema"`
	RootHash        string          `json:"root_hash"`
	SecurityVersion int             `json:"security_version"`
	PCRs            []predict.Value `json:"pcrs"`
}

// predictCommand prints the PCRs that an image will have.
func predictCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("sealroot-mkinitramfs predict IMAGE", flag.ContinueOnError)
	fs.SetOutput(stderr)
	slot := fs.String("slot", "a", "slot of a disk image")
	rootHash := fs.String("root-hash", "", "root hash that goes with a unified kernel image, in hex")
	asJSON := fs.Bool("json", false, "for programs: schema 1")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	hash, err := hex.DecodeString(*rootHash)
	if err != nil || len(hash) != 0 && len(hash) != 32 && len(hash) != 64 {
		return wrong(stderr, "-root-hash %q is not the hex form of 32 or 64 bytes", *rootHash)
	}
	if fs.NArg() != 1 {
		fmt.Fprintln(stderr, "usage: sealroot-mkinitramfs predict [--json] [--slot SLOT] [--root-hash HEX] DISK|PARTS|UKI")
		return errUsage
	}
	im, err := built.Read(ctx, tools.New(), fs.Arg(0), built.Options{Slot: *slot, RootHash: hash})
	if err != nil {
		return err
	}
	values, err := predict.Values(im, pcrsig.Banks())
	if err != nil {
		return err
	}
	if *asJSON {
		text, err := json.MarshalIndent(prediction{1, hex.EncodeToString(im.RootHash), im.SecurityVersion, values}, "", "  ")
		if err != nil {
			return fmt.Errorf("cannot write JSON: %w", err)
		}
		_, err = fmt.Fprintf(stdout, "%s\n", text)
		return err
	}
	for _, v := range values {
		fmt.Fprintf(stdout, "PCR %d, %s: %s\n", v.PCR, moment(v.When), v.What)
		for _, bank := range pcrsig.Banks() {
			fmt.Fprintf(stdout, "  %-6s  %s\n", bank, v.Digests[bank])
		}
	}
	return nil
}

func moment(w predict.When) string {
	if w == predict.Initrd {
		return "while PID 1 unlocks the state (what signed policies hold)"
	}
	return "from the hand-over to the real init on"
}
