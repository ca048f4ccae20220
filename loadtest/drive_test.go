package loadtest

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func every(gap time.Duration, n int) []Arrival {
	out := make([]Arrival, n)
	for i := range out {
		out[i].At = time.Duration(i) * gap
	}
	return out
}

// TestDriveIsOpenLoop: a server that stalls for a second while a request comes
// every 100 ms shows in the latency of each one that was due meanwhile.
func TestDriveIsOpenLoop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		stall := start.Add(time.Second)
		samples := Drive(t.Context(), every(100*time.Millisecond, 15), Pace{}, func(context.Context, int, Arrival) error {
			time.Sleep(max(time.Until(stall), 10*time.Millisecond))
			return nil
		})
		var l Latencies
		for i, s := range samples {
			due := time.Duration(i) * 100 * time.Millisecond
			if s.Due != due || s.Sent != due {
				t.Errorf("request %d: due %v and sent %v, want %v", i, s.Due, s.Sent, due)
			}
			if want := max(time.Second-due, 10*time.Millisecond); s.Latency() != want {
				t.Errorf("request %d: latency %v, want %v", i, s.Latency(), want)
			}
			l.Add(s.Latency())
		}
		// A closed loop would have seen one slow request of fifteen.
		if got := l.Quantile(0.5); got != 300*time.Millisecond {
			t.Errorf("median %v, want 300ms", got)
		}
	})
}

func TestDriveSpeed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var sent atomic.Int64
		failure := errors.New("no")
		samples := Drive(t.Context(), every(time.Minute, 11), Pace{Speed: 60}, func(_ context.Context, i int, _ Arrival) error {
			sent.Add(1)
			if i == 3 {
				return failure
			}
			return nil
		})
		if got := time.Since(start); got != 10*time.Second {
			t.Errorf("ten minutes at sixty times took %v, want 10s", got)
		}
		for i, s := range samples {
			if (s.Err != nil) != (i == 3) {
				t.Errorf("request %d: error %v", i, s.Err)
			}
		}
		if sent.Load() != 11 {
			t.Errorf("%d sent, want 11", sent.Load())
		}
	})
}

// TestDriveStops: when the context ends nothing more is sent, what is under way
// is told, and every arrival has its sample.
func TestDriveStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		enough := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(250*time.Millisecond, func() { cancel(enough) })
		samples := Drive(ctx, every(100*time.Millisecond, 6), Pace{}, func(ctx context.Context, _ int, _ Arrival) error {
			<-ctx.Done()
			return context.Cause(ctx)
		})
		for i, s := range samples {
			if !errors.Is(s.Err, enough) {
				t.Errorf("request %d: error %v, want %v", i, s.Err, enough)
			}
			if due := time.Duration(i) * 100 * time.Millisecond; s.Due != due {
				t.Errorf("request %d: due %v, want %v", i, s.Due, due)
			}
			if i < 3 && s.Done != 250*time.Millisecond || i >= 3 && (s.Sent != 0 || s.Latency() != 0) {
				t.Errorf("request %d: sent %v, done %v", i, s.Sent, s.Done)
			}
		}
	})
}

func TestQuantile(t *testing.T) {
	t.Parallel()
	ten := []time.Duration{10, 3, 7, 1, 9, 2, 8, 4, 6, 5}
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(100 - i)
	}
	for _, tt := range []struct {
		name   string
		values []time.Duration
		q      float64
		want   time.Duration
	}{
		{"nothing", nil, 0.5, 0},
		{"one", []time.Duration{4}, 0.99, 4},
		{"median of ten", ten, 0.5, 5},
		{"just above", ten, 0.51, 6},
		{"p90 of ten", ten, 0.9, 9},
		{"p99 of ten", ten, 0.99, 10},
		{"least", ten, 0, 1},
		{"below", ten, -1, 1},
		{"largest", ten, 1, 10},
		{"above", ten, 2, 10},
		{"p99 of a hundred", hundred, 0.99, 99},
		{"exact rank", hundred, 0.07, 7}, // 0.07 × 100 is 7.000000000000001
	} {
		var l Latencies
		for _, v := range tt.values {
			l.Add(v)
		}
		if got := l.Quantile(tt.q); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
		if l.Count() != len(tt.values) {
			t.Errorf("%s: %d values, want %d", tt.name, l.Count(), len(tt.values))
		}
	}
}

func TestHistogram(t *testing.T) {
	t.Parallel()
	var l Latencies
	if got := l.Histogram(); got != nil {
		t.Errorf("of nothing: %v", got)
	}
	for _, ms := range []int{3, 3, 9, 2, 1_000_000} {
		l.Add(time.Duration(ms) * time.Millisecond)
	}
	got := l.Histogram()
	if first := got[0]; first != (Bucket{Below: 4 * time.Millisecond, Count: 3}) {
		t.Errorf("first bucket %v, want three below 4ms", first)
	}
	sum := 0
	for _, b := range got {
		sum += b.Count
	}
	if last := got[len(got)-1]; sum != 5 || last.Count != 1 || last.Below != 1048576*time.Millisecond {
		t.Errorf("%d counted and the last bucket is %v, want 5 and one below 1048.576s", sum, last)
	}
	l.Add(1 << 62)
	l.Add(1<<63 - 1)
	got = l.Histogram()
	if last := got[len(got)-1]; last.Count != 2 {
		t.Errorf("the last bucket is %v, want two", last)
	}
}
