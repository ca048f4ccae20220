package gossip_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/gossip"
	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// small is a digest as a cell of one worker publishes it.
func small(cell string, term, sequence uint64) *meshv1.Digest {
	d := &meshv1.Digest{
		Cell: cell, Region: "eu-north", Incarnation: "k3f9ab", Term: term, Sequence: sequence,
		Backlog: []uint64{0, 1, 2, 3}, WaitMs: []uint64{0, 10, 20, 30},
		Runtimes: []string{"exec", "wasm"}, Workers: 1,
	}
	gossip.SetCapacities(d, gossip.Capacities{
		Total:  mesh.Capacity{CPUMilli: 4000, MemoryMiB: 8192},
		Free:   mesh.Capacity{CPUMilli: 3000, MemoryMiB: 4096},
		Widest: mesh.Capacity{CPUMilli: 3000, MemoryMiB: 4096},
	})
	return d
}

// TestCostsInADigest: bounds and what is held of them come through, and what no
// cell can hold is refused.
func TestCostsInADigest(t *testing.T) {
	t.Parallel()
	d := small("eu-north-1", 1, 1)
	c := mesh.Capacity{CPUMilli: 1, MemoryMiB: 1, Most: mesh.Cost{Tokens: 9, AcceleratorMiB: 7}, Held: mesh.Cost{Tokens: 9, Bytes: 5}}
	none := mesh.Capacity{CPUMilli: 1, MemoryMiB: 1, Held: mesh.Cost{Tokens: 9}}
	gossip.SetCapacities(d, gossip.Capacities{Total: none, Free: c, Widest: none})
	b, _, err := gossip.Encode(d)
	if err != nil {
		t.Fatal(err)
	}
	got, err := gossip.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	left := gossip.CapacitiesOf(got)
	if left.Free.Most != c.Most || left.Free.Held != c.Held || left.Total.Held != (mesh.Cost{}) {
		t.Errorf("%+v came through as %+v", c, left)
	}
	e := gossip.Entry{Digest: got, At: time.Now()}
	f := gossip.NewInflight(time.Minute)
	f.Placed("eu-north-1", gossip.Placement{Task: "t", Attempt: 1}, mesh.Demand{Cost: mesh.Cost{AcceleratorMiB: 6}}, time.Now())
	if free := f.Corrected(e, time.Now()).Free; free.Fits(&mesh.Demand{Cost: mesh.Cost{AcceleratorMiB: 2}}) || !free.Fits(&mesh.Demand{Cost: mesh.Cost{AcceleratorMiB: 1}}) {
		t.Errorf("what was placed is not held: %+v", free)
	}
	for _, bad := range [][]int64{{-1}, {0, 0, 0, 0}, {0, 1<<63 - 1}} {
		got.Total.Held = bad
		if gossip.Validate(got) == nil {
			t.Errorf("%v is believed", bad)
		}
	}
}

