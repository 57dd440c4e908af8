package predict

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrGRUB is returned for a grub.cfg, or a program of GRUB's, of which it is not known
// what it measures.
var ErrGRUB = errors.New("it is not known what this GRUB measures")

// Bounds of a grub.cfg: bytes, commands that one boot runs, bytes of their words once
// variables are filled in, blocks inside each other.
const (
	maxScript   = 64 << 10
	maxCommands = 10000
	maxFilled   = 1 << 20
	maxDepth    = 20
)

// statement is a command, an if or a for.
type statement struct {
	line  int
	words []word // of a command; of a for the list
	name  string // variable of a for
	// cond, body and other are those of an if; a for has a body.
	cond, body, other []statement
}

// word is one word before its variables are filled in.
type word struct {
	parts  []part
	quoted bool // it stays when it is empty
}

type part struct {
	text     string
	variable bool // text is its name
	quoted   bool
}

// literal is a word that is one unquoted text, else "".
func (w word) literal() string {
	if w.quoted || len(w.parts) != 1 || w.parts[0].variable {
		return ""
	}
	return w.parts[0].text
}

// scriptReader takes grub.cfg apart: the part of GRUB's language (grub-core/script of
// GRUB 2.06) that ours is written in. All else is an ErrGRUB.
type scriptReader struct {
	text string
	line int
}

// parseScript reads a whole grub.cfg.
func parseScript(text []byte) ([]statement, error) {
	if len(text) > maxScript {
		return nil, fmt.Errorf("%w: grub.cfg has %d bytes", ErrGRUB, len(text))
	}
	r := &scriptReader{text: string(text), line: 1}
	list, end, err := r.block(0)
	if err == nil && end != "" {
		err = r.odd("%q", end)
	}
	if err != nil {
		return nil, err
	}
	return list, nil
}

func (r *scriptReader) odd(format string, args ...any) error {
	return fmt.Errorf("%w: line %d of grub.cfg: %s is not understood", ErrGRUB, r.line, fmt.Sprintf(format, args...))
}

// block reads statements up to a word that ends one, which it returns; "" is the end.
func (r *scriptReader) block(depth int) (list []statement, end string, err error) {
	if depth > maxDepth {
		return nil, "", r.odd("such a nesting")
	}
	for {
		r.separators()
		if r.text == "" {
			return list, "", nil
		}
		s := statement{line: r.line}
		if s.words, err = r.words(); err != nil {
			return nil, "", err
		}
		first := s.words[0].literal()
		switch first {
		case "then", "else", "fi", "do", "done":
			if len(s.words) > 1 { // what stands behind it is the next command
				return nil, "", r.odd("a command behind %q on its line", first)
			}
			return list, first, nil
		case "if":
			s, err = r.branch(s, depth)
		case "for":
			s, err = r.loop(s, depth)
		case "while", "until", "function", "case", "elif", "select", "time", "menuentry", "submenu", "!":
			err = r.odd("%q", first)
		}
		if err != nil {
			return nil, "", err
		}
		list = append(list, s)
	}
}

// branch reads an if, of which the first command is in s.
func (r *scriptReader) branch(s statement, depth int) (statement, error) {
	if len(s.words) == 1 {
		return s, r.odd("an if without a command")
	}
	s.cond = []statement{{line: s.line, words: s.words[1:]}}
	s.words = nil
	more, end, err := r.block(depth + 1)
	if err == nil && (end != "then" || len(more) > 0) {
		err = r.odd("an if of several commands")
	}
	if err != nil {
		return s, err
	}
	if s.body, end, err = r.block(depth + 1); err == nil && end == "else" {
		s.other, end, err = r.block(depth + 1)
	}
	if err == nil && end != "fi" {
		err = r.odd("an if without fi")
	}
	return s, err
}

// loop reads a for, whose first line is in s.
func (r *scriptReader) loop(s statement, depth int) (statement, error) {
	if len(s.words) < 3 || s.words[2].literal() != "in" || s.words[1].literal() == "" {
		return s, r.odd("a for without a list")
	}
	s.name, s.words = s.words[1].literal(), s.words[3:]
	before, end, err := r.block(depth + 1)
	if err == nil && (end != "do" || len(before) > 0) {
		err = r.odd("a for without do")
	}
	if err != nil {
		return s, err
	}
	if s.body, end, err = r.block(depth + 1); err == nil && end != "done" {
		err = r.odd("a for without done")
	}
	if s.body == nil && err == nil {
		err = r.odd("an empty for")
	}
	return s, err
}

// separators skips what stands between commands.
func (r *scriptReader) separators() {
	for r.text != "" {
		switch c := r.text[0]; {
		case c == '\n':
			r.line++
			r.text = r.text[1:]
		case c == ' ' || c == '\t' || c == ';':
			r.text = r.text[1:]
		case c == '#':
			end := strings.IndexByte(r.text, '\n')
			if end < 0 {
				end = len(r.text)
			}
			r.text = r.text[end:]
		default:
			return
		}
	}
}

