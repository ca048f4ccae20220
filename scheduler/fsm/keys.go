package fsm

import (
	"encoding/binary"
	"strings"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// The key space, one letter a kind. Stored: never reuse a letter.
//
//	b                      Bootstrap
//	c                      Clocks
//	t id                   TaskRecord
//	x id                   result
//	q queue id             ready tasks of a queue, in order
//	Q queue                QueueRecord
//	l lease-ms id          leases by the lease time they end at
//	w wall-ms kind id      what is due by the calendar
//	d id                   tasks whose start is put off by choice
//	k tenant key           idempotency key → hash, id
//	i tenant request id    → id
//	p topic ref            live payloads → id
//	T topic                trim position
//	n topic                highest reference, while something is left to trim
//	o topic                trim position that a broker outside is to be told
//	g id attempt           GuestRecord
//	G queue id attempt     guests that wait for a worker
//	e id attempt           guests that ended and are not acknowledged
//	m lease-ms id attempt  guests by the lease time they must start by
//	f queue id             deferred tasks of a queue
//	D queue id             dead letters of a queue
//	P tenant function      PaceRecord
//	s                      number of the last task that entered a line
//	v tenant function ordering-key number  the line of a key → id
//	V tenant function ordering-key  number of the line's first, while there is one
const (
	kindNext      = 'n' // a deferred task becomes ready
	kindExpire    = 'd' // deadline or lifetime
	kindRetention = 'r' // an ended task is forgotten
	kindGuest     = 'g' // a guest record is forgotten, acknowledged or not
)

// Queue names one queue: the tasks of one tenant's function in one lane.
type Queue struct {
	Tenant   string
	Function string
	Lane     mesh.Lane
}

// String is also the queue's broker topic.
func (q Queue) String() string { return q.Tenant + "/" + q.Function + "/" + q.Lane.String() }

func (q Queue) key() string {
	return q.Tenant + "\x00" + q.Function + "\x00" + string(rune('0'+q.Lane)) + "\x00"
}

func parseQueue(key string) (Queue, bool) {
	parts := strings.Split(key, "\x00")
	if len(parts) < 3 || len(parts[2]) != 1 {
		return Queue{}, false
	}
	return Queue{Tenant: parts[0], Function: parts[1], Lane: mesh.Lane(parts[2][0] - '0')}, true
}

func bootstrapKey() []byte { return []byte("b") }
func clocksKey() []byte    { return []byte("c") }

func taskKey(id string) []byte           { return []byte("t" + id) }
func resultKey(id string) []byte         { return []byte("x" + id) }
func readyKey(q Queue, id string) []byte { return []byte("q" + q.key() + id) }
func queueKey(q Queue) []byte            { return []byte("Q" + q.key()) }
func putOffKey(id string) []byte         { return []byte("d" + id) }
func trimKey(topic string) []byte        { return []byte("T" + topic) }
func highKey(topic string) []byte        { return []byte("n" + topic) }
func tellKey(topic string) []byte        { return []byte("o" + topic) }

func paceKey(tenant, function string) []byte { return []byte("P" + tenant + "\x00" + function) }

func orderKey() []byte { return []byte("s") }

// lineKey is the front of a key's line. Names before the ordering key hold no zero
// byte, and the key itself none.
func lineKey(rec *meshv1.TaskRecord) []byte {
	return []byte("v" + rec.Tenant + "\x00" + rec.Function + "\x00" + rec.OrderingKey + "\x00")
}

func frontKey(rec *meshv1.TaskRecord) []byte {
	k := lineKey(rec)
	k[0] = 'V'
	return k
}

func placeKey(rec *meshv1.TaskRecord) []byte {
	return append(lineKey(rec), lineNumber(rec.OrderSeq)...)
}

func lineNumber(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func deferredKey(q Queue, id string) []byte { return []byte("f" + q.key() + id) }
func deadKey(q Queue, id string) []byte     { return []byte("D" + q.key() + id) }

// Client-made names are told apart by tenant: one tenant's submit never answers
// with another's task.
func requestKey(tenant, id string) []byte { return []byte("i" + tenant + "\x00" + id) }

func keyKey(tenant, key string) []byte { return []byte("k" + tenant + "\x00" + key) }

func payloadKey(topic string, ref []byte) []byte {
	return append([]byte("p"+topic+"\x00"), ref...)
}

func leaseKey(until int64, id string) []byte {
	return append(timeKey('l', until), id...)
}

func calendarKey(at int64, kind byte, id string) []byte {
	return append(append(timeKey('w', at), kind), id...)
}

func guestKey(id string, attempt uint64) []byte { return numbered("g"+id, attempt) }
func endedKey(id string, attempt uint64) []byte { return numbered("e"+id, attempt) }

func guestReadyKey(q Queue, id string, attempt uint64) []byte {
	return numbered("G"+q.key()+id, attempt)
}

func startByKey(until int64, id string, attempt uint64) []byte {
	return numbered(string(timeKey('m', until))+id, attempt)
}

func guestDueKey(g *meshv1.GuestRecord) []byte {
	return calendarKey(g.AcceptedMs+g.TimeoutMs+guestLifetimeMs, kindGuest, string(numbered(g.TaskId, g.Attempt)))
}

func timeKey(prefix byte, at int64) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefix}, uint64(max(at, 0)))
}

func numbered(s string, n uint64) []byte {
	return binary.BigEndian.AppendUint64(append([]byte(s), 0), n)
}

// splitNumbered undoes numbered after the prefix of n bytes.
func splitNumbered(key []byte, prefix int) (id string, attempt uint64, ok bool) {
	if len(key) < prefix+9 {
		return "", 0, false
	}
	end := len(key) - 8
	return string(key[prefix : end-1]), binary.BigEndian.Uint64(key[end:]), true
}

// after is the first key that does not begin with prefix.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}

func be64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

func cutTopic(b []byte) (topic string, ref []byte, ok bool) {
	t, r, ok := strings.Cut(string(b), "\x00")
	return t, []byte(r), ok
}

// ParseTopic undoes Queue.String.
func ParseTopic(topic string) (Queue, bool) {
	first, last := strings.IndexByte(topic, '/'), strings.LastIndexByte(topic, '/')
	if first < 0 || first == last {
		return Queue{}, false
	}
	lane, err := mesh.ParseLane(topic[last+1:])
	return Queue{Tenant: topic[:first], Function: topic[first+1 : last], Lane: lane}, err == nil
}
