// Package sealroot_test holds the rules of ARCHITECTURE.md about the whole tree.
package sealroot_test

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

// list asks the go command about packages.
func list(t *testing.T, patterns ...string) []pkg {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps"}, patterns...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// allowed lists, for each folder, the folders of this module that it may
// import from. The longest matching name counts; a package may always import
// from below itself.
var allowed = map[string][]string{
	// pure formats and pure decisions
	"goldentest":          {},
	"tooltest":            {},
	"slots":               {},
	"slots/guid":          {},
	"slots/gpt":           {"slots", "slots/guid"},
	"slots/grubenv":       {"slots"},
	"slots/efi":           {"slots"},
	"slots/bootlog":       {"slots"},
	"slots/slotstest":     {},
	"slots/storetest":     {"slots"},
	"slots/esp":           {},
	"slots/statetext":     {"slots"},
	"slots/bls":           {"slots"},
	"slots/manifest":      {"verity", "slots/gpt"},
	"publickey":           {},
	"bounded":             {},
	"verity":              {"publickey"},
	"init/config":         {"verity", "slots", "slots/gpt", "slots/guid", "state/binds", "state/layout"},
	"init/cmdline":        {"verity"},
	"init/report":         {},
	"init/qr":             {},
	"state/luks2":         {},
	"state/binds":         {"state/layout"},
	"state/layout":        {},
	"state/escrow":        {},
	"state/balance":       {},
	"state/layerlist":     {"init/config", "state/layout", "verity"},
	"state/etcmerge":      {},
	"state/balloon":       {},
	"state/balloon/files": {"state/balloon", "state/layout"},
	"state/tpm":           {"publickey"},
	"state/enrol":         {"init/config", "init/report", "state/luks2", "state/tpm"},
	// one kernel facility each
	"mount":        {},
	"state/ext4":   {},
	"state/btrfs":  {},
	"state/seed":   {"state/layout"},
	"init/console": {},
	// where they meet
	"slots/live":   {"slots", "mount", "bounded"},
	"state":        {"mount/dm", "mount/loop", "mount/keyring", "mount/blockdev"},
	"state/resize": {"state", "state/balloon", "state/btrfs", "state/ext4", "state/luks2", "state/layout", "mount"},
	"init/boot":    {"bounded", "init", "slots", "verity", "mount", "state"},
	// programs
	"init":        {"init/boot", "mount"},
	"mkinitramfs": {"init/config", "init/cmdline", "slots", "verity", "state/tpm/pcrsig", "state/tpm/predict", "state/escrow", "state/layout", "state/binds", "mount/kmod"},
	"sealroot":    {"bounded", "mkinitramfs/built", "mkinitramfs/layer", "mkinitramfs/tools", "init/report", "init/config", "init/cmdline", "slots", "verity", "mount", "state"},
	"qemu-tests":  {"init/report", "mount/dm", "slots", "state", "state/balloon", "state/btrfs", "state/ext4", "state/layout", "state/luks2", "state/resize", "state/tpm", "verity"},
}

func TestImportDirections(t *testing.T) {
	used := map[string]bool{} // rule, and the folder that it allows
	for _, p := range list(t, "./...") {
		name := strings.TrimPrefix(p.ImportPath, "sealroot/")
		rule := ruleFor(name)
		if p.ImportPath == "sealroot" {
			continue // this test, and not the command
		}
		if rule == "" {
			t.Errorf("%s: no rule for this package in arch_test.go", name)
			continue
		}
		used[rule] = true
		for _, i := range p.Imports {
			target, ours := strings.CutPrefix(i, "sealroot/")
			if ours && !within(target, rule) && !matches(allowed[rule], target) {
				t.Errorf("%s imports %s; %s may import %v", name, target, rule, allowed[rule])
			}
			for _, folder := range allowed[rule] {
				used[rule+" "+folder] = used[rule+" "+folder] || ours && within(target, folder)
			}
		}
	}
	for rule, folders := range allowed {
		if !used[rule] {
			t.Errorf("%s: a rule for no package", rule)
		}
		for _, folder := range folders {
			if !used[rule+" "+folder] {
				t.Errorf("%s may import %s, and nothing there does", rule, folder)
			}
		}
	}
}

func ruleFor(name string) string {
	best := ""
	for folder := range allowed {
		if within(name, folder) && len(folder) > len(best) {
			best = folder
		}
	}
	return best
}

func within(name, folder string) bool { return name == folder || strings.HasPrefix(name, folder+"/") }

func matches(folders []string, name string) bool {
	for _, f := range folders {
		if within(name, f) {
			return true
		}
	}
	return false
}

// PID 1 stays small, runs no program, and unpacks nothing.
func TestInitLinksNothingItDoesNotNeed(t *testing.T) {
	banned := []string{"os/exec", "net/http", "text/template", "html/template", "gopkg.in/yaml.v3",
		"compress", "archive", "crypto/x509", "github.com/klauspost", "github.com/ulikunitz", "github.com/u-root/u-root/pkg/kmodule", "sealroot/state/balance"}
	for _, dep := range list(t, "./init")[0].Deps {
		if matches(banned, dep) {
			t.Errorf("init links %s", dep)
		}
	}
}

// Pure packages run and are fuzzed anywhere, so they make no system calls.
func TestPurePackagesMakeNoSystemCalls(t *testing.T) {
	for _, p := range list(t, "./slots", "./slots/gpt", "./slots/grubenv", "./slots/efi", "./slots/bootlog", "./slots/guid",
		"./slots/esp", "./slots/statetext", "./slots/bls", "./slots/manifest",
		"./init/qr", "./state/voucher", "./state/luks2", "./sealroot/explain", "./sealroot/status",
		"./publickey", "./verity", "./verity/signature", "./verity/osrelease", "./init/config", "./init/cmdline", "./init/report", "./slots/fixed", "./state/binds", "./state/layout", "./state/floor", "./state/balance", "./state/reset", "./state/layerlist", "./state/escrow", "./state/etcmerge", "./state/balloon", "./state/tpm/pcrsig", "./state/tpm/predict", "./mkinitramfs/layer/over") {
		for _, i := range p.Imports {
			if i == "golang.org/x/sys/unix" || i == "syscall" {
				t.Errorf("%s imports %s", p.ImportPath, i)
			}
		}
	}
}

// ARCHITECTURE.md names the packages that make system calls.
func TestCallersOfSysAreNamed(t *testing.T) {
	const library = "golang.org/x/sys"
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, row, found := strings.Cut(string(text), "| `"+library+"` |")
	if !found {
		t.Fatalf("no row of %s", library)
	}
	row, _, _ = strings.Cut(row, "|")
	var named []string
	for i, word := range strings.Split(row, "`") {
		if i%2 == 0 {
			continue // between two names
		}
		folder, names, _ := strings.Cut(strings.TrimSuffix(word, "}"), "{")
		for name := range strings.SplitSeq(names, ",") {
			named = append(named, folder+name)
		}
	}
	used := map[string]bool{}
	for _, p := range list(t, "./...") {
		if !slices.ContainsFunc(p.Imports, func(i string) bool { return within(i, library) }) {
			continue
		}
		name := strings.TrimPrefix(p.ImportPath, "sealroot/")
		at := slices.IndexFunc(named, func(n string) bool {
			folder, all := strings.CutSuffix(n, "/*")
			return n == name || all && within(name, folder)
		})
		if at < 0 {
			t.Errorf("%s uses %s and is not in its row", name, library)
			continue
		}
		used[named[at]] = true
	}
	for _, n := range named {
		if !used[n] {
			t.Errorf("%s is in the row of %s and does not use it", n, library)
		}
	}
}

// Package variables are sentinel errors, embedded files, compiled expressions
// and tables; none is assigned to after its declaration.
func TestNoMutablePackageState(t *testing.T) {
	for dir, files := range sources(t) {
		vars := map[string]token.Position{}
		fset := token.NewFileSet()
		var parsed []*ast.File
		for _, name := range files {
			f, err := parser.ParseFile(fset, name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			parsed = append(parsed, f)
			for _, d := range f.Decls {
				g, ok := d.(*ast.GenDecl)
				if !ok || g.Tok != token.VAR {
					continue
				}
				for _, s := range g.Specs {
					for _, n := range s.(*ast.ValueSpec).Names {
						if n.Name != "_" {
							vars[n.Name] = fset.Position(n.Pos())
						}
					}
				}
			}
		}
		for _, f := range parsed {
			for _, pos := range assigned(f, vars, fset) {
				t.Errorf("%s: %s: a package variable is changed", dir, pos)
			}
		}
	}
}

// assigned finds statements that change one of the package variables. A local
// variable of the same name counts too: it would only confuse.
func assigned(f *ast.File, vars map[string]token.Position, fset *token.FileSet) []string {
	var found []string
	check := func(e ast.Expr) {
		for {
			switch x := e.(type) {
			case *ast.IndexExpr:
				e = x.X
				continue
			case *ast.SelectorExpr:
				e = x.X
				continue
			case *ast.StarExpr:
				e = x.X
				continue
			case *ast.Ident:
				if _, ok := vars[x.Name]; ok && x.Obj != nil && x.Obj.Kind == ast.Var {
					if _, top := x.Obj.Decl.(*ast.ValueSpec); top && fset.Position(x.Obj.Pos()) == vars[x.Name] {
						found = append(found, fset.Position(x.Pos()).String()+" "+x.Name)
					}
				} else if ok && x.Obj == nil { // declared in another file of the package
					found = append(found, fset.Position(x.Pos()).String()+" "+x.Name)
				}
			}
			return
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch s := n.(type) {
		case *ast.AssignStmt:
			if s.Tok != token.DEFINE {
				for _, l := range s.Lhs {
					check(l)
				}
			}
		case *ast.IncDecStmt:
			check(s.X)
		case *ast.UnaryExpr:
			if s.Op == token.AND {
				check(s.X)
			}
		}
		return true
	})
	return found
}

// sources lists the non-test Go files of the tree by folder.
func sources(t *testing.T) map[string][]string {
	t.Helper()
	files := map[string][]string{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (path == "build" || path == ".git") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			files[filepath.Dir(path)] = append(files[filepath.Dir(path)], path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// The rule above must be able to find something.
func TestMutableStateIsFound(t *testing.T) {
	const src = "package p\nvar n int\nvar m = map[string]int{}\nfunc f() { n++; m[\"a\"] = 1; p := &n; _ = p }\n"
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "p.go", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	vars := map[string]token.Position{}
	for _, name := range []string{"n", "m"} {
		vars[name] = fset.Position(f.Scope.Lookup(name).Pos())
	}
	if got := assigned(f, vars, fset); len(got) != 3 {
		t.Errorf("assigned() = %v, want three places", got)
	}
}