// words reads one command; words that open a block end it as a line does.
func (r *scriptReader) words() (list []word, err error) {
	for {
		r.text = strings.TrimLeft(r.text, " \t")
		if r.text == "" || r.text[0] == '\n' || r.text[0] == ';' || r.text[0] == '#' {
			return list, nil
		}
		w, err := r.word()
		if err != nil {
			return nil, err
		}
		list = append(list, w)
		if l := w.literal(); len(list) == 1 && (l == "then" || l == "else" || l == "do") {
			return list, nil
		}
	}
}

func (r *scriptReader) word() (w word, err error) {
	for r.text != "" {
		switch c := r.text[0]; {
		case strings.IndexByte(" \t\n;", c) >= 0:
			return w, nil
		case c == '\'':
			text, rest, ok := strings.Cut(r.text[1:], "'")
			if !ok || strings.Contains(text, "\n") {
				return word{}, r.odd("an open quote")
			}
			w.quoted, w.parts, r.text = true, append(w.parts, part{text: text, quoted: true}), rest
		case c == '"':
			if err := r.double(&w); err != nil {
				return word{}, err
			}
		case c == '$':
			if err := r.variable(&w, false); err != nil {
				return word{}, err
			}
		case strings.IndexByte("\\{}|&<>*?", c) >= 0 || c < ' ' || c > '~':
			return word{}, r.odd("%q", c)
		default:
			end := strings.IndexAny(r.text, " \t\n;'\"$\\{}|&<>*?")
			if end < 0 {
				end = len(r.text)
			}
			w.parts, r.text = append(w.parts, part{text: r.text[:end]}), r.text[end:]
		}
	}
	return w, nil
}

// double reads what stands in double quotes.
func (r *scriptReader) double(w *word) error {
	w.quoted, r.text = true, r.text[1:]
	for {
		end := strings.IndexAny(r.text, "\"$\\\n")
		if end < 0 || r.text[end] == '\n' || r.text[end] == '\\' {
			return r.odd("an open quote, or a \\ inside one,")
		}
		w.parts = append(w.parts, part{text: r.text[:end], quoted: true})
		if r.text = r.text[end:]; r.text[0] == '"' {
			r.text = r.text[1:]
			return nil
		}
		if err := r.variable(w, true); err != nil {
			return err
		}
	}
}

// variable reads $name.
func (r *scriptReader) variable(w *word, quoted bool) error {
	rest := strings.TrimLeft(r.text[1:], "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789")
	name := r.text[1 : len(r.text)-len(rest)]
	if name == "" || name[0] >= '0' && name[0] <= '9' {
		return r.odd("a $ without a name")
	}
	w.parts, r.text = append(w.parts, part{text: name, variable: true, quoted: quoted}), rest
	return nil
}

// flow says how a block ended.
type flow int

const (
	goesOn flow = iota
	breaks
	boots
)

// scriptRun is one boot of GRUB with a grub.cfg, as far as it is measured.
type scriptRun struct {
	vars     map[string]string
	env      map[string]string // the environment block
	there    func(path string) bool
	partUUID string

	measured []string // the strings that go into PCR 8, in order
	files    []string // the files that go into PCR 9, in order
	commands int
	filled   int  // bytes of the words of all commands
	ok       bool // what the last command returned
}

// all runs statements.
func (s *scriptRun) all(list []statement) (flow, error) {
	for i := range list {
		how, err := s.one(&list[i])
		if err != nil || how != goesOn {
			return how, err
		}
	}
	return goesOn, nil
}

func (s *scriptRun) one(st *statement) (flow, error) {
	if s.commands++; s.commands > maxCommands {
		return goesOn, fmt.Errorf("%w: grub.cfg does not end", ErrGRUB)
	}
	switch {
	case st.cond != nil:
		if how, err := s.all(st.cond); err != nil || how != goesOn {
			return how, err
		}
		if s.ok {
			return s.all(st.body)
		}
		return s.all(st.other)
	case st.name != "":
		list, err := s.fill(st.words, st.line)
		if err != nil {
			return goesOn, err
		}
		for _, value := range list {
			s.vars[st.name] = value
			how, err := s.all(st.body)
			if err != nil || how == boots {
				return how, err
			}
			if how == breaks {
				break
			}
		}
		return goesOn, nil
	}
	words, err := s.fill(st.words, st.line)
	if err != nil || len(words) == 0 {
		return goesOn, err
	}
	// grub_script_execute_cmdline: the words, with one blank between.
	s.measured = append(s.measured, strings.Join(words, " "))
	how, err := s.command(words)
	if err != nil {
		err = fmt.Errorf("%w: line %d of grub.cfg: %w", ErrGRUB, st.line, err)
	}
	return how, err
}

