package config

import "time"

// Server is the file of `isobar server`: one member of one cell.
type Server struct {
	// Name of this server, unique in its cell. It must be the name in the
	// server's certificate. Default: the host's name.
	Name string `yaml:"name"`
	// Mesh is the name of the whole mesh. Certificates of another mesh are
	// refused.
	Mesh string `yaml:"mesh"`
	// Region the server stands in. It must be the region in the certificate.
	Region string `yaml:"region"`
	// Cell is the Raft group the server belongs to. It must be the cell in the
	// certificate. Default: the region's first cell, "REGION-1".
	Cell string `yaml:"cell"`
	// Jurisdictions the server lies in, such as [eu, se]. They must be those in
	// the certificate: tasks with a residency rely on the certificate alone.
	Jurisdictions []string `yaml:"jurisdictions"`
	// Data is the directory of everything durable: log, state, code, the
	// server's id. Losing it loses this server, not the cell. An empty
	// directory is a new server.
	Data string `yaml:"data"`
	// API is for clients and workers: Connect, gRPC, health and /metrics.
	API API `yaml:"api"`
	// Peer is for other servers and cells: RPC over mutual TLS.
	Peer Listener `yaml:"peer"`
	// Raft is for the servers of this cell: the replicated log over mutual TLS.
	Raft Listener `yaml:"raft"`
	// Gossip spreads what cells say about themselves; UDP and TCP, encrypted.
	Gossip Gossip `yaml:"gossip"`
	// TLS is the server's identity.
	TLS TLS `yaml:"tls"`
	// Join lists peer addresses of servers of this cell. A new server asks them
	// to let it in, is caught up as a non-voter, then votes.
	Join []string `yaml:"join"`
	// Bootstrap starts a new cell with this server as its only voter. It acts
	// once, on an empty data directory; two servers of one cell that bootstrap
	// are two cells that refuse each other.
	Bootstrap bool `yaml:"bootstrap"`
	// InsecureNoAuth lets the API listen on an address that others can reach,
	// although clients are not authenticated: everyone who reaches it can run
	// code here. Put a proxy that authenticates in front of it.
	InsecureNoAuth bool `yaml:"insecure_no_auth"`
	// Lease times; see docs/guarantees.md.
	Lease Lease `yaml:"lease"`
	// Retention of what ended.
	Retention Retention `yaml:"retention"`
	// Lifetime of a task without a deadline: it ends as expired after it.
	Lifetime time.Duration `yaml:"lifetime"`
	// Queue bounds each queue of this cell.
	Queue Queue `yaml:"queue"`
	// Tenants by name, those besides default and default itself where it has a
	// weight or bounds. The cell's leader makes and updates them; the newest edit in
	// the mesh counts, so give every cell the same. One that is taken out of the
	// list stays as it was.
	Tenants map[string]Tenant `yaml:"tenants"`
	// Disk bounds the data directory.
	Disk Disk `yaml:"disk"`
	// Prices of this region's resources, for placement.
	Prices Prices `yaml:"prices"`
	// Energy drawn by this region's resources, for placement.
	Energy Energy `yaml:"energy"`
	// Carbon intensity of this region's electricity.
	Carbon Carbon `yaml:"carbon"`
	// Policy prices what is not money.
	Policy Policy `yaml:"policy"`
	// EgressUSDPerGiB is the price of a GiB sent from this region to each other
	// one; a region that is missing costs nothing.
	EgressUSDPerGiB map[string]float64 `yaml:"egress_usd_per_gib"`
	// ReturnUSDPerGiB is the price of a GiB sent from each other region to this
	// one, paid for results; a region that is missing costs nothing.
	ReturnUSDPerGiB map[string]float64 `yaml:"return_usd_per_gib"`
	// RTTMs is the round trip to each other region in milliseconds, used until
	// it is measured, and the delay added when emulate_rtt is set.
	RTTMs map[string]float64 `yaml:"rtt_ms"`
	// Between are distances and prices between other regions, for tasks whose
	// inputs lie in one and could be read in another.
	Between Between `yaml:"between"`
	// EmulateRTT delays what this server sends to other regions so that the
	// round trip is rtt_ms. For meshes on one machine; shown as emulated.
	EmulateRTT bool `yaml:"emulate_rtt"`
	// Homes are the cells that own tasks with an idempotency key: each key has
	// one home among them, wherever it is submitted. The list must be the same
	// on every server of the mesh and must not change while keys are kept.
	// Empty: the cell that is asked owns the key.
	Homes []string `yaml:"homes"`
	// Broker keeps the payloads.
	Broker Broker `yaml:"broker"`
	// OTLP is where traces go.
	OTLP OTLP `yaml:"otlp"`
	// Log of the process, on standard error.
	Log Log `yaml:"log"`
}

