package tpm

// IdentityIndex is the NV index that says which volume is this machine's: 32 bytes.
const IdentityIndex = 0x01c05ea3

// IdentityPin is the record of the volume that was pinned under policy: its
// identity, luks2.VolumeKeyID. That a secret could be unsealed does not tell whose
// volume it opens: sealing needs no secret, only the public part of the SRK.
func IdentityPin(policy Policy) Pinned {
	return Pinned{Index: IdentityIndex, Size: 32, Policy: policy}
}