// fullest is the largest digest a cell may want to publish: every field set,
// every number as wide as it gets, every name as long as it may be.
func fullest() *meshv1.Digest {
	long := func(n int, tail string) string { return strings.Repeat("n", n-len(tail)) + tail }
	d := &meshv1.Digest{
		Cell: long(gossip.MaxCellName, "-1"), Region: long(gossip.MaxRegionName, "r"),
		Incarnation: long(gossip.MaxIncarnation, "i"), Zone: long(gossip.MaxZoneName, "z"),
		Term: 1<<64 - 1, Sequence: 1<<64 - 1, Health: long(gossip.MaxHealth, "h"),
		CpuHour: 1 << 40, MemoryGibHour: 1 << 40, CarbonKind: 2, MilliwattsPerCpu: 1 << 30,
		IdleMilliwattsPerCpu: 1 << 20, MilliwattsPerGib: 1 << 20, EmbodiedMgPerCpuHour: 1 << 20,
		PueMilli: 3000, Leased: 1 << 40, Workers: 1 << 20, Registry: 1<<64 - 1,
	}
	for range 4 {
		d.Backlog = append(d.Backlog, 1<<40)
		d.WaitMs = append(d.WaitMs, 1<<40)
	}
	for i := range gossip.MaxRuntimes {
		d.Runtimes = append(d.Runtimes, long(gossip.MaxRuntimeName, fmt.Sprint(i)))
	}
	var gpus []mesh.Accelerators
	for i := range gossip.MaxModels {
		model := long(gossip.MaxModelName, fmt.Sprint(i))
		gpus = append(gpus, mesh.Accelerators{Model: model, Count: 1 << 14})
		d.Gpus = append(d.Gpus, &meshv1.ModelDigest{Model: model, Hour: 1 << 30, Milliwatts: 1 << 20, IdleMilliwatts: 1 << 20, EmbodiedMgPerHour: 1 << 17})
	}
	held := mesh.Cost{Tokens: 1 << 32, Bytes: 1 << 40, AcceleratorMiB: 1 << 28}
	c := mesh.Capacity{CPUMilli: 1 << 40, MemoryMiB: 1 << 40, GPUs: gpus, Most: held, Held: held}
	gossip.SetCapacities(d, gossip.Capacities{Total: c, Free: c, Widest: c})
	for i := range 64 {
		d.Warm = append(d.Warm, gossip.Key(fmt.Sprint("warm", i)))
		d.MissingCode = append(d.MissingCode, gossip.Key(fmt.Sprint("code", i)))
	}
	for i := range 24 {
		d.Carbon = append(d.Carbon, uint32(900+i))
	}
	return d
}

func TestFullestDigestFits(t *testing.T) {
	t.Parallel()
	d := fullest()
	before := proto.CloneOf(d)
	b, cut, err := gossip.Encode(d)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > gossip.MaxEncoded {
		t.Fatalf("%d bytes, at most %d", len(b), gossip.MaxEncoded)
	}
	if !proto.Equal(d, before) {
		t.Error("Encode changed its argument")
	}
	if cut.Models != 0 || cut.HealthBytes != 0 || !cut.Any() {
		t.Errorf("cut %+v: models and health must stay, the rest can't all fit", cut)
	}
	got, err := gossip.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	wantKept(t, d, got)
	if len(got.Carbon) == 0 || got.Carbon[0] != d.Carbon[0] {
		t.Error("present carbon was cut")
	}
	t.Logf("fullest: %d bytes whole, %d encoded, cut %+v", proto.Size(d), len(b), cut)
}

// wantKept fails when a part that is never cut differs.
func wantKept(t interface {
	Helper()
	Errorf(string, ...any)
}, want, got *meshv1.Digest,
) {
	t.Helper()
	want, got = proto.CloneOf(want), proto.CloneOf(got)
	for _, d := range []*meshv1.Digest{want, got} {
		d.Warm, d.Carbon, d.MissingCode = nil, nil, nil
	}
	if !proto.Equal(want, got) {
		t.Errorf("a part that is never cut differs:\nwant %v\ngot  %v", want, got)
	}
}

// The order of cutting, seen by growing one digest: what comes later in the
// rule is whole until what comes earlier is gone.
func TestCutOrder(t *testing.T) {
	t.Parallel()
	base := func(warm, carbon, missing int) *meshv1.Digest {
		d := small("eu-north-1", 1, 1)
		for i := range warm {
			d.Warm = append(d.Warm, uint64(i))
		}
		for i := range carbon {
			d.Carbon = append(d.Carbon, uint32(300+i))
		}
		for i := range missing {
			d.MissingCode = append(d.MissingCode, uint64(i))
		}
		return d
	}
	for _, c := range []struct {
		name                  string
		warm, carbon, missing int
		want                  gossip.Cut
	}{
		{"all fit", 32, 24, 10, gossip.Cut{}},
		{"warm alone", 64, 24, 80, gossip.Cut{Warm: 25}},
		{"carbon after all warm", 8, 24, 121, gossip.Cut{Warm: 8, CarbonHours: 5}},
		{"missing code after the far hours", 8, 24, 200, gossip.Cut{Warm: 8, CarbonHours: 18, MissingCode: 76}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := base(c.warm, c.carbon, c.missing)
			b, cut, err := gossip.Encode(d)
			if err != nil {
				t.Fatal(err)
			}
			if cut.Warm > 0 && cut.Warm < c.warm && (cut.CarbonHours > 0 || cut.MissingCode > 0) {
				t.Errorf("cut %+v while warm functions are left", cut)
			}
			if cut != c.want {
				t.Errorf("cut %+v, want %+v", cut, c.want)
			}
			got, err := gossip.Decode(b)
			if err != nil {
				t.Fatal(err)
			}
			wantKept(t, d, got)
			if n := c.warm - cut.Warm; len(got.Warm) != n || (n > 0 && got.Warm[n-1] != uint64(n-1)) {
				t.Errorf("warm %v: want the first %d", got.Warm, n)
			}
		})
	}
}

