package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// goodUKI and goodGRUB are what most rows below change one thing of.
func goodUKI() Config {
	return Config{
		Name: "kiosk", Version: "2026.11.1", Build: Production,
		Boot:  Boot{Loader: LoaderUKI},
		Trust: Trust{Root: []string{"image.crt"}},
		State: State{
			Create: CreateFirstBoot, Unlock: []string{UnlockTPM2, UnlockRecoveryKey},
			TPM2: TPM2{Policy: PolicySignedPCR11And7}, Recovery: RecoveryLater,
		},
		Modules: Modules{Sets: []string{"virtio"}},
	}
}

func goodGRUB() Config {
	c := goodUKI()
	c.Boot.Loader = LoaderGRUB
	c.State.TPM2 = TPM2{Policy: PolicyPCRs, WithoutMeasuredBoot: AcceptTheft}
	return c
}

type row struct {
	name   string
	change func(c *Config)
	paths  []string // of the problems, in order; none: accepted
}

func check(t *testing.T, base func() Config, rows []row) {
	t.Helper()
	for _, test := range rows {
		t.Run(test.name, func(t *testing.T) {
			c := base()
			test.change(&c)
			c = c.WithDefaults()
			err := c.Validate()
			var got []string
			for _, p := range Problems(err) {
				got = append(got, p.Path)
				if p.Reason == "" || strings.HasSuffix(p.Reason, ".") {
					t.Errorf("%v: reason %q", p, p.Reason)
				}
			}
			if !slices.Equal(got, test.paths) {
				t.Errorf("problems at %q; want %q\n%v", got, test.paths, err)
			}
			if (err != nil) != errors.Is(err, ErrInvalid) {
				t.Errorf("Validate = %v; want it to wrap %v", err, ErrInvalid)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	check(t, goodUKI, []row{
		{"uki", func(*Config) {}, nil},
		{"nothing_at_all", func(c *Config) { *c = Config{} },
			[]string{"name", "version", "build", "boot.loader", "trust.root", "state.create", "state.unlock", "state.recovery"}},
		{"name_with_capital", func(c *Config) { c.Name = "Kiosk" }, []string{"name"}},
		{"name_as_path", func(c *Config) { c.Name = "../x" }, []string{"name"}},
		{"version_with_space", func(c *Config) { c.Version = "1 2" }, []string{"version"}},
		{"security_version_negative", func(c *Config) { c.SecurityVersion = -1 }, []string{"security_version"}},
		{"security_version_highest", func(c *Config) { c.SecurityVersion = 1<<31 - 1 }, nil},
		{"security_version_too_high", func(c *Config) { c.SecurityVersion = 1 << 31 }, []string{"security_version"}},
		{"build_unknown", func(c *Config) { c.Build = "debug" }, []string{"build"}},
		{"loader_unknown", func(c *Config) { c.Boot.Loader = "lilo" }, []string{"boot.loader"}},
		{"store_unknown", func(c *Config) { c.Boot.Store = "uboot" }, []string{"boot.store"}},
		{"store_with_unknown_loader", func(c *Config) { c.Boot.Store, c.Boot.Loader = StoreBLS, "lilo" }, []string{"boot.loader"}},
		{"sha512_and_parity", func(c *Config) {
			c.Root.Verity.Algorithm, c.Root.Verity.FECRoots, c.Root.Verity.TreeAtMiB = "sha512", 2, 512
		}, nil},
		{"sha1", func(c *Config) { c.Root.Verity.Algorithm = "sha1" }, []string{"root.verity.algorithm"}},
		{"odd_block_sizes", func(c *Config) { c.Root.Verity.DataBlockSize, c.Root.Verity.HashBlockSize = 4095, 8192 },
			[]string{"root.verity.data_block_size", "root.verity.hash_block_size"}},
		{"tree_before_the_partition", func(c *Config) { c.Root.Verity.TreeAtMiB = -1 }, []string{"root.verity.tree_at_mib"}},
		{"one_root", func(c *Config) { c.Root.Verity.FECRoots = 1 }, []string{"root.verity.fec_roots"}},
		{"parity_over_two_sizes", func(c *Config) { c.Root.Verity.FECRoots, c.Root.Verity.HashBlockSize = 2, 1024 }, []string{"root.verity.fec_roots"}},
		{"tries_16", func(c *Config) { c.Boot.Tries = 16 }, []string{"boot.tries"}},
		{"deadline_short", func(c *Config) { c.Boot.CommitDeadline = Duration(time.Second) }, []string{"boot.commit_deadline"}},
		{"darch_counts_to_10", func(c *Config) { c.Boot.Tries, c.Boot.Store = 11, StoreGrubenvDarch }, []string{"boot.store", "boot.tries"}},
		{"recount", func(c *Config) { c.Boot.Recount = true }, nil},
		{"recount_of_a_fixed_slot", func(c *Config) { c.Boot.Recount, c.Boot.Store = true, StoreFixed }, []string{"boot.recount"}},
		{"replicate", func(c *Config) { c.Boot.Replicate = []string{ReplicateFailedInstall, ReplicateCommit} }, nil},
		{"replicate_when", func(c *Config) { c.Boot.Replicate = []string{"always"} }, []string{"boot.replicate[0]"}},
		{"replicate_twice", func(c *Config) { c.Boot.Replicate = []string{ReplicateCommit, ReplicateCommit} }, []string{"boot.replicate[1]"}},
		{"replicate_a_fixed_slot", func(c *Config) { c.Boot.Replicate, c.Boot.Store = []string{ReplicateCommit}, StoreFixed }, []string{"boot.replicate"}},
		{"restart_with_recount", func(c *Config) { c.Root.OnCorruption, c.Boot.Recount = "restart", true }, nil},
		{"ostree_by_name", func(c *Config) { c.Root.Source = "ostree" }, []string{"root.source"}},
		{"erofs", func(c *Config) { c.Root.Filesystem = "erofs" }, nil},
		{"ext4_root", func(c *Config) { c.Root.Filesystem = "ext4" }, []string{"root.filesystem"}},
		{"restart_without_recount", func(c *Config) { c.Root.OnCorruption = "restart" }, []string{"root.on_corruption"}},
		{"panic_without_recount", func(c *Config) { c.Root.OnCorruption = "panic" }, []string{"root.on_corruption"}},
		{"ignore_corruption", func(c *Config) { c.Root.OnCorruption = "ignore" }, []string{"root.on_corruption"}},
		{"discoverable_with_gpt", func(c *Config) { c.Root.Partitions = PartitionsDiscoverable }, []string{"root.partitions"}},
		{"discoverable", func(c *Config) { c.Root.Partitions, c.Boot.Store = PartitionsDiscoverable, StoreFixed }, nil},
		{"discoverable_with_tree_behind_the_data", func(c *Config) {
			c.Root.Partitions, c.Boot.Store, c.Root.Verity.TreeAtMiB = PartitionsDiscoverable, StoreFixed, 64
		}, []string{"root.partitions"}},
		{"discoverable_with_new_guids", func(c *Config) {
			c.Root.Partitions, c.Boot.Store, c.Boot.NewGUIDs = PartitionsDiscoverable, StoreFixed, NewGUIDsFirstBoot
		}, []string{"boot.new_guids"}},
		{"discoverable_with_grub", func(c *Config) {
			*c = goodGRUB()
			c.Root.Partitions, c.Boot.Store = PartitionsDiscoverable, StoreFixed
		}, []string{"root.partitions"}},
		{"usr", func(c *Config) { c.Root.Source, c.Trust = SourceUsrVerity, Trust{Usr: []string{"u.crt"}} }, nil},
		{"usr_vouched_for_by_a_certificate_for_roots", func(c *Config) { c.Root.Source = SourceUsrVerity }, []string{"trust.usr"}},
		{"one_certificate_for_both", func(c *Config) { c.Trust = Trust{Root: []string{"a.crt"}, Usr: []string{"u.crt", "a.crt"}} }, []string{"trust.usr[1]"}},
		{"root_vouched_for_by_a_certificate_for_usr", func(c *Config) { c.Trust = Trust{Usr: []string{"u.crt"}} }, []string{"trust.root"}},
		{"partitions_unknown", func(c *Config) { c.Root.Partitions = "guess" }, []string{"root.partitions"}},
		{"stateless", func(c *Config) { c.State = State{Create: CreateNone} }, nil},
		{"stateless_with_what_needs_state", func(c *Config) {
			c.State.Create, c.State.OnFailure = CreateNone, []string{FailureHalt}
			c.Binds.Unencrypted = []string{"/home"}
		}, []string{"state.unlock", "state.recovery", "state.on_failure", "binds.unencrypted"}},
		{"new_guids_unknown", func(c *Config) { c.Boot.NewGUIDs = "always" }, []string{"boot.new_guids"}},
		{"no_certificate", func(c *Config) { c.Trust.Root = nil }, []string{"trust.root"}},
		{"certificate_twice", func(c *Config) { c.Trust.Root = []string{"a.crt", "a.crt"} }, []string{"trust.root[1]"}},
		{"key_as_certificate", func(c *Config) { c.Trust.Root = []string{"image.key"} }, []string{"trust.root[0]"}},
		{"layer", func(c *Config) {
			c.Layers = []Layer{{Name: "x-1", Hash: hash}, {Name: "mine", From: LayerFromVolume, Verity: LayerUnverified}}
		}, nil},
		{"layer_without_hash", func(c *Config) { c.Layers = []Layer{{Name: "x"}} }, []string{"layers[0].hash"}},
		{"layer_by_image", func(c *Config) { c.Layers = []Layer{{Name: "x", Image: "x.raw"}} }, nil},
		{"layer_by_both", func(c *Config) { c.Layers = []Layer{{Name: "x", Image: "x.raw", Hash: hash}} }, []string{"layers[0].image"}},
		{"layer_twice", func(c *Config) { c.Layers = []Layer{{Name: "x", Hash: hash}, {Name: "x", Hash: hash}} }, []string{"layers[1].name"}},
		{"layer_name", func(c *Config) { c.Layers = []Layer{{Name: "../x", Hash: hash}} }, []string{"layers[0].name"}},
		{"layer_not_verified", func(c *Config) { c.Layers = []Layer{{Name: "x", Hash: hash, Verity: LayerUnverified}} }, []string{"layers[0].verity"}},
		{"layer_of_the_volume_verified", func(c *Config) { c.Layers = []Layer{{Name: "x", From: LayerFromVolume}} }, []string{"layers[0].verity"}},
		{"layer_of_the_volume_with_hash", func(c *Config) {
			c.Layers = []Layer{{Name: "x", From: LayerFromVolume, Verity: LayerUnverified, Hash: hash}}
		}, []string{"layers[0].hash"}},
		{"layer_of_the_volume_that_stops", func(c *Config) {
			c.Layers = []Layer{{Name: "x", From: LayerFromVolume, Verity: LayerUnverified, OnFailure: LayerStop}}
		}, []string{"layers[0].on_failure"}},
		{"layer_of_a_plain_state", func(c *Config) {
			c.State = State{Create: CreateFirstBoot, Unlock: []string{UnlockPlain}, Recovery: RecoveryNone}
			c.Layers = []Layer{{Name: "x", From: LayerFromVolume, Verity: LayerUnverified}}
		}, []string{"layers[0].from"}},
		{"layer_words", func(c *Config) { c.Layers = []Layer{{Name: "x", Hash: hash, Filesystem: "ext4", OnFailure: "halt"}} },
			[]string{"layers[0].filesystem", "layers[0].on_failure"}},
		{"layer_from_a_partition", func(c *Config) {
			c.Layers, c.State = []Layer{{Name: "seventeen-letters", Hash: hash, From: LayerFromPartition}}, State{Create: CreateNone}
		}, nil},
		{"layer_from_somewhere", func(c *Config) { c.Layers = []Layer{{Name: "x", Hash: hash, From: "disk"}} }, []string{"layers[0].from"}},
		{"layer_whose_label_is_too_long", func(c *Config) {
			c.Layers = []Layer{{Name: "eighteen-letters-x", Hash: hash, From: LayerFromPartition}}
		}, []string{"layers[0].name"}},
		{"layer_from_a_partition_nobody_checks", func(c *Config) {
			c.Layers = []Layer{{Name: "x", From: LayerFromPartition, Verity: LayerUnverified}}
		}, []string{"layers[0].verity"}},
		{"layer_from_a_partition_without_labels", func(c *Config) {
			c.Root.Partitions, c.Layers = PartitionsDiscoverable, []Layer{{Name: "x", Hash: hash, From: LayerFromPartition}}
		}, []string{"root.partitions", "layers[0].from"}},
		{"layers_from_too_many_partitions", func(c *Config) {
			for i := range MaxPartitionLayers + 1 { // names of up to 17 characters
				c.Layers = append(c.Layers, Layer{Name: "x" + strings.Repeat("y", i), Hash: hash, From: LayerFromPartition})
			}
		}, []string{"layers"}},
		{"as_many_layers_as_may_be", func(c *Config) { c.Layers = layersOf(100, MaxLayers-100) }, nil},
		{"too_many_layers", func(c *Config) { c.Layers = layersOf(100, MaxLayers-99) }, []string{"layers"}},
		{"layers_allowed", func(c *Config) {
			c.Trust.Layer, c.LayersAllowed = []string{"l.crt"}, []string{"x", "x-*", "*", strings.Repeat("x", 32)}
		}, nil},
		{"layers_allowed_words", func(c *Config) {
			c.Trust.Layer, c.LayersAllowed = []string{"l.crt"}, []string{"", "*x", "X", "../x", "x**", strings.Repeat("x", 33)}
		}, []string{"layers_allowed[0]", "layers_allowed[1]", "layers_allowed[2]", "layers_allowed[3]", "layers_allowed[4]", "layers_allowed[5]"}},
		{"layers_allowed_and_nobody_signs", func(c *Config) { c.LayersAllowed = []string{"x"} }, []string{"layers_allowed"}},
		{"layers_allowed_and_what_measures_them", func(c *Config) {
			c.LayersAllowed, c.Trust.Layer, c.State.TPM2 = []string{"x"}, []string{"l.crt"}, TPM2{Policy: PolicyPCRs, PCRs: []int{7, 13}}
		}, []string{"layers_allowed"}},
		{"layers_allowed_without_state", func(c *Config) {
			c.Trust.Layer, c.LayersAllowed, c.State = []string{"l.crt"}, []string{"x"}, State{Create: CreateNone}
		}, []string{"layers_allowed"}},
		{"layers_allowed_and_plain", func(c *Config) {
			c.Trust.Layer, c.LayersAllowed, c.State = []string{"l.crt"}, []string{"x"}, State{Create: CreateFirstBoot, Unlock: []string{UnlockPlain}}
		}, []string{"layers_allowed"}},
		{"layers_allowed_over_usr", func(c *Config) {
			c.Root.Source, c.Trust, c.LayersAllowed = SourceUsrVerity, Trust{Usr: []string{"u.crt"}, Layer: []string{"l.crt"}}, []string{"x"}
		}, nil},
		{"too_many_layers_allowed", func(c *Config) {
			c.Trust.Layer, c.LayersAllowed = []string{"l.crt"}, make([]string, MaxLayers+1)
		}, []string{"layers_allowed"}},
		{"layers_over_usr", func(c *Config) {
			c.Root.Source, c.Trust, c.Layers = SourceUsrVerity, Trust{Usr: []string{"u.crt"}}, []Layer{{Name: "x", Hash: hash}}
		}, nil},
		{"systemd_boot_and_pcr_12", func(c *Config) { c.Boot.Loader, c.State.TPM2.Policy = LoaderSystemdBoot, PolicySignedPCR11And4 }, []string{"state.tpm2.policy"}},
		{"systemd_boot_with_secure_boot", func(c *Config) { c.Boot.Loader = LoaderSystemdBoot }, nil},
		{"measured", func(c *Config) { c.Trust.Cmdline = CmdlineMeasured }, nil},
		{"measured_with_pcr_12", func(c *Config) {
			c.Trust.Cmdline = CmdlineMeasured
			c.State.TPM2 = TPM2{Policy: PolicyPCRs, PCRs: []int{4, 12}}
		}, nil},
		{"measured_without_pcr_12", func(c *Config) {
			c.Trust.Cmdline = CmdlineMeasured
			c.State.TPM2 = TPM2{Policy: PolicyPCRs, PCRs: []int{4}}
		}, []string{"trust.cmdline", "state.tpm2.tpm_without_measured_boot"}},
		{"measured_under_grub", func(c *Config) { c.Trust.Cmdline, c.Boot.Loader = CmdlineMeasured, LoaderGRUB }, []string{"trust.cmdline", "state.tpm2.policy", "state.tpm2.tpm_without_measured_boot"}},
		{"cmdline_unknown", func(c *Config) { c.Trust.Cmdline = "obey" }, []string{"trust.cmdline"}},
		{"module_set_unknown", func(c *Config) { c.Modules.Sets = []string{"virtio", "scsi"} }, []string{"modules.sets[1]"}},
		{"module_as_path", func(c *Config) { c.Modules.Add = []string{"../x", "dm_mod"} }, []string{"modules.add[0]"}},
		{"etc_unknown", func(c *Config) { c.Etc = "writable" }, []string{"etc"}},
		{"etc_read_only", func(c *Config) { c.Etc = EtcReadOnly }, nil},
	})
}

// A root hash instead of the file is for who has placed the layer already: the text says
// which commands refuse it.
func TestLayerHashSaysWhere(t *testing.T) {
	c := Config{Root: Root{Partitions: PartitionsLabels}, Layers: []Layer{{Name: "x"}}}
	var v validator
	v.layers(&c)
	text := ""
	for _, err := range v.problems {
		text += err.Error()
	}
	for _, want := range []string{"layers[0].hash", "give image: FILE", "not for `disk` or `parts`"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q, want %q in it", text, want)
		}
	}
}

// Each store goes with the loaders that can honour it, and with no other.
func TestStoresAndLoaders(t *testing.T) {
	loaders := []Loader{LoaderGRUB, LoaderUKI, LoaderSystemdBoot}
	legal := map[Store][]Loader{
		StoreGPT: loaders, StoreFixed: loaders,
		StoreGrubenvDarch: {LoaderGRUB}, StoreGrubenvRAUC: {LoaderGRUB},
		StoreBLS: {LoaderSystemdBoot}, StoreEFI: {LoaderUKI},
	}
	for store, good := range legal {
		for _, loader := range loaders {
			c := Config{Boot: Boot{Loader: loader, Store: store, Tries: 3, CommitDeadline: Duration(time.Minute), NewGUIDs: NewGUIDsNever}}
			var v validator
			v.boot(&c)
			if ok := len(v.problems) == 0; ok != slices.Contains(good, loader) {
				t.Errorf("%s with %s: got %v", store, loader, v.problems)
			}
			for _, err := range v.problems {
				var p *Problem
				if !errors.As(err, &p) || p.Path != "boot.store" || p.Remedy == "" {
					t.Errorf("%s with %s: got %v, want a problem of boot.store with a remedy", store, loader, err)
				}
			}
		}
	}
}

func TestValidateState(t *testing.T) {
	check(t, goodUKI, []row{
		{"never", func(c *Config) { c.State.Create, c.State.Recovery = CreateNever, RecoveryNone }, nil},
		{"create_unknown", func(c *Config) { c.State.Create = "always" }, []string{"state.create"}},
		{"unlock_unknown", func(c *Config) { c.State.Unlock[1] = "fido2" }, []string{"state.unlock[1]", "state.recovery"}},
		{"unlock_twice", func(c *Config) { c.State.Unlock = []string{UnlockTPM2, UnlockRecoveryKey, UnlockTPM2} }, []string{"state.unlock[2]"}},
		{"production_must_say_recovery", func(c *Config) { c.State.Recovery = "" }, []string{"state.recovery"}},
		{"development_need_not", func(c *Config) { c.Build, c.State.Recovery = Development, "" }, nil},
		{"development_need_not_with_create_never", func(c *Config) {
			c.Build, c.State.Recovery, c.State.Create = Development, "", CreateNever
		}, nil},
		{"escrow", func(c *Config) { c.State.Recovery, c.State.Escrow = RecoveryEscrow, []string{"escrow.crt"} }, nil},
		{"escrow_to_nobody", func(c *Config) { c.State.Recovery = RecoveryEscrow }, []string{"state.escrow"}},
		{"escrow_without_escrow", func(c *Config) { c.State.Escrow = []string{"escrow.crt"} }, []string{"state.escrow"}},
		{"escrow_to_a_key", func(c *Config) { c.State.Recovery, c.State.Escrow = RecoveryEscrow, []string{"escrow.key"} }, []string{"state.escrow[0]"}},
		{"escrow_to_many", func(c *Config) {
			c.State.Recovery, c.State.Escrow = RecoveryEscrow, strings.Fields("1.crt 2.crt 3.crt 4.crt 5.crt 6.crt 7.crt 8.crt 9.crt")
		}, []string{"state.escrow"}},
		{"escrow_not_accepted", func(c *Config) {
			c.State.Recovery, c.State.Escrow, c.State.Unlock = RecoveryEscrow, []string{"escrow.crt"}, []string{UnlockTPM2}
		}, []string{"state.recovery"}},
		{"recovery_key_not_accepted", func(c *Config) { c.State.Unlock = []string{UnlockTPM2} }, []string{"state.recovery"}},
		{"recovery_key_with_create_never", func(c *Config) { c.State.Create = CreateNever }, []string{"state.recovery"}},
		{"later_without_tpm2", func(c *Config) {
			c.State.Unlock, c.State.TPM2 = []string{UnlockRecoveryKey}, TPM2{}
		}, []string{"state.create", "state.recovery"}},
		{"passphrase_of_a_made_volume", func(c *Config) {
			c.State = State{Create: CreateNever, Unlock: []string{UnlockPassphrase}, Recovery: RecoveryNone}
		}, nil},
		{"prompt_for_nothing", func(c *Config) {
			c.State.Unlock, c.State.Recovery = []string{UnlockTPM2}, RecoveryNone
			c.State.OnFailure = []string{FailurePrompt, FailureHalt}
		}, []string{"state.on_failure[0]"}},
		{"nothing_behind_halt", func(c *Config) { c.State.OnFailure = []string{FailureHalt, FailurePrompt} }, []string{"state.on_failure[0]"}},
		{"all_ends", func(c *Config) { c.State.OnFailure = []string{FailurePrompt, FailureReboot} }, nil},
		{"on_failure_unknown", func(c *Config) { c.State.OnFailure = []string{"shell"} }, []string{"state.on_failure[0]"}},
		{"manage_key", func(c *Config) { c.State.ManageKey = true }, nil},
		{"degraded_unlock", func(c *Config) {
			c.State.OnFailure, c.State.DegradedUnlock = []string{FailurePrompt, FailureDegraded}, true
		}, nil},
		{"degraded_unlock_never_degraded", func(c *Config) { c.State.DegradedUnlock = true }, []string{"state.degraded_unlock"}},
		{"degraded_unlock_without_TPM", func(c *Config) {
			c.State = State{Create: CreateNever, Unlock: []string{UnlockPassphrase}, Recovery: RecoveryNone, OnFailure: []string{FailureDegraded}, DegradedUnlock: true}
		}, []string{"state.degraded_unlock"}},
		{"degraded_unlock_and_a_floor", func(c *Config) {
			c.State.OnFailure, c.State.DegradedUnlock = []string{FailureDegraded}, true
			c.Trust.RollbackFloor, c.SecurityVersion = true, 1
		}, []string{"state.degraded_unlock"}},
		{"fsck", func(c *Config) { c.State.Fsck = "auto" }, nil},
		{"fsck_unknown", func(c *Config) { c.State.Fsck = "yes" }, []string{"state.fsck"}},
		{"btrfs", func(c *Config) { c.State.Filesystem = "btrfs" }, nil},
		{"other_partition_filesystem", func(c *Config) { c.State.PartitionFilesystem = "xfs" }, []string{"state.partition_filesystem"}},
		{"partition_filesystem_changes_pcr_5", func(c *Config) {
			c.State.PartitionFilesystem, c.State.TPM2.Policy, c.State.TPM2.PCRs = "btrfs", PolicyPCRs, []int{5}
		}, []string{"state.partition_filesystem", "state.tpm2.pcrs[0]", "state.tpm2.tpm_without_measured_boot"}},
		{"other_filesystem", func(c *Config) { c.State.Filesystem = "xfs" }, []string{"state.filesystem"}},
		{"reset_by_presence", func(c *Config) { c.State.Reset = ResetPresence }, nil},
		{"reset_never", func(c *Config) { c.State.Reset = ResetNever }, nil},
		{"reset_unknown", func(c *Config) { c.State.Reset = "always" }, []string{"state.reset"}},
		{"reset_to_no_volume", func(c *Config) {
			c.State.Reset, c.State.Create, c.State.Recovery = ResetPresence, CreateNever, RecoveryNone
		}, []string{"state.reset"}},
		{"auto_resize_grow", func(c *Config) { c.State.AutoResize = AutoResizeGrow }, nil},
		{"auto_resize_both", func(c *Config) { c.State.AutoResize = AutoResizeBoth }, nil},
		{"auto_resize_unknown", func(c *Config) { c.State.AutoResize = "shrink" }, []string{"state.auto_resize"}},
		{"auto_resize_without_a_volume", func(c *Config) {
			c.State = State{Create: CreateNone, Recovery: RecoveryNone, AutoResize: AutoResizeBoth}
		}, []string{"state.auto_resize"}},
		{"auto_resize_of_a_plain_state", func(c *Config) {
			c.State = State{Create: CreateFirstBoot, Unlock: []string{UnlockPlain}, Recovery: RecoveryNone, AutoResize: AutoResizeGrow}
		}, []string{"state.auto_resize"}},
		{"device_oversized", func(c *Config) { c.State.Device = DeviceOversized }, nil},
		{"device_classic", func(c *Config) { c.State.Device = DeviceClassic }, nil},
		{"device_unknown", func(c *Config) { c.State.Device = "exact" }, []string{"state.device"}},
		{"device_without_a_volume", func(c *Config) {
			c.State = State{Create: CreateNone, Recovery: RecoveryNone, Device: DeviceClassic}
		}, []string{"state.device"}},
		{"device_of_a_plain_state", func(c *Config) {
			c.State = State{Create: CreateFirstBoot, Unlock: []string{UnlockPlain}, Recovery: RecoveryNone, Device: DeviceClassic}
		}, []string{"state.device"}},
		{"device_resized_without_a_key", func(c *Config) { c.State.Device, c.State.AutoResize = DeviceClassic, AutoResizeGrow }, []string{"state.auto_resize"}},
		{"device_resized_by_the_manage_key", func(c *Config) {
			c.State.Device, c.State.AutoResize, c.State.ManageKey = DeviceClassic, AutoResizeBoth, true
		}, nil},
	})
}

func TestValidatePolicy(t *testing.T) {
	t.Run("uki", func(t *testing.T) {
		check(t, goodUKI, []row{
			{"signed_4", func(c *Config) { c.State.TPM2.Policy = PolicySignedPCR11And4 }, nil},
			{"none", func(c *Config) { c.State.TPM2.Policy = "" }, []string{"state.tpm2.policy"}},
			{"unknown", func(c *Config) { c.State.TPM2.Policy = "any" }, []string{"state.tpm2.policy"}},
			{"signed_11_alone", func(c *Config) { c.State.TPM2.Policy = "signed-pcr11" }, []string{"state.tpm2.policy"}},
			{"signed_with_literal_list", func(c *Config) { c.State.TPM2.PCRs = []int{7} }, []string{"state.tpm2.pcrs"}},
			{"signed_with_needless_exception", func(c *Config) { c.State.TPM2.WithoutMeasuredBoot = AcceptTheft },
				[]string{"state.tpm2.tpm_without_measured_boot"}},
			{"exception_misspelled", func(c *Config) { c.State.TPM2.WithoutMeasuredBoot = "yes" },
				[]string{"state.tpm2.tpm_without_measured_boot"}},
			{"literal_7", func(c *Config) { c.State.TPM2 = TPM2{Policy: PolicyPCRs, PCRs: []int{7}} }, nil},
			{"literal_4", func(c *Config) { c.State.TPM2 = TPM2{Policy: PolicyPCRs, PCRs: []int{4}} },
				[]string{"state.tpm2.tpm_without_measured_boot"}},
			{"literal_4_with_exception", func(c *Config) {
				c.State.TPM2 = TPM2{Policy: PolicyPCRs, PCRs: []int{4}, WithoutMeasuredBoot: AcceptTheft}
			}, nil},
			{"literal_4_and_12", func(c *Config) { c.State.TPM2 = TPM2{Policy: PolicyPCRs, PCRs: []int{4, 12}} }, nil},
			{"literal_12_with_the_root_in_it", func(c *Config) {
				c.State.TPM2, c.Trust.MeasurePCR = TPM2{Policy: PolicyPCRs, PCRs: []int{4, 12}}, 12
			}, []string{"trust.measure_pcr"}},
			{"literal_4_and_7", func(c *Config) { c.State.TPM2 = TPM2{Policy: PolicyPCRs, PCRs: []int{4, 7}} }, nil},
			{"literal_none", func(c *Config) { c.State.TPM2 = TPM2{Policy: PolicyPCRs} }, []string{"state.tpm2.tpm_without_measured_boot"}},
			{"literal_5_with_gpt", func(c *Config) { c.State.TPM2 = TPM2{Policy: PolicyPCRs, PCRs: []int{7, 5}} }, []string{"state.tpm2.pcrs[1]"}},
			{"literal_16", func(c *Config) { c.State.TPM2 = TPM2{Policy: PolicyPCRs, PCRs: []int{7, 16}} }, []string{"state.tpm2.pcrs[1]"}},
			{"literal_negative", func(c *Config) { c.State.TPM2 = TPM2{Policy: PolicyPCRs, PCRs: []int{7, -1}} }, []string{"state.tpm2.pcrs[1]"}},
			{"literal_twice", func(c *Config) { c.State.TPM2 = TPM2{Policy: PolicyPCRs, PCRs: []int{7, 7}} }, []string{"state.tpm2.pcrs[1]"}},
			{"key_without_signed_policy", func(c *Config) { c.State.TPM2 = TPM2{Policy: PolicyPCRs, PCRs: []int{7}, PublicKey: "x"} },
				[]string{"state.tpm2.public_key"}},
			{"previous_key", func(c *Config) { c.State.TPM2.PreviousKeys = []string{"pcr-previous.pub"} }, nil},
			{"previous_key_under_pcr_4", func(c *Config) {
				c.State.TPM2.Policy, c.State.TPM2.PreviousKeys = PolicySignedPCR11And4, []string{"pcr-previous.pub"}
			}, []string{"state.tpm2.previous_public_keys"}},
			{"previous_key_without_signed_policy", func(c *Config) {
				c.State.TPM2 = TPM2{Policy: PolicyPCRs, PCRs: []int{7}, PreviousKeys: []string{"pcr-previous.pub"}}
			}, []string{"state.tpm2.previous_public_keys"}},
			{"four_previous_keys", func(c *Config) { c.State.TPM2.PreviousKeys = strings.Fields("1.pub 2.pub 3.pub 4.pub") }, nil},
			{"five_previous_keys", func(c *Config) { c.State.TPM2.PreviousKeys = strings.Fields("1.pub 2.pub 3.pub 4.pub 5.pub") },
				[]string{"state.tpm2.previous_public_keys"}},
			{"pin", func(c *Config) { c.State.TPM2.PIN = true }, nil},
			{"literal_7_with_pin", func(c *Config) { c.State.TPM2 = TPM2{Policy: PolicyPCRs, PCRs: []int{7}, PIN: true} }, nil},
			{"literal_none_with_pin", func(c *Config) { c.State.TPM2 = TPM2{Policy: PolicyPCRs, PIN: true} }, []string{"state.tpm2.tpm_without_measured_boot"}},
			{"tpm2_set_but_not_used", func(c *Config) {
				c.State.Create, c.State.Recovery, c.State.Unlock = CreateNever, RecoveryNone, []string{UnlockPassphrase}
			}, []string{"state.tpm2"}},
		})
	})
	t.Run("grub", func(t *testing.T) {
		check(t, goodGRUB, []row{
			{"with_exception", func(*Config) {}, nil},
			{"without_exception", func(c *Config) { c.State.TPM2.WithoutMeasuredBoot = "" }, []string{"state.tpm2.tpm_without_measured_boot"}},
			{"8_and_9_without_exception", func(c *Config) { c.State.TPM2 = TPM2{Policy: PolicyPCRs, PCRs: []int{8, 9}} },
				[]string{"state.tpm2.tpm_without_measured_boot"}},
			{"pin_in_place_of_the_exception", func(c *Config) { c.State.TPM2 = TPM2{Policy: PolicyPCRs, PIN: true} }, nil},
			{"pin_and_exception", func(c *Config) { c.State.TPM2.PIN = true }, []string{"state.tpm2.tpm_without_measured_boot"}},
			{"signed", func(c *Config) { c.State.TPM2.Policy = PolicySignedPCR11And7 }, []string{"state.tpm2.policy"}},
			{"no_tpm", func(c *Config) {
				c.State.TPM2 = TPM2{}
				c.State.Create, c.State.Recovery, c.State.Unlock = CreateNever, RecoveryNone, []string{UnlockRecoveryKey}
			}, nil},
		})
	})
}

func TestValidateBinds(t *testing.T) {
	extra := func(from, to string, options ...string) func(*Config) {
		return func(c *Config) { c.Binds.Extra = []ExtraBind{{From: from, To: to, Options: options}} }
	}
	check(t, goodUKI, []row{
		{"encrypted", extra("encrypted/db", "/var/lib/db", "nosuid", "noexec"), nil},
		{"option_unknown", extra("encrypted/db", "/var/lib/db", "suid"), []string{"binds.extra[0].options[0]"}},
		{"from_with_dots", extra("encrypted/../x", "/var/lib/db"), []string{"binds.extra[0].from"}},
		{"from_absolute", extra("/state/encrypted/db", "/var/lib/db"), []string{"binds.extra[0].from"}},
		{"from_empty", extra("", "/var/lib/db"), []string{"binds.extra[0].from"}},
		{"from_work_directories", extra("encrypted/.sealroot", "/var/lib/db"), []string{"binds.extra[0].from"}},
		{"from_whole_volume", extra("encrypted", "/var/lib/db"), []string{"binds.extra[0].from"}},
		{"from_image_file", extra("encrypted.img", "/home"), []string{"binds.extra[0].from"}},
		{"from_unencrypted", extra("db", "/var/lib/db"), []string{"binds.extra[0].from"}},
		{"to_root", extra("encrypted/db", "/"), []string{"binds.extra[0].to"}},
		{"to_relative", extra("encrypted/db", "var/lib/db"), []string{"binds.extra[0].to"}},
		{"to_dots", extra("encrypted/db", "/var/../etc"), []string{"binds.extra[0].to"}},
		{"to_proc", extra("encrypted/db", "/proc/sys"), []string{"binds.extra[0].to"}},
		{"to_etc", extra("encrypted/db", "/etc"), []string{"binds.extra[0].to"}},
		{"to_below_etc", extra("encrypted/ssh", "/etc/ssh"), nil},
		{"same_target", func(c *Config) {
			c.Binds.Extra = []ExtraBind{{From: "encrypted/a", To: "/srv/a"}, {From: "encrypted/b", To: "/srv/a"}}
		}, []string{"binds.extra[1].to"}},
		{"seeded", func(c *Config) { c.Binds.Extra = []ExtraBind{{From: "encrypted/db", To: "/srv/db", Seed: SeedOnce}} }, nil},
		{"seed_none", func(c *Config) { c.Binds.Extra = []ExtraBind{{From: "encrypted/a/b", To: "/srv/db", Seed: SeedNone}} }, nil},
		{"seed_tmpfiles", func(c *Config) {
			c.Binds.Extra = []ExtraBind{{From: "encrypted/db", To: "/srv/db", Seed: SeedTmpfiles}}
		}, nil},
		{"seed_tmpfiles_that_hides_its_place", func(c *Config) {
			c.Binds.Extra = []ExtraBind{{From: "encrypted/opt", To: "/opt", Seed: SeedTmpfiles}, {From: "encrypted/data", To: "/data/db", Seed: SeedTmpfiles}}
		}, []string{"binds.extra[0].from", "binds.extra[1].from"}},
		{"seed_tmpfiles_that_hides_another", func(c *Config) {
			c.Binds.Extra = []ExtraBind{{From: "encrypted/usr-lib", To: "/srv/db", Seed: SeedTmpfiles}}
		}, []string{"binds.extra[0].from"}},
		{"seed_overlay", func(c *Config) {
			c.Binds.Extra = []ExtraBind{{From: "encrypted/opt", To: "/opt", Seed: SeedOverlay}, {From: "encrypted/dpkg", To: "/var/lib/dpkg", Seed: SeedOverlay}}
		}, nil},
		{"seed_overlay_of_usr", func(c *Config) {
			c.Binds.Extra = []ExtraBind{{From: "encrypted/a", To: "/usr/lib", Seed: SeedOverlay}, {From: "encrypted/b", To: "/etc/ssh", Seed: SeedOverlay}}
		}, []string{"binds.extra[0].to", "binds.extra[1].seed"}},
		{"over_what_the_image_needs", func(c *Config) {
			for _, to := range []string{"/usr", "/usr/lib/x", "/bin", "/sbin", "/lib64/x", "/boot", "/usr/local/x"} {
				c.Binds.Extra = append(c.Binds.Extra, ExtraBind{From: "encrypted/db", To: to})
			}
		}, []string{"binds.extra[0].to", "binds.extra[1].to", "binds.extra[2].to", "binds.extra[3].to", "binds.extra[4].to", "binds.extra[5].to"}},
		{"hides_by_its_name", func(c *Config) {
			for i, from := range []string{"opt", "opt/app", "srv-a", "etc/ssh", "data", "usr-lib", "a--b", "home", "var/x", "db.d"} {
				seed := []string{SeedNone, ""}[i%2]
				c.Binds.Extra = append(c.Binds.Extra, ExtraBind{From: "encrypted/" + from, To: "/data/" + strconv.Itoa(i), Seed: seed})
			}
		}, []string{"binds.extra[0].from", "binds.extra[1].from", "binds.extra[2].from", "binds.extra[3].from", "binds.extra[4].from", "binds.extra[5].from", "binds.extra[6].from"}},
		{"seed_once_that_hides_by_its_name", func(c *Config) {
			c.Binds.Extra = []ExtraBind{{From: "encrypted/opt", To: "/opt", Seed: SeedOnce}, {From: "encrypted/home", To: "/srv/x", Seed: SeedOnce}}
		}, []string{"binds.extra[0].from", "binds.extra[1].from"}},
		{"seed_overlay_of_etc", func(c *Config) {
			c.Binds.Extra = []ExtraBind{{From: "encrypted/etc", To: "/opt", Seed: SeedOverlay}}
		}, []string{"binds.extra[0].from"}},
		{"seed_overlay_twice", func(c *Config) {
			c.Binds.Extra = []ExtraBind{{From: "encrypted/a", To: "/opt", Seed: SeedOverlay}, {From: "encrypted/a", To: "/srv", Seed: SeedOverlay}}
		}, []string{"binds.extra[1].from"}},
		{"seed_overlay_and_what_is_in_it", func(c *Config) {
			c.Binds.Extra = []ExtraBind{{From: "encrypted/a/b", To: "/srv"}, {From: "encrypted/a", To: "/opt", Seed: SeedOverlay}}
		}, []string{"binds.extra[1].from"}},
		{"seed_unknown", func(c *Config) { c.Binds.Extra = []ExtraBind{{From: "encrypted/db", To: "/srv/db", Seed: "always"}} },
			[]string{"binds.extra[0].seed"}},
		{"seed_deeper", func(c *Config) { c.Binds.Extra = []ExtraBind{{From: "encrypted/a/b", To: "/srv/db", Seed: SeedOnce}} },
			[]string{"binds.extra[0].seed"}},
		{"seed_unencrypted", func(c *Config) {
			c.Binds.Unencrypted = []string{"/srv/db"}
			c.Binds.Extra = []ExtraBind{{From: "db", To: "/srv/db", Seed: SeedOnce}}
		}, []string{"binds.extra[0].seed"}},
		{"tmpfs", func(c *Config) {
			c.Binds.Tmpfs = []Tmpfs{{To: "/tmp", SizeMiB: 64, Mode: "1777", Options: []string{"noexec"}}, {To: "/var/cache"}, {To: "/usr/local"}}
		}, nil},
		{"tmpfs_elsewhere", func(c *Config) {
			for _, to := range []string{"/usr", "/boot", "/etc", "/proc/x", "tmp", "/", "/etc/", "/a/../b", "/state/encrypted", "/run/x"} {
				c.Binds.Tmpfs = append(c.Binds.Tmpfs, Tmpfs{To: to})
			}
		}, []string{"binds.tmpfs[0].to", "binds.tmpfs[1].to", "binds.tmpfs[2].to", "binds.tmpfs[3].to", "binds.tmpfs[4].to", "binds.tmpfs[5].to", "binds.tmpfs[6].to", "binds.tmpfs[7].to", "binds.tmpfs[8].to", "binds.tmpfs[9].to"}},
		{"tmpfs_over_others", func(c *Config) {
			c.Binds.Extra = []ExtraBind{{From: "encrypted/db", To: "/srv/db"}}
			c.Binds.Unencrypted = []string{"/mnt/a"}
			c.Overlays = []Overlay{{"/opt/app", UpperMemory}}
			c.Binds.Tmpfs = []Tmpfs{{To: "/srv"}, {To: "/mnt/a"}, {To: "/opt"}, {To: "/opt"}, {To: "/srv/db/scratch"}}
		}, []string{"binds.tmpfs[0].to", "binds.tmpfs[1].to", "binds.tmpfs[2].to", "binds.tmpfs[3].to"}},
		{"tmpfs_values", func(c *Config) {
			c.Binds.Tmpfs = []Tmpfs{{To: "/a", SizeMiB: -1}, {To: "/b", Mode: "4755"}, {To: "/c", Mode: "rwx"}, {To: "/d", Options: []string{"exec"}}}
		}, []string{"binds.tmpfs[0].size_mib", "binds.tmpfs[1].mode", "binds.tmpfs[2].mode", "binds.tmpfs[3].options[0]"}},
		{"symlinks", func(c *Config) { c.Binds.Symlinks = []Symlink{{"/srv/www", "/var/www"}, {"/etc/x", "../y"}} }, nil},
		{"symlinks_elsewhere", func(c *Config) {
			c.Binds.Symlinks = []Symlink{{"/usr/bin/x", "y"}, {"/etc", "y"}, {"/srv/a", ""}, {"/srv/b", "a\nb"}, {"/srv/c", "x"}, {"/srv/c", "y"}, {"/srv/../etc/x", "y"}}
		}, []string{"binds.symlinks[0].at", "binds.symlinks[1].at", "binds.symlinks[2].to", "binds.symlinks[3].to", "binds.symlinks[5].at", "binds.symlinks[6].at"}},
		{"home_unencrypted", func(c *Config) {
			c.Binds.Unencrypted = []string{"/home"}
			c.Binds.Extra = []ExtraBind{{From: "homes", To: "/home"}}
		}, nil},
		{"unencrypted_twice", func(c *Config) { c.Binds.Unencrypted = []string{"/home", "/home"} }, []string{"binds.unencrypted[1]"}},
		{"unencrypted_code", func(c *Config) {
			c.Binds.Unencrypted = []string{"/etc", "/usr/local", "/var", "/root", "/opt", "/homes", "/home/../etc", "home"}
		},
			[]string{"binds.unencrypted[0]", "binds.unencrypted[1]", "binds.unencrypted[2]", "binds.unencrypted[3]",
				"binds.unencrypted[4]", "binds.unencrypted[5]", "binds.unencrypted[6]", "binds.unencrypted[7]"}},
	})
}

func TestValidateOverlays(t *testing.T) {
	over := func(paths ...string) func(*Config) {
		return func(c *Config) {
			for _, p := range paths {
				c.Overlays = append(c.Overlays, Overlay{Path: p, Upper: UpperEncrypted})
			}
		}
	}
	rows := []row{
		{"several", over("/opt", "/usr/local", "/srv/www"), nil},
		{"memory", func(c *Config) { c.Overlays = []Overlay{{"/opt", UpperMemory}} }, nil},
		{"per_slot", func(c *Config) { c.Overlays = []Overlay{{"/var/lib/dpkg", UpperPerSlot}} }, nil},
		{"whole_root", func(c *Config) {
			c.Overlays = []Overlay{{WholeRoot, UpperMemory}, {"/opt", UpperEncrypted}}
			c.Binds.Tmpfs = []Tmpfs{{To: "/srv/scratch"}}
		}, nil},
		{"whole_root_in_the_volume", over(WholeRoot), []string{"overlays[0].upper"}},
		{"whole_root_twice", func(c *Config) { c.Overlays = []Overlay{{WholeRoot, UpperMemory}, {WholeRoot, UpperMemory}} }, []string{"overlays[1].path"}},
		{"whole_root_and_read_only_etc", func(c *Config) {
			c.Overlays, c.Etc = []Overlay{{WholeRoot, UpperMemory}}, EtcReadOnly
		}, []string{"overlays[0].path"}},
		{"whole_root_of_a_usr", func(c *Config) {
			c.Overlays = []Overlay{{WholeRoot, UpperMemory}}
			c.Root.Source, c.Trust.Usr, c.Trust.Root = SourceUsrVerity, c.Trust.Root, nil
		}, []string{"overlays[0].path"}},
		{"upper_missing", func(c *Config) { c.Overlays = []Overlay{{Path: "/opt"}} }, []string{"overlays[0].upper"}},
		{"upper_unknown", func(c *Config) { c.Overlays = []Overlay{{"/opt", "per-image"}} }, []string{"overlays[0].upper"}},
		{"twice", over("/opt", "/opt"), []string{"overlays[1].path"}},
		{"one_in_another", over("/opt/a", "/opt"), []string{"overlays[1].path"}},
		{"names_that_only_begin_alike", over("/opt", "/opt2"), nil},
		{"hidden_by_a_bind", func(c *Config) {
			over("/opt")(c)
			c.Binds.Extra = []ExtraBind{{From: "encrypted/o", To: "/opt"}}
		}, []string{"overlays[0].path"}},
		{"no_volume", func(c *Config) {
			over("/opt")(c)
			c.State = State{Create: CreateNone}
		}, []string{"overlays[0].upper"}},
		{"per_slot_and_no_volume", func(c *Config) {
			c.Overlays = []Overlay{{"/opt", UpperPerSlot}}
			c.State = State{Create: CreateNone}
		}, []string{"overlays[0].upper"}},
		{"in_a_bind", func(c *Config) {
			over("/srv/www")(c)
			c.Binds.Extra = []ExtraBind{{From: "encrypted/data", To: "/srv"}}
		}, []string{"overlays[0].path"}},
		{"over_a_bind", func(c *Config) {
			over("/srv")(c)
			c.Binds.Extra = []ExtraBind{{From: "encrypted/www", To: "/srv/www"}}
		}, nil},
		{"over_an_unencrypted_place", func(c *Config) {
			over("/var/log")(c)
			c.Binds.Unencrypted = []string{"/var/log/app"}
		}, []string{"overlays[0].path"}},
		{"in_an_unencrypted_place", func(c *Config) {
			over("/var/log/app")(c)
			c.Binds.Unencrypted = []string{"/var/log"}
		}, []string{"overlays[0].path"}},
		{"an_unencrypted_place_over_it", func(c *Config) { // which a boot leaves out
			over("/srv/app")(c)
			c.Binds.Unencrypted = []string{"/srv"}
		}, nil},
		{"an_unencrypted_place_in_it", func(c *Config) {
			over("/srv")(c)
			c.Binds.Unencrypted = []string{"/srv/data"}
		}, nil},
	}
	for _, path := range []string{"", "opt", "/opt/", "/opt/../etc", "/usr", "/usr/bin", "/bin", "/boot", "/lib/x", "/proc", "/sys/fs", "/dev", "/run/x",
		"/state", "/state/encrypted", "/etc", "/etc/ssh", "/home", "/home/a", "/var", "/sysroot"} {
		rows = append(rows, row{"refused_" + strings.ReplaceAll(path, "/", "_"), over(path), []string{"overlays[0].path"}})
	}
	check(t, goodUKI, rows)
}

func TestRefusalByName(t *testing.T) {
	c := goodUKI()
	c.Root.Source = "ostree"
	c = c.WithDefaults()
	const want = "root.source: ostree is not supported by this version; supported: verity, usr-verity"
	if err := c.Validate(); err == nil || err.Error() != want {
		t.Errorf("Validate = %v; want %s", err, want)
	}
}

// What the builder writes of an image without state, PID 1 reads.
func TestStatelessRoundTrip(t *testing.T) {
	c := goodUKI()
	c.State = State{Create: CreateNone}
	c = c.WithDefaults()
	text, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Parse(text); err != nil || !reflect.DeepEqual(*got, c) {
		t.Errorf("got %+v, %v, want %+v", got, err, c)
	}
}

// New GUIDs are the default where nothing rests on the old ones.
func TestNewGUIDs(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    Config
		want string
	}{
		{"nothing_rests_on_them", Config{}, NewGUIDsFirstBoot},
		{"switched_off", Config{Boot: Boot{NewGUIDs: NewGUIDsNever}}, NewGUIDsNever},
		{"pcr_7", Config{State: State{TPM2: TPM2{Policy: PolicyPCRs, PCRs: []int{7}}}}, NewGUIDsFirstBoot},
		{"pcr_of_boot_attempts", Config{State: State{TPM2: TPM2{Policy: PolicySignedPCR11And4}}}, NewGUIDsNever},
		{"pcr_of_grubs_commands", Config{State: State{TPM2: TPM2{Policy: PolicyPCRs, PCRs: []int{4, 8}}}}, NewGUIDsNever},
		{"pcr_of_the_partition_table", Config{State: State{TPM2: TPM2{Policy: PolicyPCRs, PCRs: []int{5}}}}, NewGUIDsNever},
	} {
		if got := tt.c.WithDefaults(); got.Boot.NewGUIDs != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got.Boot.NewGUIDs, tt.want)
		}
	}
	var v validator
	v.boot(&Config{Boot: Boot{Loader: LoaderGRUB, Store: StoreGPT, Tries: 3, CommitDeadline: Duration(time.Minute), NewGUIDs: NewGUIDsFirstBoot},
		State: State{TPM2: TPM2{PCRs: []int{8}}}})
	var p *Problem
	if len(v.problems) != 1 || !errors.As(v.problems[0], &p) || p.Path != "boot.new_guids" || !strings.Contains(p.Reason, "PCR 8") {
		t.Errorf("first-boot with PCR 8: got %v, want a problem of boot.new_guids", v.problems)
	}
}

