package standalone

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/isobar-mesh/isobar/internal/loopback"
)

// Options of a standalone.
type Options struct {
	// Dir keeps its data, configuration and log.
	Dir string
	// Config are settings of Pulsar's standalone.conf, put behind its own.
	Config map[string]string
	// Stays lets it outlive this process. Otherwise, on Linux, the kernel kills it
	// with this process.
	Stays bool
	// MemoryMiB is its heap, and as much again outside; 0: 1024.
	MemoryMiB int
	// DefaultPorts takes Pulsar's own ports, 6650 and 8080, where they are free.
	DefaultPorts bool
	// Secured has it ask who its clients are; nil is open to all on loopback.
	Secured *Secured
}

// Secured is a standalone with TLS beside its open ports, and authentication and
// authorization by token on all of them.
type Secured struct {
	// Cert and Key are PEM files, the key in PKCS #8.
	Cert, Key string
	// Public is the key that tokens are checked with, RS256, in DER (PKIX). Token
	// is one of the role Role, which may do everything: Pulsar's own clients use it.
	Public      []byte
	Token, Role string
}

// Instance is a standalone that was started. It is for one goroutine.
type Instance struct {
	// Service and Admin are its URLs: pulsar://127.0.0.1:… and http://127.0.0.1:…
	Service, Admin string
	// SecureService and SecureAdmin are those with TLS, when it is Secured.
	SecureService, SecureAdmin string

	dist    *Distribution
	options Options
	bookie  string // port
	cmd     *exec.Cmd
	done    chan struct{} // closed when the process has ended
}

// healthWithin is how long a standalone may take to be healthy: half a minute
// on two idle cores.
const healthWithin = 4 * time.Minute

// Start starts a standalone and returns when it is healthy.
func (d *Distribution) Start(ctx context.Context, o Options) (*Instance, error) {
	if err := need("java"); err != nil {
		return nil, err
	}
	ports, err := freePorts(5)
	if err != nil {
		return nil, err
	}
	if o.DefaultPorts {
		for i, p := range []string{"6650", "8080"} {
			if free(p) {
				ports[i] = p
			}
		}
	}
	i := &Instance{
		Service: "pulsar://127.0.0.1:" + ports[0], Admin: "http://127.0.0.1:" + ports[1],
		dist: d, options: o, bookie: ports[2],
	}
	if o.Secured != nil {
		i.SecureService, i.SecureAdmin = "pulsar+ssl://127.0.0.1:"+ports[3], "https://127.0.0.1:"+ports[4]
	}
	if err := i.configure(ports); err != nil {
		return nil, err
	}
	if err := i.Start(ctx); err != nil {
		return nil, err
	}
	return i, nil
}

// configure writes the configuration: Pulsar's own and, behind it, ours: the
// last of two wins.
func (i *Instance) configure(ports []string) error {
	if err := os.MkdirAll(i.options.Dir, 0o700); err != nil {
		return fmt.Errorf("standalone: configure: %w", err)
	}
	conf, err := os.ReadFile(filepath.Join(i.dist.home, "conf", "standalone.conf"))
	if err != nil {
		return fmt.Errorf("standalone: configure: %w", err)
	}
	settings := map[string]string{
		"brokerServicePort": ports[0], "webServicePort": ports[1], "bindAddress": "127.0.0.1", "advertisedAddress": "127.0.0.1",
		// What tests need: to see a quota without a minute's delay, and to clean up.
		"backlogQuotaCheckIntervalInSeconds": "1", "forceDeleteNamespaceAllowed": "true", "forceDeleteTenantAllowed": "true",
	}
	if s := i.options.Secured; s != nil {
		maps.Copy(settings, s.settings(ports[3], ports[4]))
	}
	maps.Copy(settings, i.options.Config)
	var b strings.Builder
	_, _ = b.Write(conf)
	_ = b.WriteByte('\n')
	for _, k := range slices.Sorted(maps.Keys(settings)) {
		_, _ = fmt.Fprintf(&b, "%s=%s\n", k, settings[k])
	}
	if err := os.WriteFile(i.conf(), []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("standalone: configure: %w", err)
	}
	return nil
}

func (s *Secured) settings(service, web string) map[string]string {
	return map[string]string{
		"brokerServicePortTls": service, "webServicePortTls": web, "tlsCertificateFilePath": s.Cert, "tlsKeyFilePath": s.Key,
		"authenticationEnabled": "true", "authenticationProviders": "org.apache.pulsar.broker.authentication.AuthenticationProviderToken",
		"tokenPublicKey":       "data:;base64," + base64.StdEncoding.EncodeToString(s.Public),
		"authorizationEnabled": "true", "superUserRoles": s.Role,
		"brokerClientAuthenticationPlugin":     "org.apache.pulsar.client.impl.auth.AuthenticationToken",
		"brokerClientAuthenticationParameters": "token:" + s.Token,
	}
}

func (i *Instance) conf() string { return filepath.Join(i.options.Dir, "standalone.conf") }

// Dir keeps its data, configuration and log.
func (i *Instance) Dir() string { return i.options.Dir }

