package config

import (
	"encoding/base64"
	"maps"
	"math"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// checker collects what is wrong with a configuration.
type checker struct {
	src  source
	errs []error
}

func (c *checker) failf(field, format string, args ...any) {
	c.errs = append(c.errs, c.src.errorf(field, format, args...))
}

func checkServer(s *Server, src source) []error {
	c := &checker{src: src}
	c.name("name", s.Name)
	c.name("mesh", s.Mesh)
	c.name("region", s.Region)
	c.name("cell", s.Cell)
	for i, j := range s.Jurisdictions {
		c.name("jurisdictions["+strconv.Itoa(i)+"]", j)
	}
	c.required("data", s.Data)
	c.api(s)
	c.listener("peer", s.Peer.Address, s.Peer.Advertise)
	c.listener("raft", s.Raft.Address, s.Raft.Advertise)
	c.gossip(s.Gossip)
	c.required("tls.ca", s.TLS.CA)
	c.required("tls.cert", s.TLS.Cert)
	c.required("tls.key", s.TLS.Key)
	c.addresses("join", s.Join)
	if s.Bootstrap && len(s.Join) > 0 {
		c.failf("bootstrap", "and join exclude each other: a server either starts its cell or joins it")
	}
	if !s.Bootstrap && len(s.Join) == 0 {
		c.failf("join", "names no server: set it to peer addresses of this cell's servers, or set bootstrap on the cell's first server")
	}
	c.lease(s.Lease)
	c.within("retention.task", s.Retention.Task, time.Minute, 90*24*time.Hour)
	c.within("lifetime", s.Lifetime, time.Minute, 90*24*time.Hour)
	c.queue(s)
	c.tenants(s)
	c.homes(s.Homes)
	c.money(s)
	c.carbon(s.Carbon)
	c.broker(&s.Broker)
	c.otlp(s.OTLP)
	c.log(s.Log)
	return c.errs
}

// cost checks bounds on what work may cost.
func (c *checker) cost(field string, k Cost) {
	for _, a := range []struct {
		name string
		n    int64
	}{{"tokens", k.Tokens}, {"bytes", int64(k.Bytes)}, {"accelerator_mib", k.AcceleratorMiB}} {
		if a.n < 0 || a.n > mesh.MaxCost {
			c.failf(field+"."+a.name, "must be 0 to %d, got %d; 0 is no bound", int64(mesh.MaxCost), a.n)
		}
	}
}

func checkWorker(w *Worker, src source) []error {
	c := &checker{src: src}
	c.name("name", w.Name)
	c.required("data", w.Data)
	if len(w.Servers) == 0 {
		c.failf("servers", "names no server: set it to API URLs of the cell's servers, such as http://127.0.0.1:7101")
	}
	for i, s := range w.Servers {
		c.url("servers["+strconv.Itoa(i)+"]", s)
	}
	if w.CPU < 0 || w.CPU > 1e6 {
		c.failf("cpu", "must be above 0 cores, got %v", w.CPU)
	}
	if w.MemoryMiB < 0 {
		c.failf("memory_mib", "must be above 0, got %d", w.MemoryMiB)
	}
	c.cost("in_flight", w.InFlight)
	if len(w.Runtimes) == 0 {
		c.failf("runtimes", "names none of wasm, exec, http")
	}
	for i, r := range w.Runtimes {
		at := "runtimes[" + strconv.Itoa(i) + "]"
		if !slices.Contains([]string{"wasm", "exec", "http"}, r) {
			c.failf(at, "must be one of wasm, exec, http, got %q", r)
		} else if slices.Contains(w.Runtimes[:i], r) {
			c.failf(at, "is given twice: %q", r)
		}
	}
	for i, f := range w.Functions {
		c.name("functions["+strconv.Itoa(i)+"]", f)
	}
	if w.Grace < 0 {
		c.failf("grace", "must not be negative, got %s", w.Grace)
	}
	c.otlp(w.OTLP)
	c.log(w.Log)
	return c.errs
}

func (c *checker) required(field, value string) {
	if value == "" {
		c.failf(field, "is required")
	}
}

// name accepts what may stand in a certificate's URI and in a task id.
func (c *checker) name(field, value string) {
	switch {
	case value == "":
		c.failf(field, "is required")
	case !mesh.ValidName(value):
		c.failf(field, "must be 1 to 63 lower-case letters, digits and dashes, and start and end with a letter or digit, got %q", value)
	}
}

func (c *checker) api(s *Server) {
	if !c.address("api.address", s.API.Address) {
		return
	}
	if s.API.Advertise != "" {
		c.url("api.advertise", s.API.Advertise)
	}
	if !s.InsecureNoAuth && !Loopback(s.API.Address) {
		c.failf("api.address", "%s can be reached from other machines, and clients are not authenticated yet: "+
			"whoever reaches it can run code here; listen on 127.0.0.1, or set insecure_no_auth (--insecure-no-auth) "+
			"and put a proxy that authenticates in front of it", s.API.Address)
	}
	if host, _, _ := net.SplitHostPort(s.API.Address); wildcard(host) && s.API.Advertise == "" {
		c.failf("api.advertise", "is required when api.address is a wildcard")
	}
}

func (c *checker) listener(field, address, advertise string) {
	if !c.address(field+".address", address) {
		return
	}
	if advertise != "" {
		c.address(field+".advertise", advertise)
		return
	}
	if host, _, _ := net.SplitHostPort(address); wildcard(host) {
		c.failf(field+".advertise", "is required when %s.address is a wildcard", field)
	}
}

func (c *checker) gossip(g Gossip) {
	c.listener("gossip", g.Address, g.Advertise)
	c.addresses("gossip.join", g.Join)
	if len(g.Keys) == 0 {
		c.failf("gossip.keys", "names no key: make one with `head -c 32 /dev/urandom | base64`")
	}
	for i, k := range g.Keys {
		raw, err := base64.StdEncoding.DecodeString(k)
		if err != nil || !slices.Contains([]int{16, 24, 32}, len(raw)) {
			// The key itself is a secret and stays out of the error.
			c.failf("gossip.keys["+strconv.Itoa(i)+"]", "must be base64 of 16, 24 or 32 bytes")
		}
	}
}

func (c *checker) addresses(field string, list []string) {
	for i, a := range list {
		c.address(field+"["+strconv.Itoa(i)+"]", a)
	}
}

func (c *checker) address(field, value string) bool {
	_, port, err := net.SplitHostPort(value)
	if err != nil {
		c.failf(field, "must be host:port, got %q", value)
		return false
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		c.failf(field, "must end with a port from 1 to 65535, got %q", value)
		return false
	}
	return true
}

func (c *checker) url(field, value string) {
	u, err := url.Parse(value)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		c.failf(field, "must be a URL such as http://127.0.0.1:7101, got %q", value)
	}
}

