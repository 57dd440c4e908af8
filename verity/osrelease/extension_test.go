package osrelease

import "testing"

func TestExtends(t *testing.T) {
	debian := Release{ID: "debian", VersionID: "12"}
	leveled := Release{ID: "debian", VersionID: "12", SysextLevel: "2"}
	for _, tt := range []struct {
		name  string
		layer Release
		root  Release
		want  bool
	}{
		{"same", Release{ID: "debian", VersionID: "12"}, debian, true},
		{"any_version", Release{ID: "debian"}, debian, true},
		{"other_version", Release{ID: "debian", VersionID: "13"}, debian, false},
		{"other_system", Release{ID: "fedora", VersionID: "12"}, debian, false},
		{"any_system", Release{ID: "_any", VersionID: "13"}, debian, true},
		{"nothing", Release{}, debian, false},
		{"nothing_on_nothing", Release{}, Release{}, false},
		{"level", Release{ID: "debian", SysextLevel: "2", VersionID: "13"}, leveled, true},
		{"other_level", Release{ID: "debian", SysextLevel: "1", VersionID: "12"}, leveled, false},
		{"level_of_a_root_without", Release{ID: "debian", SysextLevel: "1", VersionID: "12"}, debian, false},
		{"this_kernel", Release{ID: "debian", Kernel: "6.1.0-1"}, debian, true},
		{"other_kernel", Release{ID: "debian", Kernel: "6.1.0-2"}, debian, false},
		{"this_architecture", Release{ID: "debian", Architecture: "x86-64"}, debian, true},
		{"any_architecture", Release{ID: "debian", Architecture: "_any"}, debian, true},
		{"other_architecture", Release{ID: "debian", Architecture: "arm64"}, debian, false},
		{"any_system_other_architecture", Release{ID: "_any", Architecture: "arm64"}, debian, false},
		{"any_system_other_kernel", Release{ID: "_any", Kernel: "6.1.0-2"}, debian, false},
	} {
		if got := tt.layer.Extends(tt.root, "6.1.0-1"); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
	layer, system := Release{ID: "_any", Architecture: "arm64"}.Versus(leveled, "6.1.0-1")
	if want := "ID _any, architecture arm64"; layer != want {
		t.Errorf("got %q, want %q", layer, want)
	}
	if want := "ID debian, VERSION_ID 12, SYSEXT_LEVEL 2, architecture x86-64, kernel 6.1.0-1"; system != want {
		t.Errorf("got %q, want %q", system, want)
	}
	if layer, system := (Release{}).Versus(debian, ""); layer != "nothing that is named" || system != "ID debian, VERSION_ID 12" {
		t.Errorf("got %q and %q", layer, system)
	}
}
