package server

import (
	"bytes"
	"log"
)

// strangers counts connections to the peer port that could not prove who they
// are; net/http reports them only by its error log.
func (s *Server) strangers() *log.Logger { return log.New(strangerLog{s}, "", 0) }

type strangerLog struct{ s *Server }

func (l strangerLog) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("TLS handshake error")) {
		l.s.counters.rejected.Inc()
	}
	l.s.log.Debug("peer port", "message", string(bytes.TrimSpace(b)))
	return len(b), nil
}