// fill fills the variables in. One without quotes that is empty is no word.
func (s *scriptRun) fill(words []word, line int) (list []string, err error) {
	for _, w := range words {
		var b strings.Builder
		s.filled++ // the blank between words
		for _, p := range w.parts {
			value := p.text
			if p.variable {
				value = s.vars[p.text]
			}
			if s.filled += len(value); s.filled > maxFilled {
				return nil, fmt.Errorf("%w: line %d of grub.cfg: its words grow beyond %d bytes", ErrGRUB, line, maxFilled)
			}
			if p.variable && !p.quoted && strings.ContainsAny(value, " \t\n*?\\") {
				return nil, fmt.Errorf("%w: line %d of grub.cfg: $%s is %.200q", ErrGRUB, line, p.text, value)
			}
			b.WriteString(value)
		}
		if w.quoted || b.Len() > 0 {
			list = append(list, b.String())
		}
	}
	return list, nil
}

// errCommand: a command, or the way it is used, is not known here.
var errCommand = errors.New("a command that is not understood")

func (s *scriptRun) command(words []string) (how flow, err error) {
	args := words[1:]
	s.ok = true
	switch words[0] {
	case "terminal_output", "terminal_input", "echo", "sleep":
	case "break":
		return breaks, nil
	case "boot":
		return boots, nil
	case "test":
		s.ok, err = s.test(args)
	case "regexp":
		err = s.regexp(args)
	case "probe":
		if len(args) != 3 || !strings.HasPrefix(args[0], "--set=") || args[1] != "--part-uuid" {
			return goesOn, errCommand
		}
		s.vars[strings.TrimPrefix(args[0], "--set=")] = s.partUUID
	case "load_env", "save_env":
		err = s.environment(words[0] == "save_env", args)
	case "linux":
		if len(args) == 0 {
			return goesOn, errCommand
		}
		// grub_create_loader_cmdline
		s.measured, s.files = append(s.measured, strings.Join(args, " ")), append(s.files, args[0])
	case "initrd":
		if len(args) != 1 {
			return goesOn, errCommand
		}
		s.files = append(s.files, args[0])
	default:
		name, value, ok := strings.Cut(words[0], "=")
		if !ok || len(args) > 0 {
			return goesOn, fmt.Errorf("%w: %.40q", errCommand, words[0])
		}
		s.vars[name] = value
	}
	return goesOn, err
}

// test is what grub.cfg uses of that command: conditions joined by either -a or -o.
func (s *scriptRun) test(args []string) (bool, error) {
	and, or := true, false
	joins := map[string]bool{}
	for {
		var one bool
		switch {
		case len(args) >= 3 && args[1] == "=":
			one, args = args[0] == args[2], args[3:]
		case len(args) >= 2 && args[0] == "-z":
			one, args = args[1] == "", args[2:]
		case len(args) >= 2 && args[0] == "-n":
			one, args = args[1] != "", args[2:]
		case len(args) >= 2 && args[0] == "-f":
			one, args = s.there(args[1]), args[2:]
		default:
			return false, errCommand
		}
		and, or = and && one, or || one
		if len(args) == 0 {
			break
		}
		if args[0] != "-a" && args[0] != "-o" {
			return false, errCommand
		}
		joins[args[0]], args = true, args[1:]
	}
	switch {
	case len(joins) > 1:
		return false, errCommand
	case joins["-o"]:
		return or, nil
	}
	return and, nil
}

// diskPattern is the one pattern that is understood: the disk of "(hd0,gpt2)/…".
const diskPattern = `^\(([^,)]+)`

// regexp sets a variable to the group of diskPattern.
func (s *scriptRun) regexp(args []string) error {
	if len(args) != 3 {
		return errCommand
	}
	name, ok := strings.CutPrefix(args[0], "--set=1:")
	if !ok || args[1] != diskPattern {
		return errCommand
	}
	disk, found := strings.CutPrefix(args[2], "(")
	if end := strings.IndexAny(disk, ",)"); end >= 0 {
		disk = disk[:end]
	}
	if s.ok = found && disk != ""; s.ok {
		s.vars[name] = disk
	}
	return nil
}

// environment is load_env or save_env. The block is not measured: with --skip-sig when
// it is read, and never when it is written.
func (s *scriptRun) environment(save bool, args []string) error {
	skip := slices.Index(args, "--skip-sig")
	if skip >= 0 {
		args = slices.Delete(slices.Clone(args), skip, skip+1)
	}
	if (skip < 0) != save || len(args) < 3 || args[0] != "--file" {
		return errCommand
	}
	for _, name := range args[2:] {
		if save {
			s.env[name] = s.vars[name]
		} else if value, ok := s.env[name]; ok {
			s.vars[name] = value
		}
	}
	return nil
}
