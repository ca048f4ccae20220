package pool

import (
	"context"
	"log"
	"log/slog"
	"strings"
	"sync/atomic"
)

// Stats are counts since a pool was opened.
type Stats struct {
	Published uint64 // digests of this server
	Received  uint64 // digests of others that were news
	Stale     uint64 // digests that were known

	// What was refused. None of it had any effect.
	RefusedPackets uint64 // datagrams that are no gossip of this mesh; WrongKey among them
	RefusedStreams uint64 // streams that are none, or one too many; WrongKey among them
	WrongKey       uint64 // messages that no key of the ring decrypts
	Undecodable    uint64 // digests and exchanges that passed the key, and make no sense
	UnknownKind    uint64 // messages of a kind this release does not know
	Strangers      uint64 // times that a server was kept out for its description

	Rejoins uint64 // times that a failed member or a seed answered again
}

// Refused is everything that was refused.
func (s Stats) Refused() uint64 {
	return s.RefusedPackets + s.RefusedStreams + s.Undecodable + s.UnknownKind + s.Strangers
}

type counters struct {
	published, received, stale      atomic.Uint64
	packets, streams, wrongKey      atomic.Uint64
	undecodable, unknown, strangers atomic.Uint64
	rejoins                         atomic.Uint64
}

func (c *counters) read() Stats {
	return Stats{
		Published: c.published.Load(), Received: c.received.Load(), Stale: c.stale.Load(),
		RefusedPackets: c.packets.Load(), RefusedStreams: c.streams.Load(), WrongKey: c.wrongKey.Load(),
		Undecodable: c.undecodable.Load(), UnknownKind: c.unknown.Load(), Strangers: c.strangers.Load(),
		Rejoins: c.rejoins.Load(),
	}
}

// newLogger turns memberlist's lines into records. memberlist tells of refused
// messages in its log only, so they are counted here; the tests of the gossip
// port notice when a new release of it says them in other words.
func newLogger(to *slog.Logger, counts *counters) *log.Logger {
	return log.New(&lines{to, counts}, "", 0)
}

type lines struct {
	to     *slog.Logger
	counts *counters
}

// Write implements io.Writer; package log calls it with one line at a time.
func (l *lines) Write(p []byte) (int, error) {
	line := strings.TrimSpace(string(p))
	// A peer that is gone is an error to memberlist, and daily life here: its
	// errors are warnings.
	level, text := slog.LevelWarn, line
	if tag, rest, ok := strings.Cut(line, "] "); ok && strings.HasPrefix(tag, "[") {
		text = strings.TrimPrefix(rest, "memberlist: ")
		switch tag {
		case "[DEBUG":
			level = slog.LevelDebug
		case "[INFO":
			level = slog.LevelInfo
		}
	}
	if l.refused(text) {
		// Anyone can cause these: a stranger must not fill the log.
		level = slog.LevelDebug
	}
	l.to.Log(context.Background(), level, "pool: "+text)
	return len(p), nil
}

// refused counts a line that tells of a refused message.
func (l *lines) refused(text string) bool {
	has := func(parts ...string) bool {
		for _, s := range parts {
			if strings.Contains(text, s) {
				return true
			}
		}
		return false
	}
	switch {
	case has("failed to receive and remove the stream label", "discarding stream", "failed to receive: ",
		"Received invalid msgType", "Failed to read remote state", "Failed to receive user message",
		"Too many pending push/pull", "unexpected double stream label"):
		l.counts.streams.Add(1)
	case has("Decrypt packet failed", "discarding packet", "cannot decode label; packet", "label header cannot be empty",
		"invalid checksum", "missing message type", "msg type (", "Message type (", "Failed to decode",
		"Failed to decompress", "truncated messages", "UDP packet too short"):
		l.counts.packets.Add(1)
	case has("ignoring alive message"):
		return true // counted by the delegate
	default:
		return false
	}
	if has("no installed keys could decrypt") {
		l.counts.wrongKey.Add(1)
	}
	return true
}
