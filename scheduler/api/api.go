// Package api is the Connect surface of a server: the services of isobar.v1
// over the scheduler, and the one table from domain errors to codes.
//
// Any server may be asked anything. What belongs to this cell and can be
// answered here is; the rest is forwarded over the mesh once, to the leader of
// the cell it belongs to, and never twice. A task whose residency leaves this
// server out is refused with where to submit it, and no copy, log line or span
// of its body is kept.
package api

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"go.opentelemetry.io/otel/propagation"

	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/registry"
	"github.com/isobar-mesh/isobar/scheduler"
	"github.com/isobar-mesh/isobar/scheduler/peers"
	"github.com/isobar-mesh/isobar/stream"
)

// Headers between servers.
const (
	forwardedHeader = "Isobar-Forwarded"
	homesHeader     = "Isobar-Homes"
)

// Mesh is how the other servers are known and asked.
type Mesh interface {
	// Ask calls the leader of a cell.
	Ask(ctx context.Context, cell mesh.CellID, call func(context.Context, *connect.Client) error) error
	// Identity is what the cell's certificate said.
	Identity(cell mesh.CellID) (mesh.Cell, bool)
}

// Modules is the code store of this server.
type Modules interface {
	// Renew reports whether the module is here, and keeps it from being swept away
	// before what is deployed with it is known.
	Renew(digest string) bool
	peers.Modules
}

// Exchange spreads what was deployed.
type Exchange interface {
	Changed()
	With(ctx context.Context, cell mesh.CellID) error
	Readiness(cell mesh.CellID) (lacks []string, ok bool)
	Missing() []string
}

// Options are what the services stand on.
type Options struct {
	Scheduler *scheduler.Scheduler
	Streams   *stream.Streams
	Log       consensus.Log
	Mesh      Mesh
	Directory peers.Directory
	Registry  *registry.Registry
	Modules   Modules
	Exchange  Exchange
	// CommitRegistry commits one command of the registry's machine.
	CommitRegistry func(ctx context.Context, command []byte) error
	// Spread puts a module on a majority of the cell's servers.
	Spread func(ctx context.Context, digest string, content []byte) error
	// ValidateModule says what is wrong with a wasm module.
	ValidateModule func([]byte) error
	// Homes are the cells that own keyed tasks, the same list on every server
	// of the mesh; empty: the cell that is asked.
	Homes []mesh.CellID
	// Members lists the servers of this cell's log.
	Members func() ([]consensus.Server, error)
	// RTTEmulated says that distances between regions are emulated.
	RTTEmulated bool
	Logger      *slog.Logger
}

// Services are the handlers of one server.
type Services struct {
	Options
	propagator propagation.TraceContext
	homes      streamHomes
}

// New makes the services.
func New(o Options) *Services { return &Services{Options: o} }

// Register adds every service.
func (s *Services) Register(server *connect.Server) {
	isobarv1.RegisterTaskServiceHandler(server, &tasks{Services: s})
	isobarv1.RegisterFunctionServiceHandler(server, &functions{Services: s})
	isobarv1.RegisterWorkerServiceHandler(server, &workers{Services: s})
	isobarv1.RegisterPlacementServiceHandler(server, &decisions{Services: s})
	isobarv1.RegisterMeshServiceHandler(server, &meshes{Services: s})
	isobarv1.RegisterStreamServiceHandler(server, &streams{Services: s})
	isobarv1.RegisterQueueServiceHandler(server, &queues{Services: s})
	isobarv1.RegisterDeadLetterServiceHandler(server, &letters{Services: s})
}

// forwarded reports whether another server passed this request on.
func forwarded(ctx context.Context) bool {
	info, ok := connect.CallInfoForServerContext(ctx)
	return ok && info.RequestHeader().Get(forwardedHeader) != ""
}

// route answers a request here if this server leads the cell, and forwards it
// to that cell's leader otherwise, once.
func route[Req, Res any](ctx context.Context, s *Services, cell mesh.CellID, req Req,
	here func(context.Context, Req) (Res, error), there func(context.Context, *connect.Client, Req) (Res, error),
) (res Res, err error) {
	if cell == s.Scheduler.Cell.ID {
		if s.Scheduler.Leading() {
			// Either error says that nothing was done: the leader that took over may.
			if res, err = here(ctx, req); !errors.Is(err, scheduler.ErrNotLeader) && !errors.Is(err, consensus.ErrNotLeader) {
				return res, err
			}
		}
		if forwarded(ctx) {
			return res, scheduler.ErrNotLeader
		}
	} else if forwarded(ctx) {
		return res, &scheduler.Refusal{
			Reason: scheduler.WrongCell, Cell: cell, Address: s.address(cell), Message: "this is " + string(s.Scheduler.Cell.ID) + ", not " + string(cell),
			Hint: "ask " + string(cell),
		}
	}
	err = s.Mesh.Ask(ctx, cell, func(ctx context.Context, conn *connect.Client) error {
		ctx, info := connect.NewClientContext(ctx)
		info.RequestHeader().Set(forwardedHeader, "1")
		info.RequestHeader().Set(homesHeader, s.homesVersion())
		res, err = there(ctx, conn, req)
		return err
	})
	if errors.Is(err, scheduler.ErrPeerUnavailable) {
		err = s.unavailable(cell, err, errors.Is(err, peers.ErrAnswerLost))
	}
	return res, err
}

