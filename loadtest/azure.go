package loadtest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/isobar-mesh/isobar/loadtest/azure"
)

// ErrNoService is returned for a file whose name does not say which service it
// is of.
var ErrNoService = errors.New("the service is read from the file's name, which must end in _conv or _code before .csv or .csv.gz")

// ReadAzureLLMFile reads one file of the Azure LLM inference trace as
// published, gzipped or not. The service, conv or code, is the end of the
// file's name.
func ReadAzureLLMFile(path string) (Trace, error) {
	service, err := azureService(path)
	if err != nil {
		return Trace{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return Trace{}, fmt.Errorf("loadtest: read %s: %w", path, cause(err))
	}
	defer func() { _ = f.Close() }() // only read
	return ReadAzureLLM(f, path, service)
}

// cause drops what the error around it says already.
func cause(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	return err
}

func azureService(path string) (string, error) {
	base := strings.TrimSuffix(filepath.Base(path), ".gz")
	for _, service := range [...]string{"conv", "code"} {
		if strings.HasSuffix(base, "_"+service+".csv") {
			return service, nil
		}
	}
	return "", fmt.Errorf("loadtest: read %s: %w", path, ErrNoService)
}

// ReadAzureLLM reads the format of the Azure LLM inference trace, as
// azure.ReadLLM does, with its errors. A request of no tokens counts as one of
// one token.
func ReadAzureLLM(r io.Reader, name, service string) (Trace, error) {
	requests, start, err := azure.ReadLLM(r, name)
	if err != nil {
		return Trace{}, err
	}
	out := Trace{Start: start, Arrivals: make([]Arrival, 0, len(requests))}
	for _, q := range requests {
		out.Arrivals = append(out.Arrivals, Arrival{At: q.At, Service: service, Input: max(q.Input, 1), Output: max(q.Output, 1)})
	}
	return out, nil
}
