package pulsar

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestPage: docs/pulsar.md names every policy that is set or watched, every
// property of a message and of what is made in Pulsar.
func TestPage(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../docs/pulsar.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	names := []string{taskProperty, hashProperty, cellProperty, epochProperty, incarnationProperty, regionProperty, jurisdictionsProperty, seenProperty, trimProperty, baseProperty, fromProperty, idProperty, attributePrefix, storage, refuseAppends}
	for f := range reflect.TypeFor[policies]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "properties" {
			names = append(names, name)
		}
	}
	for _, name := range names {
		if !strings.Contains(page, name) {
			t.Errorf("docs/pulsar.md does not name %s", name)
		}
	}
}