func TestWithDefaultsIsPure(t *testing.T) {
	c := goodUKI()
	before := goodUKI()
	got := c.WithDefaults()
	if !reflect.DeepEqual(c, before) {
		t.Error("WithDefaults changed its receiver")
	}
	if again := got.WithDefaults(); !reflect.DeepEqual(got, again) {
		t.Errorf("WithDefaults twice = %+v; want %+v", again, got)
	}
	if got.Boot.Tries != 3 || got.Boot.CommitDeadline.String() != "10m" || got.Etc != EtcOverlay ||
		!slices.Equal(got.State.OnFailure, []string{FailurePrompt, FailureHalt}) {
		t.Errorf("WithDefaults = %+v", got)
	}
}

func TestDuration(t *testing.T) {
	for text, d := range map[string]time.Duration{
		"10m": 10 * time.Minute, "1h": time.Hour, "90s": 90 * time.Second, "1h0m5s": time.Hour + 5*time.Second, "0s": 0, "1m30s": 90 * time.Second,
	} {
		var got Duration
		if err := json.Unmarshal([]byte(`"`+text+`"`), &got); err != nil || got != Duration(d) {
			t.Errorf("Unmarshal(%s) = %v, %v; want %v", text, got, err, d)
		}
	}
	for d, want := range map[time.Duration]string{
		10 * time.Minute: "10m", time.Hour: "1h", 90 * time.Second: "1m30s", 0: "0s", 20 * time.Second: "20s", 10 * time.Hour: "10h", time.Hour + time.Second: "1h0m1s",
	} {
		if b, err := json.Marshal(Duration(d)); err != nil || string(b) != `"`+want+`"` {
			t.Errorf("Marshal(%v) = %s, %v; want %q", d, b, err, want)
		}
	}
	for _, bad := range []string{`600`, `"600"`, `"ten minutes"`, `""`, `true`} {
		var got Duration
		if err := json.Unmarshal([]byte(bad), &got); err == nil || got != 0 {
			t.Errorf("Unmarshal(%s) = %v, %v; want an error", bad, got, err)
		}
	}
}