// Between holds what lies between two regions of which neither is the server's.
//
// A pair that is missing counts as the way over this region, at the price of
// what the first sends to it.
type Between struct {
	// RTTMs is the round trip in milliseconds, by one region and then the other,
	// in either order.
	RTTMs map[string]map[string]float64 `yaml:"rtt_ms"`
	// EgressUSDPerGiB is the price of a GiB sent from the first region to the
	// second.
	EgressUSDPerGiB map[string]map[string]float64 `yaml:"egress_usd_per_gib"`
}

// API is the door for clients and workers.
type API struct {
	// Address to listen on, host:port. Only loopback without insecure_no_auth.
	Address string `yaml:"address"`
	// Advertise is the URL others are told for this server's API. Default:
	// http:// and the address listened on.
	Advertise string `yaml:"advertise"`
}

// Listener is a door for other servers.
type Listener struct {
	// Address to listen on, host:port.
	Address string `yaml:"address"`
	// Advertise is the host:port others are told. Default: the address
	// listened on; needed when that is a wildcard such as 0.0.0.0.
	Advertise string `yaml:"advertise"`
}

// Gossip between servers.
type Gossip struct {
	// Address to listen on, host:port, UDP and TCP.
	Address string `yaml:"address"`
	// Advertise is the host:port others are told. Default: the address
	// listened on; needed when that is a wildcard such as 0.0.0.0.
	Advertise string `yaml:"advertise"`
	// Join lists gossip addresses of some servers of any cell, to start from.
	Join []string `yaml:"join"`
	// Keys are base64 AES keys of 16, 24 or 32 bytes: the first encrypts, all
	// decrypt, so a key is changed by adding, moving first, removing. At least
	// one.
	Keys []string `yaml:"keys"`
}

// TLS is a server's identity towards other servers, as PEM files.
type TLS struct {
	// CA holds the mesh's certificate authority.
	CA string `yaml:"ca"`
	// Cert is this server's certificate. Its one URI names it:
	// isobar://MESH/region/R/cell/C/server/NAME?jurisdictions=eu,se
	Cert string `yaml:"cert"`
	// Key is the certificate's private key.
	Key string `yaml:"key"`
}

// Lease times. A worker's lease ends before the cell's, and both outlive a few
// lost renewals.
type Lease struct {
	// Cell is how long another cell holds a task without a word.
	Cell time.Duration `yaml:"cell"`
	// Worker is how long a worker holds an attempt without a word.
	Worker time.Duration `yaml:"worker"`
	// Renew is how often holders renew.
	Renew time.Duration `yaml:"renew"`
}

// Retention of what ended.
type Retention struct {
	// Task keeps a task's record, result, decisions and keys after its end: the
	// window in which a key or a request id finds the first task.
	Task time.Duration `yaml:"task"`
}

// Queue bounds each queue (tenant, function and lane) of a cell; above it a Submit
// is answered with RESOURCE_EXHAUSTED and when to try again.
type Queue struct {
	// Count of tasks not ended.
	Count int64 `yaml:"count"`
	// Bytes of their payloads and of those of dead letters, which the broker keeps.
	Bytes Size `yaml:"bytes"`
	// Cost of the tasks not ended.
	Cost Cost `yaml:"cost"`
}

// Tenant is its part of the work and its bounds.
type Tenant struct {
	// Weight is its part of a lane relative to the other tenants that have work
	// there, 0.001 to 1000. Default: 1.
	Weight float64 `yaml:"weight"`
	// Concurrency bounds what attempts of its tasks may hold at once.
	Concurrency Concurrency `yaml:"concurrency"`
}

// Concurrency bounds what attempts of a tenant's tasks may hold at once, for each
// home cell, wherever they run.
//
// The same words as `concurrency` in a manifest (docs/functions.md). One attempt may
// always run; calls by `invoke` are not counted.
type Concurrency struct {
	// Attempts that run at once; 0 is no bound.
	Attempts int64 `yaml:"attempts"`
	// CPU is the cores that they hold; 0 is no bound.
	CPU float64 `yaml:"cpu"`
	// MemoryMiB is the memory that they hold; 0 is no bound.
	MemoryMiB int64 `yaml:"memory_mib"`
	// GPUs is the whole accelerators that they hold; 0 is no bound.
	GPUs int64 `yaml:"gpus"`
	// Cost is what their tasks declare.
	Cost Cost `yaml:"cost"`
}

// Disk bounds the data directory.
type Disk struct {
	// Bytes the data directory may take; accepts stop at 80 % of it. 0: only
	// the disk's own size bounds it.
	Bytes Size `yaml:"bytes"`
}

