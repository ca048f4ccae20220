package raftlog

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// bridge is an hclog.Logger that writes to slog. What it does not override
// does nothing.
type bridge struct {
	hclog.Logger
	to   *slog.Logger
	name string
}

func newHclog(to *slog.Logger, name string) hclog.Logger {
	return bridge{Logger: hclog.NewNullLogger(), to: to.With("part", name), name: name}
}

func slogLevel(l hclog.Level) slog.Level {
	switch l {
	case hclog.Error:
		return slog.LevelError
	case hclog.Warn:
		return slog.LevelWarn
	case hclog.Info:
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}

func (b bridge) Log(level hclog.Level, msg string, args ...any) {
	l := slogLevel(level)
	if !b.to.Enabled(context.Background(), l) {
		return
	}
	for i, a := range args {
		switch v := a.(type) {
		case hclog.Format:
			if len(v) > 0 {
				args[i] = fmt.Sprintf(fmt.Sprint(v[0]), v[1:]...)
			}
		case error:
			args[i] = v.Error()
		}
	}
	b.to.Log(context.Background(), l, msg, args...)
}

func (b bridge) Trace(msg string, args ...any) { b.Log(hclog.Trace, msg, args...) }
func (b bridge) Debug(msg string, args ...any) { b.Log(hclog.Debug, msg, args...) }
func (b bridge) Info(msg string, args ...any)  { b.Log(hclog.Info, msg, args...) }
func (b bridge) Warn(msg string, args ...any)  { b.Log(hclog.Warn, msg, args...) }
func (b bridge) Error(msg string, args ...any) { b.Log(hclog.Error, msg, args...) }

func (b bridge) enabled(l hclog.Level) bool {
	return b.to.Enabled(context.Background(), slogLevel(l))
}

func (b bridge) IsTrace() bool { return false }
func (b bridge) IsDebug() bool { return b.enabled(hclog.Debug) }
func (b bridge) IsInfo() bool  { return b.enabled(hclog.Info) }
func (b bridge) IsWarn() bool  { return b.enabled(hclog.Warn) }
func (b bridge) IsError() bool { return b.enabled(hclog.Error) }
func (b bridge) Name() string  { return b.name }

func (b bridge) With(args ...any) hclog.Logger {
	b.to = b.to.With(args...)
	return b
}

func (b bridge) Named(name string) hclog.Logger {
	return newHclog(b.to, b.name+"."+name)
}

func (b bridge) ResetNamed(name string) hclog.Logger { return newHclog(b.to, name) }
