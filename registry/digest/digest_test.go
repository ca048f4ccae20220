package digest_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/isobar-mesh/isobar/registry/digest"
)

func TestDigest(t *testing.T) {
	t.Parallel()
	const ofEmpty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	if got := digest.Of(nil); got != ofEmpty {
		t.Errorf("Of(nil) = %s, want %s", got, ofEmpty)
	}
	sum, err := digest.Parse(ofEmpty)
	if err != nil || digest.Name(sum) != ofEmpty {
		t.Errorf("Parse and Name give %s, error %v", digest.Name(sum), err)
	}
	for _, bad := range []string{
		"", "sha256:", ofEmpty[7:], ofEmpty[:len(ofEmpty)-1], ofEmpty + "0",
		strings.ToUpper(ofEmpty), "sha256:" + strings.ToUpper(ofEmpty[7:]),
		"sha512:" + ofEmpty[7:], "sha256:" + strings.Repeat("g", 64), " " + ofEmpty,
	} {
		if _, err := digest.Parse(bad); !errors.Is(err, digest.ErrMalformed) || digest.Valid(bad) {
			t.Errorf("Parse(%q) has error %v, want ErrMalformed", bad, err)
		}
	}
}
