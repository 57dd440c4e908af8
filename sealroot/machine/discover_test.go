package machine

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/sealroot/bootset"
	"sealroot/slots/gpt"
	"sealroot/slots/live"
	"sealroot/verity/signature"
)

// A disk as systemd-repart makes it has no boot log and one kernel image for all:
// nothing is missed, and the running slot can be committed.
func TestDiscoverableDisk(t *testing.T) {
	hash := append(bytes.Repeat([]byte{0xa1}, 16), bytes.Repeat([]byte{0xa2}, 16)...)
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	table := fmt.Sprintf("label: gpt\n"+
		"start=2048, size=1M, type=c12a7328-f81f-11d2-ba4b-00a0c93ec93b\n"+
		"size=1M, name=demo_1, uuid=%s, type=4f68bce3-e8cd-4db1-96e7-fbcaf984b709\n"+
		"size=1M, uuid=%s, type=2c7357ed-ebd2-46d9-aec1-23d437ec2bf5\n"+
		"start=8192, size=1M, name=demo_1-verity-sig, type=41092b05-9fc8-4523-994f-2def0408b176\n", uuid(hash[:16]), uuid(hash[16:]))
	cmd := exec.Command("sfdisk", "--quiet", path)
	cmd.Stdin = strings.NewReader(table)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(fmt.Appendf(nil, `{"rootHash": "%x", "signature": "AAAA"}`, hash), 8192*512); err != nil {
		t.Fatal(err)
	}

	m, err := OpenDisk(path, live.StoreGPT, true)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	m.offline, m.espErr = false, nil
	m.choice = live.Choice{Store: live.StoreFixed, Loader: live.LoaderUKI, UEFI: true, Discoverable: true}
	if skipped, err := m.disk.Discover(gpt.Wanted{Version: "1"}, signature.ReadRootHash); err != nil || len(skipped) > 0 {
		t.Fatalf("Discover: %v, %v", skipped, err)
	}
	if r, err := m.Record(); err != nil || len(r.Failures)+len(r.Reports) > 0 {
		t.Errorf("Record() = %+v, %v, want an empty one", r, err)
	}
	if loaded, err := m.Loaded(); err != nil || loaded != "" {
		t.Errorf("Loaded() = %q, %v, want nobody's", loaded, err)
	}
	b, err := m.BootSet(nil)
	if err != nil || b.Log != nil || b.Loader != nil {
		t.Fatalf("BootSet: log %v, loader %v, %v, want neither", b.Log, b.Loader, err)
	}
	if err := b.HoldsImage("a"); err != nil {
		t.Errorf("HoldsImage: %v", err)
	}
	if was, err := b.Commit(bootset.Boot{Running: "a"}); err != nil || !was {
		t.Errorf("Commit: %t, %v, want a slot that is committed", was, err)
	}
}

func uuid(half []byte) string {
	h := hex.EncodeToString(half)
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}