func TestCutModelsLast(t *testing.T) {
	t.Parallel()
	d := small("eu-north-1", 1, 1)
	var gpus []mesh.Accelerators
	for i := range 30 {
		gpus = append(gpus, mesh.Accelerators{Model: fmt.Sprintf("%02d%s", i, strings.Repeat("m", 60)), Count: int64(i + 1)})
	}
	c := mesh.Capacity{CPUMilli: 1, MemoryMiB: 1, GPUs: gpus}
	gossip.SetCapacities(d, gossip.Capacities{Total: c, Free: c, Widest: c})
	d.Warm, d.Carbon = []uint64{1, 2}, []uint32{1, 2, 3}
	b, cut, err := gossip.Encode(d)
	if err != nil {
		t.Fatal(err)
	}
	if cut.Warm != 2 || cut.CarbonHours != 2 || cut.Models == 0 {
		t.Errorf("cut %+v", cut)
	}
	got, err := gossip.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	left := gossip.CapacitiesOf(got)
	if len(left.Free.GPUs) != 30-cut.Models || left.Free.GPUs[0].Count != int64(cut.Models+1) {
		t.Errorf("left %v: the models with the fewest go first", left.Free.GPUs)
	}
}

func TestHealthIsShortenedBetweenCharacters(t *testing.T) {
	t.Parallel()
	d := small("eu-north-1", 1, 1)
	d.Health = strings.Repeat("ü", 50) // 100 bytes
	b, cut, err := gossip.Encode(d)
	if err != nil {
		t.Fatal(err)
	}
	got, err := gossip.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if got.Health != strings.Repeat("ü", 32) || cut != (gossip.Cut{HealthBytes: 36}) {
		t.Errorf("health %q, cut %+v", got.Health, cut)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*meshv1.Digest){
		"no cell":           func(d *meshv1.Digest) { d.Cell = "" },
		"no region":         func(d *meshv1.Digest) { d.Region = "" },
		"no incarnation":    func(d *meshv1.Digest) { d.Incarnation = "" },
		"long cell":         func(d *meshv1.Digest) { d.Cell = strings.Repeat("c", gossip.MaxCellName+1) },
		"long zone":         func(d *meshv1.Digest) { d.Zone = strings.Repeat("z", gossip.MaxZoneName+1) },
		"term zero":         func(d *meshv1.Digest) { d.Term = 0 },
		"sequence zero":     func(d *meshv1.Digest) { d.Sequence = 0 },
		"five lanes":        func(d *meshv1.Digest) { d.Backlog = make([]uint64, 5) },
		"seven runtimes":    func(d *meshv1.Digest) { d.Runtimes = []string{"a", "b", "c", "d", "e", "f", "g"} },
		"empty runtime":     func(d *meshv1.Digest) { d.Runtimes = []string{""} },
		"nameless model":    func(d *meshv1.Digest) { d.Gpus = []*meshv1.ModelDigest{{}} },
		"model twice":       func(d *meshv1.Digest) { d.Gpus = []*meshv1.ModelDigest{{Model: "a"}, {Model: "a"}} },
		"negative cpu":      func(d *meshv1.Digest) { d.Free.CpuMilli = -1 },
		"negative gpus":     func(d *meshv1.Digest) { d.Gpus = []*meshv1.ModelDigest{{Model: "a"}}; d.Free.Gpus = []int64{-1} },
		"counts of nothing": func(d *meshv1.Digest) { d.Free.Gpus = []int64{1} },
		"terminal escape":   func(d *meshv1.Digest) { d.Health = "\x1b[2J" },
		"not text":          func(d *meshv1.Digest) { d.Region = "\xff" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := small("eu-north-1", 1, 1)
			spoil(d)
			if _, _, err := gossip.Encode(d); !errors.Is(err, gossip.ErrInvalid) {
				t.Errorf("Encode: %v", err)
			}
			if b, err := proto.Marshal(d); err == nil {
				if _, err := gossip.Decode(b); !errors.Is(err, gossip.ErrInvalid) {
					t.Errorf("Decode: %v", err)
				}
			}
		})
	}
	if err := gossip.Validate(nil); !errors.Is(err, gossip.ErrInvalid) {
		t.Errorf("nil: %v", err)
	}
	if _, err := gossip.Decode(make([]byte, gossip.MaxEncoded+1)); !errors.Is(err, gossip.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

// Any valid digest fits, keeps what is never cut, and encodes to the same bytes
// again after a round trip.
func TestEncodeProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := drawDigest(t)
		b, cut, err := gossip.Encode(d)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > gossip.MaxEncoded {
			t.Fatalf("%d bytes", len(b))
		}
		if cut.Any() != (proto.Size(d) > gossip.MaxEncoded) {
			t.Fatalf("cut %+v of %d bytes", cut, proto.Size(d))
		}
		got, err := gossip.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		wantKept(t, d, got)
		again, cut, err := gossip.Encode(got)
		if err != nil || cut.Any() || !bytes.Equal(again, b) {
			t.Fatalf("again: %v, %+v", err, cut)
		}
	})
}