func (c *checker) lease(l Lease) {
	c.within("lease.renew", l.Renew, 100*time.Millisecond, time.Minute)
	c.within("lease.worker", l.Worker, 300*time.Millisecond, 10*time.Minute)
	c.within("lease.cell", l.Cell, 400*time.Millisecond, 10*time.Minute)
	if l.Worker >= l.Cell {
		c.failf("lease.worker", "must be shorter than lease.cell (%s), got %s: a worker must have stopped before its cell's lease ends", l.Cell, l.Worker)
	}
	if l.Worker < 2*l.Renew {
		c.failf("lease.renew", "must be at most half of lease.worker (%s), got %s: one lost renewal must not end a lease", l.Worker, l.Renew)
	}
}

func (c *checker) within(field string, got, low, high time.Duration) {
	if got < low || got > high {
		c.failf(field, "must be from %s to %s, got %s", low, high, got)
	}
}

func (c *checker) queue(s *Server) {
	if s.Queue.Count < 1 {
		c.failf("queue.count", "must be 1 or more, got %d", s.Queue.Count)
	}
	if s.Queue.Bytes < mesh.MaxPayload {
		c.failf("queue.bytes", "must hold one payload of %s, got %s", Size(mesh.MaxPayload), s.Queue.Bytes)
	}
	c.cost("queue.cost", s.Queue.Cost)
	if s.Disk.Bytes != 0 && s.Disk.Bytes < 64<<20 {
		c.failf("disk.bytes", "must be 0 or at least 64MiB, got %s", s.Disk.Bytes)
	}
}

