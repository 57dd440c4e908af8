package config

import (
	"slices"
	"strings"
	"testing"
)

func TestValidateTrust(t *testing.T) {
	root := func(t Trust) func(*Config) { return func(c *Config) { c.Trust = t } }
	hash := func(h string) func(*Config) { return func(c *Config) { c.Root.Hash = h } }
	check(t, goodUKI, []row{
		{"two_certificates", root(Trust{Root: []string{"old.crt", "new.crt"}}), nil},
		{"layer", root(Trust{Root: []string{"a.crt"}, Layer: []string{"l.crt"}}), nil},
		{"layer_alone", root(Trust{Layer: []string{"l.crt"}}), []string{"trust.root"}},
		{"layer_twice", root(Trust{Root: []string{"a.crt"}, Layer: []string{"l.crt", "l.crt"}}), []string{"trust.layer[1]"}},
		{"layer_key", root(Trust{Root: []string{"a.crt"}, Layer: []string{"l.key"}}), []string{"trust.layer[0]"}},
		{"dev_in_production", root(Trust{Root: []string{"a.crt"}, Dev: []string{"d.crt"}}), []string{"trust.dev"}},
		{"dev_alone_in_production", root(Trust{Dev: []string{"d.crt"}}), []string{"trust.root", "trust.dev"}},
		{"hash_embed", hash(HashEmbed), nil},
		{"hash", hash(strings.Repeat("0a", 32)), nil},
		{"hash_sha512", hash(strings.Repeat("0a", 64)), nil},
		{"hash_in_upper_case", hash(strings.Repeat("0A", 32)), []string{"root.hash"}},
		{"hash_short", hash("0a"), []string{"root.hash"}},
		{"hash_as_word", hash("auto"), []string{"root.hash"}},
	})
	development := func() Config {
		c := goodUKI()
		c.Build = Development
		return c
	}
	check(t, development, []row{
		{"dev", root(Trust{Root: []string{"a.crt"}, Dev: []string{"d.crt"}}), nil},
		{"dev_alone", root(Trust{Dev: []string{"d.crt"}}), nil},
		{"none", root(Trust{}), []string{"trust.root"}},
	})
}

// Only a development build takes certificates of the role dev for roots, also
// where a configuration that nobody validated holds them; layers' never count.
func TestRootRoles(t *testing.T) {
	every := Trust{Root: []string{"a.crt"}, Usr: []string{"u.crt"}, Layer: []string{"l.crt"}, Dev: []string{"d.crt"}}
	for _, tc := range []struct {
		build Build
		want  []Role
	}{
		{Production, []Role{RoleRoot}},
		{Development, []Role{RoleRoot, RoleDev}},
		{"", []Role{RoleRoot}},
	} {
		c := Config{Build: tc.build, Trust: every}
		if got := c.RootRoles(); !slices.Equal(got, tc.want) {
			t.Errorf("build %q: roles %q, want %q", tc.build, got, tc.want)
		}
		c.Root.Source = SourceUsrVerity
		tc.want[0] = RoleUsr
		if got := c.RootRoles(); !slices.Equal(got, tc.want) {
			t.Errorf("build %q of a /usr: roles %q, want %q", tc.build, got, tc.want)
		}
	}
}

func TestEmbedTrust(t *testing.T) {
	for _, tc := range []struct {
		name  string
		trust Trust
		hash  string
		paths []string
	}{
		{"folders", Trust{Root: []string{"x/a.crt"}, Layer: []string{"y/a.crt"}}, "", nil},
		{"same_name_in_one_role", Trust{Root: []string{"x/a.crt", "y/a.crt"}}, "", []string{"trust.root[1]"}},
		{"same_name_for_root_and_dev", Trust{Root: []string{"a.crt"}, Dev: []string{"d/a.crt"}}, "", []string{"trust.dev[0]"}},
		{"same_name_for_layer_and_dev", Trust{Root: []string{"a.crt"}, Layer: []string{"l.crt"}, Dev: []string{"d/l.crt"}}, "", []string{"trust.dev[0]"}},
		{"same_name_for_root_and_usr", Trust{Root: []string{"a.crt"}, Usr: []string{"u/a.crt"}}, "", nil},
		{"line_without_image", Trust{Root: []string{"a.crt"}, Cmdline: CmdlineMeasured}, "", []string{"trust.cmdline"}},
		{"hash_without_image", Trust{Root: []string{"a.crt"}}, HashEmbed, []string{"root.hash"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := goodUKI()
			c.Trust, c.Root.Hash = tc.trust, tc.hash
			_, err := c.Embed(Kernel{Release: "6.1.0"})
			var got []string
			for _, p := range Problems(err) {
				got = append(got, p.Path)
			}
			if !slices.Equal(got, tc.paths) {
				t.Errorf("Embed = %v, want problems at %q", err, tc.paths)
			}
		})
	}
}
