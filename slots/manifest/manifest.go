// Package manifest describes a set of image parts, as `sealroot-mkinitramfs
// parts` makes it and `sealroot install` takes it. A set is a directory, or a
// tar of its files in the order of Manifest.Files. manifest.json is one JSON object:
//
//	{
//	  "schema": 1,
//	  "name": "kiosk",              the product, as in the configuration
//	  "version": "2026.11.1",
//	  "security_version": 3,
//	  "architecture": "x86-64",
//	  "kernel_release": "6.1.0-28-amd64",
//	  "root_hash": "<hex>",         of the root, lower case
//	  "parts": [
//	    {"name": "root", "file": "root.squashfs", "size": 1234944, "sha256": "<hex>"}
//	  ],
//	  "layers": [                   images on the state partition that the root needs
//	    {"name": "tools", "root_hash": "<hex>", "file": "layer-tools.raw", "size": 5242880, "sha256": "<hex>"},
//	    {"name": "site", "root_hash": "<hex>", "parts": [ … ]}    in partitions of the slot:
//	  ],                            verity-sig, verity and root of the layer, as in "parts"
//	  "x-layout": {                 the disk that the set is for, as in the configuration
//	    "loader": "uki", "store": "gpt", "partitions": "labels", "tree_at_mib": 0,
//	    "source": "usr-verity",     missing: verity
//	    "partuuids": "a=…,…,…;b=…", missing: none; data, hash and signature of each slot
//	    "filesystem": "squashfs"
//	  },
//	  "x-system": {"id": "debian", "version_id": "12", "sysext_level": "",
//	    "layers_allowed": "site app-*"},  what a layer that the machine added must be for
//	  "x-sealed": "signed-pcr11+7 <hex>", what it opens the state by: policy, and keys or PCRs
//	  "x-state-partition": "btrfs"  what it mounts as the state partition beside ext4: btrfs,
//	                                or none where it keeps no state; missing: ext4 alone
//	}
//
// Keys are spelled exactly so and given once; a key that is not listed here is
// refused unless it begins with "x-", and only those, and where it says so, may be
// missing. manifest.sig is a detached PKCS#7 message
// (DER) over the bytes of manifest.json, by the key that signs root hashes.
//
// Nothing here makes system calls, and PID 1 does not use it.
package manifest

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sealroot/slots/gpt"
	"sealroot/verity/osrelease"
)

// The files of a set that are no parts.
const (
	File          = "manifest.json"
	SignatureFile = "manifest.sig"
)

const (
	// Schema is the version of the format.
	Schema = 1
	// Architecture is the only one so far, as systemd names it.
	Architecture = osrelease.Architecture
	// MaxSize is the most that a manifest or its signature has, in bytes.
	MaxSize = 64 << 10
	// MaxLayers is how many layers a set has at most.
	MaxLayers = 100
	// maxPart bounds one part: no slot is larger than 1 TiB.
	maxPart = int64(1) << 40
)

// Name says what a part is.
type Name string

// The parts, in the order in which a set holds them: what is checked before the
// first byte of a slot is written comes first.
const (
	Signature Name = "verity-sig" // content of the signature partition, without padding
	Verity    Name = "verity"     // superblock and hash tree
	Root      Name = "root"       // root image
	Kernel    Name = "kernel"     // Linux, for GRUB
	Initrd    Name = "initrd"     // initramfs, for GRUB
	UKI       Name = "uki"        // unified kernel image, for UEFI
)

// Partition is the partition of a slot, or of a layer in one, that a part goes into; not
// ok for one that is no partition's.
func (n Name) Partition() (part gpt.Part, ok bool) {
	switch n {
	case Signature:
		return gpt.Sig, true
	case Verity:
		return gpt.Tree, true
	case Root:
		return gpt.Data, true
	}
	return 0, false
}

// Names are all parts in their order.
func Names() []Name { return []Name{Signature, Verity, Root, Kernel, Initrd, UKI} }

// ErrFormat: the bytes are no manifest that this version takes; the text says
// what is wrong.
var ErrFormat = errors.New("not a usable manifest")

// Part is one file of a set.
type Part struct {
	Name   Name
	File   string // base name
	Size   int64  // bytes
	SHA256 [32]byte
}

// Layer is the image of a layer: one file, for the state partition, or three parts, for
// partitions of the slot.
type Layer struct {
	Name     string // as in the configuration
	RootHash []byte // 32 or 64 bytes
	File     string // base name
	Size     int64  // bytes
	SHA256   [32]byte
	Parts    []Part // LayerParts, in their order; nil: File
}

