// Package brokertest is the conformance suite of the broker seam. Every
// backend runs it, so that they cannot drift apart:
//
//	func TestConformance(t *testing.T) { brokertest.Run(t, newHarness) }
//
// It knows a backend by its Harness only, and works for both kinds: those whose
// payloads become durable by commands that the caller commits in the cell's
// log, and those that are durable when Prepare returns.
package brokertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
)

// Config is what a test asks of the backend it gets.
type Config struct {
	// MaxBytes caps the live payload bytes, roughly: of all topics or of each, at
	// once or after a while, as the backend can. 0 is no cap.
	MaxBytes uint64
	// Breaks is set for a test that calls Harness.Fault with a fault that others
	// on the same machinery would feel. Such tests run one at a time.
	Breaks bool
}

// Fault is what befalls a backend, or the nearest that can befall it.
type Fault string

// The faults.
const (
	// Kill: the process that keeps the payloads is killed and started again.
	Kill Fault = "kill"
	// Unload: topics are closed in it and opened again.
	Unload Fault = "unload"
	// Slow: each answer takes much longer than usual.
	Slow Fault = "slow"
	// Hang: nothing answers, and no connection breaks.
	Hang Fault = "hang"
	// Replace: an empty one takes its place.
	Replace Fault = "replace"
)

// Harness is one fresh, empty backend under test. The functions are safe for
// concurrent use, but for Crash and Fault.
type Harness struct {
	// Broker is the backend of the first leader.
	Broker broker.Broker
	// Commit commits the commands as one group, all or nothing, with the
	// leader of the moment, whichever leader made them. A backend without
	// commands leaves it nil.
	Commit func(commands ...[]byte) error
	// Crash ends the leader without a goodbye: what is not durable is lost. It
	// returns the backend of the next one. The old one's still works as far as a
	// deposed leader's can.
	Crash func() broker.Broker
	// Fault begins a fault; end ends it and returns the backend to go on with,
	// which is the same or another leader's.
	Fault func(f Fault) (end func() broker.Broker)
	// Foreign puts something into the topic that this broker did not write, by
	// whatever way there is. The error is the backend's if it refuses.
	Foreign func(t broker.Topic) error
	// Need says which payload a task that has not ended needs, nil for none. A
	// backend inside the cell's log, which is never without it, leaves it nil.
	Need func(ref broker.Reference)
}

// Factory makes a Harness and registers its clean-up with t.
type Factory func(t *testing.T, c Config) *Harness

// Run runs every test of the suite on harnesses of the factory.
func Run(t *testing.T, f Factory) {
	tests := []struct {
		name   string
		config Config
		run    func(*suite)
	}{
		{"order per topic", Config{}, testOrder},
		{"read from a position", Config{}, testReadFrom},
		{"read stops early", Config{}, testReadStops},
		{"read outruns the commit", Config{}, testReadOutruns},
		{"fetch", Config{}, testFetch},
		{"topic without messages", Config{}, testEmptyTopic},
		{"topics do not mix", Config{}, testTopicsApart},
		{"crash before commit", Config{}, testCrashBeforeCommit},
		{"crash after commit", Config{}, testCrashAfterCommit},
		{"commit after crash", Config{}, testLateCommit},
		{"commit twice", Config{}, testCommitTwice},
		{"commit out of order", Config{}, testOutOfOrder},
		{"leadership moves in flight", Config{}, testMovedLeadership},
		{"deposed leader writes", Config{}, testDeposed},
		{"foreign messages", Config{}, testForeign},
		{"trim", Config{}, testTrim},
		{"trim is cumulative and idempotent", Config{}, testTrimCumulative},
		{"trim survives a crash", Config{}, testTrimCrash},
		{"append behind a trim", Config{}, testAppendBehindTrim},
		{"payload moved", Config{}, testMoved},
		{"too large", Config{}, testTooLarge},
		{"largest and smallest", Config{}, testSizes},
		{"full", Config{MaxBytes: 1000}, testFull},
		{"damaged", Config{}, testDamaged},
		{"cancelled context", Config{}, testCancelled},
		{"concurrent", Config{}, testConcurrent},
		{"close", Config{}, testClose},
		{"topic unloaded", Config{}, testUnload},
		{"broker killed", Config{Breaks: true}, testKill},
		{"broker slow", Config{Breaks: true}, testSlow},
		{"broker hangs", Config{Breaks: true}, testHang},
		{"broker replaced", Config{Breaks: true}, testReplace},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if !tt.config.Breaks {
				t.Parallel()
			}
			tt.run(&suite{TB: t, ctx: t.Context(), Harness: f(t, tt.config), breaks: tt.config.Breaks})
		})
	}
}

// suite is one test on one harness.
type suite struct {
	testing.TB
	*Harness
	ctx    context.Context
	breaks bool // see Config.Breaks
}

func topic(function string) broker.Topic {
	return broker.Topic{Tenant: "default", Function: function, Lane: mesh.Standard}
}

func message(t broker.Topic, id string, payload []byte) broker.Message {
	return broker.Message{Topic: t, TaskID: mesh.TaskID(id), SHA256: sha256.Sum256(payload), Payload: payload}
}