// most bounds amounts that no tenant has.
const most = 1e6

func (c *checker) tenants(s *Server) {
	for _, name := range slices.Sorted(maps.Keys(s.Tenants)) {
		t, at := s.Tenants[name], "tenants."+name
		c.name(at, name)
		if w := t.Weight; w != 0 && !(w >= 0.001 && w <= 1000) {
			c.failf(at+".weight", "must be 0.001 to 1000, got %v; left out it is 1", w)
		}
		k := t.Concurrency
		at += ".concurrency"
		for _, a := range []struct {
			name string
			n    int64
			most int64
		}{{"attempts", k.Attempts, most}, {"memory_mib", k.MemoryMiB, mesh.MaxCost}, {"gpus", k.GPUs, most}} {
			if a.n < 0 || a.n > a.most {
				c.failf(at+"."+a.name, "must be 0 to %d, got %d; 0 is no bound", a.most, a.n)
			}
		}
		if !(k.CPU >= 0 && k.CPU <= most) {
			c.failf(at+".cpu", "must be 0 to %d cores, got %v; 0 is no bound", int64(most), k.CPU)
		}
		c.cost(at+".cost", k.Cost)
	}
}

func (c *checker) homes(homes []string) {
	for i, h := range homes {
		at := "homes[" + strconv.Itoa(i) + "]"
		c.name(at, h)
		if slices.Contains(homes[:i], h) {
			c.failf(at, "is given twice: %q", h)
		}
	}
}

func (c *checker) money(s *Server) {
	for _, f := range []struct {
		field string
		value float64
	}{
		{"prices.cpu_hour", s.Prices.CPUHour},
		{"prices.memory_gib_hour", s.Prices.MemoryGiBHour},
		{"energy.watts_per_cpu", s.Energy.WattsPerCPU},
		{"energy.idle_watts_per_cpu", s.Energy.IdleWattsPerCPU},
		{"energy.watts_per_gib", s.Energy.WattsPerGiB},
		{"energy.network_kwh_per_gib", s.Energy.NetworkKWhPerGiB},
		{"energy.embodied_g_per_cpu_hour", s.Energy.EmbodiedGPerCPUHour},
		{"policy.carbon_price", s.Policy.CarbonPrice},
		{"policy.latency_price", s.Policy.LatencyPrice},
		{"policy.delay_price", s.Policy.DelayPrice},
		{"policy.quality_price", s.Policy.QualityPrice},
	} {
		c.notNegative(f.field, f.value)
	}
	c.amounts("prices.gpus", s.Prices.GPUs)
	c.amounts("energy.watts_per_gpu", s.Energy.WattsPerGPU)
	c.amounts("energy.idle_watts_per_gpu", s.Energy.IdleWattsPerGPU)
	c.amounts("energy.embodied_g_per_gpu_hour", s.Energy.EmbodiedGPerGPUHour)
	if e := &s.Energy; e.IdleWattsPerCPU > e.WattsPerCPU {
		c.failf("energy.idle_watts_per_cpu", "must be at most watts_per_cpu, got %v", e.IdleWattsPerCPU)
	}
	for _, model := range slices.Sorted(maps.Keys(s.Energy.IdleWattsPerGPU)) {
		if w := s.Energy.IdleWattsPerGPU[model]; w > s.Energy.WattsPerGPU[model] {
			c.failf("energy.idle_watts_per_gpu."+model, "must be at most watts_per_gpu, got %v", w)
		}
	}
	c.amounts("egress_usd_per_gib", s.EgressUSDPerGiB)
	c.amounts("return_usd_per_gib", s.ReturnUSDPerGiB)
	c.amounts("rtt_ms", s.RTTMs)
	c.pairs("between.rtt_ms", s.Between.RTTMs)
	c.pairs("between.egress_usd_per_gib", s.Between.EgressUSDPerGiB)
	if s.Energy.PUE < 1 || math.IsInf(s.Energy.PUE, 0) {
		c.failf("energy.pue", "must be 1 or more, got %v", s.Energy.PUE)
	}
	if s.EmulateRTT && len(s.RTTMs) == 0 {
		c.failf("emulate_rtt", "needs rtt_ms")
	}
}