// LayerParts are the parts of a layer in partitions, in their order.
func LayerParts() []Name { return []Name{Signature, Verity, Root} }

// Part returns the part of that name.
func (l Layer) Part(name Name) Part {
	i := slices.IndexFunc(l.Parts, func(p Part) bool { return p.Name == name })
	if i < 0 {
		return Part{}
	}
	return l.Parts[i]
}

// InPartitions are the layers that lie in partitions of the slot.
func (m Manifest) InPartitions() []Layer {
	return slices.DeleteFunc(slices.Clone(m.Layers), func(l Layer) bool { return l.Parts == nil })
}

// OnState are the layers that lie on the state partition.
func (m Manifest) OnState() []Layer {
	return slices.DeleteFunc(slices.Clone(m.Layers), func(l Layer) bool { return l.Parts != nil })
}

// Files are the names of a set's files in their order: the layers on the state partition
// come first, and those in partitions behind the root.
func (m Manifest) Files() []string {
	files := []string{File, SignatureFile}
	for _, l := range m.OnState() {
		files = append(files, l.File)
	}
	for _, p := range m.Parts {
		files = append(files, p.File)
		if p.Name != Root {
			continue
		}
		for _, l := range m.InPartitions() {
			for _, p := range l.Parts {
				files = append(files, p.File)
			}
		}
	}
	return files
}

// Manifest describes a set.
type Manifest struct {
	Name            string // of the product: configuration key name, IMAGE_ID of the root
	Version         string
	SecurityVersion int
	Architecture    string
	KernelRelease   string
	RootHash        []byte  // 32 or 64 bytes
	Parts           []Part  // in the order of Names
	Layers          []Layer // from the lowest up
	Layout          *Layout // nil: the builder did not tell
	System          *System // nil: the builder did not tell
	// Sealed is config.State.SealedUnder of its configuration; "": the builder did
	// not tell.
	Sealed string
	// StatePartition is StateBtrfs, StateNone, or "": it mounts ext4 as the state
	// partition and nothing else.
	StatePartition string
}

// What Manifest.StatePartition can be.
const (
	StateBtrfs = "btrfs"
	StateNone  = "none" // it keeps no state
)

// Layout is what the initramfs of a set expects of the disk, in the words of its
// configuration.
type Layout struct {
	Loader     string // boot.loader
	Store      string // boot.store
	Partitions string // root.partitions
	TreeAtMiB  int    // root.verity.tree_at_mib
	Source     string // root.source; "" is verity
	// PartUUIDs is root.partuuids, on one line; "" for none.
	PartUUIDs string
	// Filesystem is root.filesystem, for people: an initramfs finds out that a
	// slot's is another one, and has the slot's own kernel started.
	Filesystem string
}

// System is what the root of a set is, for layers that a machine has added: variables of
// its os-release, and layers_allowed of its configuration, with spaces between.
type System struct {
	ID            string
	VersionID     string
	SysextLevel   string
	LayersAllowed string
}

// Valid tells whether a manifest may have these values.
func (s System) Valid() bool {
	for _, v := range []string{s.ID, s.VersionID, s.SysextLevel} {
		if v != "" && !word(v, 64, "._-+~") {
			return false
		}
	}
	return s.LayersAllowed == "" || word(s.LayersAllowed, 16<<10, " -*")
}

// Part returns the part of that name.
func (m Manifest) Part(name Name) (Part, bool) {
	i := slices.IndexFunc(m.Parts, func(p Part) bool { return p.Name == name })
	if i < 0 {
		return Part{}, false
	}
	return m.Parts[i], true
}

// Has says whether all of the parts are in the set.
func (m Manifest) Has(names ...Name) bool {
	for _, n := range names {
		if _, ok := m.Part(n); !ok {
			return false
		}
	}
	return true
}

// document is the JSON form, for writing.
type document struct {
	Schema          int             `json:"schema"`
	Name            string          `json:"name"`
	Version         string          `json:"version"`
	SecurityVersion int             `json:"security_version"`
	Architecture    string          `json:"architecture"`
	KernelRelease   string          `json:"kernel_release"`
	RootHash        string          `json:"root_hash"`
	Parts           []partDocument  `json:"parts"`
	Layers          []layerDocument `json:"layers"`
	Layout          *layoutDocument `json:"x-layout,omitempty"`
	System          *systemDocument `json:"x-system,omitempty"`
	Sealed          string          `json:"x-sealed,omitempty"`
	StatePartition  string          `json:"x-state-partition,omitempty"`
}

