package disk

import (
	"encoding/hex"
	"errors"
	"path/filepath"
	"testing"

	"sealroot/init/config"
	"sealroot/mkinitramfs/built"
	"sealroot/slots/esp"
	"sealroot/slots/gpt"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/predict"
)

// A disk, a set of parts and a unified kernel image of one version have the same
// PCRs, whatever the loader and wherever the file lies.
func TestPredictedPCRs(t *testing.T) {
	for _, tc := range []struct {
		name   string
		loader config.Loader
		store  config.Store
		pcr    int
	}{
		{"uki", config.LoaderUKI, config.StoreGPT, 13},
		{"counted_name", config.LoaderSystemdBoot, config.StoreBLS, 14},
		{"grub", config.LoaderGRUB, config.StoreGPT, 12},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, in := builder(t)
			in.Config.Boot.Loader, in.Config.Boot.Store, in.Config.SecurityVersion, in.Config.Trust.MeasurePCR = tc.loader, tc.store, 4, tc.pcr
			if tc.loader == config.LoaderGRUB {
				in.Config.State.TPM2 = config.TPM2{Policy: config.PolicyPCRs, WithoutMeasuredBoot: config.AcceptTheft}
			}
			dir := t.TempDir()
			image, tar, folder := filepath.Join(dir, "disk.img"), filepath.Join(dir, "parts.tar"), filepath.Join(dir, "parts")
			if err := b.Disk(t.Context(), Options{A: in, B: &in, BState: Trial, Output: image, Sizes: Sizes{State: 192 * mib}}); err != nil {
				t.Fatal(err)
			}
			for _, out := range []string{tar, folder} {
				if err := b.WriteParts(t.Context(), in, out, nil); err != nil {
					t.Fatal(err)
				}
			}
			first, err := built.Read(t.Context(), b.Tools, image, built.Options{Slot: "a"})
			if err != nil {
				t.Fatal(err)
			}
			if first.SecurityVersion != 4 || first.RootPCR != tc.pcr || (len(first.Sections) > 0) != (tc.loader != config.LoaderGRUB) {
				t.Errorf("read %d sections, security version %d, PCR %d", len(first.Sections), first.SecurityVersion, first.RootPCR)
			}
			want := text(t, first)
			others := map[string]built.Options{image: {Slot: "b"}, tar: {}, folder: {}}
			if tc.loader != config.LoaderGRUB {
				part, _ := part(t, image, gpt.LabelESP)
				uki := filepath.Join(dir, "x.efi")
				run(t, "mcopy", "-n", "-i", part, "::/"+esp.Fallback, uki)
				if tc.loader == config.LoaderUKI {
					others[uki] = built.Options{RootHash: first.RootHash}
				}
				if _, err := built.Read(t.Context(), b.Tools, uki, built.Options{}); tc.loader == config.LoaderUKI && !errors.Is(err, built.ErrImage) {
					t.Errorf("a unified kernel image without a root hash: %v, want ErrImage", err)
				}
			}
			for path, o := range others {
				im, err := built.Read(t.Context(), b.Tools, path, o)
				if err != nil {
					t.Fatal(err)
				}
				if got := text(t, im); got != want {
					t.Errorf("%s gives %s, want %s", path, got, want)
				}
			}
		})
	}
}

// text is the prediction of one bank.
func text(t *testing.T, im predict.Image) (all string) {
	t.Helper()
	values, err := predict.Values(im, []pcrsig.Bank{pcrsig.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range values {
		if d, err := hex.DecodeString(v.Digests[pcrsig.SHA256]); err != nil || len(d) != 32 {
			t.Errorf("PCR %d is %q", v.PCR, v.Digests[pcrsig.SHA256])
		}
		all += string(v.When) + " " + v.What + " " + v.Digests[pcrsig.SHA256] + "; "
	}
	return all
}

func TestPredictRefuses(t *testing.T) {
	b, _ := builder(t)
	dir := t.TempDir()
	short, other := filepath.Join(dir, "short"), filepath.Join(dir, "other")
	for path, content := range map[string][]byte{short: []byte("x"), other: make([]byte, 8192)} {
		if err := writePart(path, content); err != nil {
			t.Fatal(err)
		}
		if _, err := built.Read(t.Context(), b.Tools, path, built.Options{Slot: "a"}); !errors.Is(err, built.ErrImage) {
			t.Errorf("%s: %v, want ErrImage", path, err)
		}
	}
}
