package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/isobar-mesh/isobar/examples/functions/sentiment"
)

const (
	// bytesPerToken is the usual rule of thumb for English.
	bytesPerToken = 4
	// maxTextTokens keeps the answers below what a result may hold.
	maxTextTokens = 60_000
	// stride spreads a text over the set, whose parts are not equally hard. It
	// shares no factor with the set's 200, so every sentence has its turn.
	stride = 73
)

// sentences are labelled, and were seen by no variant when it learned.
type sentences []sentiment.Example

func readSentences(path string) (sentences, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read labelled sentences: %w", err)
	}
	s, err := sentiment.ParseExamples(string(text))
	if err != nil {
		return nil, fmt.Errorf("read labelled sentences: %s: %w", path, err)
	}
	if len(s) == 0 {
		return nil, fmt.Errorf("read labelled sentences: %s has none", path)
	}
	return s, nil
}

// text is what is sent for a request: sentences, one a line.
type text struct {
	body   string
	labels []bool // positive, of each line
}

// compose puts together a text of about so many tokens. Sentences are taken by
// turns, round and round; from is how many turns were taken before.
func (s sentences) compose(tokens, from int) text {
	var b strings.Builder
	var t text
	want := min(tokens, maxTextTokens) * bytesPerToken
	for i := from; b.Len() < want; i++ {
		e := s[i*stride%len(s)]
		b.WriteString(e.Text)
		b.WriteByte('\n')
		t.labels = append(t.labels, e.Positive)
	}
	t.body = b.String()
	return t
}

// check reads the verdicts and counts those that agree with the labels. The
// error is for a result that is no list of verdicts, one for each line.
func (t text) check(result []byte) (answers, right int, err error) {
	lines := bufio.NewScanner(bytes.NewReader(result))
	for lines.Scan() {
		var verdict struct {
			Label    string   `json:"label"`
			Positive *float64 `json:"positive"`
		}
		if err := json.Unmarshal(lines.Bytes(), &verdict); err != nil {
			return 0, 0, fmt.Errorf("verdict %d: %w", answers+1, err)
		}
		positive := verdict.Label == "positive"
		switch {
		case !positive && verdict.Label != "negative":
			return 0, 0, fmt.Errorf("verdict %d: label %q is neither positive nor negative", answers+1, verdict.Label)
		case verdict.Positive == nil || *verdict.Positive < 0 || *verdict.Positive > 1:
			return 0, 0, fmt.Errorf("verdict %d: no share between 0 and 1", answers+1)
		case answers >= len(t.labels):
			return 0, 0, fmt.Errorf("more than %d verdicts", len(t.labels))
		}
		if positive == t.labels[answers] {
			right++
		}
		answers++
	}
	if err := lines.Err(); err != nil {
		return 0, 0, errors.Join(errors.New("read verdicts"), err)
	}
	if answers != len(t.labels) {
		return 0, 0, fmt.Errorf("%d verdicts for %d sentences", answers, len(t.labels))
	}
	return answers, right, nil
}
