//go:build ignore

// Linked prints how many lines of this module a program really consists of: the
// functions that the linker kept, and the types, constants and tables of the
// files they are in. usage: go run scripts/linked.go PROGRAM
//
// The program must be built without inlining (-gcflags=all=-l), so that every
// function that is used stands in its function table, and with -trimpath.
// Blank lines and comments do not count.
package main

import (
	"debug/elf"
	"debug/gosym"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

// module is the import path that the file names of a -trimpath build begin with.
const module = "sealroot/"

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run scripts/linked.go PROGRAM")
		os.Exit(2)
	}
	if err := count(os.Args[1]); err != nil {
		fmt.Fprintf(os.Stderr, "linked: %v\n", err)
		os.Exit(1)
	}
}

// lines counts one package.
type lines struct{ functions, declarations, dropped int }

func (a lines) plus(b lines) lines {
	return lines{a.functions + b.functions, a.declarations + b.declarations, a.dropped + b.dropped}
}

func count(program string) error {
	kept, err := keptFunctions(program)
	if err != nil {
		return err
	}
	packages := map[string]lines{}
	var all lines
	for name, starts := range kept {
		n, err := countFile(name, starts)
		if err != nil {
			return err
		}
		packages[path.Dir(name)] = packages[path.Dir(name)].plus(n)
		all = all.plus(n)
	}
	if all.functions == 0 {
		return errors.New("no function of this module is in the program")
	}
	fmt.Printf("%10s %10s %10s  %s\n", "functions", "other", "not linked", "package")
	for _, name := range slices.Sorted(maps.Keys(packages)) {
		p := packages[name]
		fmt.Printf("%10d %10d %10d  %s\n", p.functions, p.declarations, p.dropped, name)
	}
	fmt.Printf("%10d %10d %10d  in all: %d lines\n", all.functions, all.declarations, all.dropped, all.functions+all.declarations)
	return nil
}

// keptFunctions returns, for each file of this module by its path in the
// repository, the lines where a function of the program begins.
func keptFunctions(program string) (map[string][]int, error) {
	f, err := elf.Open(program)
	if err != nil {
		return nil, fmt.Errorf("cannot open the program: %w", err)
	}
	defer f.Close()
	section, text := f.Section(".gopclntab"), f.Section(".text")
	if section == nil || text == nil {
		return nil, fmt.Errorf("cannot use %s: it has no function table", program)
	}
	data, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("cannot read the function table: %w", err)
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(data, text.Addr))
	if err != nil {
		return nil, fmt.Errorf("cannot read the function table: %w", err)
	}
	kept := map[string][]int{}
	for _, fn := range table.Funcs {
		file, line, _ := table.PCToLine(fn.Entry)
		if name, ours := strings.CutPrefix(file, module); ours {
			kept[name] = append(kept[name], line)
		}
	}
	return kept, nil
}

// countFile counts one file, of which the functions with the given lines are linked.
func countFile(name string, starts []int) (lines, error) {
	source, err := os.ReadFile(name)
	if err != nil {
		return lines{}, err
	}
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, source, parser.SkipObjectResolution)
	if err != nil {
		return lines{}, err
	}
	code := codeLines(source)
	all := len(code)
	var n lines
	inFunctions := 0
	for _, d := range file.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		first, last := fset.Position(fn.Pos()).Line, fset.Position(fn.End()).Line
		size := 0
		for line := first; line <= last; line++ {
			if code[line] {
				size++
			}
		}
		inFunctions += size
		if slices.ContainsFunc(starts, func(line int) bool { return line >= first && line <= last }) {
			n.functions += size
		} else {
			n.dropped += size
		}
	}
	n.declarations = all - inFunctions
	return n, nil
}

// codeLines returns the lines that hold something else than comments.
func codeLines(source []byte) map[int]bool {
	fset := token.NewFileSet()
	f := fset.AddFile("", fset.Base(), len(source))
	var s scanner.Scanner
	s.Init(f, source, nil, 0)
	code := map[int]bool{}
	for {
		pos, tok, text := s.Scan()
		if tok == token.EOF {
			return code
		}
		if tok == token.SEMICOLON && text == "\n" {
			continue // not in the source
		}
		// A string over several lines is all code.
		for i := range 1 + strings.Count(text, "\n") {
			code[f.Line(pos)+i] = true
		}
	}
}
