package config

import "time"

// Worker is the file of `isobar worker`: one process that runs attempts for
// one cell.
type Worker struct {
	// Name of this worker, unique in its cell. Default: the host's name.
	Name string `yaml:"name"`
	// Servers are API URLs of the cell's servers; the worker finds the leader.
	Servers []string `yaml:"servers"`
	// Data is the directory of fetched code and of running attempts' files. It
	// may be emptied while the worker is stopped.
	Data string `yaml:"data"`
	// CPU offered, in cores. Default: all of the host's.
	CPU float64 `yaml:"cpu"`
	// MemoryMiB offered. Default: half of the host's, 1024 where unknown.
	MemoryMiB int64 `yaml:"memory_mib"`
	// InFlight bounds what the attempts that run at once may cost together, as
	// their tasks declare it.
	InFlight Cost `yaml:"in_flight"`
	// Accelerators is a YAML file that lists accelerators and replaces what the
	// worker finds by itself.
	Accelerators string `yaml:"accelerators"`
	// Runtimes offered: wasm, exec, http.
	Runtimes []string `yaml:"runtimes"`
	// Functions, when not empty, are the only ones this worker runs.
	Functions []string `yaml:"functions"`
	// Grace is how long running attempts may go on after the worker was told to
	// stop.
	Grace time.Duration `yaml:"grace"`
	// OTLP is where traces go.
	OTLP OTLP `yaml:"otlp"`
	// Log of the process, on standard error.
	Log Log `yaml:"log"`
}

// Cost bounds what tasks may cost together, as they declare it.
type Cost struct {
	// Tokens of a model; 0 is no bound.
	Tokens int64 `yaml:"tokens"`
	// Bytes of their payloads and what they declare besides; 0 is no bound.
	Bytes Size `yaml:"bytes"`
	// AcceleratorMiB is memory of accelerators that attempts share; 0 is no bound.
	AcceleratorMiB int64 `yaml:"accelerator_mib"`
}
