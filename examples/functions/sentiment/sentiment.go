// Package sentiment tells whether a short English text is content or not. It
// is the code behind one function with two variants: small counts words of a
// list, large learns from labelled sentences. Both are built to modules of
// their own (small/, large/), so a mesh can choose between a cheap answer and a
// better one; how good each is, the test measures on sentences that neither has
// seen, and the manifest must say the same.
package sentiment

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Example is a labelled text.
type Example struct {
	Text     string
	Positive bool
}

// verdict is one line of the result.
type verdict struct {
	Label    string  `json:"label"`
	Positive float64 `json:"positive"` // how sure, 0 to 1
}

// Serve is the function: each line of in is a text, each line of out its
// verdict as JSON, in the same order. positive says how likely a text is
// positive, 0 to 1.
func Serve(in io.Reader, out io.Writer, positive func(text string) float64) error {
	w := bufio.NewWriter(out)
	enc := json.NewEncoder(w)
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	n := 0
	for lines.Scan() {
		text := strings.TrimSpace(lines.Text())
		switch {
		case text == "":
			continue
		case !utf8.ValidString(text):
			return fmt.Errorf("sentiment: read text %d: not UTF-8", n+1)
		}
		n++
		p := positive(text)
		v := verdict{Label: "negative", Positive: math.Round(p*1000) / 1000}
		if p >= 0.5 {
			v.Label = "positive"
		}
		if err := enc.Encode(v); err != nil {
			return fmt.Errorf("sentiment: write verdict: %w", err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("sentiment: read texts: %w", err)
	}
	if n == 0 {
		return errors.New("sentiment: read texts: there is none; send one a line")
	}
	return w.Flush()
}

// ParseExamples reads lines of "pos" or "neg", a tab, and a text.
func ParseExamples(tsv string) ([]Example, error) {
	var out []Example
	for line := range strings.Lines(tsv) {
		label, text, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if !ok || label != "pos" && label != "neg" {
			return nil, fmt.Errorf("sentiment: parse example %d: %q is not a label, a tab and a text", len(out)+1, line)
		}
		out = append(out, Example{Text: text, Positive: label == "pos"})
	}
	return out, nil
}

// words splits a text into lower-case words; an apostrophe is part of its word.
func words(text string) []string {
	return strings.FieldsFunc(strings.ToLower(text), func(r rune) bool {
		return !unicode.IsLetter(r) && r != '\''
	})
}