type systemDocument struct {
	ID            string `json:"id"`
	VersionID     string `json:"version_id"`
	SysextLevel   string `json:"sysext_level"`
	LayersAllowed string `json:"layers_allowed"`
}

type layoutDocument struct {
	Loader     string `json:"loader"`
	Store      string `json:"store"`
	Partitions string `json:"partitions"`
	TreeAtMiB  int    `json:"tree_at_mib"`
	Source     string `json:"source,omitempty"`
	PartUUIDs  string `json:"partuuids,omitempty"`
	Filesystem string `json:"filesystem"`
}

type layerDocument struct {
	Name     string `json:"name"`
	RootHash string `json:"root_hash"`
	// either these three
	File   string `json:"file,omitempty"`
	Size   int64  `json:"size,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
	// or these
	Parts []partDocument `json:"parts,omitempty"`
}

type partDocument struct {
	Name   Name   `json:"name"`
	File   string `json:"file"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Encode returns manifest.json; equal manifests give equal bytes. Parts may
// come in any order and are written in that of Names. What Parse would refuse
// is ErrFormat here too.
func Encode(m Manifest) ([]byte, error) {
	order := Names()
	m.Parts = slices.Clone(m.Parts)
	slices.SortStableFunc(m.Parts, func(a, b Part) int { return slices.Index(order, a.Name) - slices.Index(order, b.Name) })
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("cannot write the manifest: %w", err)
	}
	d := document{
		Schema: Schema, Name: m.Name, Version: m.Version, SecurityVersion: m.SecurityVersion,
		Architecture: m.Architecture, KernelRelease: m.KernelRelease,
		RootHash: hex.EncodeToString(m.RootHash), Layers: []layerDocument{}, Layout: (*layoutDocument)(m.Layout), System: (*systemDocument)(m.System), Sealed: m.Sealed, StatePartition: m.StatePartition,
	}
	d.Parts = partDocuments(m.Parts)
	for _, l := range m.Layers {
		doc := layerDocument{Name: l.Name, RootHash: hex.EncodeToString(l.RootHash), Parts: partDocuments(l.Parts)}
		if l.Parts == nil {
			doc.File, doc.Size, doc.SHA256 = l.File, l.Size, hex.EncodeToString(l.SHA256[:])
		}
		d.Layers = append(d.Layers, doc)
	}
	text, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("cannot write the manifest: %w", err)
	}
	return append(text, '\n'), nil
}

func partDocuments(parts []Part) []partDocument {
	var list []partDocument
	for _, p := range parts {
		list = append(list, partDocument{p.Name, p.File, p.Size, hex.EncodeToString(p.SHA256[:])})
	}
	return list
}

// check holds the rules for the values, which are the same for both ways.
func (m Manifest) check() error {
	switch {
	case !word(m.Name, 64, "._-"):
		return fmt.Errorf("%w: name %.80q", ErrFormat, m.Name)
	case !word(m.Version, 64, "._-~^+"):
		return fmt.Errorf("%w: version %.80q", ErrFormat, m.Version)
	case m.SecurityVersion < 0 || m.SecurityVersion > osrelease.MaxSecurityVersion:
		return fmt.Errorf("%w: security_version %d", ErrFormat, m.SecurityVersion)
	case !word(m.Architecture, 32, "_-"):
		return fmt.Errorf("%w: architecture %.40q", ErrFormat, m.Architecture)
	case !word(m.KernelRelease, 64, "._-+~"):
		return fmt.Errorf("%w: kernel_release %.80q", ErrFormat, m.KernelRelease)
	case len(m.RootHash) != 32 && len(m.RootHash) != 64:
		return fmt.Errorf("%w: root_hash of %d bytes", ErrFormat, len(m.RootHash))
	}
	if l := m.Layout; l != nil {
		for _, s := range []string{l.Loader, l.Store, l.Partitions, l.Filesystem} {
			if !word(s, 32, "-") {
				return fmt.Errorf("%w: %.40q in x-layout", ErrFormat, s)
			}
		}
		if l.Source != "" && !word(l.Source, 32, "-") || l.PartUUIDs != "" && !word(l.PartUUIDs, 512, "-=,;") {
			return fmt.Errorf("%w: source %.40q or partuuids %.200q in x-layout", ErrFormat, l.Source, l.PartUUIDs)
		}
		if l.TreeAtMiB < 0 || l.TreeAtMiB > 1<<20 {
			return fmt.Errorf("%w: tree_at_mib %d in x-layout", ErrFormat, l.TreeAtMiB)
		}
	}
	if s := m.System; s != nil && !s.Valid() {
		return fmt.Errorf("%w: x-system %.200q", ErrFormat, *s)
	}
	if m.Sealed != "" && !word(m.Sealed, 400, " -+") {
		return fmt.Errorf("%w: x-sealed %.160q", ErrFormat, m.Sealed)
	}
	if m.StatePartition != "" && !word(m.StatePartition, 32, "-") {
		return fmt.Errorf("%w: x-state-partition %.40q", ErrFormat, m.StatePartition)
	}
	files, err := checkParts(m.Parts, Names(), []string{File, SignatureFile})
	if err != nil {
		return err
	}
	if err := m.checkLayers(files); err != nil {
		return err
	}
	switch {
	case !m.Has(Signature, Verity, Root):
		return fmt.Errorf("%w: a set has at least the parts %s, %s and %s", ErrFormat, Signature, Verity, Root)
	case m.Has(Kernel) != m.Has(Initrd):
		return fmt.Errorf("%w: %s and %s come together", ErrFormat, Kernel, Initrd)
	case !m.Has(Kernel) && !m.Has(UKI):
		return fmt.Errorf("%w: a set has a %s with an %s, or a %s", ErrFormat, Kernel, Initrd, UKI)
	}
	return nil
}

