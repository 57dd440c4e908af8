package config

// keyFile checks where the key of UnlockKeyFile is to be found.
func (v *validator) keyFile(s State) {
	const path = "state.key_file"
	k := s.KeyFile
	if !s.can(UnlockKeyFile) {
		if k != (KeyFile{}) {
			v.add(path, "add key-file to state.unlock, or leave it out", "set, but state.unlock lacks key-file")
		}
		return
	}
	if s.can(UnlockTPM2) {
		v.add("state.unlock", "leave one of them out", "key-file beside tpm2: who brings a volume and a medium of their own would get past what the TPM knows of yours")
	}
	if !isUUID(k.Partition) {
		v.add(path+".partition", "give the PARTUUID that blkid shows, of a GPT", "%.80q is not the UUID of a partition", k.Partition)
	}
	if k.Path == "" {
		if k.Size < MinKeyFile || k.Size > MaxKeyFile || k.Offset < 0 {
			v.add(path, "give a path, or an offset and a size of 32 to 8192 bytes", "%d bytes at byte %d cannot be a key", k.Size, k.Offset)
		}
		if k.Filesystem != "" {
			v.add(path+".filesystem", "give a path too, or leave it out", "set without a path")
		}
		return
	}
	if k.Path[0] == '/' || !isClean("/"+k.Path) {
		v.add(path+".path", "give a path such as keys/kiosk.key", "%.80q is not a path below the partition's root", k.Path)
	}
	v.oneOf(path+".filesystem", k.Filesystem, []string{"vfat", "ext4"}, nil)
	if k.Offset != 0 || k.Size != 0 {
		v.add(path, "leave offset and size out", "a path, and a place on the partition itself")
	}
}

// isUUID accepts the text form of a UUID in lower case.
func isUUID(s string) bool {
	for i, c := range []byte(s) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || !dash && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(s) == 36
}