// Prices of a region's resources while they are used.
//
// The defaults are Azure's pay-as-you-go prices in eastus of 2026-06-18
// (Azure/karpenter-provider-azure, pkg/providers/pricing): D4s_v5 with 4 vCPU
// and 16 GiB costs 0.192 USD/h, E4s_v5 with 4 and 32 costs 0.252, so a GiB is
// (0.252 - 0.192) / 16 = 0.00375 and a vCPU (0.192 - 16 × 0.00375) / 4 = 0.033.
type Prices struct {
	// CPUHour is USD for one core and hour.
	CPUHour float64 `yaml:"cpu_hour"`
	// MemoryGiBHour is USD for one GiB and hour.
	MemoryGiBHour float64 `yaml:"memory_gib_hour"`
	// GPUs is USD for one accelerator and hour, by model. A model without a
	// price costs nothing.
	GPUs map[string]float64 `yaml:"gpus"`
}

// Energy drawn by resources while they are used.
type Energy struct {
	// WattsPerCPU is drawn by one busy core. Default: 3.5, the maximum per vCPU
	// in Caribou's carbon model (SOSP 2024, constants.py).
	WattsPerCPU float64 `yaml:"watts_per_cpu"`
	// IdleWattsPerCPU is drawn by one core that a run holds and does not use: a
	// function's cpu_utilisation says how much of the time that is. At most
	// watts_per_cpu. Default: 0.74, the minimum per vCPU in Caribou's model and
	// for AWS in Cloud Carbon Footprint's methodology.
	IdleWattsPerCPU float64 `yaml:"idle_watts_per_cpu"`
	// WattsPerGiB is drawn by one GiB of memory that a run holds. Default: 0.4,
	// as 0.3725 W a GB in Caribou's model; Cloud Carbon Footprint has 0.392.
	WattsPerGiB float64 `yaml:"watts_per_gib"`
	// WattsPerGPU is drawn by one busy accelerator, by model.
	WattsPerGPU map[string]float64 `yaml:"watts_per_gpu"`
	// IdleWattsPerGPU is drawn by one that a run holds and does not use, by
	// model; at most its busy power.
	IdleWattsPerGPU map[string]float64 `yaml:"idle_watts_per_gpu"`
	// NetworkKWhPerGiB is what a GiB takes from one region to another. It counts
	// at the mean carbon intensity of both ends. Default: 0.00107, as 0.001 kWh a
	// GB in Caribou's model and in Cloud Carbon Footprint's methodology.
	NetworkKWhPerGiB float64 `yaml:"network_kwh_per_gib"`
	// EmbodiedGPerCPUHour is the carbon of making and disposing of a core, grams
	// for each hour that a run holds it. Default: 0, not counted. AWS's
	// m5.24xlarge has 0.479 by Cloud Carbon Footprint: 1,610.79 kg over 4 years
	// and 96 vCPU (coefficients-aws-embodied.csv).
	EmbodiedGPerCPUHour float64 `yaml:"embodied_g_per_cpu_hour"`
	// EmbodiedGPerGPUHour is the same for an accelerator, by model. Default: not
	// counted. 150 kg over 4 years, as for each GPU of AWS's p3 and p4d in that
	// table, are 4.28.
	EmbodiedGPerGPUHour map[string]float64 `yaml:"embodied_g_per_gpu_hour"`
	// PUE, power usage effectiveness: what the site draws for 1 of computing; 1
	// or more. Default: 1.11, as in Caribou's model.
	PUE float64 `yaml:"pue"`
}

// Carbon says where a region's carbon intensity comes from. Without a file and
// without generate it is unknown, and placement uses the mean of the regions
// that are known, and says so.
type Carbon struct {
	// Zone is the region's column in the feed, such as SE-SE1.
	Zone string `yaml:"zone"`
	// File is a CSV, gzip allowed, in gCO2eq/kWh, a row an hour: datetime_utc
	// and a column a zone, or an hourly export of Electricity Maps. Where it holds
	// two weeks before the present hour, the hours ahead are foretold from them by
	// the project's own forecast; else by the same hour of the day before.
	File string `yaml:"file"`
	// Generate makes plausible intensities around published means, for trying
	// things out. Not together with file.
	Generate bool `yaml:"generate"`
	// Clock is the feed's time at the start of the process; the feed alone has
	// it. Default: the present.
	Clock *time.Time `yaml:"clock,omitempty"`
	// Epoch is the wall time at which the feed stands at clock; servers that are
	// to see one carbon share it. Default: the start of the process.
	Epoch *time.Time `yaml:"epoch,omitempty"`
	// Speed is how many seconds of the feed pass in one second.
	Speed float64 `yaml:"speed"`
}

