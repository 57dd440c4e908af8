package gpt

// Partition types on a sealroot disk, from the UEFI specification, GRUB, and
// the Discoverable Partitions Specification (x86-64). They are texts for
// GUID parsing (guid.Must), as a GUID cannot be a constant.
const (
	TypeBIOSBoot = "21686148-6449-6e6f-744e-656564454649"
	TypeESP      = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	TypeRoot     = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
	TypeVerity   = "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"
	TypeSig      = "41092b05-9fc8-4523-994f-2def0408b176"
	// The same three of a /usr without a root.
	TypeUsr       = "8484680c-9521-48c6-9c11-b0720656f69e"
	TypeUsrVerity = "77ff5f63-e7b6-4633-acf4-1565b864c0e6"
	TypeUsrSig    = "e7bb33fb-06cf-4e81-8273-e543b413e2e2"
	// Those of layers are Linux data like any other: nothing looks for them by type.
	TypeLayer = "0fc63daf-8483-4772-8e79-3d69d8477de4"
	TypeLog   = "05346ab1-46a4-4036-9234-7d170c31b7c4"
	TypeState = "a6487b78-d59c-42e7-b616-1cd78b6773d4"
)

// Partition labels on a sealroot disk. Those of a slot with a root are RootLabel,
// VerityLabel and SigLabel; Naming has those of all.
const (
	LabelBIOSBoot = "bios"
	LabelESP      = "esp"
	LabelLog      = "sealroot-log"
	LabelState    = "state"
)

// RootLabel is the label of the slot's root image.
func RootLabel(slot string) string { return Naming{}.Label(slot, Data) }

// VerityLabel is the label of the slot's hash tree.
func VerityLabel(slot string) string { return Naming{}.Label(slot, Tree) }

// SigLabel is the label of the slot's signature.
func SigLabel(slot string) string { return Naming{}.Label(slot, Sig) }
