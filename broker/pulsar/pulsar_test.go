package pulsar_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	client "github.com/apache/pulsar-client-go/pulsar"
	"github.com/apache/pulsar-client-go/pulsar/log"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/broker/brokertest"
	"github.com/isobar-mesh/isobar/broker/pulsar"
	"github.com/isobar-mesh/isobar/broker/pulsar/pulsartest"
	"github.com/isobar-mesh/isobar/broker/pulsar/standalone"
	"github.com/isobar-mesh/isobar/internal/mesh"
)

// needs is a log in which one payload is needed, or none.
type needs struct {
	mu  sync.Mutex
	ref broker.Reference
}

func (*needs) Incarnation() string { return "k3f9ab" }

func (n *needs) need(ref broker.Reference) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ref = ref
}

func (n *needs) Needed(low, high broker.Reference) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ref != nil && (bytes.Compare(n.ref, low) < 0 || bytes.Compare(n.ref, high) >= 0) {
		return "the payload of task-0002"
	}
	return ""
}

// cell is one cell of the mesh with its leaders, on one cluster.
type cell struct {
	t       testing.TB
	cluster pulsartest.Cluster
	options pulsar.Options
	log     *needs
	leader  *pulsar.Broker
	term    uint64
}

func newCell(t testing.TB, c pulsartest.Cluster) *cell {
	log := &needs{}
	cell := &cell{t: t, cluster: c, log: log, options: pulsar.Options{
		Log: log, Service: c.Service, Admin: c.Admin, Cell: fmt.Sprintf("test-%08x", rand.Uint32()), Server: "s1", Timeout: 20 * time.Second,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError})),
	}}
	t.Cleanup(cell.delete)
	return cell
}

// delete takes the cell's namespaces out of the cluster again, as far as it is
// there.
func (c *cell) delete() {
	var tenants []string
	c.admin(http.MethodGet, "/tenants", "", &tenants)
	for _, tenant := range tenants {
		if !strings.HasPrefix(tenant, "isobar") {
			continue
		}
		var namespaces []string
		c.admin(http.MethodGet, "/namespaces/"+tenant, "", &namespaces)
		for _, n := range namespaces {
			if strings.Contains(n, c.options.Cell) {
				c.admin(http.MethodDelete, "/namespaces/"+n+"?force=true", "", nil)
			}
		}
	}
}

// admin calls the admin API and returns the status, 0 for no answer.
func (c *cell) admin(method, path, body string, out any) int {
	return pulsartest.Admin(context.Background(), c.cluster, method, path, body, out)
}

// elect starts the next leader; the one before is not told.
func (c *cell) elect() *pulsar.Broker {
	c.t.Helper()
	b, err := pulsar.Open(c.options)
	if err != nil {
		c.t.Fatal(err)
	}
	c.term++
	if err := b.Lead(c.term); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = b.Close() }) // the cluster may be gone by now
	c.leader = b
	return b
}

// topic is the name of the topic in Pulsar.
func (c *cell) topic(t broker.Topic) string {
	c.t.Helper()
	name, err := c.leader.TopicName(context.Background(), t)
	if err != nil {
		c.t.Fatal(err)
	}
	return name
}

// foreign sends a message with Pulsar's own client.
func (c *cell) foreign(t broker.Topic) error {
	p, err := client.NewClient(client.ClientOptions{URL: c.cluster.Service, Logger: log.DefaultNopLogger()})
	if err != nil {
		return err
	}
	defer p.Close()
	producer, err := p.CreateProducer(client.ProducerOptions{Topic: c.topic(t)})
	if err != nil {
		return err
	}
	defer producer.Close()
	before := c.leader.Stats().Foreign
	if _, err = producer.Send(context.Background(), &client.ProducerMessage{Payload: []byte("rm -rf /")}); err != nil {
		return err
	}
	c.t.Cleanup(func() {
		if now := c.leader.Stats().Foreign; now <= before {
			c.t.Errorf("%d foreign messages are counted, want more than %d", now, before)
		}
	})
	return nil
}

func (c *cell) unload(topic string) {
	path := strings.Replace(topic, "://", "/", 1)
	if status := c.admin(http.MethodPut, "/"+path+"/unload", "", nil); status/100 != 2 {
		c.t.Errorf("unload %s: status %d", path, status)
	}
}

// A cell of another region on the same cluster is found, by the mark it left with
// its first payload and renews.
func TestSharedCluster(t *testing.T) {
	t.Parallel()
	shared := pulsartest.Shared(t)
	var cells []*cell
	for i := range 2 {
		c := newCell(t, shared)
		c.options.Region, c.options.Jurisdictions = "region-of-"+c.options.Cell, []string{fmt.Sprint("j", i)}
		c.options.CheckEvery = 50 * time.Millisecond
		cells = append(cells, c)
	}
	first, second := cells[0].elect(), cells[1].elect()
	sharers := func(b *pulsar.Broker) map[string][]string {
		found, _ := b.Sharers()
		return found
	}
	payload := []byte("a payload")
	m := broker.Message{Topic: broker.Topic{Tenant: "default", Function: "f", Lane: mesh.Standard}, TaskID: "t", SHA256: sha256.Sum256(payload), Payload: payload}
	if _, err := first.Prepare(t.Context(), []broker.Message{m}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); sharers(second)[cells[0].options.Region] == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the other region's cell is not among %v", sharers(second))
		}
	}
	if _, known := second.Sharers(); !known {
		t.Error("not all who share are known")
	}
	if got := sharers(second)[cells[0].options.Region]; len(got) != 1 || got[0] != "j0" {
		t.Errorf("its jurisdictions are %v, want j0", got)
	}
	if got := sharers(first)[cells[1].options.Region]; got != nil {
		t.Errorf("a cell that has never written shares the cluster: %v", got)
	}
	renewed := func() string {
		var p map[string]string
		cells[0].admin(http.MethodGet, "/namespaces/isobar/"+cells[0].options.Cell+".k3f9ab/properties", "", &p)
		return p["isobar-seen"]
	}
	was := renewed()
	for end := time.Now().Add(time.Minute); was == "" || renewed() == was; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the mark, seen at %q, is not renewed", was)
		}
	}
}

