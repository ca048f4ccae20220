package fsm

import (
	"encoding/binary"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// tick runs what is due by the two clocks, at most limit items.
func (a *apply) tick(c *meshv1.Tick) error {
	limit := int(c.Limit)
	if limit == 0 {
		limit = 1024
	}
	// The due keys are read before anything changes: a scan must not see its
	// own writes.
	calendar := a.due('w', a.clocks.WallMs, limit)
	var leases, starts [][]byte
	if c.ExpireLeases {
		leases = a.due('l', a.clocks.LeaseMs, limit)
		starts = a.due('m', a.clocks.LeaseMs, limit)
	}
	a.result.More = len(calendar) == limit || len(leases) == limit || len(starts) == limit
	for _, k := range calendar {
		a.calendarDue(k[9], string(k[10:]), k)
	}
	for _, k := range leases {
		a.leaseDue(string(k[9:]), k)
	}
	for _, k := range starts {
		if id, attempt, ok := splitNumbered(k, 9); ok {
			a.guestOverdue(id, attempt)
		}
		a.Delete(k)
	}
	return nil
}

// due lists the keys of a time index up to and including now.
func (a *apply) due(prefix byte, now int64, limit int) [][]byte {
	var keys [][]byte
	for k := range a.Scan([]byte{prefix}, timeKey(prefix, now+1)) {
		keys = append(keys, append([]byte(nil), k...))
		if len(keys) == limit {
			break
		}
	}
	return keys
}

func (a *apply) calendarDue(kind byte, id string, key []byte) {
	a.Delete(key)
	if kind == kindGuest {
		if guest, attempt, ok := splitNumbered([]byte(id), 0); ok {
			a.forgetGuest(guest, attempt)
		}
		return
	}
	rec, err := a.task(id)
	if err != nil {
		return
	}
	switch kind {
	case kindNext:
		if State(rec) == deferred && rec.NextMs <= a.clocks.WallMs {
			a.toReady(rec)
			put(a, taskKey(id), rec)
		}
	case kindExpire:
		if Ended(State(rec)) {
			return
		}
		reason := "its lifetime passed"
		if rec.DeadlineMs != 0 && rec.DeadlineMs <= rec.LifetimeMs {
			reason = "its deadline passed"
		}
		a.voidLease(rec, "cancelled", reason)
		a.end(rec, expired, reason)
		put(a, taskKey(id), rec)
	case kindRetention:
		if Ended(State(rec)) {
			a.forget(rec)
		}
	}
}

// leaseDue gives up a lease nobody extended: the holder is lost.
func (a *apply) leaseDue(id string, key []byte) {
	rec, err := a.task(id)
	if err != nil || State(rec) != leased || rec.Lease.UntilLeaseMs != int64(binary.BigEndian.Uint64(key[1:9])) {
		a.Delete(key)
		return
	}
	message := "the lease ran out: its holder was not heard of"
	status := "lost"
	if rec.Lease.Started && rec.Lease.UntilLeaseMs == rec.Lease.LimitLeaseMs {
		status, message = "timeout", "the function's timeout passed"
	}
	a.failed(rec, &meshv1.Ended{Status: status, Message: message})
	put(a, taskKey(id), rec)
}
