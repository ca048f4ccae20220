package accel

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, text string
		want       []Accelerator
		err        string
	}{
		{name: "empty"},
		{name: "none", text: "accelerators: []\n"},
		{
			name: "sorted by model",
			text: "accelerators:\n  - {model: L4, count: 4, memory_gib: 24}\n  - {model: H100, count: 2, memory_gib: 80}\n",
			want: []Accelerator{{"H100", 2, 80}, {"L4", 4, 24}},
		},
		{name: "unknown field", text: "accelerators:\n  - {model: L4, count: 4, memory: 24}\n", err: "memory"},
		{name: "unknown top", text: "gpus: []\n", err: "gpus"},
		{name: "repeated field", text: "accelerators: []\naccelerators: []\n", err: "accelerators"},
		{name: "wrong type", text: "accelerators:\n  - {model: L4, count: many, memory_gib: 24}\n", err: "parse inventory"},
		{name: "not YAML", text: "accelerators: [", err: "parse inventory"},
		{name: "tag before a comment", text: "accelerators:\n !0 #0", err: "parse inventory"},
		{name: "two documents", text: "accelerators: []\n---\naccelerators: []\n", err: "has a second document"},
		{name: "no model", text: "accelerators:\n  - {count: 1, memory_gib: 24}\n", err: "accelerators[0].model"},
		{name: "bad model", text: "accelerators:\n  - {model: 'L 4', count: 1, memory_gib: 24}\n", err: "accelerators[0].model"},
		{name: "no count", text: "accelerators:\n  - {model: L4, memory_gib: 24}\n", err: "accelerators[0].count is 0"},
		{name: "negative", text: "accelerators:\n  - {model: L4, count: -1, memory_gib: 24}\n", err: "accelerators[0].count is -1"},
		{name: "no memory", text: "accelerators:\n  - {model: L4, count: 1}\n", err: "accelerators[0].memory_gib is 0"},
		{name: "twice", text: "accelerators:\n  - {model: L4, count: 1, memory_gib: 24}\n  - {model: L4, count: 1, memory_gib: 24}\n", err: "accelerators[1].model L4 is given twice"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := Parse([]byte(test.text))
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("got %v, want an error that holds %q", err, test.err)
				}
				_, typed := errors.AsType[*EntryError](err)
				if typed != strings.HasPrefix(test.err, "accelerators[") {
					t.Errorf("got %T", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got.Accelerators, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "accelerators.yaml")
	if _, err := Load(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want not exist", err)
	}
	if err := os.WriteFile(name, []byte("accelerators:\n  - {model: H100, count: 2, memory_gib: 80}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	inv, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	got := inv.Capacity(mesh.Capacity{CPUMilli: 2000, MemoryMiB: 512})
	want := mesh.Capacity{CPUMilli: 2000, MemoryMiB: 512, GPUs: []mesh.Accelerators{{Model: "H100", Count: 2}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestLinuxHost(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		files map[string]string
		want  mesh.Capacity
	}{
		{"no groups", nil, mesh.Capacity{CPUMilli: 4000, MemoryMiB: 16000}},
		{"version 1", map[string]string{"proc/self/cgroup": "4:memory:/a\n"}, mesh.Capacity{CPUMilli: 4000, MemoryMiB: 16000}},
		{"no limits", map[string]string{
			"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n", "sys/fs/cgroup/memory.max": "max\n",
		}, mesh.Capacity{CPUMilli: 4000, MemoryMiB: 16000}},
		{"own limits", map[string]string{
			"proc/self/cgroup": "4:memory:/x\n0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n", "sys/fs/cgroup/a/b/memory.max": "1073741824\n",
		}, mesh.Capacity{CPUMilli: 1500, MemoryMiB: 1024}},
		{"limits above", map[string]string{
			"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
			"sys/fs/cgroup/a/b/cpu.max": "400000 100000\n", "sys/fs/cgroup/a/memory.max": "536870912\n", "sys/fs/cgroup/a/b/memory.max": "max\n",
		}, mesh.Capacity{CPUMilli: 500, MemoryMiB: 512}},
		{"container", map[string]string{
			"proc/self/cgroup": "0::/../outside\n", "sys/fs/cgroup/cpu.max": "200000 100000\n", "sys/fs/cgroup/memory.max": "268435456\n",
		}, mesh.Capacity{CPUMilli: 2000, MemoryMiB: 256}},
		{"limits above the machine", map[string]string{
			"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n", "sys/fs/cgroup/memory.max": "1099511627776\n",
		}, mesh.Capacity{CPUMilli: 4000, MemoryMiB: 16000}},
		{"nonsense", map[string]string{
			"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "0 0\n", "sys/fs/cgroup/memory.max": "lots\n",
		}, mesh.Capacity{CPUMilli: 4000, MemoryMiB: 16000}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			root := fstest.MapFS{"proc/meminfo": {Data: []byte("MemTotal:       16384000 kB\nMemFree: 1 kB\n")}}
			for name, text := range test.files {
				root[name] = &fstest.MapFile{Data: []byte(text)}
			}
			got, err := linuxHost(root, 4)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := linuxHost(fstest.MapFS{}, 4); err == nil {
		t.Error("a host without /proc/meminfo must be an error")
	}
}

func TestHost(t *testing.T) {
	t.Parallel()
	got, err := Host()
	if err != nil {
		t.Fatal(err)
	}
	if got.CPUMilli < 1 || got.MemoryMiB < 16 {
		t.Errorf("got %+v, want some of each", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("accelerators:\n  - {model: H100, count: 2, memory_gib: 80}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		inv, err := Parse(text)
		if err != nil {
			return
		}
		for _, g := range inv.Capacity(mesh.Capacity{}).GPUs {
			if g.Model == "" || g.Count < 1 {
				t.Fatalf("got %+v from an inventory that parses", g)
			}
		}
	})
}