// Callers that go away, or will not wait, cost those who stay nothing.
func TestCallersThatLeave(t *testing.T) {
	t.Parallel()
	b := newCell(t, pulsartest.Shared(t)).elect()
	payload := []byte("a payload")
	m := broker.Message{Topic: broker.Topic{Tenant: "default", Function: "f", Lane: mesh.Standard}, TaskID: "t", SHA256: sha256.Sum256(payload), Payload: payload}
	if _, err := b.Prepare(t.Context(), []broker.Message{m}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var leaving sync.WaitGroup
	for range 4 {
		leaving.Go(func() {
			for ctx.Err() == nil {
				brief, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(2000))*time.Microsecond)
				_, _ = b.Prepare(brief, []broker.Message{m}) // it may come in time
				cancel()
			}
		})
	}
	for i := range 300 {
		if _, err := b.Prepare(t.Context(), []broker.Message{m}); err != nil {
			t.Errorf("prepare %d: %v", i, err)
			break
		}
	}
	stop()
	leaving.Wait()
}

// destructible is a standalone that tests may break, started for the first.
type destructible struct {
	once     sync.Once
	instance *standalone.Instance
}

func (d *destructible) get(t *testing.T) *standalone.Instance {
	d.once.Do(func() { d.instance = pulsartest.Own(t, nil) })
	return d.instance
}

func TestConformance(t *testing.T) {
	t.Run("pulsar", func(t *testing.T) {
		shared := pulsartest.Shared(t)
		var own destructible
		cluster := func(config brokertest.Config) pulsartest.Cluster {
			if !config.Breaks {
				return shared
			}
			i := own.get(t)
			c := pulsartest.Cluster{Service: i.Service, Admin: i.Admin}
			settled(t, c)
			return c
		}
		brokertest.Run(t, func(sub *testing.T, config brokertest.Config) *brokertest.Harness {
			c := newCell(sub, cluster(config))
			c.options.Quota = int64(config.MaxBytes)
			return &brokertest.Harness{
				Broker:  c.elect(),
				Crash:   func() broker.Broker { return c.elect() },
				Fault:   func(f brokertest.Fault) func() broker.Broker { return c.fault(f, own.instance) },
				Foreign: c.foreign,
				Need:    c.log.need,
			}
		})
		t.Run("streams", func(t *testing.T) {
			brokertest.RunStreams(t, func(sub *testing.T, config brokertest.Config) *brokertest.StreamHarness {
				c := cluster(config)
				return streamHarness(sub, config, c, own.instance)
			})
		})
	})
}

// settled waits until the cluster takes messages on new topics, time after time: for
// a while after a fault its bookie comes and goes, though the broker says that it is
// healthy.
func settled(t *testing.T, c pulsartest.Cluster) {
	t.Helper()
	p, err := client.NewClient(client.ClientOptions{URL: c.Service, Logger: log.DefaultNopLogger()})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	try := func() error {
		producer, err := p.CreateProducer(client.ProducerOptions{Topic: fmt.Sprintf("settled-%08x", rand.Uint32())})
		if err != nil {
			return err
		}
		defer producer.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err = producer.Send(ctx, &client.ProducerMessage{Payload: []byte("settled")})
		return err
	}
	end := time.Now().Add(2 * time.Minute)
	for well := 0; well < 8; time.Sleep(300 * time.Millisecond) {
		err := try()
		if well++; err == nil {
			continue
		}
		if well = 0; time.Now().After(end) {
			t.Fatalf("the cluster takes no message after a fault: %v", err)
		}
	}
}

// fault breaks the standalone, which only this test uses.
func (c *cell) fault(f brokertest.Fault, i *standalone.Instance) func() broker.Broker {
	same := func() broker.Broker { return c.leader }
	start := func() {
		if err := i.Start(c.t.Context()); err != nil {
			c.t.Fatalf("start the standalone again: %v", err)
		}
	}
	switch f {
	case brokertest.Unload:
		c.unload(c.topic(broker.Topic{Tenant: "default", Function: "f", Lane: mesh.Standard}))
		return same
	case brokertest.Kill:
		i.Kill()
		return func() broker.Broker { start(); return c.leader }
	case brokertest.Hang:
		i.Pause()
		return func() broker.Broker { i.Resume(); return c.leader }
	case brokertest.Slow:
		return c.slow(i)
	case brokertest.Replace:
		i.Kill()
		if err := i.Wipe(); err != nil {
			c.t.Fatal(err)
		}
		start()
		return same
	default:
		c.t.Fatalf("unknown fault %s", f)
		return nil
	}
}

// slow lets the standalone run a fifth of the time.
func (c *cell) slow(i *standalone.Instance) func() broker.Broker {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			i.Pause()
			time.Sleep(200 * time.Millisecond)
			i.Resume()
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return func() broker.Broker { close(stop); <-stopped; return c.leader }
}
