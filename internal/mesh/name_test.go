package mesh_test

import (
	"strings"
	"testing"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

func TestValidName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"eu-north-1": true, "a": true, "7": true, strings.Repeat("a", 63): true,
		"": false, "-a": false, "a-": false, "A": false, "a_b": false, "a/b": false, "é": false,
		"a.b": false, strings.Repeat("a", 64): false,
	} {
		if got := mesh.ValidName(name); got != want {
			t.Errorf("ValidName(%q) = %v, want %v", name, got, want)
		}
	}
}