// unavailable says that a cell could not be asked; unknown, that it may have
// been and only its answer is missing.
func (s *Services) unavailable(cell mesh.CellID, err error, unknown bool) error {
	return &scheduler.Refusal{
		Reason: scheduler.HomeUnavailable, Cell: cell, Address: s.address(cell), RetryAfter: time.Second, Unknown: unknown, Err: err,
		Message: "no server of " + string(cell) + " answers for it", Hint: "try again; what " + string(cell) + " accepted is kept there",
	}
}

// address is the API address of some live server of a cell; "" when none is known.
func (s *Services) address(cell mesh.CellID) string {
	found := ""
	for _, srv := range s.Directory.Servers() {
		if srv.Cell == cell && (found == "" || srv.Alive) {
			found = srv.API
			if srv.Alive {
				break
			}
		}
	}
	return found
}

// homesVersion names the list of home cells.
func (s *Services) homesVersion() string {
	h := fnv.New64a()
	for _, c := range s.Homes {
		_, _ = h.Write([]byte(string(c) + "\n"))
	}
	return strconv.FormatUint(h.Sum64(), 16)
}

// checkHomes refuses a keyed task that was forwarded by a server with another
// list: two lists would give one key two homes.
func (s *Services) checkHomes(ctx context.Context) error {
	info, ok := connect.CallInfoForServerContext(ctx)
	if !ok || !forwarded(ctx) {
		return nil
	}
	if got := info.RequestHeader().Get(homesHeader); got != s.homesVersion() {
		return &scheduler.Refusal{
			Reason: scheduler.HomesDiffer, Message: "the servers of the mesh disagree about the list of home cells",
			Hint: "give every server the same `homes`",
		}
	}
	return nil
}

// keyedHome is the cell that owns a key: rendezvous hashing over the home cells
// within the residency.
func (s *Services) keyedHome(tenant, key string, res mesh.Residency) (mesh.CellID, error) {
	if len(s.Homes) == 0 {
		return s.Scheduler.Cell.ID, nil
	}
	var best mesh.CellID
	var score uint64
	for _, id := range s.Homes {
		cell := s.Scheduler.Cell
		if id != cell.ID {
			var ok bool
			if cell, ok = s.Mesh.Identity(id); !ok && res.Bound() {
				// Not knowing whether it is allowed, any choice may be a second home.
				return "", s.unavailable(id, scheduler.ErrPeerUnavailable, false)
			}
		}
		if res.Bound() && !cell.Within(res) {
			continue
		}
		h := fnv.New64a()
		_, _ = h.Write([]byte(tenant + "\x00" + key + "\x00" + string(id)))
		if x := mix(h.Sum64()); best == "" || x > score {
			best, score = id, x
		}
	}
	if best == "" {
		return "", &scheduler.Refusal{
			Reason: scheduler.ResidencyForbids, Field: "residency", Message: "no home cell lies within the residency",
			Hint: "home cells are " + joinCells(s.Homes),
		}
	}
	return best, nil
}

// mix spreads the bits of an FNV hash, whose high bits move little for inputs
// that differ only at the end (finaliser of splitmix64).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

func joinCells(cells []mesh.CellID) string {
	names := make([]string, len(cells))
	for i, c := range cells {
		names[i] = string(c)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// traceparent is the W3C trace context of the span this request is served in.
func (s *Services) traceparent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	s.propagator.Inject(ctx, carrier)
	return carrier["traceparent"]
}

// taskCell is the home in a task id.
func taskCell(id string) (mesh.CellID, error) {
	cell, _, err := mesh.TaskID(id).Home()
	if err != nil {
		return "", &scheduler.Refusal{
			Reason: scheduler.BadRequest, Field: "taskId", Message: fmt.Sprintf("%.80q is not a task id", id),
			Hint: "an id looks like 01jd…-eu-north-1-k3f9ab; Submit returns it",
		}
	}
	return cell, nil
}