func (c *checker) amounts(field string, m map[string]float64) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		c.notNegative(field+"."+k, m[k])
	}
}

func (c *checker) pairs(field string, m map[string]map[string]float64) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		c.amounts(field+"."+k, m[k])
	}
}

func (c *checker) notNegative(field string, v float64) {
	if !(v >= 0) || math.IsInf(v, 0) {
		c.failf(field, "must be 0 or more, got %v", v)
	}
}

func (c *checker) carbon(b Carbon) {
	if b.File != "" && b.Generate {
		c.failf("carbon.generate", "and carbon.file exclude each other")
	}
	if (b.File != "" || b.Generate) && b.Zone == "" {
		c.failf("carbon.zone", "is required with a feed: it names the region's column")
	}
	if !(b.Speed > 0) || b.Speed > 1e6 {
		c.failf("carbon.speed", "must be above 0 and at most 1000000, got %v", b.Speed)
	}
}

func (c *checker) broker(b *Broker) {
	switch b.Kind {
	case "embedded":
		if b.Service != "" || b.Admin != "" {
			c.failf("broker.kind", "must be pulsar for a broker with a service and an admin API")
		}
		return
	case "pulsar":
	default:
		c.failf("broker.kind", "must be embedded or pulsar, got %q", b.Kind)
		return
	}
	if !strings.HasPrefix(b.Service, "pulsar://") && !strings.HasPrefix(b.Service, "pulsar+ssl://") {
		c.failf("broker.service", "must be pulsar://host:port or pulsar+ssl://host:port, got %q", b.Service)
	}
	if b.Admin == "" {
		c.failf("broker.admin", "is required: the URL of Pulsar's admin API, such as http://host:8080")
	} else {
		c.url("broker.admin", b.Admin)
	}
	for _, region := range slices.Sorted(maps.Keys(b.SharedWith)) {
		c.name("broker.shared_with."+region, region)
		for _, j := range b.SharedWith[region] {
			c.name("broker.shared_with."+region, j)
		}
	}
	if b.Quota < mesh.MaxPayload {
		c.failf("broker.quota", "must hold one payload of 1MiB, got %s", b.Quota)
	}
	c.within("broker.timeout", b.Timeout, 100*time.Millisecond, time.Minute)
	c.oauth2(b)
	if (b.TLS.Cert == "") != (b.TLS.Key == "") {
		c.failf("broker.tls.cert", "and key come together")
	}
}

func (c *checker) oauth2(b *Broker) {
	o := b.OAuth2
	if o == (OAuth2{}) {
		return
	}
	if b.TokenFile != "" {
		c.failf("broker.token_file", "and oauth2 exclude each other")
	}
	if o.Issuer == "" {
		c.failf("broker.oauth2.issuer", "is required with oauth2: the URL of who gives out tokens")
	} else {
		c.url("broker.oauth2.issuer", o.Issuer)
	}
	if o.KeyFile == "" {
		c.failf("broker.oauth2.key_file", "is required with an issuer")
	}
}

func (c *checker) otlp(o OTLP) {
	if o.Endpoint != "" {
		c.url("otlp.endpoint", o.Endpoint)
	}
	if o.Protocol != "http" && o.Protocol != "grpc" {
		c.failf("otlp.protocol", "must be http or grpc, got %q", o.Protocol)
	}
}

func (c *checker) log(l Log) {
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, l.Level) {
		c.failf("log.level", "must be debug, info, warn or error, got %q", l.Level)
	}
	if l.Format != "text" && l.Format != "json" {
		c.failf("log.format", "must be text or json, got %q", l.Format)
	}
}

// Loopback reports whether only this machine can reach the host:port. A name
// other than localhost is not trusted to be.
func Loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

func wildcard(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "" || (err == nil && ip.Unmap().IsUnspecified())
}
