package registry

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

var members = []mesh.CellID{"ap", "eu", "us"}

// A tombstone outlives the reach of every cell, is dropped after all have it,
// and neither it nor the document comes back.
func TestTombstoneLife(t *testing.T) {
	t.Parallel()
	cells := map[mesh.CellID]*cell{}
	for _, id := range members {
		cells[id] = newCell(t, id)
	}
	eu, us, ap := cells["eu"], cells["us"], cells["ap"]
	eu.deploy(start, execSpec("f", "cat"))
	us.pull(eu, members, start)
	ap.pull(eu, members, start)

	command, err := eu.Delete("", "f", start)
	if err != nil {
		t.Fatal(err)
	}
	eu.do(command)
	us.pull(eu, members, start)
	eu.pull(us, members, start)
	late := start.Add(time.Hour)
	forget := func(c *cell, before time.Time) int {
		t.Helper()
		commands, err := c.ForgetCommands(members, before)
		if err != nil {
			t.Fatal(err)
		}
		c.do(commands...)
		return len(commands)
	}
	if n := forget(eu, late); n != 0 {
		t.Errorf("forgot %d tombstones that one cell never saw", n)
	}
	eu.pull(ap, members, start) // what it brings is older
	if _, err := eu.Function("", "f"); err == nil {
		t.Error("the document is back")
	}

	ap.pull(eu, members, start)
	us.pull(ap, members, start)
	if n := forget(us, start); n != 0 {
		t.Errorf("forgot %d tombstones that are too young", n)
	}
	if n := forget(us, late); n != 1 {
		t.Fatalf("forgot %d tombstones, want 1", n)
	}
	// The others have it still; it must not come back to one that forgot it.
	us.pull(ap, members, start)
	if docs := us.documents(); len(docs) != 1 {
		t.Errorf("the tombstone came back: %v", docs)
	}
	eu.pull(ap, members, start)
	forget(eu, late)
	forget(ap, late)
	if eu.hash() != us.hash() || ap.hash() != us.hash() {
		t.Error("the cells differ at the end")
	}
	if commands, err := eu.ForgetCommands(nil, late); err != nil || commands != nil {
		t.Errorf("no members: %d commands, error %v", len(commands), err)
	}
}

// Cells that edit by themselves and exchange what they lack end up the same.
func TestCellsConverge(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var cells []*cell
		for _, id := range members {
			cells = append(cells, newCell(t, id))
		}
		now := start
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 2).Draw(t, "ms")) * time.Millisecond)
			c := rapid.SampledFrom(cells).Draw(t, "cell")
			// Each cell's clock is off by its own.
			local := now.Add(time.Duration(len(c.cell)+int(c.cell[0])%7) * time.Second)
			name := rapid.SampledFrom([]string{"f", "g"}).Draw(t, "name")
			switch rapid.IntRange(0, 2).Draw(t, "op") {
			case 0:
				c.deploy(local, execSpec(name, rapid.SampledFrom([]string{"1", "2"}).Draw(t, "arg")))
			case 1:
				if command, err := c.Delete("", name, local); err == nil {
					c.do(command)
				}
			case 2:
				c.pull(rapid.SampledFrom(cells).Draw(t, "from"), members, local)
			}
		}
		// Two rounds: the second spreads the acknowledgements of the first.
		for range 2 {
			for _, a := range cells {
				for _, b := range cells {
					theirs := a.documents()
					lacking, err := b.Lacking(theirs)
					if err != nil {
						t.Fatalf("%v", err)
					}
					commands, err := a.MergeCommands(lacking, members, now.Add(30*time.Second))
					if err != nil {
						t.Fatalf("%v", err)
					}
					a.do(commands...)
				}
			}
		}
		for _, c := range cells[1:] {
			if c.hash() != cells[0].hash() {
				t.Fatalf("cells differ:\n%v\n%v", c.documents(), cells[0].documents())
			}
			if lacking, err := c.Lacking(cells[0].documents()); err != nil || len(lacking) != 0 {
				t.Fatalf("equal cells lack %v, error %v", lacking, err)
			}
			for _, name := range []string{"f", "g"} {
				a, _ := c.Function("", name)
				b, _ := cells[0].Function("", name)
				if !proto.Equal(a, b) {
					t.Fatalf("function %s is %v and %v", name, a, b)
				}
			}
		}
	})
}

// Many documents are cut into commands that the log likes, each version before
// the function that names it.
func TestMergeCommandsAreCut(t *testing.T) {
	t.Parallel()
	from, to := newCell(t, "eu"), newCell(t, "us")
	const n = 30
	for i := range n {
		spec := execSpec(fmt.Sprintf("f%d", i), "cat")
		spec.Env = map[string]string{"A": strings.Repeat("a", 30<<10), "B": fmt.Sprint(i)}
		from.deploy(start, spec)
	}
	docs := from.documents()
	slices.Reverse(docs)
	commands, err := to.MergeCommands(docs, members, start)
	if err != nil {
		t.Fatal(err)
	}
	if len(commands) < 3 {
		t.Errorf("%d commands for 900 KiB", len(commands))
	}
	for _, c := range commands {
		if len(c) > maxMerge+(8<<10) {
			t.Errorf("a command has %d bytes", len(c))
		}
		to.do(c)
		var m meshv1.RegistryCommand
		if err := proto.Unmarshal(c, &m); err != nil {
			t.Fatal(err)
		}
		for _, d := range m.GetMerge().GetDocuments() {
			if d.GetKind() != KindFunction {
				continue
			}
			if _, err := to.Function("", strings.TrimPrefix(d.GetName(), "default/")); err != nil {
				t.Errorf("a function came without its version: %v", err)
			}
		}
	}
	if from.hash() != to.hash() {
		t.Error("the cells differ")
	}
	if again, err := to.MergeCommands(docs, members, start); err != nil || len(again) != 0 {
		t.Errorf("nothing new makes %d commands, error %v", len(again), err)
	}
	newer, err := from.DocumentsNewerThan(at(noon, 9, "eu"))
	if err != nil || len(newer) != 2*(n-10) {
		t.Errorf("%d documents are newer, error %v, want %d", len(newer), err, 2*(n-10))
	}
}

// A function whose version has not come yet is an error of its own, and not
// listed.
func TestFunctionBeforeVersion(t *testing.T) {
	t.Parallel()
	c := newCell(t, "eu")
	c.merge(noon, functionDoc(t, "f", "somewhere", at(noon, 0, "us")))
	if _, err := c.Function("", "f"); !errors.Is(err, ErrUnknownVersion) {
		t.Errorf("error %v, want ErrUnknownVersion", err)
	}
	if fs, err := c.Functions(""); err != nil || len(fs) != 0 {
		t.Errorf("Functions are %v, error %v", fs, err)
	}
}