// Log is the file its output goes to.
func (i *Instance) Log() string { return filepath.Join(i.options.Dir, "log") }

// Start starts it again after Kill or Stop, with the same data and ports, and
// returns when it is healthy.
func (i *Instance) Start(ctx context.Context) error {
	out, err := os.OpenFile(i.Log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("standalone: start: %w", err)
	}
	defer func() { _ = out.Close() }() // the child has its own
	dir := i.options.Dir
	cmd := exec.Command(filepath.Join(i.dist.home, "bin", "pulsar"), "standalone", "-nfw", "-nss", //nolint:noctx // it outlives the start
		"-c", i.conf(), "-a", "127.0.0.1", "--metadata-dir", filepath.Join(dir, "metadata"),
		"--bookkeeper-dir", filepath.Join(dir, "bookkeeper"), "--bookkeeper-port", i.bookie)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	memory := cmp.Or(i.options.MemoryMiB, 1024)
	// One collector without threads of its own, and no log of it: what starts
	// quickest and disturbs least beside other processes.
	cmd.Env = append(os.Environ(),
		fmt.Sprintf("PULSAR_MEM=-Xms256m -Xmx%dm -XX:MaxDirectMemorySize=%dm", memory, memory), "PULSAR_GC=-XX:+UseSerialGC", "PULSAR_GC_LOG=-Xlog:disable",
		"PULSAR_LOG_DIR="+filepath.Join(dir, "logs"), "PULSAR_LOG_LEVEL=warn", "PULSAR_LOG_ROOT_LEVEL=warn", "PULSAR_STANDALONE_CONF="+i.conf())
	cmd.SysProcAttr = attr(i.options.Stays)
	done := make(chan struct{})
	started := make(chan error)
	go func() {
		// The kernel kills the child when the thread that started it ends, so the
		// thread waits for it.
		runtime.LockOSThread()
		// Locked to the end, the thread would go then, and take what others started on it.
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in its log
		}
		close(done)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("standalone: start: %w", err)
	}
	i.cmd, i.done = cmd, done
	if err := i.healthy(ctx); err != nil {
		i.Kill()
		return err
	}
	return nil
}

// healthy waits until the broker says so.
func (i *Instance) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healthWithin)
	defer cancel()
	for {
		token := ""
		if i.options.Secured != nil {
			token = i.options.Secured.Token
		}
		err := healthy(ctx, i.Admin, token)
		if err == nil {
			return nil
		}
		select {
		case <-i.done:
			return fmt.Errorf("standalone: it ended before it was healthy; see %s", i.Log())
		case <-ctx.Done():
			return fmt.Errorf("standalone: not healthy, see %s: %w", i.Log(), errors.Join(err, ctx.Err()))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Healthy asks the broker at the admin URL whether it is healthy: it writes and
// reads a message of its own.
func Healthy(ctx context.Context, admin string) error { return healthy(ctx, admin, "") }

func healthy(ctx context.Context, admin, token string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, admin+"/admin/v2/brokers/health", nil)
	if err != nil {
		return fmt.Errorf("standalone: ask for health: %w", err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("standalone: ask for health: %w", err)
	}
	body, _ := io.ReadAll(io.LimitReader(res.Body, 64)) // short of "ok" it is not healthy
	_ = res.Body.Close()                                // only read
	if res.StatusCode != http.StatusOK || string(body) != "ok" {
		return fmt.Errorf("standalone: ask for health: %s", res.Status)
	}
	return nil
}

// PID of its process.
func (i *Instance) PID() int { return i.cmd.Process.Pid }

// Kill ends it without a goodbye.
func (i *Instance) Kill() {
	_ = i.cmd.Process.Kill() // ended already: nothing to do
	<-i.done
}

// Stop ends it in order, and kills it after the grace.
func (i *Instance) Stop(grace time.Duration) {
	_ = i.cmd.Process.Signal(syscall.SIGTERM) // ended already: nothing to do
	select {
	case <-i.done:
	case <-time.After(grace):
		i.Kill()
	}
}

// Pause stops its threads, as a machine that hangs; Resume lets them go on.
func (i *Instance) Pause() { _ = i.cmd.Process.Signal(syscall.SIGSTOP) } // ended: nothing to pause

// Resume ends a Pause.
func (i *Instance) Resume() { _ = i.cmd.Process.Signal(syscall.SIGCONT) } // ended: nothing to resume

// Wipe deletes its data, as if the cluster were replaced. It must not run.
func (i *Instance) Wipe() error {
	for _, name := range []string{"metadata", "bookkeeper"} {
		if err := os.RemoveAll(filepath.Join(i.options.Dir, name)); err != nil {
			return fmt.Errorf("standalone: wipe: %w", err)
		}
	}
	return nil
}

func free(port string) bool {
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		return false
	}
	_ = l.Close() // it was only asked
	return true
}

// freePorts finds ports nobody listens on.
func freePorts(n int) ([]string, error) {
	ports, err := loopback.Free(n)
	var out []string
	for _, port := range ports {
		out = append(out, strconv.Itoa(port))
	}
	return out, err
}