// numbered makes n small messages with ids from first on.
func numbered(t broker.Topic, first, n int) []broker.Message {
	out := make([]broker.Message, n)
	for i := range out {
		out[i] = message(t, fmt.Sprintf("task-%04d", first+i), fmt.Appendf(nil, "payload %d of %s", first+i, t))
	}
	return out
}

func (s *suite) prepare(msgs ...broker.Message) []broker.Prepared {
	s.Helper()
	var p []broker.Prepared
	var err error
	// What others broke before may be felt for a while: callers repeat then.
	s.within(func() bool {
		p, err = s.Broker.Prepare(s.ctx, msgs)
		return !s.breaks || !errors.Is(err, broker.ErrUnavailable)
	})
	if err != nil {
		s.Fatalf("Prepare of %d messages: %v", len(msgs), err)
	}
	if len(p) != len(msgs) {
		s.Fatalf("Prepare of %d messages gave %d results", len(msgs), len(p))
	}
	return p
}

// tryCommit commits the prepared messages in one group.
func (s *suite) tryCommit(ps ...broker.Prepared) error {
	var commands [][]byte
	for _, p := range ps {
		if p.Command != nil {
			commands = append(commands, p.Command)
		}
	}
	if len(commands) == 0 {
		return nil
	}
	return s.Commit(commands...)
}

func (s *suite) commit(ps ...broker.Prepared) {
	s.Helper()
	if err := s.tryCommit(ps...); err != nil {
		s.Fatalf("commit of %d prepared messages: %v", len(ps), err)
	}
}

// put stores the messages, each in a group of its own.
func (s *suite) put(msgs ...broker.Message) []broker.Reference {
	s.Helper()
	refs := make([]broker.Reference, len(msgs))
	for i, p := range s.prepare(msgs...) {
		s.commit(p)
		refs[i] = p.Ref
	}
	return refs
}

func (s *suite) crash() { s.Broker = s.Crash() }

func (s *suite) trim(t broker.Topic, ref broker.Reference) {
	s.Helper()
	command, err := s.Broker.Trim(s.ctx, t, ref)
	if err != nil {
		s.Fatalf("Trim: %v", err)
	}
	if command != nil {
		if err := s.Commit(command); err != nil {
			s.Fatalf("commit of a trim: %v", err)
		}
	}
	if err := s.Broker.Trimmed(s.ctx, t, ref); err != nil {
		s.Fatalf("Trimmed: %v", err)
	}
}

func (s *suite) read(t broker.Topic, from broker.Reference) []broker.Stored {
	s.Helper()
	var out []broker.Stored
	for m, err := range s.Broker.Read(s.ctx, t, from) {
		if err != nil {
			s.Fatalf("Read: %v", err)
		}
		if m.Topic != t {
			s.Errorf("Read of %s yields a message of %s", t, m.Topic)
		}
		out = append(out, m)
	}
	if !slices.IsSortedFunc(out, func(a, b broker.Stored) int { return bytes.Compare(a.Ref, b.Ref) }) {
		s.Errorf("Read of %s is not in the order of references", t)
	}
	return out
}

// wantRead reads the topic and compares it with the messages and references.
func (s *suite) wantRead(t broker.Topic, from broker.Reference, msgs []broker.Message, refs []broker.Reference) {
	s.Helper()
	got := s.read(t, from)
	if len(got) != len(msgs) {
		s.Fatalf("Read of %s from %x yields %d messages, want %d: %s", t, []byte(from), len(got), len(msgs), ids(got))
	}
	for i, m := range msgs {
		s.same(got[i], m, refs[i])
	}
}

func (s *suite) same(got broker.Stored, want broker.Message, ref broker.Reference) {
	s.Helper()
	switch {
	case got.Err != nil:
		s.Errorf("message %s has error %v", want.TaskID, got.Err)
	case got.TaskID != want.TaskID || got.SHA256 != want.SHA256 || !bytes.Equal(got.Payload, want.Payload):
		s.Errorf("got message %s of %d bytes, want %s of %d", got.TaskID, len(got.Payload), want.TaskID, len(want.Payload))
	case !bytes.Equal(got.Ref, ref):
		s.Errorf("message %s has reference %x, want %x", want.TaskID, []byte(got.Ref), []byte(ref))
	}
}

func (s *suite) wantFetch(m broker.Message, ref broker.Reference) {
	s.Helper()
	got, err := s.Broker.Fetch(s.ctx, m.Topic, ref)
	if err != nil {
		s.Errorf("Fetch of %s: %v", m.TaskID, err)
		return
	}
	s.same(got, m, ref)
}

func (s *suite) wantLost(t broker.Topic, ref broker.Reference) {
	s.Helper()
	if _, err := s.Broker.Fetch(s.ctx, t, ref); !errors.Is(err, broker.ErrLost) {
		s.Errorf("Fetch of %x has error %v, want ErrLost", []byte(ref), err)
	}
}

func ids(msgs []broker.Stored) []mesh.TaskID {
	out := make([]mesh.TaskID, len(msgs))
	for i, m := range msgs {
		out[i] = m.TaskID
	}
	return out
}
