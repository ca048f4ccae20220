package pulsar

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	"github.com/apache/pulsar-client-go/pulsar/auth"
	"github.com/apache/pulsar-client-go/pulsar/log"
	"github.com/prometheus/client_golang/prometheus"
)

// Options of a Broker. Service, Admin, Cell and Server are required.
type Options struct {
	// Service is the cluster's binary protocol: pulsar://host:6650, or
	// pulsar+ssl://host:6651; several hosts with commas between.
	Service string
	// Admin is its admin API: http://host:8080, or https://host:8443.
	Admin string
	// Cluster is its name. It may be left out where Pulsar knows only one.
	Cluster string
	// Cell owns the topics, and Server of it is the one that appends.
	Cell, Server string
	// Region and Jurisdictions of the cell are told to other cells that use the
	// cluster. SharedWith are the regions known to use it, too.
	Region        string
	Jurisdictions []string
	SharedWith    map[string][]string
	// Log is what the cell's log says of its payloads. Without it the cell is one
	// that has never written anything.
	Log Log
	// Quota is what one topic may keep, in bytes, in namespaces that are made
	// here. Default 10 GiB.
	Quota int64
	// Auth says who we are.
	Auth Auth
	// TLS is for pulsar+ssl and https.
	TLS TLS
	// Timeout bounds every call, besides its context. Default 5 s.
	Timeout time.Duration
	// IdleAfter is when a topic's producer is closed that has nothing to do.
	// Default 1 min.
	IdleAfter time.Duration
	// CheckEvery is how often the policies of the namespaces in use are looked
	// at. Default 1 min.
	CheckEvery time.Duration
	// Logger; default slog.Default().
	Logger *slog.Logger
	// Metrics takes the client's metrics; nil drops them.
	Metrics prometheus.Registerer
}

// TLS are PEM files. Without CA the system's authorities are trusted; Cert and
// Key are a client certificate, which Pulsar can take for authentication.
type TLS struct{ CA, Cert, Key string }

const (
	defaultQuota   = 10 << 30
	defaultTimeout = 5 * time.Second
	defaultIdle    = time.Minute
	defaultCheck   = time.Minute
)

func (o *Options) defaults() error {
	for name, v := range map[string]string{"Service": o.Service, "Admin": o.Admin, "Cell": o.Cell, "Server": o.Server} {
		if v == "" {
			return fmt.Errorf("option %s is missing", name)
		}
	}
	if o.Log == nil {
		o.Log = noLog{}
	}
	if o.Quota == 0 {
		o.Quota = defaultQuota
	}
	o.Timeout = or(o.Timeout, defaultTimeout)
	o.IdleAfter = or(o.IdleAfter, defaultIdle)
	o.CheckEvery = or(o.CheckEvery, defaultCheck)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Metrics == nil {
		o.Metrics = prometheus.NewRegistry()
	}
	return nil
}

func or(d, otherwise time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return otherwise
}

func (t TLS) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("read CA: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read CA %s: it holds no certificate", t.CA)
		}
	}
	if t.Cert != "" || t.Key != "" {
		cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, fmt.Errorf("read client certificate: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}

// newClient makes the client of the binary protocol; it does not connect yet.
func newClient(o Options, provider auth.Provider) (pulsar.Client, error) {
	c := pulsar.ClientOptions{
		URL: o.Service, ConnectionTimeout: o.Timeout, OperationTimeout: o.Timeout, KeepAliveInterval: 10 * time.Second,
		MaxConnectionsPerBroker: 1, MetricsCardinality: pulsar.MetricsCardinalityNone, MetricsRegisterer: o.Metrics,
		Logger: log.NewLoggerWithSlog(slog.New(quiet{o.Logger.With("part", "pulsar client").Handler()})), Description: "isobar",
	}
	if provider != nil {
		c.Authentication = provider
	}
	if strings.HasPrefix(o.Service, "pulsar+ssl://") {
		var err error
		if c.TLSConfig, err = o.TLS.config(); err != nil {
			return nil, err
		}
		c.TLSValidateHostname = true
		c.TLSTrustCertsFilePath, c.TLSCertificateFile, c.TLSKeyFilePath = o.TLS.CA, o.TLS.Cert, o.TLS.Key
	}
	return pulsar.NewClient(c)
}

// newAdmin makes the client of the admin API.
func newAdmin(o Options, provider auth.Provider) (*admin, error) {
	config, err := o.TLS.config()
	if err != nil {
		return nil, err
	}
	var transport http.RoundTripper = &http.Transport{
		TLSClientConfig: config, Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute,
	}
	if provider != nil {
		if err := provider.WithTransport(transport); err != nil {
			return nil, fmt.Errorf("authenticate at the admin API: %w", err)
		}
		transport = provider
	}
	return &admin{base: strings.TrimSuffix(o.Admin, "/") + "/admin/v2", http: &http.Client{Transport: transport}}, nil
}

// quiet drops what the client says about its connections as long as they work.
type quiet struct{ slog.Handler }

// Enabled lets warnings and errors pass.
func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && q.Handler.Enabled(ctx, l)
}

// WithAttrs keeps the handler quiet.
func (q quiet) WithAttrs(a []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(a)} }

// WithGroup keeps the handler quiet.
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }
