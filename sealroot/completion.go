package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
)

// completed is a command as completion needs it.
type completed struct {
	name    string
	summary string
	flags   []completedFlag
	words   []string // fixed words, or slots or files
	slots   bool
	files   bool
}

type completedFlag struct {
	name, usage  string
	value, files bool
}

// commands lists what completion offers, from the same table as everything.
func commands(env Env) []completed {
	var all []completed
	for _, v := range verbs() {
		if v.hidden {
			continue
		}
		c := newCommand(v, io.Discard, io.Discard, env)
		v.setup(c)
		one := completed{name: v.name, summary: v.summary}
		c.flags.VisitAll(func(f *flag.Flag) {
			b, ok := f.Value.(interface{ IsBoolFlag() bool })
			one.flags = append(one.flags, completedFlag{
				name: f.Name, usage: f.Usage, value: !ok || !b.IsBoolFlag(), files: slices.Contains(fileFlags[:], f.Name),
			})
		})
		for _, word := range strings.Fields(v.args) {
			if strings.HasPrefix(word, "[-") || strings.HasPrefix(word, "-") {
				break // the flags follow the words
			}
			word = strings.Trim(word, "[]")
			switch {
			case word == "SLOT":
				one.slots = true
			case strings.Contains(word, "FILE"):
				one.files = true
			default: // those in capitals are not to be typed
				for _, w := range strings.Split(word, "|") {
					if strings.ToLower(w) == w {
						one.words = append(one.words, w)
					}
				}
			}
		}
		if v.name == "commit" {
			one.slots = true // with --disk
		}
		all = append(all, one)
	}
	return all
}

// fileFlags take a file or a folder.
var fileFlags = [...]string{"disk", "trust", "recovery-key-file", "passphrase-file", "old-passphrase-file"}

func completion(c *command) action {
	return func(_ context.Context, words []string) error {
		script, ok := map[string]func([]completed) string{
			"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion,
		}[words[0]]
		if !ok {
			return fmt.Errorf("%w: completion knows bash, zsh and fish", errUsage)
		}
		_, err := io.WriteString(c.stdout, script(commands(c.env)))
		return err
	}
}

// listSlots prints the slots of all disks, which anybody may know, by the
// labels of their roots.
const listSlots = `for f in /dev/disk/by-partlabel/root-?; do [ -e "$f" ] && printf '%s\n' "${f##*-}"; done`

func bashCompletion(all []completed) string {
	var b strings.Builder
	b.WriteString(`# bash completion of sealroot, made by: sealroot completion bash
_sealroot_slots() { ` + listSlots + `; }
_sealroot() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=- command= flags= values= files= words=
	[ "$COMP_CWORD" -gt 1 ] && prev=${COMP_WORDS[COMP_CWORD-1]}
	[ "$COMP_CWORD" -gt 1 ] && command=${COMP_WORDS[1]}
`)
	fmt.Fprintf(&b, "\tcase $command in\n\t%s) [ \"$COMP_CWORD\" -gt 2 ] && command=\"$command ${COMP_WORDS[2]}\" ;;\n\tesac\n", strings.Join(groups(), "|"))
	b.WriteString("\tCOMPREPLY=()\n\tcase $command in\n")
	for _, c := range all {
		var flags, values, files []string
		for _, f := range c.flags {
			flags = append(flags, "--"+f.name)
			if f.files {
				files = append(files, "--"+f.name)
			} else if f.value {
				values = append(values, "--"+f.name)
			}
		}
		words := strings.Join(c.words, " ")
		if c.slots {
			words = strings.TrimSpace(words + " $(_sealroot_slots)")
		}
		if c.name == "help" {
			words = strings.Join(firstWords(all), " ")
		}
		if c.files {
			files = append(files, "operand")
		}
		fmt.Fprintf(&b, "\t%q) flags=%q values=%q files=%q words=\"%s\" ;;\n", c.name,
			strings.Join(flags, " "), strings.Join(values, " "), strings.Join(files, " "), words)
	}
	for _, g := range groups() {
		fmt.Fprintf(&b, "\t%s) words=%q ;;\n", g, strings.Join(wordsBehind(g), " "))
	}
	fmt.Fprintf(&b, "\t'') words=%q ;;\n\tesac\n", strings.Join(firstWords(all), " "))
	b.WriteString(`	case " $values " in *" $prev "*) return ;; esac
	case " $files " in
	*" $prev "*) COMPREPLY=($(compgen -f -- "$cur")); return ;;
	*" operand "*) case $cur in -*) ;; *) COMPREPLY=($(compgen -f -- "$cur")); return ;; esac ;;
	esac
	case $cur in
	-*) COMPREPLY=($(compgen -W "$flags" -- "$cur")) ;;
	*) COMPREPLY=($(compgen -W "$words" -- "$cur")) ;;
	esac
}
complete -o filenames -F _sealroot sealroot
`)
	return b.String()
}

