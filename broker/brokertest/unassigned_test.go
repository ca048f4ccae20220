package brokertest_test

import (
	"errors"
	"testing"

	"github.com/isobar-mesh/isobar/broker"
)

func TestUnassigned(t *testing.T) {
	t.Parallel()
	b := broker.Unassigned()
	ctx := t.Context()
	tests := []struct {
		name string
		call func() error
	}{
		{"Prepare", func() error { _, err := b.Prepare(ctx, []broker.Message{{}}); return err }},
		{"Prepare of nothing", func() error { _, err := b.Prepare(ctx, nil); return err }},
		{"Read", func() error {
			n, last := 0, error(nil)
			for _, err := range b.Read(ctx, broker.Topic{}, nil) {
				n, last = n+1, err
			}
			if n != 1 {
				t.Errorf("Read yields %d times, want once", n)
			}
			return last
		}},
		{"Fetch", func() error { _, err := b.Fetch(ctx, broker.Topic{}, nil); return err }},
		{"Trim", func() error { _, err := b.Trim(ctx, broker.Topic{}, nil); return err }},
		{"Trimmed", func() error { return b.Trimmed(ctx, broker.Topic{}, nil) }},
	}
	for _, tt := range tests {
		if err := tt.call(); !errors.Is(err, broker.ErrUnassigned) {
			t.Errorf("%s has error %v, want ErrUnassigned", tt.name, err)
		}
	}
	if err := b.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}