// The layers of a root are the same ones in the same order; what follows one that fails
// is the initramfs's to say.
func TestLayerSet(t *testing.T) {
	a, b := Layer{Name: "a", Hash: strings.Repeat("ab", 32)}, Layer{Name: "b", Hash: strings.Repeat("cd", 32)}
	of := func(l ...Layer) string { return (&Config{Layers: l}).LayerSet() }
	skipped, explicit, other := a, a, a
	skipped.OnFailure, explicit.From, other.Hash = LayerSkip, LayerFromState, b.Hash
	if of() != "" || len(of(a)) != 32 || of(a) != of(skipped) || of(a) != of(explicit) {
		t.Errorf("%q and %q, %q, %q", of(), of(a), of(skipped), of(explicit))
	}
	for _, set := range []string{of(b, a), of(a), of(b), of(other, b)} {
		if set == of(a, b) {
			t.Errorf("two lists of layers are both %s", set)
		}
	}
}

// Who vouches for layers that are added: never a certificate for roots, and one for
// development in development builds alone.
func TestLayerRoles(t *testing.T) {
	layer, dev := []string{"l.crt"}, []string{"d.crt"}
	for _, tt := range []struct {
		build Build
		trust Trust
		want  []Role
	}{
		{Production, Trust{Root: []string{"a.crt"}}, nil},
		{Production, Trust{Layer: layer, Dev: dev}, []Role{RoleLayer}},
		{Development, Trust{Layer: layer, Dev: dev}, []Role{RoleLayer, RoleDev}},
		{Development, Trust{Dev: dev}, []Role{RoleDev}},
		{Development, Trust{Root: []string{"a.crt"}}, nil},
	} {
		c := Config{Build: tt.build, Trust: tt.trust}
		if got := c.LayerRoles(); !slices.Equal(got, tt.want) {
			t.Errorf("%s build, %+v: %q, want %q", tt.build, tt.trust, got, tt.want)
		}
	}
}

func TestAllowsLayer(t *testing.T) {
	c := Config{LayersAllowed: []string{"site", "app-*"}, Layers: []Layer{{Name: "app-own"}}}
	for name, want := range map[string]bool{
		"site": true, "sites": false, "sit": false, "app-": true, "app-x": true, "app": false, "app-own": false, "": false, "other": false,
	} {
		if got := c.AllowsLayer(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
	all, none := Config{LayersAllowed: []string{"*"}}, Config{}
	if !all.AllowsLayer("x") || none.AllowsLayer("x") || none.AllowsLayer("") {
		t.Error("all or none")
	}
}

// layersOf are so many layers with images, and over them directories of the volume.
func layersOf(images, directories int) (list []Layer) {
	for i := range images + directories {
		l := Layer{Name: fmt.Sprintf("layer-%d", i), From: LayerFromVolume, Verity: LayerUnverified}
		if i < images {
			l = Layer{Name: l.Name, Hash: strings.Repeat("0123456789abcdef", 4)}
		}
		list = append(list, l)
	}
	return list
}
