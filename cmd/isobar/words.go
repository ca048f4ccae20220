package main

import (
	"errors"
	"strings"
)

// errShell: a command line uses what only a shell understands.
var errShell = errors.New("commands are run directly, without a shell")

// errQuote: a quote is not closed.
var errQuote = errors.New("a quote is not closed")

// splitCommand splits a command line into words as a shell does: by blanks,
// with single quotes, double quotes and backslashes. Anything else that a shell
// would act on (pipes, variables, globs) is errShell, not passed on in silence.
func splitCommand(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	quote, escaped, begun := rune(0), false, false
	for _, c := range line {
		switch {
		case escaped:
			word.WriteRune(c)
			escaped = false
		case c == '\\' && quote != '\'':
			escaped, begun = true, true
		case quote != 0:
			switch {
			case c == quote:
				quote = 0
			case quote == '"' && strings.ContainsRune("$`", c):
				return nil, errShell
			default:
				word.WriteRune(c)
			}
		case c == '\'' || c == '"':
			quote, begun = c, true
		case c == ' ' || c == '\t' || c == '\n':
			if begun {
				words = append(words, word.String())
				word.Reset()
				begun = false
			}
		case strings.ContainsRune("|&;<>()$`*?#~!{}", c):
			return nil, errShell
		default:
			word.WriteRune(c)
			begun = true
		}
	}
	if quote != 0 || escaped {
		return nil, errQuote
	}
	if begun {
		words = append(words, word.String())
	}
	return words, nil
}