// firstWords are the first words of all commands.
func firstWords(all []completed) []string {
	var words []string
	for _, c := range all {
		if first := strings.Fields(c.name)[0]; !slices.Contains(words, first) {
			words = append(words, first)
		}
	}
	return words
}

// quoted is a text inside single quotes of a shell.
func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

func zshCompletion(all []completed) string {
	var b strings.Builder
	b.WriteString("#compdef sealroot\n# made by: sealroot completion zsh\n_sealroot_slots() { compadd -- $(" + listSlots + "); }\n")
	b.WriteString("_sealroot() {\n\tlocal -a commands=(\n")
	for _, c := range all {
		fmt.Fprintf(&b, "\t\t%s\n", quoted(strings.Fields(c.name)[0]+":"+strings.ReplaceAll(c.summary, ":", `\:`)))
	}
	b.WriteString("\t)\n\tif (( CURRENT == 2 )); then _describe command commands; return; fi\n\tlocal command=$words[2]\n")
	for _, g := range groups() {
		b.WriteString("\tif [[ $command == " + g + " ]]; then\n\t\tif (( CURRENT == 3 )); then compadd " + strings.Join(wordsBehind(g), " ") + "; return; fi\n\t\tshift words; (( CURRENT-- )); command=\"" + g + " $words[2]\"\n\tfi\n")
	}
	b.WriteString("\tshift words; (( CURRENT-- ))\n\tcase $command in\n")
	for _, c := range all {
		fmt.Fprintf(&b, "\t%q) _arguments", c.name)
		for _, f := range c.flags {
			// brackets and colons mean something to _arguments
			spec := "--" + f.name + "[" + strings.NewReplacer("[", "(", "]", ")", ":", ";").Replace(f.usage) + "]"
			switch {
			case f.files:
				spec += ":file:_files"
			case f.value:
				spec += ":value: "
			}
			b.WriteString(" " + quoted(spec))
		}
		switch {
		case c.slots:
			b.WriteString(" '*:slot:_sealroot_slots'")
		case c.files:
			b.WriteString(" '*:file:_files'")
		case len(c.words) > 0:
			b.WriteString(" " + quoted("*:word:("+strings.Join(c.words, " ")+")"))
		}
		b.WriteString(" ;;\n")
	}
	b.WriteString("\tesac\n}\n_sealroot \"$@\"\n")
	return b.String()
}

func fishCompletion(all []completed) string {
	var b strings.Builder
	b.WriteString("# fish completion of sealroot, made by: sealroot completion fish\n")
	b.WriteString("function __sealroot_slots; for f in /dev/disk/by-partlabel/root-?; string replace -r '.*-' '' -- $f; end; end\n")
	b.WriteString("complete -c sealroot -f\n")
	for _, c := range all {
		first := strings.Fields(c.name)[0]
		fmt.Fprintf(&b, "complete -c sealroot -n __fish_use_subcommand -a %s -d %s\n", first, quoted(c.summary))
		seen := "'__fish_seen_subcommand_from " + first + "'"
		for _, f := range c.flags {
			fmt.Fprintf(&b, "complete -c sealroot -n %s -l %s -d %s", seen, f.name, quoted(f.usage))
			switch {
			case f.files:
				b.WriteString(" -r -F")
			case f.value:
				b.WriteString(" -x")
			}
			b.WriteString("\n")
		}
		words := strings.Join(append(slices.Clone(c.words), strings.Fields(c.name)[1:]...), " ")
		if c.slots {
			words = strings.TrimSpace(words + " (__sealroot_slots)")
		}
		if words != "" {
			fmt.Fprintf(&b, "complete -c sealroot -n %s -a %s\n", seen, quoted(words))
		}
		if c.files {
			fmt.Fprintf(&b, "complete -c sealroot -n %s -F\n", seen)
		}
	}
	return b.String()
}
