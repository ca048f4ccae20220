package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// payload is a function's input as the API takes it: exactly one is set.
type payload struct {
	bytes []byte
	text  *string
	json  *structpb.Value
}

// readPayload reads the argument: text as it stands, @FILE, or - for standard
// input. asJSON sends it as a JSON value, which the server hands on in one line.
func (a *app) readPayload(arg string, asJSON bool) (payload, error) {
	var data []byte
	var err error
	isText := false
	switch {
	case arg == "-":
		data, err = readAll(a.stdin)
	case strings.HasPrefix(arg, "@"):
		data, err = readFile(arg[1:])
	default:
		data, isText = []byte(arg), utf8.ValidString(arg)
	}
	if err != nil {
		return payload{}, hinted(exitUsage, fmt.Errorf("read payload: %w", err), "give the payload as text, @FILE, or - for standard input")
	}
	if len(data) > mesh.MaxPayload {
		return payload{}, usage(fmt.Sprintf("read payload: it is larger than %s", bytesText(mesh.MaxPayload)),
			"put the data where the function can fetch it, and send where that is")
	}
	switch {
	case asJSON:
		value := &structpb.Value{}
		if !json.Valid(data) || protojson.Unmarshal(data, value) != nil {
			return payload{}, usage("read payload: it is not JSON", "leave --json out to send it as it stands")
		}
		return payload{json: value}, nil
	case isText:
		return payload{text: &arg}, nil
	default:
		return payload{bytes: data}, nil
	}
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	return readAll(f)
}

// readAll reads one byte more than may be sent, so that too much is noticed
// and never held.
func readAll(r io.Reader) ([]byte, error) {
	if r == nil {
		return nil, errors.New("no standard input")
	}
	return io.ReadAll(io.LimitReader(r, mesh.MaxPayload+1))
}