// checkParts checks that parts come in this order, each at most once; files are the names
// that are taken, and it returns them with those of the parts.
func checkParts(parts []Part, order []Name, files []string) ([]string, error) {
	at := -1
	for _, p := range parts {
		n := slices.Index(order, p.Name)
		switch {
		case n < 0:
			return nil, fmt.Errorf("%w: unknown part %.40q", ErrFormat, p.Name)
		case n <= at:
			return nil, fmt.Errorf("%w: part %s is given twice or out of order", ErrFormat, p.Name)
		case !word(p.File, 100, "._-+~") || strings.HasPrefix(p.File, ".") || slices.Contains(files, p.File):
			return nil, fmt.Errorf("%w: part %s has file name %.120q", ErrFormat, p.Name, p.File)
		case p.Size < 1 || p.Size > maxPart:
			return nil, fmt.Errorf("%w: part %s has %d bytes", ErrFormat, p.Name, p.Size)
		}
		at, files = n, append(files, p.File)
	}
	return files, nil
}

// checkLayers holds the rules for layers, whose names become those of files; files are
// the names that are taken.
func (m Manifest) checkLayers(files []string) error {
	if len(m.Layers) > MaxLayers {
		return fmt.Errorf("%w: %d layers, at most %d", ErrFormat, len(m.Layers), MaxLayers)
	}
	var names []string
	for _, l := range m.Layers {
		switch {
		case !word(l.Name, 32, "-") || l.Name != strings.ToLower(l.Name) || slices.Contains(names, l.Name):
			return fmt.Errorf("%w: layer name %.40q", ErrFormat, l.Name)
		case len(l.RootHash) != 32 && len(l.RootHash) != 64:
			return fmt.Errorf("%w: layer %s has a root_hash of %d bytes", ErrFormat, l.Name, len(l.RootHash))
		case l.Parts != nil && (l.File != "" || l.Size != 0 || len(l.Parts) != len(LayerParts())):
			return fmt.Errorf("%w: layer %s has parts %d, and a file too or not all that a layer has", ErrFormat, l.Name, len(l.Parts))
		case l.Parts != nil:
			taken, err := checkParts(l.Parts, LayerParts(), files)
			if err != nil {
				return fmt.Errorf("layer %s: %w", l.Name, err)
			}
			names, files = append(names, l.Name), taken
			continue
		case !word(l.File, 100, "._-+~") || strings.HasPrefix(l.File, ".") || slices.Contains(files, l.File):
			return fmt.Errorf("%w: layer %s has file name %.120q", ErrFormat, l.Name, l.File)
		case l.Size < 1 || l.Size > maxPart:
			return fmt.Errorf("%w: layer %s has %d bytes", ErrFormat, l.Name, l.Size)
		}
		names, files = append(names, l.Name), append(files, l.File)
	}
	return nil
}

const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

// word is 1 to limit bytes, letters, digits and what else is given; the
// configuration has the same rules for what comes from there.
func word(s string, limit int, more string) bool {
	return s != "" && len(s) <= limit && strings.Trim(s, letters+more) == ""
}
