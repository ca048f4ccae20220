// Package digest names content by its SHA-256: "sha256:" and 64 lower-case
// hexadecimal digits. Function versions and modules are named so. It is pure.
package digest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Prefix stands before the hexadecimal digits.
const Prefix = "sha256:"

// ErrMalformed: a string that no content can have as its digest.
var ErrMalformed = errors.New("not a digest")

// Of is the digest of the content.
func Of(content []byte) string { return Name(sha256.Sum256(content)) }

// Name writes a SHA-256 as a digest.
func Name(sum [sha256.Size]byte) string { return Prefix + hex.EncodeToString(sum[:]) }

// Parse returns the SHA-256 that d names. The error wraps ErrMalformed.
func Parse(d string) (sum [sha256.Size]byte, err error) {
	digits, ok := strings.CutPrefix(d, Prefix)
	if ok && len(digits) == hex.EncodedLen(len(sum)) && strings.ToLower(digits) == digits {
		if _, err := hex.Decode(sum[:], []byte(digits)); err == nil {
			return sum, nil
		}
	}
	return [sha256.Size]byte{}, fmt.Errorf("digest: parse %.80q: %w", d, ErrMalformed)
}

// Valid reports whether Parse takes d.
func Valid(d string) bool {
	_, err := Parse(d)
	return err == nil
}
