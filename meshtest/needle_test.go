package meshtest_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// needle is 64 random bytes to look for, as they are and in every text form
// that a log, a message or a file may carry them in.
type needle struct {
	bytes []byte
	forms map[string][][]byte // pieces that betray it, by form
}

func newNeedle() *needle {
	n := &needle{bytes: make([]byte, 64), forms: map[string][][]byte{}}
	_, _ = rand.Read(n.bytes) // never fails
	n.add("raw", n.bytes, 16)
	n.add("hex", []byte(hex.EncodeToString(n.bytes)), 24)
	n.add("HEX", bytes.ToUpper([]byte(hex.EncodeToString(n.bytes))), 24)
	for i := 0; i+8 <= len(n.bytes); i += 8 {
		quoted := strconv.Quote(string(n.bytes[i : i+8]))
		n.forms["quoted"] = append(n.forms["quoted"], []byte(quoted[1:len(quoted)-1]))
	}
	// In base64 the same bytes read differently by where they start in a group
	// of three; the first and last characters depend on what stands beside.
	for shift := range 3 {
		text := base64.StdEncoding.EncodeToString(append(make([]byte, shift), n.bytes...))
		text = strings.TrimRight(text, "=")[4:]
		n.add("base64", []byte(text), 24)
		n.add("base64url", []byte(strings.NewReplacer("+", "-", "/", "_").Replace(text)), 24)
	}
	return n
}

// key is the needle as an idempotency key, which is text.
func (n *needle) key() string { return hex.EncodeToString(n.bytes) }

// add cuts a form into pieces, so that one that is stored in parts, or
// compressed in part, is found too.
func (n *needle) add(form string, text []byte, size int) {
	for piece := range slices.Chunk(text, size) {
		if len(piece) == size {
			n.forms[form] = append(n.forms[form], piece)
		}
	}
}

// in names the form in which the needle stands in the bytes; "" for none.
func (n *needle) in(data []byte) string {
	for form, pieces := range n.forms {
		for _, p := range pieces {
			if bytes.Contains(data, p) {
				return form
			}
		}
	}
	return ""
}

// files lists every file under a directory with the needle in it, by its path
// there, with the form.
func (n *needle) files(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	searched := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return ignoreGone(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return ignoreGone(err)
		}
		searched++
		if form := n.in(data); form != "" {
			rel, _ := filepath.Rel(dir, path)
			found[rel] = form
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if searched == 0 {
		t.Fatalf("there is no file in %s", dir)
	}
	return found
}

// ignoreGone lets files vanish while they are searched: stores drop some.
func ignoreGone(err error) error {
	if os.IsNotExist(err) {
		return nil
	}
	return err
}

// TestNeedle holds the search to account: it finds every form, and nothing in
// what is not the needle.
func TestNeedle(t *testing.T) {
	t.Parallel()
	n, other := newNeedle(), newNeedle()
	quoted := strconv.Quote(string(n.bytes))
	for name, text := range map[string]string{
		"raw": "x" + string(n.bytes), "part": string(n.bytes[:40]), "hex": n.key(), "quoted": quoted,
		"base64": base64.StdEncoding.EncodeToString(n.bytes), "base64 within": base64.URLEncoding.EncodeToString(append([]byte("ab"), n.bytes...)),
	} {
		if n.in([]byte(text)) == "" {
			t.Errorf("%s: not found", name)
		}
		if other.in([]byte(text)) != "" {
			t.Errorf("%s: another needle found", name)
		}
	}
}