// Policy prices what is not money, so that one sum decides.
type Policy struct {
	// CarbonPrice is USD for a tonne of CO2eq. Default: 190, the social cost of
	// carbon at 2 % discount of the US EPA's report of 2023.
	CarbonPrice float64 `yaml:"carbon_price"`
	// LatencyPrice is USD for a second from now to the expected answer.
	// Default: 0.0000133, what one waiting machine core costs: whoever waits
	// holds about a core with its memory, 0.048 USD/h (a quarter of Azure's
	// D4s_v5 in eastus). People who wait are worth far more: set it higher.
	LatencyPrice float64 `yaml:"latency_price"`
	// DelayPrice is USD for a second that a task's start is put off by choice,
	// within its max_delay. Default: a hundredth of the latency price. Nobody
	// waits for such a task, but what it saves should be worth the time.
	DelayPrice float64 `yaml:"delay_price"`
	// QualityPrice is USD for a task and 1.0 of quality below the best variant.
	// No published price fits all; the default, 0.001, makes a tenth of quality
	// worth 7.5 seconds of waiting.
	QualityPrice float64 `yaml:"quality_price"`
}

// Broker keeps the payloads of a cell's tasks.
type Broker struct {
	// Kind is embedded, which needs nothing installed and keeps payloads in the
	// cell's log, or pulsar, which keeps them in the region's Apache Pulsar. The
	// other fields are for pulsar.
	Kind string `yaml:"kind"`
	// Service is the cluster's binary protocol: pulsar://host:6650 or
	// pulsar+ssl://host:6651, several hosts with commas between.
	Service string `yaml:"service"`
	// Admin is the cluster's admin API: http://host:8080 or https://host:8443.
	Admin string `yaml:"admin"`
	// Cluster is the cluster's name. Default: the only one that Pulsar knows.
	Cluster string `yaml:"cluster"`
	// SharedWith names other regions whose cells keep payloads in the same
	// cluster, with their jurisdictions. A task whose residency leaves one of them
	// out is refused: who reaches the cluster there reaches its payload.
	SharedWith map[string][]string `yaml:"shared_with"`
	// Quota is what one topic may keep. It is set when a namespace is made; above
	// it a Submit is answered with RESOURCE_EXHAUSTED.
	Quota Size `yaml:"quota"`
	// Cache is how much memory the cell's leader takes for payloads between accept
	// and lease.
	Cache Size `yaml:"cache"`
	// Timeout bounds each call to the cluster.
	Timeout time.Duration `yaml:"timeout"`
	// TokenFile holds a token (JWT), read again whenever it is needed.
	TokenFile string `yaml:"token_file"`
	// OAuth2 gets tokens from an issuer instead, by client credentials.
	OAuth2 OAuth2 `yaml:"oauth2"`
	// TLS for pulsar+ssl and https.
	TLS BrokerTLS `yaml:"tls"`
}

// OAuth2 are client credentials (RFC 6749, section 4.4).
type OAuth2 struct {
	// Issuer is its URL; it must offer /.well-known/openid-configuration.
	Issuer string `yaml:"issuer"`
	// KeyFile is a JSON file with client_id and client_secret, read again for each
	// token.
	KeyFile string `yaml:"key_file"`
	// Audience of the token, if the issuer or the cluster wants one.
	Audience string `yaml:"audience"`
	// Scope to ask for. May be empty.
	Scope string `yaml:"scope"`
	// CA is a PEM file of the authorities to trust at the issuer. Default: the
	// system's.
	CA string `yaml:"ca"`
}

// BrokerTLS is a client's identity towards the broker, as PEM files.
type BrokerTLS struct {
	// CA holds the authorities to trust. Default: the system's.
	CA string `yaml:"ca"`
	// Cert is a client certificate, if the cluster asks for one.
	Cert string `yaml:"cert"`
	// Key is its private key.
	Key string `yaml:"key"`
}

// OTLP is where traces are exported. OTEL_EXPORTER_OTLP_ENDPOINT and the other
// variables of OpenTelemetry work too; what stands here comes first.
type OTLP struct {
	// Endpoint is a URL such as http://127.0.0.1:4318. Empty: no export.
	Endpoint string `yaml:"endpoint"`
	// Protocol is http (protobuf over HTTP) or grpc.
	Protocol string `yaml:"protocol"`
}

// Log of the process.
type Log struct {
	// Level is debug, info, warn or error.
	Level string `yaml:"level"`
	// Format is text or json.
	Format string `yaml:"format"`
}
