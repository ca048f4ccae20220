package docs_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/internal/identity"
	"github.com/isobar-mesh/isobar/internal/loopback"
	"github.com/isobar-mesh/isobar/internal/mesh"
)

// lone starts `isobar server` from a YAML file of its own: a cell of one
// server, without workers, with what the environment sets. It ends with t.
func (m *devMesh) lone(t *testing.T, env ...string) *devMesh {
	t.Helper()
	dir := t.TempDir()
	ca, err := identity.NewAuthority("docs", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(identity.Identity{
		Mesh: "docs", Server: "s1", Cell: mesh.Cell{ID: "eu-north-1", Region: "eu-north", Jurisdictions: []string{"eu"}},
	}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	p := ports{API: freePort(t), Peer: freePort(t), Raft: freePort(t), Gossip: freePort(t)}
	config := fmt.Sprintf(`name: s1
mesh: docs
region: eu-north
jurisdictions: [eu]
data: %[1]s/data
bootstrap: true
api: {address: %[2]q}
peer: {address: %[3]q}
raft: {address: %[4]q}
gossip: {address: %[5]q, keys: [%[6]s]}
tls: {ca: %[1]s/ca.pem, cert: %[1]s/cert.pem, key: %[1]s/key.pem}
`, dir, address(p.API), address(p.Peer), address(p.Raft), address(p.Gossip), base64.StdEncoding.EncodeToString(key))
	for name, text := range map[string][]byte{"ca.pem": ca.CertPEM(), "cert.pem": pair.Cert, "key.pem": pair.Key, "server.yaml": []byte(config)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(m.isobar(), "server", "--config", filepath.Join(dir, "server.yaml"))
	cmd.Env = append(clean(os.Environ()), env...)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop(cmd)
		if t.Failed() {
			t.Logf("%s", log.Bytes())
		}
	})
	alone := &devMesh{bin: m.bin, cmd: cmd, servers: map[string]ports{"eu-north": p}}
	eventually(t, "the server leads its cell", func(ctx context.Context) error {
		status, answer, err := alone.post(ctx, "eu-north", "TaskService/List", "{}")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, answer)
		}
		if err == nil && alone.metric(t, "isobar_leading") != 1 {
			err = errors.New("it does not lead yet")
		}
		return err
	})
	return alone
}

func freePort(t *testing.T) int {
	t.Helper()
	ports, err := loopback.Free(1)
	if err != nil {
		t.Fatal(err)
	}
	return ports[0]
}