func drawDigest(t *rapid.T) *meshv1.Digest {
	name := func(label string, limit int) string {
		return rapid.StringMatching(fmt.Sprintf("[a-z0-9-]{1,%d}", limit)).Draw(t, label)
	}
	d := &meshv1.Digest{
		Cell: name("cell", gossip.MaxCellName), Region: name("region", gossip.MaxRegionName),
		Incarnation: name("incarnation", gossip.MaxIncarnation), Zone: name("zone", gossip.MaxZoneName),
		Term: rapid.Uint64Range(1, 1<<63).Draw(t, "term"), Sequence: rapid.Uint64Range(1, 1<<63).Draw(t, "sequence"),
		Warm:        rapid.SliceOfN(rapid.Uint64(), 0, 100).Draw(t, "warm"),
		MissingCode: rapid.SliceOfN(rapid.Uint64(), 0, 100).Draw(t, "missing"),
		Carbon:      rapid.SliceOfN(rapid.Uint32Range(0, 2000), 0, 48).Draw(t, "carbon"),
	}
	var c mesh.Capacity
	c.CPUMilli = rapid.Int64Range(0, 1<<40).Draw(t, "cpu")
	for i := range rapid.IntRange(0, gossip.MaxModels).Draw(t, "models") {
		model := fmt.Sprint(i) + name("model", gossip.MaxModelName-1)
		c.GPUs = append(c.GPUs, mesh.Accelerators{Model: model, Count: rapid.Int64Range(0, 1000).Draw(t, "gpus")})
	}
	gossip.SetCapacities(d, gossip.Capacities{Total: c, Free: c, Widest: c})
	return d
}

func FuzzDecode(f *testing.F) {
	for _, d := range []*meshv1.Digest{small("eu-north-1", 3, 9), fullest()} {
		b, _, err := gossip.Encode(d)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("\x0a\x01a"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := gossip.Decode(b)
		if err != nil {
			return
		}
		if b, _, err = gossip.Encode(d); err != nil || len(b) > gossip.MaxEncoded {
			t.Fatalf("decoded, but: %v, %d bytes", err, len(b))
		}
		gossip.CapacitiesOf(d)
		gossip.WaitOf(d)
	})
}
